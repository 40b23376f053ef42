"""A bounded number of connections, served first come first served, each use with one deadline."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation, PoolUse
from hubbub.postgres.connection import connect
from hubbub.postgres.failures import LEFT_HALFWAY, LOST, SENT_AGAIN
from hubbub.postgres.lookup import Lookup, Lookups
from hubbub.postgres.outage import Outage
from hubbub.postgres.run import carry_out, now, run, too_late
from hubbub.postgres.statement import Statement, count_of
from hubbub.postgres.transaction import Transaction

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection
    from hubbub.settings import PostgresSettings

T = TypeVar("T")
R = TypeVar("R")

# How long a cancelled statement may take to stop before its connection is terminated.
CANCEL_GRACE_SECONDS = 1.0
# A statement that is safe to send again is sent this often in all.
ATTEMPTS = 3


class _NoConnection(Exception):
    """No connection is idle, and the server gives no new one."""

    def __init__(self, trouble: Unavailable) -> None:
        super().__init__()
        self.trouble = trouble


class Pool:
    """Connections to PostgreSQL: at most `settings.pool_size`, opened when needed, closed when idle too long.

    Callers are served in the order in which they came. The connection used last is used next, so that those which
    a burst needed fall idle. Nothing is reset between uses: what hubbub runs leaves no session state behind.

    One deadline, `settings.deadline_seconds`, covers waiting for a connection, the statement and its answer.
    asyncpg's own pool does none of the three, and costs a task a release: in one interleaved run this one did 1.6
    times its statements a second at 20 and at 200 callers (docs/decisions.md).
    """

    def __init__(self, settings: PostgresSettings, instrumentation: Instrumentation = SILENT) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self._waiting = 0
        self._gate = asyncio.Semaphore(settings.pool_size)
        self._idle: deque[tuple[float, Connection]] = deque()  # when it fell idle; the longest idle first
        self._used: set[Connection] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._outage = Outage(self._reach)
        self._lookups = Lookups(self, settings.deadline_seconds)
        self._closed = False

    async def open(self) -> None:
        """Connect once, so that a wrong setting is told now.

        A server that is starting, overrun or full is tried again until the deadline, with pauses: all processes of
        an application may start at once. Raises `Unavailable`.
        """
        deadline = self.deadline()
        while True:
            try:
                self._release(await self._acquire(deadline))
            except Unavailable as failure:
                if now() >= deadline or not _may_pass(failure):
                    raise
            else:
                return

    async def close(self) -> None:
        """Refuse new callers, wait for those at work until the deadline, close every connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        await self._outage.close()
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                for _ in range(self._settings.pool_size):
                    await self._gate.acquire()
                closing = [connection.close() for _, connection in self._idle]
                await asyncio.gather(*closing, return_exceptions=True)
        except TimeoutError:
            pass  # what did not close in time is terminated below
        finally:
            for connection in [*self._used, *(connection for _, connection in self._idle)]:
                connection.terminate()
            self._idle.clear()
        await asyncio.gather(*self._background, self._lookups.close(), return_exceptions=True)

    @property
    def size(self) -> int:
        """Connections that are open."""
        return len(self._used) + len(self._idle)

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return len(self._idle)

    @property
    def use(self) -> PoolUse:
        """How busy it is at this moment."""
        return PoolUse(self._settings.pool_size, self.size, len(self._used), self._waiting)

    def deadline(self) -> float:
        return now() + self._settings.deadline_seconds

    async def fetch_all(self, statement: Statement[T], *args: object, by: float | None = None) -> list[T]:
        rows = await self._run(statement, lambda connection: connection.fetch(statement.sql, *args), by)
        model = statement.model
        return [model(*row) for row in rows]

    async def fetch_one(self, statement: Statement[T], *args: object, by: float | None = None) -> T | None:
        row = await self._run(statement, lambda connection: connection.fetchrow(statement.sql, *args), by)
        return None if row is None else statement.model(*row)

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        return self._lookups.find(lookup, key)

    def fetch_shared(self, statement: Statement[T], *args: object, by: float | None = None) -> Awaitable[list[T]]:
        return self._lookups.share(statement, args, by)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        tag = await self._run(statement, lambda connection: connection.execute(statement.sql, *args))
        return count_of(tag)

    attempt = fetch_all  # a statement on its own is a transaction on its own

    def after_commit(self, action: Callable[[], None]) -> None:
        """A statement on the pool has committed when it returns: the action runs now."""
        carry_out((action,))

    @asynccontextmanager
    async def transaction(self, *, by: float | None = None) -> AsyncIterator[Transaction]:
        """All that is done in the block, or none of it.

        What `after_commit` was given runs once the COMMIT is acknowledged. A COMMIT whose answer was lost raises
        `Unavailable` with `outcome_unknown`. Without `by` each statement has a deadline of its own.
        """
        connection = await self._acquire(self.deadline() if by is None else by)
        try:
            async with Transaction.on(
                connection, self._settings.deadline_seconds, by, self._instrumentation
            ) as transaction:
                yield transaction
        finally:
            self._release(connection)
        transaction.leave()

    async def _run(
        self, statement: Statement[T], call: Callable[[Connection], Awaitable[R]], by: float | None = None
    ) -> R:
        seconds = self._settings.deadline_seconds
        if by is not None and now() >= by:
            raise too_late(seconds, outcome_unknown=False)
        deadline = now() + seconds if by is None else by
        attempt = 1
        while True:
            connection = await self._acquire(deadline)
            try:
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
                if isinstance(refusal.__cause__, LEFT_HALFWAY):
                    await _settle(connection)
                raise
            except Unavailable as failure:
                pause = random.uniform(0.001, 0.02) * attempt  # noqa: S311 - jitter, not a secret
                if attempt == ATTEMPTS or now() + pause >= deadline or not _may_repeat(statement, failure):
                    raise
            finally:
                self._release(connection)
            await asyncio.sleep(pause)
            attempt += 1

    async def _acquire(self, deadline: float) -> Connection:
        while True:
            if self._outage.trouble is not None and not self._idle and not self._closed:
                await self._outage.next_attempt(deadline - now())
            try:
                return await self._take(deadline)
            except _NoConnection as failure:
                # Those in use come back, though no new one can be had.
                if not self._used or now() >= deadline:
                    raise failure.trouble.for_another() from None

    async def _reach(self) -> None:
        """Connect, or find that a connection has come back meanwhile."""
        deadline = now() + self._settings.connect_timeout_seconds
        self._release(await self._take(deadline, is_attempt=True))

    async def _take(self, deadline: float, *, is_attempt: bool = False) -> Connection:
        if self._closed:
            raise Unavailable("hub", "it is closed", retryable=False)
        if self._gate.locked():
            await self._wait_in_line(deadline)
        else:
            await self._gate.acquire()  # at once: a timeout around it would cost more than all the rest of this
        try:
            connection = await self._ready(deadline, is_attempt=is_attempt)
        except BaseException:
            self._gate.release()
            raise
        self._used.add(connection)
        return connection

    async def _wait_in_line(self, deadline: float) -> None:
        since = now()
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._gate.acquire()
        except TimeoutError as error:
            raise too_late(self._settings.deadline_seconds, outcome_unknown=False) from error
        finally:
            self._waiting -= 1
            self._instrumentation.waited(now() - since)

    async def _ready(self, deadline: float, *, is_attempt: bool) -> Connection:
        """An open connection that nobody uses: the one used last, or a new one.

        In an outage only its attempts make one: those who stood in line when it began would try one by one.
        """
        if self._closed:  # while this caller was waiting
            raise Unavailable("hub", "it is closed", retryable=False)
        while self._idle:
            _, connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        if self._outage.trouble is not None and not is_attempt:
            raise _NoConnection(self._outage.trouble)
        since = now()
        left = max(deadline - since, 0.001)
        try:
            connection = await connect(
                self._settings, within_seconds=left, server_settings=self._server_settings()
            )
        except Unavailable as trouble:
            if not self._came_late(trouble, left):
                self._outage.goes_on(trouble, now() - since)
            raise
        self._outage.is_over()
        self._instrumentation.connected("postgresql")
        return connection

    def _came_late(self, trouble: Unavailable, left: float) -> bool:
        """Whether the caller had too little time left for a connection, which says nothing of the server."""
        enough = min(self._settings.connect_timeout_seconds, self._settings.deadline_seconds / 2)
        return isinstance(trouble.__cause__, TimeoutError) and left < enough

    def _server_settings(self) -> dict[str, str]:
        """The server gives up on a statement when its caller has: losing the connection alone does not end it.

        Not behind a transaction pooler, which refuses settings that outlive a transaction.
        """
        if not self._settings.prepared_statements:
            return {}
        return {"statement_timeout": str(round(self._settings.deadline_seconds * 1000))}

    def _release(self, connection: Connection) -> None:
        """Give the connection back; where its statement was cancelled, only after the server has stopped it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling() and not connection.is_closed():
            settling = asyncio.create_task(_settle(connection), name="hubbub: settle a cancelled connection")
            self._background.add(settling)
            # Not by the task itself: one that is cancelled before its first step runs none of its code.
            settling.add_done_callback(partial(self._settled, connection))
        else:
            self._give_back(connection)

    def _settled(self, connection: Connection, settling: asyncio.Task[None]) -> None:
        self._background.discard(settling)
        if settling.cancelled():
            connection.terminate()
        self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        self._used.discard(connection)
        if not connection.is_closed():
            self._idle.append((now(), connection))
            self._outage.connection_is_back()
            if self._reaper is None and not self._closed:
                self._reap_in(self._settings.idle_timeout_seconds)
        self._gate.release()

    def _reap_in(self, seconds: float) -> None:
        self._reaper = asyncio.get_running_loop().call_later(seconds, self._reap)

    def _reap(self) -> None:
        """Close what has been idle too long. Terminating sends the farewell and does not wait for an answer."""
        self._reaper = None
        limit = self._settings.idle_timeout_seconds
        while self._idle and now() - self._idle[0][0] >= limit:
            self._idle.popleft()[1].terminate()
        if self._idle:
            self._reap_in(max(self._idle[0][0] + limit - now(), 0.001))


def _may_repeat(statement: Statement[T], failure: Unavailable) -> bool:
    """Whether sending the statement again cannot do its work twice."""
    cause = failure.__cause__
    return isinstance(cause, SENT_AGAIN) or (statement.repeatable and isinstance(cause, LOST))


def _may_pass(failure: Unavailable) -> bool:
    """Whether a server that takes no connection now may take one soon: it is there, and says so or nothing."""
    cause = failure.__cause__
    return failure.retryable and (isinstance(cause, TimeoutError) or not isinstance(cause, OSError))


async def _settle(connection: Connection) -> None:
    """Have the server end what it is at: a statement that was cancelled, or never sent as a whole.

    Any statement does: asyncpg sends it once the cancellation that it has asked for is answered.
    """
    try:
        await run(
            connection,
            lambda connection: connection.execute("SELECT 1"),
            deadline=now() + CANCEL_GRACE_SECONDS,
            seconds=CANCEL_GRACE_SECONDS,
            writes=False,
            name="settle",
        )
    except HubbubError:
        connection.terminate()
