"""The servers of `DATABASE_URL`, of which one is the primary, and how it is found.

    unknown ----all are asked----> known --it does not answer in `HEAD_START_SECONDS`, refuses, or is a standby-->
       ^                             ^      all are asked
       |                             |        |
       |                             +--------+ the first that takes changes
       +--a change was refused as on a standby--+

A standby reports `in_hot_standby` in the handshake, so no extra round trip is needed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from typing import Final

from hubbub.background import jittered, wait_at_most
from hubbub.errors import Unavailable
from hubbub.postgres.connection import Connection, connect_to, now, run
from hubbub.postgres.errors import READ_ONLY
from hubbub.settings import Address, PostgresSettings

HEAD_START_SECONDS: Final = 0.2
"""How long the last primary alone is asked. A server of the same region answers in a few milliseconds, so standbys
are not asked at each connect; and a failover from a server that hangs is not delayed by much."""

ASK_AGAIN_SECONDS: Final = 0.25
"""The longest pause before a standby is asked again while another server does not answer: it may be promoted."""


class Hosts:
    """Connects to the primary. With a single server nothing is searched, and a standby is as good as a primary."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self.addresses = settings.addresses
        self._primary: Address | None = None
        """The server of the last connection."""

    async def connect(
        self, *, within_seconds: float = inf, server_settings: dict[str, str] | None = None
    ) -> Connection:
        """A connection, opened within `settings.connect_timeout_seconds` or `within_seconds`, if that is shorter.

        Of several servers each has that time. `server_settings` hold for the life of the connection.
        Raises: Unavailable (it names all servers, each with the reason).
        """
        seconds = min(self._settings.connect_timeout_seconds, within_seconds)
        if len(self.addresses) == 1:
            return await connect_to(self._settings, self.addresses[0], seconds, server_settings)
        connection = await _Search(self._settings, self._primary, seconds, server_settings).result()
        self._primary = connection.address
        return connection

    def is_not_primary(self, address: Address) -> None:
        """The server has refused a change."""
        if self._primary == address:
            self._primary = None


class _Search:
    """Asks all servers at the same time for a connection that takes changes."""

    def __init__(
        self,
        settings: PostgresSettings,
        first: Address | None,
        seconds: float,
        server_settings: dict[str, str] | None,
    ) -> None:
        self._settings = settings
        self._addresses = settings.addresses
        self._first = first
        self._seconds = seconds
        self._deadline = now() + seconds
        self._server_settings = server_settings
        self._failures: dict[Address, Unavailable] = {}
        self._head_start_is_over = asyncio.Event()

    async def result(self) -> Connection:
        """Raises: Unavailable (each server has refused, is a standby, or gave no answer in time)."""
        tasks = [
            asyncio.create_task(self._ask(address), name=f"hubbub: ask {address}") for address in self._addresses
        ]
        found: Connection | None = None
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                found = found or task.result()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError:
                found = None
                raise
            finally:
                for task in tasks:
                    task.add_done_callback(partial(_terminate_other, found))
        if found is None:
            raise self._no_primary()
        return found

    async def _ask(self, address: Address) -> Connection | None:
        """A connection, also if the server is promoted meanwhile. None once all servers have failed."""
        if self._first not in {None, address}:
            await wait_at_most(self._head_start_is_over, HEAD_START_SECONDS)
        while True:
            try:
                return await self._connect(address)
            except Unavailable as failure:
                # A later timeout is less informative than an earlier error.
                if address not in self._failures or not isinstance(failure.__cause__, TimeoutError):
                    self._failures[address] = failure
            self._head_start_is_over.set()
            if len(self._failures) == len(self._addresses):
                return None
            await asyncio.sleep(jittered(ASK_AGAIN_SECONDS))

    async def _connect(self, address: Address) -> Connection:
        # The rest of the time, except for a server that is asked for the first time after its end.
        seconds = max(self._deadline - now(), 0.001)
        connection = await connect_to(self._settings, address, seconds, self._server_settings)
        is_standby = True
        try:
            is_standby = connection.is_wrong_server or await self._is_in_recovery(connection)
        finally:
            if is_standby:
                connection.terminate()
        if is_standby:
            raise Unavailable("postgresql", f"{address}: {READ_ONLY}")
        return connection

    async def _is_in_recovery(self, connection: Connection) -> bool:
        """Asks a server behind a pooler, which does not pass on what the server reports."""
        if hasattr(connection.get_settings(), "in_hot_standby"):
            return False
        return await run(
            connection,
            lambda connection: connection.fetchval("SELECT pg_is_in_recovery()"),
            deadline=self._deadline,
            seconds=self._seconds,
            writes=False,
            name="hosts.is_in_recovery",
        )

    def _no_primary(self) -> Unavailable:
        """Its cause is a timeout if there was one, and a refused connection only if there was nothing else."""
        failures = [self._failures[address] for address in self._addresses]
        reasons = "; ".join(failure.reason for failure in failures)
        causes = [failure.__cause__ for failure in failures]
        error = Unavailable(
            "postgresql",
            f"none of {len(failures)} hosts is a primary in reach: {reasons}",
            retryable=any(failure.retryable for failure in failures),
        )
        all_refused = all(isinstance(cause, OSError) for cause in causes)
        error.__cause__ = next(
            (cause for cause in causes if isinstance(cause, TimeoutError)), causes[0] if all_refused else None
        )
        return error


async def connect(
    settings: PostgresSettings, *, within_seconds: float = inf, server_settings: dict[str, str] | None = None
) -> Connection:
    """A connection outside of any pool, as `Hosts.connect` opens it."""
    return await Hosts(settings).connect(within_seconds=within_seconds, server_settings=server_settings)


def _terminate_other(found: Connection | None, task: asyncio.Task[Connection | None]) -> None:
    other = None if task.cancelled() or task.exception() is not None else task.result()
    if other is not None and other is not found:
        other.terminate()
