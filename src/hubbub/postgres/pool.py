"""Statements and transactions on a bounded number of connections, each with one deadline."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from hubbub.errors import Invalid, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation, PoolUse
from hubbub.postgres.connections import Connections, settle
from hubbub.postgres.failures import LEFT_HALFWAY, LOST, SENT_AGAIN
from hubbub.postgres.lookup import Lookup, Lookups
from hubbub.postgres.run import carry_out, now, run, too_late
from hubbub.postgres.statement import Statement, count_of
from hubbub.postgres.transaction import Transaction

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection
    from hubbub.settings import PostgresSettings

T = TypeVar("T")
R = TypeVar("R")

# A statement that is safe to send again is sent this often in all.
ATTEMPTS = 3


class Pool:
    """Runs statements on at most `settings.pool_size` connections, for callers in the order in which they came.

    One deadline, `settings.deadline_seconds`, covers waiting for a connection, the statement and its answer.
    asyncpg's own pool does none of the three, and costs a task a release: in one interleaved run this one did 1.6
    times its statements a second at 20 and at 200 callers (docs/decisions.md).
    """

    def __init__(self, settings: PostgresSettings, instrumentation: Instrumentation = SILENT) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self._connections = Connections(settings, instrumentation)
        self._lookups = Lookups(self, settings.deadline_seconds)
        self._closed = False

    async def open(self) -> None:
        """Connect once, so that a wrong setting is told now.

        A server that is starting, overrun or full is tried again until the deadline, with pauses: all processes of
        an application may start at once. Raises `Unavailable`.
        """
        await self._connections.open()

    async def close(self) -> None:
        """Refuse new callers, wait for those at work until the deadline, close every connection. Idempotent."""
        if not self._closed:
            self._closed = True
            await self._connections.close()
            await self._lookups.close()

    @property
    def size(self) -> int:
        """Connections that are open."""
        return self._connections.idle + self._connections.in_use

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return self._connections.idle

    @property
    def use(self) -> PoolUse:
        """How busy it is at this moment."""
        return PoolUse(self._settings.pool_size, self.size, self._connections.in_use, self._connections.waiting)

    def deadline(self) -> float:
        return now() + self._settings.deadline_seconds

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        rows = await self._run(statement, lambda connection: connection.fetch(statement.sql, *args), deadline)
        model = statement.model
        return [model(*row) for row in rows]

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        row = await self._run(statement, lambda connection: connection.fetchrow(statement.sql, *args), deadline)
        return None if row is None else statement.model(*row)

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        return self._lookups.find(lookup, key)

    def fetch_shared(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        return self._lookups.share(statement, args, deadline)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        tag = await self._run(statement, lambda connection: connection.execute(statement.sql, *args))
        return count_of(tag)

    attempt = fetch_all  # a statement on its own is a transaction on its own

    def after_commit(self, action: Callable[[], None]) -> None:
        """A statement on the pool has committed when it returns: the action runs now."""
        carry_out((action,))

    @asynccontextmanager
    async def transaction(self, *, deadline: float | None = None) -> AsyncIterator[Transaction]:
        """All that is done in the block, or none of it.

        What `after_commit` was given runs once the COMMIT is acknowledged. A COMMIT whose answer was lost raises
        `Unavailable` with `outcome_unknown`. Without `by` each statement has a deadline of its own.
        """
        connection = await self._connections.acquire(self.deadline() if deadline is None else deadline)
        try:
            async with Transaction.on(
                connection, self._settings.deadline_seconds, deadline, self._instrumentation
            ) as transaction:
                yield transaction
        finally:
            self._connections.release(connection)
        transaction.leave()

    async def _run(
        self, statement: Statement[T], call: Callable[[Connection], Awaitable[R]], deadline: float | None = None
    ) -> R:
        seconds = self._settings.deadline_seconds
        if deadline is not None and now() >= deadline:
            raise too_late(seconds, outcome_unknown=False)
        deadline = now() + seconds if deadline is None else deadline
        attempt, may_be_done = 1, False
        while True:
            connection = None
            try:
                connection = await self._connections.acquire(deadline)
                return await run(
                    connection,
                    call,
                    deadline=deadline,
                    seconds=seconds,
                    writes=statement.writes,
                    name=statement.name,
                    instrumentation=self._instrumentation,
                )
            except Invalid as refusal:
                if connection is not None and isinstance(refusal.__cause__, LEFT_HALFWAY):
                    await settle(connection)
                raise
            except Unavailable as failure:
                may_be_done = may_be_done or failure.outcome_unknown
                pause = random.uniform(0.001, 0.02) * attempt  # noqa: S311 - jitter, not a secret
                is_last = connection is None or attempt == ATTEMPTS or now() + pause >= deadline
                if is_last or not _may_repeat(statement, failure):
                    if may_be_done and not failure.outcome_unknown:
                        raise failure.with_unknown_outcome() from failure
                    raise
            finally:
                if connection is not None:
                    self._connections.release(connection)
            await asyncio.sleep(pause)
            attempt += 1


def _may_repeat(statement: Statement[T], failure: Unavailable) -> bool:
    """Whether sending the statement again cannot do its work twice."""
    cause = failure.__cause__
    return isinstance(cause, SENT_AGAIN) or (statement.repeatable and isinstance(cause, LOST))
