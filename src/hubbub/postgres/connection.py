"""One connection to PostgreSQL: finding the primary, connecting, and running one call at a time until a deadline.

The servers of `DATABASE_URL`, of which one is the primary:

    unknown ----all are asked----> known --it does not answer in `HEAD_START_SECONDS`, refuses, or is a standby-->
       ^                             ^      all are asked
       |                             |        |
       |                             +--------+ the first that takes changes
       +--a change was refused as on a standby--+

A standby reports `in_hot_standby` in the handshake, so no extra round trip is needed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from hubbub.background import jittered, wait_at_most
from hubbub.errors import HubbubError, Unavailable, without_frames
from hubbub.forks import abandon_in_child, forked, replace_with_dead_socket
from hubbub.instrumentation import SILENT, Instrumentation, Outcome
from hubbub.postgres.errors import (
    FAILURES,
    READ_ONLY,
    REFUSALS,
    connection_refused_by_pooler,
    deadline_passed,
    is_of_standby,
    to_error,
)
from hubbub.settings import Address, PostgresSettings
from hubbub.settings.tls import failure_in

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

R = TypeVar("R")

CANCEL_GRACE_SECONDS: Final = 1.0
"""How long a cancelled statement may take to stop before its connection is terminated. A server that is up stops
one within milliseconds. Meanwhile the connection serves no other caller."""

HEAD_START_SECONDS: Final = 0.2
"""How long the last primary alone is asked. A server of the same region answers in a few milliseconds, so standbys
are not asked at each connect; and a failover from a server that hangs is not delayed by much."""

ASK_AGAIN_SECONDS: Final = 0.25
"""The longest pause before a standby is asked again while another server does not answer: it may be promoted."""


class Connection(_Connection):
    """A connection of asyncpg that is closed in a child process, and there alone."""

    __slots__ = ("address", "idle_since", "is_abandoned", "is_wrong_server", "layout", "quiet_since", "schema")

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - asyncpg makes it
        super().__init__(*args, **options)
        self.is_abandoned = False
        self.idle_since = -inf
        """When it became idle in the pool last, before it was used again. `-inf` until it was."""
        self.quiet_since = inf
        """When the last statement of its transaction ended, by `time.monotonic`. `inf` during a statement."""
        self.address = Address("", 0)
        """The server."""
        self.schema = ""
        """The schema of hubbub's tables."""
        self.layout = ""
        """The key of the SQL of a statement (`Statement.in_layout`)."""
        self.is_wrong_server = False
        """Whether the server was read-only when it was asked last. The name may lead to another one by now."""
        abandon_in_child(self.abandon)

    def abandon(self) -> None:
        """In a child process: closed without a message to the server, also when it is garbage-collected."""
        replace_with_dead_socket(self._transport)  # type: ignore[attr-defined]  # not in the stubs
        self.is_abandoned = self._aborted = True

    async def execute_one(self, sql: str, args: Sequence[object]) -> str:
        """Run one statement, and return its command tag. `execute` takes several at once without arguments."""
        _, tag, _ = await self._execute(sql, args, 0, None, return_status=True)  # type: ignore[attr-defined]
        return bytes(tag).decode()

    def _cancel_current_command(self, *waiters: asyncio.Future[None]) -> None:
        """Called by asyncpg to end a statement on the server. In a child that statement is the parent's."""
        if not self.is_abandoned:
            super()._cancel_current_command(*waiters)  # type: ignore[misc]  # not in the stubs
            return
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def now() -> float:
    """The time of the event loop, in seconds. Deadlines are such times."""
    return asyncio.get_running_loop().time()


async def connect_to(
    settings: PostgresSettings, address: Address, seconds: float, server_settings: dict[str, str] | None = None
) -> Connection:
    """A connection to this one server. Raises: Unavailable (it names the server)."""
    try:
        connection: Connection = await asyncpg.connect(
            connection_class=Connection,
            host=address.host,
            port=address.port,
            database=settings.database,
            user=settings.user,
            password=settings.password,
            ssl=settings.ssl(),
            timeout=seconds,
            # Room for all statements of hubbub and for as many of the application's own. 0 leaves all of them
            # unnamed, as a transaction pooler needs.
            statement_cache_size=400 if settings.prepared_statements else 0,
            # No limit, because the statements are fixed. asyncpg's default would prepare them again every five
            # minutes, which would make a call slow.
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "hubbub", "timezone": "UTC", **(server_settings or {})},
        )
    except FAILURES as error:
        raise _cannot_connect(str(address), error, seconds) from without_frames(error)
    connection.address = address
    connection.schema = connection.layout = settings.schema
    reported = connection.get_settings()  # PostgreSQL reports both from version 14 on
    connection.is_wrong_server = "on" in (
        getattr(reported, "in_hot_standby", None),
        getattr(reported, "default_transaction_read_only", None),
    )
    return connection


def _cannot_connect(server: str, error: Exception, seconds: float) -> Unavailable:
    """Names the server and the reason, without a secret."""
    if isinstance(error, ssl.SSLError):
        return Unavailable("postgresql", f"TLS with {server} failed: {failure_in(error)}", retryable=False)
    if isinstance(error, TimeoutError):
        return Unavailable("postgresql", f"no connection to {server} within {seconds:g} s")
    if isinstance(error, OSError):
        return Unavailable("postgresql", f"cannot connect to {server}: {error.strerror or error}")
    if (refusal := connection_refused_by_pooler(error, server)) is not None:
        return refusal
    known = to_error(error, writes=False, lost=True)
    if isinstance(known, Unavailable):
        return Unavailable("postgresql", f"{server}: {known.reason}", retryable=known.retryable)
    return Unavailable("postgresql", f"{server} refused the connection: {error}", retryable=False)


async def run(
    connection: Connection,
    call: Callable[[Connection], Awaitable[R]],
    *,
    deadline: float,
    seconds: float,
    writes: bool,
    name: str,
    instrumentation: Instrumentation = SILENT,
) -> R:
    """Await `call(connection)` until `deadline`, which is `seconds` after the start of the caller.

    `writes`: whether a lost answer leaves the outcome unknown. `name` is reported to the instrumentation.
    Raises: the errors of `hubbub.errors`.
    """
    # Neither `asyncio.wait_for` nor asyncpg's own `timeout=` will do. Both first ask the server, over a second
    # connection, to cancel the statement, and a frozen server never answers. Terminating the connection fails the
    # call at once, in any state of the server. The pool replaces the connection.
    timer = asyncio.get_running_loop().call_at(deadline, connection.terminate)
    outcome: Outcome = "failed"
    # Without instrumentation the clock is not read: it is a third of the cost of all of this.
    since = 0.0 if instrumentation is SILENT else perf_counter()
    try:
        result = await call(connection)
        outcome = "ok"
    except FAILURES as error:
        if isinstance(error, REFUSALS):
            outcome = "refused"
        elif is_of_standby(error):
            connection.is_wrong_server = True
        if connection.is_abandoned:
            raise forked() from error
        if now() >= deadline:
            raise deadline_passed(seconds, outcome_unknown=writes) from error
        known = to_error(error, writes=writes, lost=connection.is_closed())
        if isinstance(error, asyncpg.InternalClientError):
            connection.terminate()  # what it will send next may be the answer to this statement
        if known is None:
            raise
        raise known from error
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        timer.cancel()
        if instrumentation is not SILENT:
            instrumentation.queried(name, perf_counter() - since, outcome)
    return result


async def drain_cancelled(connection: Connection) -> None:
    """Have the server end a statement that was cancelled or not sent to its end, so that the connection is usable.

    Any statement does that: asyncpg sends it once the cancellation that it has requested is answered. A connection
    on which it fails is terminated.
    """
    try:
        await run(
            connection,
            lambda connection: connection.execute("SELECT 1"),
            deadline=now() + CANCEL_GRACE_SECONDS,
            seconds=CANCEL_GRACE_SECONDS,
            writes=False,
            name="drain",
        )
    except HubbubError:
        connection.terminate()


# The primary


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
