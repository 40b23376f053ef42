"""Statements and transactions on a bounded number of connections, each with one deadline.

A connection:

    opened --> in use --released--> idle --in use again, or closed after `idle_timeout_seconds`
                 |
                 +--its statement was cancelled--> draining --stopped--> idle
                 |                                    |
                 |                                    +--not stopped in 1 s--> terminated
                 +--deadline passed, or lost--> terminated, with all that are idle for longer
                 +--released, and the server is read-only, as a standby--> terminated
                 +--a newer connection has found the primary at another host--> terminated

The way to the server:

    reachable --a connection fails--> unreachable --an attempt succeeds--> reachable
                                        |     ^
                                        +-----+ one attempt at a time for all callers, after a jittered pause
    reachable --the first connection after all were closed finds rooms distributed meanwhile--> refused for good

A slot of the semaphore is held from `acquire` until the connection is idle or terminated. So at most `pool_size`
connections exist, and the semaphore serves callers in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Set
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Final, TypeVar
from uuid import UUID
from weakref import WeakSet

from hubbub.background import BackgroundTask, jittered, wait_at_most, wrong_event_loop
from hubbub.batching import closed
from hubbub.errors import Invalid, Unavailable
from hubbub.forks import abandon_in_child, forked
from hubbub.instrumentation import SILENT, Instrumentation, PoolUse
from hubbub.postgres.connection import Connection, Hosts, drain_cancelled, now, run
from hubbub.postgres.errors import (
    LOST,
    REFUSED_WHILE_ENCODING,
    SCHEMA_CHANGED,
    SENT_AGAIN,
    deadline_passed,
    distributed_since,
    is_of_standby,
    pool_busy,
    too_late_to_connect,
)
from hubbub.postgres.sharing import SharedStatements
from hubbub.postgres.statement import ROWS_PER_STEP, Lookup, Statement, count_of, distributed_layout
from hubbub.postgres.transaction import Locks, OpenTransaction, run_action
from hubbub.scheduling import EarliestTimer
from hubbub.settings import PostgresSettings

T = TypeVar("T")
R = TypeVar("R")

STATEMENT_ATTEMPTS: Final = 3
"""How often a statement is sent in all, if it is safe to send again. A deadlock or a restart rarely hits one call
twice, and the deadline bounds the time in any case."""

MAX_RETRY_PAUSE_SECONDS: Final = 0.02
"""The longest pause before the second attempt, twice that before the third. Long enough for the other side of a
deadlock to commit, and little beside a deadline of seconds."""

RECONNECT_STEP_SECONDS: Final = 0.05
"""By how much each pause between attempts to connect exceeds the one before: a short outage ends for the callers
within 0.1 s, and a long one costs few attempts."""

MAX_RECONNECT_PAUSE_SECONDS: Final = 2.0
"""The longest pause between attempts to connect: how late a process may notice that the server is back."""

MAX_SEARCH_PAUSE_SECONDS: Final = 0.5
"""As above, where there are several hosts: how late a process may notice that a standby was promoted."""

LOOK_SECONDS: Final = 0.3
"""Of several hosts, the primary is searched again after a statement has been unanswered this long, or twice that.
A server that hangs would otherwise hold its callers until their deadlines, even if another one was promoted."""

MAX_LOOK_PAUSE_SECONDS: Final = 2.0
"""The pause doubles up to this while the same primary is found: a server that is only slow would otherwise get
three connections a second from each process."""


WAITS_FOR_ITSELF: Final = (
    "this task has a transaction open that has changed the same room, membership or account, or has stored the "
    "same unique value, and would wait for its own COMMIT: call the transaction's own repositories, as in "
    "`tx.messages.send`, or call it after the COMMIT"
)
"""The reason to refuse a change that would wait for the task that makes it."""

ABANDONED_AFTER_SECONDS: Final = 1.0
"""How long the block of a transaction may pause between statements while the hub closes. A request in progress
pauses for less, and a block that waits for something else would keep the program from ending."""

LEAVE_SERVER_STEP_SECONDS: Final = 1.0
"""How often at most all idle connections are closed because the server is a standby."""


LARGER_THAN_A_READ: Final = 1024 * 1024
"""asyncio allocates 256 KiB for each read. glibc maps and unmaps as much each time, unless a larger block was
freed before. That took 97 us of processor time per page of JSON at one caller instead of 62."""


class Pool:
    """Runs statements on at most `settings.pool_size` connections, for callers in the order in which they came.

    One deadline, `settings.deadline_seconds`, covers the wait for a connection, the statement and its answer.
    asyncpg's own pool does none of the three, and costs a task per release. In one interleaved run this pool did
    1.6 times its statements per second, at 20 and at 200 callers (docs/decisions.md).
    """

    def __init__(
        self,
        settings: PostgresSettings,
        instrumentation: Instrumentation = SILENT,
        *,
        keeps_standby: bool = False,
    ) -> None:
        """`keeps_standby` is for a read replica, to which connections stay."""
        self._settings = settings
        self.deadline_seconds = settings.deadline_seconds
        self.instrumentation = instrumentation
        self._connections = Connections(settings, instrumentation, keeps_standby=keeps_standby)
        self._shared = SharedStatements(self, settings.deadline_seconds)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[OpenTransaction, asyncio.Task[object] | None] = {}
        """The transactions that are open, with the tasks that opened them."""
        self._watched: WeakSet[Locks] | None = None
        """Transactions of the application's. None until there is one, so that the others pay nothing for it."""
        self._ending_abandoned = BackgroundTask("end abandoned transactions", self._end_abandoned)
        self._closed = False
        abandon_in_child(self.abandon)

    def abandon(self) -> None:
        """In a child process the pool has no connections. Does nothing before the first call."""
        if self._loop is not None:
            self._loop = None
            self._connections.abandon()

    async def open(self) -> None:
        """Connect once, so that a wrong setting is found now.

        A server that is starting, overloaded or full is retried until the deadline, with pauses, because all
        processes of an application may start at once.
        """
        bytearray(LARGER_THAN_A_READ)  # freed at once, which is its purpose
        deadline = self._running_loop().time() + self.deadline_seconds
        while True:
            try:
                self._connections.release(await self._connections.acquire(deadline))
            except Unavailable as failure:
                if now() >= deadline or not _is_transient(failure):
                    raise
            else:
                return

    def end_abandoned_transactions(self) -> None:
        """From now until `close`, roll back each transaction whose block runs no statement for a second.

        `close` would wait for it until the deadline, and so would others that are closed before the pool.
        """
        self._ending_abandoned.start()

    async def _end_abandoned(self) -> float:
        for transaction in list(self._open):
            if monotonic() - transaction.connection.quiet_since >= ABANDONED_AFTER_SECONDS:
                self._connections.take_back(transaction.connection)
        return ABANDONED_AFTER_SECONDS / 4

    async def close(self) -> None:
        """Refuse new calls, wait for those at work until the deadline, close every connection. Idempotent."""
        if not self._closed:
            self._closed = True
            self.end_abandoned_transactions()
            try:
                await self._connections.close()
                await self._shared.close()
            finally:
                await self._ending_abandoned.close()

    @property
    def size(self) -> int:
        """Connections that are open."""
        return len(self._connections.idle) + len(self._connections.used)

    @property
    def idle(self) -> int:
        """Connections that are open and not in use."""
        return len(self._connections.idle)

    @property
    def use(self) -> PoolUse:
        """How busy the pool is at this moment."""
        connections = self._connections
        return PoolUse(self._settings.pool_size, self.size, len(connections.used), connections.waiting)

    @property
    def layout(self) -> str:
        """The key of the SQL of a statement (`Statement.in_layout`)."""
        return self._connections.layout

    @property
    def is_distributed(self) -> bool:
        return self._connections.layout != self._settings.schema

    def distribute(self) -> None:
        """From now on, run the forms of statements for distributed rooms."""
        self._connections.distribute()

    def refuse_if(self, is_distributed: Callable[[OpenTransaction], Awaitable[bool]]) -> None:
        """Once rooms are distributed, refuse each call: the statements of this pool are those of one server.

        `is_distributed` is asked on the first connection that is opened after all were closed. While one is open,
        `hubbub distribute` does not begin.
        """
        self._connections.ask_whether_distributed = is_distributed

    def deadline(self) -> float:
        return now() + self.deadline_seconds

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        sql = statement.in_layout[self._connections.layout]
        rows = await self._run(statement, args, lambda connection: connection.fetch(sql, *args), deadline)
        if len(rows) > ROWS_PER_STEP:
            return await statement.build_in_slices(rows)
        return statement.build(rows)

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        sql = statement.in_layout[self._connections.layout]
        row = await self._run(statement, args, lambda connection: connection.fetchrow(sql, *args), deadline)
        return None if row is None else statement.build([row])[0]

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        return self._shared.look_up(lookup, key)

    def fetch_shared(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        return self._shared.fetch(statement, args, deadline)

    def fetch_shared_by_each(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        return self._shared.fetch_by_each(statement, args, deadline)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        sql = statement.in_layout[self._connections.layout]
        tag = await self._run(statement, args, lambda connection: connection.execute(sql, *args))
        return count_of(tag)

    fetch_in_savepoint = fetch_all  # each statement on a pool is a transaction of its own

    def after_commit(self, action: Callable[[], None]) -> None:
        """A statement on the pool is committed when it returns, so the action runs now."""
        run_action(action)

    @asynccontextmanager
    async def transaction(self, *, deadline: float | None = None) -> AsyncIterator[OpenTransaction]:
        """All changes of the block, or none of them. Without a deadline each statement has its own.

        Actions given to `after_commit` run once the COMMIT is acknowledged.
        Raises: Unavailable (with `outcome_unknown` if the answer to the COMMIT was lost).
        """
        loop = self._running_loop()
        acquire_by = loop.time() + self.deadline_seconds if deadline is None else deadline
        connection = await self._connections.acquire(acquire_by)
        try:
            async with OpenTransaction.begin(
                connection, self.deadline_seconds, deadline, self.instrumentation
            ) as transaction:
                self._open[transaction] = asyncio.current_task()
                try:
                    yield transaction
                finally:
                    del self._open[transaction]
        finally:
            self._connections.release(connection)
        transaction.run_actions()

    async def _run(
        self,
        statement: Statement[T],
        args: tuple[object, ...],
        call: Callable[[Connection], Awaitable[R]],
        deadline: float | None = None,
    ) -> R:
        seconds = self.deadline_seconds
        if statement.locks_room and self.locked_by_caller():
            await self.check_not_locked_by_caller(*(arg for arg in args if isinstance(arg, UUID)))
        since = self._running_loop().time()
        if deadline is not None and since >= deadline:
            raise deadline_passed(seconds, outcome_unknown=False)
        deadline = since + seconds if deadline is None else deadline
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
                    instrumentation=self.instrumentation,
                )
            except Invalid as refusal:
                if connection is not None and isinstance(refusal.__cause__, REFUSED_WHILE_ENCODING):
                    await drain_cancelled(connection)
                raise
            except Unavailable as failure:
                may_be_done = may_be_done or failure.outcome_unknown
                pause = jittered(MAX_RETRY_PAUSE_SECONDS * min(attempt, STATEMENT_ATTEMPTS), at_least=0.05)
                # Each repetition may meet the next change of the schema, and none of them has done anything.
                is_used_up = attempt >= STATEMENT_ATTEMPTS and not isinstance(failure.__cause__, SCHEMA_CHANGED)
                is_last = connection is None or is_used_up or now() + pause >= deadline
                if is_last or not _may_repeat(statement, failure):
                    if may_be_done and not failure.outcome_unknown:
                        raise failure.with_unknown_outcome() from failure
                    raise
            finally:
                if connection is not None:
                    self._connections.release(connection)
            await asyncio.sleep(pause)
            attempt += 1

    def note_locked(self, key: Hashable) -> None:
        """Nothing: a statement on a pool is committed when it returns."""

    def watch(self, locks: Locks) -> None:
        """Refuse changes that would wait for this transaction of the application's. It is not kept alive."""
        if self._watched is None:
            self._watched = WeakSet()
        self._watched.add(locks)

    def locked_by_caller(self) -> Set[Hashable]:
        if not self._open and self._watched is None:
            return frozenset()
        task = asyncio.current_task()
        noted = [locks.locked_by(task) for locks in self._watched or ()]
        return self._locked_by(task).union(*noted)

    def _locked_by(self, task: asyncio.Task[object] | None) -> set[Hashable]:
        return {key for transaction, owner in self._open.items() if owner is task for key in transaction.locked}

    async def check_not_locked_by_caller(self, *keys: Hashable) -> None:
        """Refuse a change that would wait for the COMMIT of a transaction that its own task has open.

        Only a task that waits for itself is refused: another task may end its transaction meanwhile.
        Raises: Invalid, Unavailable.
        """
        task = asyncio.current_task()
        if not self._locked_by(task).isdisjoint(keys):
            raise Invalid("hub", WAITS_FOR_ITSELF)
        for locks in tuple(self._watched or ()):
            for key in locks.locked_by(task) & set(keys):
                if await locks.holds(key):
                    raise Invalid("hub", WAITS_FOR_ITSELF)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of all calls: connections work in one loop only. Raises: Unavailable (in another loop)."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise wrong_event_loop()
            self._loop = loop
        return loop


def _may_repeat(statement: Statement[T], failure: Unavailable) -> bool:
    """Whether sending the statement again cannot do its work twice."""
    cause = failure.__cause__
    return (
        isinstance(cause, SENT_AGAIN) or is_of_standby(cause) or (statement.repeatable and isinstance(cause, LOST))
    )


def _is_transient(failure: Unavailable) -> bool:
    """Whether a server that takes no connection now may take one soon: it answered, or did not answer in time."""
    cause = failure.__cause__
    return failure.retryable and (isinstance(cause, TimeoutError) or not isinstance(cause, OSError))


class _NoConnection(Exception):
    """No connection is idle, and the server gives no new one."""

    def __init__(self, failure: Unavailable) -> None:
        super().__init__()
        self.failure = failure


class Connections:
    """At most `settings.pool_size` connections, opened when they are needed, closed when idle for too long.

    The connection used last is used next, so that the surplus of a burst falls idle. Nothing is reset between
    uses: the statements of hubbub leave no session state behind.
    """

    def __init__(
        self, settings: PostgresSettings, instrumentation: Instrumentation, *, keeps_standby: bool = False
    ) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self._keeps_standby = keeps_standby
        self.waiting = 0
        """Callers that wait for a connection."""
        self._slots = asyncio.Semaphore(settings.pool_size)
        self.idle: deque[Connection] = deque()
        """The longest idle is the first."""
        self.used: set[Connection] = set()
        """Connections that a caller has, or whose cancelled statement is being stopped."""
        self._draining: set[asyncio.Task[None]] = set()
        self._idle_timer = EarliestTimer(self._close_idle)
        self._hosts = Hosts(settings)
        self._has_several_hosts = len(self._hosts.addresses) > 1
        self._reconnector = PacedReconnector(
            self._reconnect,
            MAX_SEARCH_PAUSE_SECONDS if self._has_several_hosts else MAX_RECONNECT_PAUSE_SECONDS,
        )
        self._running: dict[Connection, float] = {}
        """The connections with a statement at the last look, and when each was idle last."""
        self._looking = BackgroundTask("look for the primary", self._look)
        self._look_pause_seconds = LOOK_SECONDS
        # The server gives up a statement when its caller does. The loss of the connection alone does not end it.
        # Without prepared statements there is a pooler, which refuses settings that outlive a transaction.
        timeout = str(round(settings.deadline_seconds * 1000))
        self._server_settings = {"statement_timeout": timeout} if settings.prepared_statements else {}
        self._keep_idle_until = 0.0
        self.layout = settings.schema
        self.ask_whether_distributed: Callable[[OpenTransaction], Awaitable[bool]] | None = None
        """Called on the first connection that is opened after all were closed. None: never."""
        self._refusal: Unavailable | None = None
        """Why no connection is given any more."""

    def abandon(self) -> None:
        """In a child process: refuse new callers."""
        self._refusal = forked()
        self.idle.clear()

    def distribute(self) -> None:
        self.layout = distributed_layout(self._settings.schema)
        for connection in (*self.idle, *self.used):
            connection.layout = self.layout

    async def close(self) -> None:
        """Refuse new callers, wait for those at work until the deadline, close every connection."""
        if self._refusal is None:
            self._refusal = closed()
        self._idle_timer.cancel()
        await self._looking.close()
        await self._reconnector.close()
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                for _ in range(self._settings.pool_size):
                    await self._slots.acquire()
                closing = [connection.close() for connection in self.idle]
                await asyncio.gather(*closing, return_exceptions=True)
        except TimeoutError:
            pass  # the connections that did not close in time are terminated below
        finally:
            for connection in [*self.used, *self.idle]:
                connection.terminate()
            self.idle.clear()
        await asyncio.gather(*self._draining, return_exceptions=True)

    async def acquire(self, deadline: float) -> Connection:
        """A connection for this caller alone, which has to `release` it."""
        while True:
            if self._reconnector.failure is not None and not self.idle and self._refusal is None:
                await self._reconnector.next_attempt(deadline - now())
            try:
                return await self._take(deadline)
            except _NoConnection as error:
                # Connections in use come back, though the server gives no new one.
                if not self.used or now() >= deadline:
                    raise error.failure.for_another() from None

    def release(self, connection: Connection) -> None:
        """Give the connection back. If its statement was cancelled, it is idle once the server has stopped it."""
        if connection.is_abandoned:  # a child process leaves a block of its parent
            return
        task = asyncio.current_task()
        if task is not None and task.cancelling() and not connection.is_closed():
            drain = drain_cancelled(connection)
            draining = asyncio.create_task(drain, name="hubbub: drain a cancelled connection")
            self._draining.add(draining)
            # A callback, because a task that is cancelled before its first step runs none of its own code.
            draining.add_done_callback(partial(self._drained, connection))
        else:
            self._give_back(connection)

    async def _reconnect(self) -> None:
        """Connect, or find a connection that has become idle meanwhile."""
        deadline = now() + self._settings.connect_timeout_seconds
        self.release(await self._take(deadline, is_reconnect=True))

    async def _take(self, deadline: float, *, is_reconnect: bool = False) -> Connection:
        if self._refusal is not None:
            raise self._refusal.for_another()
        if self._slots.locked():
            await self._wait_for_slot(deadline)
        else:
            await self._slots.acquire()  # returns at once: a timeout around it would cost more than all the rest
        try:
            connection = await self._idle_or_new(deadline, is_reconnect=is_reconnect)
        except BaseException:
            self._slots.release()
            raise
        self.used.add(connection)
        return connection

    async def _wait_for_slot(self, deadline: float) -> None:
        since = now()
        self.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError as error:
            # The reconnector has a slot too while it connects.
            failure = self._reconnector.failure
            raise (
                failure.for_another() if failure else pool_busy(self._settings.pool_size, now() - since)
            ) from error
        finally:
            self.waiting -= 1
            self._instrumentation.waited(now() - since)

    async def _idle_or_new(self, deadline: float, *, is_reconnect: bool) -> Connection:
        """The idle connection that was used last, or a new one.

        While the server is unreachable only the reconnector makes one. Otherwise the callers that already waited
        would try one after the other.
        """
        if self._refusal is not None:  # while this caller was waiting
            raise self._refusal.for_another()
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_closed():
                return connection
        if self._reconnector.failure is not None and not is_reconnect:
            raise _NoConnection(self._reconnector.failure)
        since = now()
        left = max(deadline - since, 0.001)
        try:
            connection = await self._connect(left)
            await self._refuse_if_distributed(connection, deadline)
        except Unavailable as failure:
            # A caller that was too close to its deadline to connect is no sign of a server in failure.
            enough = min(self._settings.connect_timeout_seconds, self._settings.deadline_seconds / 2)
            if left >= enough or not isinstance(failure.__cause__, TimeoutError):
                self._reconnector.failed(failure, now() - since)
                raise
            raise too_late_to_connect(left) from failure.__cause__
        connection.layout = self.layout
        self._reconnector.succeeded()
        self._instrumentation.connected("postgresql")
        return connection

    async def _connect(self, within_seconds: float) -> Connection:
        """A new connection. The others to another server are ended: the primary was there before."""
        connection = await self._hosts.connect(
            within_seconds=within_seconds, server_settings=self._server_settings
        )
        if self._has_several_hosts:
            self._looking.start()
            for other in [*self.idle, *self.used]:
                if other.address != connection.address:
                    other.terminate()
            self.idle = deque(other for other in self.idle if not other.is_closed())
        return connection

    async def _refuse_if_distributed(self, connection: Connection, deadline: float) -> None:
        """On the only open connection, ask whether rooms are distributed. Raises: Unavailable.

        They may have become so since all connections were closed. The new connection is open meanwhile, so that
        `hubbub distribute` sees it before its next step.
        """
        if self.ask_whether_distributed is None or not all(one.is_closed() for one in (*self.idle, *self.used)):
            return
        is_refused = True  # also without an answer, as when the caller is cancelled
        try:
            async with OpenTransaction.begin(connection, self._settings.deadline_seconds, deadline) as executor:
                answer = await self.ask_whether_distributed(executor)
            is_refused = answer
        except Unavailable as error:  # the caller's own statement was not sent
            raise Unavailable("postgresql", error.reason, retryable=error.retryable) from error.__cause__
        finally:
            if is_refused:
                connection.terminate()
        if is_refused:
            self._refusal = self._refusal or distributed_since()
            raise self._refusal.for_another()

    async def _look(self) -> float:
        """Open a test connection if a statement has been running since the last check. Its server may hang."""
        running = {one: one.idle_since for one in self.used if one.quiet_since == inf}
        pause, self._look_pause_seconds = self._look_pause_seconds, LOOK_SECONDS
        if any(self._running.get(one) == since for one, since in running.items()):
            with suppress(Unavailable):
                found = await self._connect(self._settings.connect_timeout_seconds)
                found.terminate()
                if all(one.address == found.address for one in running):
                    self._look_pause_seconds = min(2 * pause, MAX_LOOK_PAUSE_SECONDS)
        self._running = running
        return jittered(self._look_pause_seconds)

    def _drained(self, connection: Connection, draining: asyncio.Task[None]) -> None:
        self._draining.discard(draining)
        if draining.cancelled():
            connection.terminate()
        self._give_back(connection)

    def take_back(self, connection: Connection) -> None:
        """End a connection that its caller keeps, and with it what is not committed."""
        connection.terminate()
        self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        if connection not in self.used:  # it was taken back
            return
        self.used.remove(connection)
        if connection.is_wrong_server and not self._keeps_standby:
            self._leave_server(connection)
        elif connection.is_closed():
            # A restart or a firewall that killed it has likely killed all that no call has used since. Otherwise a
            # single caller would meet them one after the other, and wait for a deadline each time.
            self._end_idle(connection.idle_since)
        else:
            connection.idle_since = now()
            connection.quiet_since = inf
            self.idle.append(connection)
            self._reconnector.connection_is_back()
            if self._refusal is None:
                idle_until = connection.idle_since + self._settings.idle_timeout_seconds
                self._idle_timer.request(idle_until, connection.idle_since)
        self._slots.release()

    def _leave_server(self, connection: Connection) -> None:
        """End the connection, and those that were idle meanwhile, because they lead to the same server.

        At most once a second: a server that stays read-only would otherwise get a connection per read.
        """
        connection.terminate()
        self._hosts.is_not_primary(connection.address)
        if now() >= self._keep_idle_until:
            self._keep_idle_until = now() + LEAVE_SERVER_STEP_SECONDS
            self._end_idle(inf)

    def _close_idle(self, time: float) -> None:
        """Close the connections that have been idle too long, without waiting for an answer."""
        limit = self._settings.idle_timeout_seconds
        self._end_idle(time - limit)
        if self.idle:
            self._idle_timer.request(self.idle[0].idle_since + limit, time)

    def _end_idle(self, since: float) -> None:
        """End the connections that are idle since then, or longer."""
        while self.idle and self.idle[0].idle_since <= since:
            self.idle.popleft().terminate()


class PacedReconnector:
    """Connects to an unreachable server: one attempt at a time for all callers of a pool, with jittered pauses.

    Hundreds of processes lose their server at the same moment. If each of their callers tried to connect, refusing
    them would keep the server from coming back. So each process makes one attempt for all callers that wait, and
    no two processes pause equally long.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[None]],
        longest_pause_seconds: float = MAX_RECONNECT_PAUSE_SECONDS,
    ) -> None:
        """`connect` makes one attempt. It calls `failed` and raises `Unavailable`, or calls `succeeded`."""
        self._connect = connect
        self._longest_pause_seconds = longest_pause_seconds
        self._attempts = 0
        self._not_before = 0.0
        self._next: asyncio.Task[None] | None = None
        self._skip_pause = asyncio.Event()
        self.failure: Unavailable | None = None
        """Why the last connection could not be made. None while the server is reachable."""

    def failed(self, failure: Unavailable, took_seconds: float) -> None:
        """A connection failed. The longer that took, the longer is the pause: an overloaded server needs time."""
        self.failure = failure
        pause = max(self._attempts * RECONNECT_STEP_SECONDS, took_seconds)
        # From a tenth of it on: the wider the range, the further apart are the attempts of many processes.
        self._not_before = now() + jittered(min(pause, self._longest_pause_seconds), at_least=0.1)

    def succeeded(self) -> None:
        self.failure = None
        self._attempts = 0

    def connection_is_back(self) -> None:
        """A connection that was in use is idle. The next attempt finds it, and need not pause."""
        if self._next is not None:
            self._skip_pause.set()

    async def next_attempt(self, seconds: float) -> None:
        """Wait for the end of the next attempt, for at most `seconds`. Then `failure` has its outcome."""
        if self._next is None:
            self._attempts += 1
            self._next = asyncio.create_task(self._attempt(), name="hubbub: reach PostgreSQL again")
        await asyncio.wait([self._next], timeout=seconds)

    async def close(self) -> None:
        """Stop trying. The callers that wait get the last failure."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])

    async def _attempt(self) -> None:
        try:
            self._skip_pause.clear()
            await wait_at_most(self._skip_pause, self._not_before - now())
            await self._connect()
        except Unavailable:
            pass  # kept as `failure`, which each caller that waits raises as an error of its own
        finally:
            self._next = None
