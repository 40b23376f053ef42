"""A connection of the application's and the transaction that it has open, as an executor for repositories.

    statement of hubbub --> the application's transaction --COMMIT of the application--> the actions run
                                                    |
                                                    +--ROLLBACK, also to a savepoint--> they never run

hubbub neither begins nor ends that transaction, and has to find out how it ended. A session of SQLAlchemy has
events for it. For any other connection each statement notes the id of the transaction or savepoint that it ran in,
and PostgreSQL is asked for its status.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Set
from contextlib import asynccontextmanager
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import asyncpg
import msgspec

from hubbub.errors import Invalid, Unavailable
from hubbub.postgres.connection import Connection
from hubbub.postgres.pool import Pool
from hubbub.postgres.statement import Statement, schema_of
from hubbub.postgres.transaction import OpenTransaction, run_action

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

    ApplicationConnection: TypeAlias = (
        asyncpg.Connection[Any] | PoolConnectionProxy[Any] | AsyncConnection | AsyncSession
    )
    """A connection of asyncpg or SQLAlchemy, or a session of SQLAlchemy."""
else:
    ApplicationConnection = object  # SQLAlchemy need not be installed

T = TypeVar("T")

OTHER_KIND: Final = (
    "must be a connection of asyncpg, or an AsyncSession or AsyncConnection of SQLAlchemy on asyncpg"
)
NO_TRANSACTION: Final = "has no transaction open: use it between the application's BEGIN and COMMIT"
STILL_OPEN: Final = "has its transaction open: end it before the block of `hub.on`, or before `announce`"

_SAVEPOINTS: Final = count(1)  # of all connections, so that no name is used twice in a transaction

# The id of the transaction, or of the innermost savepoint that has written: the youngest of those that the session
# has locked. `transactionid` has 32 bits, and none is older than the transaction.
_ID: Final = Statement(
    "application.transaction_id",
    str,
    """
    SELECT (top.id + ((pg_locks.transactionid::text::bigint - top.id) & 4294967295))::text AS id
    FROM (SELECT pg_current_xact_id()::text::bigint AS id) AS top
    JOIN pg_locks
        ON pg_locks.pid = pg_backend_pid()
        AND pg_locks.locktype = 'transactionid'
        AND pg_locks.mode = 'ExclusiveLock'
    ORDER BY (pg_locks.transactionid::text::bigint - top.id) & 4294967295 DESC
    LIMIT 1
    """,
)
_WITH_STATUS: Final = Statement(
    "application.with_status",
    str,
    """
    SELECT asked.id
    FROM unnest($1::text[]) AS asked (id)
    WHERE pg_xact_status(asked.id::xid8) = $2
    """,
)


class _Asyncpg:
    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - also one that a pool of asyncpg lends
        self._connection = connection

    async def driver(self) -> Any:  # noqa: ANN401 - a connection of asyncpg
        """The connection, in a transaction. Raises: Invalid (there is none)."""
        if not self.is_in_transaction:
            raise Invalid("connection", NO_TRANSACTION)
        return self._connection

    @property
    def is_in_transaction(self) -> bool:
        """Whether the application has yet to end its transaction."""
        try:
            return bool(self._connection.is_in_transaction())
        except asyncpg.InterfaceError:  # it was given back to the application's pool
            return False


class _Sqlalchemy:
    """SQLAlchemy begins a transaction, or a savepoint, with the first statement of its own in it.

    A statement written past it before would be committed alone. So each statement asks SQLAlchemy for the
    connection, which sends the SAVEPOINT, and lets it send a statement first where no transaction has begun.
    """

    def __init__(self, connect: Callable[[], Awaitable[AsyncConnection]]) -> None:
        self._connect = connect
        self._connection: AsyncConnection | None = None

    async def driver(self) -> Any:  # noqa: ANN401
        connection = self._connection = await self._connect()
        driver = (await connection.get_raw_connection()).driver_connection
        if not isinstance(driver, asyncpg.Connection):
            raise Invalid("connection", OTHER_KIND)
        if not driver.is_in_transaction():
            await connection.exec_driver_sql("SELECT 1")
        if not driver.is_in_transaction():
            raise Invalid("connection", "commits each statement by itself, because isolation_level is AUTOCOMMIT")
        return driver

    @property
    def is_in_transaction(self) -> bool:
        connection = self._connection
        return connection is not None and not connection.closed and connection.in_transaction()


_Source: TypeAlias = _Asyncpg | _Sqlalchemy
"""Where the connection of the driver comes from."""


class _BorrowedConnection:
    """As much of a `Connection` as a transaction uses, on one of the application's.

    The application may have set codecs and a class of rows. Statements of hubbub go without them.
    """

    is_abandoned = False

    def __init__(self, source: _Source, layout: str) -> None:
        self._source = source
        self._driver: Any = None
        self.layout = layout
        self.schema = schema_of(layout)
        self.quiet_since = inf
        self.is_wrong_server = False

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._run(sql, args, 0)
        return rows

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        rows = await self._run(sql, args, 1)
        return rows[0] if rows else None

    async def execute(self, sql: str, *args: object) -> str:
        if not args:
            return str(await self._call(lambda driver: driver.execute(sql)))
        _, tag, _ = await self._run(sql, args, 0, return_status=True)
        return bytes(tag).decode()

    async def _run(self, sql: str, args: tuple[object, ...], limit: int, **options: bool) -> Any:  # noqa: ANN401
        return await self._call(
            lambda driver: driver._execute(
                sql, args, limit, None, ignore_custom_codec=True, record_class=asyncpg.Record, **options
            )
        )

    async def _call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401
        driver = self._driver = await self._source.driver()
        try:
            return await call(driver)
        except asyncpg.InterfaceError as error:
            if self.is_closed():
                raise
            reason = f"the connection of the application cannot be used now: {error}"
            raise Unavailable("hub", reason, retryable=False) from error

    def is_in_transaction(self) -> bool:
        return self._driver is not None and bool(self._driver.is_in_transaction())

    def is_closed(self) -> bool:
        try:
            return self._driver is not None and bool(self._driver.is_closed())
        except asyncpg.InterfaceError:  # it was given back
            return True

    def terminate(self) -> None:
        """The only way to end a statement that does not return. The application's transaction is lost with it."""
        if not self.is_closed() and self._driver is not None:
            self._driver.terminate()


class ApplicationTransaction(OpenTransaction):
    """An executor in the transaction that a connection of the application's has open, each time it is used.

    Actions run once the application's COMMIT is known.
    """

    def __init__(self, source: _Source, pool: Pool) -> None:
        borrowed = cast(Connection, _BorrowedConnection(source, pool.layout))
        super().__init__(borrowed, pool.deadline_seconds, _SAVEPOINTS, None, pool.instrumentation)
        self._source = source
        self._pool = pool

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        rows = await super().fetch_all(statement, *args, deadline=deadline)
        if statement.writes:
            await self._written()
        return rows

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        row = await super().fetch_one(statement, *args, deadline=deadline)
        if statement.writes:
            await self._written()
        return row

    async def execute(self, statement: Statement[T], *args: object) -> int:
        number = await super().execute(statement, *args)
        if statement.writes:
            await self._written()
        return number

    @asynccontextmanager
    async def transaction(self, *, deadline: float | None = None) -> AsyncIterator[OpenTransaction]:
        async with super().transaction(deadline=deadline) as savepoint:
            yield savepoint
        await self._written()
        for key in self.locked:
            self.note_locked(key)
        self.locked.clear()
        actions, self._actions = self._actions, []
        for action in actions:
            self.after_commit(action)

    async def _written(self) -> None:
        """Called after each statement that may have changed something."""

    async def announce(self, *, is_end: bool = False) -> None:
        """Run the actions of what was committed, and forget those of what was rolled back.

        `is_end`: the executor will not be used again.
        Raises: Invalid (the application has its transaction open).
        """
        raise NotImplementedError


class ByStatus(ApplicationTransaction):
    """In a transaction whose outcome PostgreSQL is asked for, on a connection of the hub's."""

    def __init__(self, source: _Source, pool: Pool) -> None:
        super().__init__(source, pool)
        self._id = ""
        self._pending: list[tuple[str, Callable[[], None]]] = []
        self._locks: dict[Hashable, tuple[str, asyncio.Task[object] | None]] = {}
        """The keys of changed rows, each with its transaction or savepoint and the task."""

    async def _written(self) -> None:
        self._id = await super().fetch_one(_ID) or self._id

    def note_locked(self, key: Hashable) -> None:
        self._locks[key] = self._id, asyncio.current_task()
        self._pool.watch(self)

    def locked_by(self, task: asyncio.Task[object] | None) -> Set[Hashable]:
        return {key for key, (_, owner) in self._locks.items() if owner is task}

    async def holds(self, key: Hashable) -> bool:
        id, _ = self._locks.get(key, ("", None))
        return bool(id and await self._pool.fetch_all(_WITH_STATUS, [id], "in progress"))

    def after_commit(self, action: Callable[[], None]) -> None:
        self._check_open()
        self._pending.append((self._id, action))

    async def announce(self, *, is_end: bool = False) -> None:
        self._over = is_end
        if self._source.is_in_transaction:
            raise Invalid("connection", STILL_OPEN)
        self._locks.clear()
        if not self._pending:
            return
        ids = {id for id, _ in self._pending if id}
        committed = {"", *await self._pool.fetch_all(_WITH_STATUS, list(ids), "committed")}
        pending, self._pending = self._pending, []
        for id, action in pending:
            if id in committed:
                run_action(action)


class ByEvents(ApplicationTransaction):
    """In the transaction of a session of SQLAlchemy, whose events tell how it and its savepoints end."""

    def __init__(self, session: AsyncSession, pool: Pool) -> None:
        super().__init__(_Sqlalchemy(session.connection), pool)
        self._session = session.sync_session

    def note_locked(self, key: Hashable) -> None:
        pending = _Pending.of(self._session)
        pending.add(_Lock(key, asyncio.current_task()), self.connection)
        self._pool.watch(pending)

    def after_commit(self, action: Callable[[], None]) -> None:
        self._check_open()
        _Pending.of(self._session).add(action, self.connection)

    async def announce(self, *, is_end: bool = False) -> None:
        """Nothing: the events do it, also after the end of a block."""
        self._over = is_end


class _Lock(msgspec.Struct, frozen=True):
    """A row that a task has locked until the COMMIT, after which there is nothing to do."""

    key: Hashable
    task: asyncio.Task[object] | None

    def __call__(self) -> None:
        """Nothing."""


class _Pending:
    """The actions that wait for the COMMIT of a session, each with the transaction or savepoint it belongs to."""

    KEY: Final = "hubbub: actions after the COMMIT"

    def __init__(self, session: Session) -> None:
        from sqlalchemy import event  # noqa: PLC0415 - the application has imported it

        self._session = session
        self._actions: list[tuple[SessionTransaction, Callable[[], None]]] = []
        self._connection: Connection | None = None
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_transaction_end", self._ended)

    @classmethod
    def of(cls, session: Session) -> _Pending:
        """The instance for the session, which has the same lifetime."""
        pending: _Pending | None = session.info.get(cls.KEY)
        if pending is None:
            pending = session.info[cls.KEY] = cls(session)
        return pending

    def add(self, action: Callable[[], None], connection: Connection) -> None:
        current = self._session.get_nested_transaction() or self._session.get_transaction()
        if current is not None:  # always, because the statement has begun one
            self._connection = connection
            self._actions.append((current, action))

    def locked_by(self, task: asyncio.Task[object] | None) -> Set[Hashable]:
        return {one.key for _, one in self._actions if isinstance(one, _Lock) and one.task is task}

    async def holds(self, key: Hashable) -> bool:
        return True  # a lock that has ended is no longer among the actions

    def _committed(self, session: Session) -> None:
        """Called after the COMMIT of a transaction, and after the RELEASE of a savepoint."""
        savepoint = session.get_nested_transaction()
        if savepoint is not None:
            parent = savepoint.parent
            self._actions = [
                (parent if within is savepoint and parent is not None else within, action)
                for within, action in self._actions
            ]
        elif self._connection is None or not self._connection.is_in_transaction():
            # Otherwise the session has joined a transaction of its connection's, which is still open.
            actions, self._actions = self._actions, []
            for _, action in actions:
                run_action(action)

    def _ended(self, _: Session, ended: SessionTransaction) -> None:
        """Called after the end of a transaction or savepoint. Actions that it still has were rolled back."""
        self._actions = [(within, action) for within, action in self._actions if not _is_within(within, ended)]


def _is_within(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None and transaction is not outer:
        transaction = transaction.parent
    return transaction is outer


def borrow(connection: object, pool: Pool) -> ApplicationTransaction:
    """The executor on a connection of the application's. `pool` is the hub's own.

    Raises: Invalid (`connection` is of another kind).
    """
    if isinstance(connection, asyncpg.Connection):
        return ByStatus(_Asyncpg(connection), pool)
    sqlalchemy = sys.modules.get("sqlalchemy.ext.asyncio")  # without the import there is no such object
    if sqlalchemy is not None and isinstance(connection, sqlalchemy.AsyncSession):
        return ByEvents(cast("AsyncSession", connection), pool)
    if sqlalchemy is not None and isinstance(connection, sqlalchemy.AsyncConnection):
        core = cast("AsyncConnection", connection)

        async def connect() -> AsyncConnection:
            return core

        return ByStatus(_Sqlalchemy(connect), pool)
    raise Invalid("connection", OTHER_KIND)
