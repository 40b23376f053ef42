"""A bounded number of connections, each given to the caller who has waited longest."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Unavailable
from hubbub.postgres.connection import connect
from hubbub.postgres.outage import Outage
from hubbub.postgres.run import now, run, too_late

if TYPE_CHECKING:
    from hubbub.instrumentation import Instrumentation
    from hubbub.postgres.connection import Connection
    from hubbub.settings import PostgresSettings

# How long a cancelled statement may take to stop before its connection is terminated.
CANCEL_GRACE_SECONDS = 1.0


class _NoConnection(Exception):
    """No connection is idle, and the server gives no new one."""

    def __init__(self, trouble: Unavailable) -> None:
        super().__init__()
        self.trouble = trouble


class Connections:
    """At most `settings.pool_size` connections, opened when needed, closed when idle too long.

    Callers are served in the order in which they came. The connection used last is used next, so that those which
    a burst needed fall idle. Nothing is reset between uses: what hubbub runs leaves no session state behind.
    """

    def __init__(self, settings: PostgresSettings, instrumentation: Instrumentation) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self.waiting = 0
        """Callers that wait for a connection."""
        self._gate = asyncio.Semaphore(settings.pool_size)
        self._idle: deque[tuple[float, Connection]] = deque()  # when it fell idle; the longest idle first
        self._used: set[Connection] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._outage = Outage(self._reach)
        self._closed = False

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Connections that somebody has, or that are being settled after him."""
        return len(self._used)

    async def open(self) -> None:
        """Connect once. A server that is starting, overrun or full is tried again until the deadline."""
        deadline = now() + self._settings.deadline_seconds
        while True:
            try:
                self.release(await self.acquire(deadline))
            except Unavailable as failure:
                if now() >= deadline or not _may_pass(failure):
                    raise
            else:
                return

    async def close(self) -> None:
        """Refuse new callers, wait for those at work until the deadline, close every connection."""
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
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def acquire(self, deadline: float) -> Connection:
        """A connection for the caller alone, who has to `release` it. Raises `Unavailable`."""
        while True:
            if self._outage.trouble is not None and not self._idle and not self._closed:
                await self._outage.next_attempt(deadline - now())
            try:
                return await self._take(deadline)
            except _NoConnection as failure:
                # Those in use come back, though no new one can be had.
                if not self._used or now() >= deadline:
                    raise failure.trouble.for_another() from None

    def release(self, connection: Connection) -> None:
        """Give the connection back; where its statement was cancelled, only after the server has stopped it."""
        task = asyncio.current_task()
        if task is not None and task.cancelling() and not connection.is_closed():
            settling = asyncio.create_task(settle(connection), name="hubbub: settle a cancelled connection")
            self._settling.add(settling)
            # Not by the task itself: one that is cancelled before its first step runs none of its code.
            settling.add_done_callback(partial(self._settled, connection))
        else:
            self._give_back(connection)

    async def _reach(self) -> None:
        """Connect, or find that a connection has come back meanwhile."""
        deadline = now() + self._settings.connect_timeout_seconds
        self.release(await self._take(deadline, is_attempt=True))

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
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._gate.acquire()
        except TimeoutError as error:
            raise too_late(self._settings.deadline_seconds, outcome_unknown=False) from error
        finally:
            self.waiting -= 1
            with ReportErrors("the instrumentation"):
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
        with ReportErrors("the instrumentation"):
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

    def _settled(self, connection: Connection, settling: asyncio.Task[None]) -> None:
        self._settling.discard(settling)
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


def _may_pass(failure: Unavailable) -> bool:
    """Whether a server that takes no connection now may take one soon: it is there, and says so or nothing."""
    cause = failure.__cause__
    return failure.retryable and (isinstance(cause, TimeoutError) or not isinstance(cause, OSError))


async def settle(connection: Connection) -> None:
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
