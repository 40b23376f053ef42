"""A transaction, its savepoints, and the actions that run after its COMMIT.

    BEGIN --> open --block ends--> ending --COMMIT--> committed: the actions run
                |                    |
                |                    +--COMMIT fails--+
                |                                     v
                +--block raises-------------------> ROLLBACK --> rolled back
                                                      |
                                                      +--fails, or no answer in 1 s--> connection terminated

A savepoint has the same states, with SAVEPOINT, RELEASE and ROLLBACK TO. Its actions pass to the transaction
around it. One lock orders everything on the connection: a statement holds it while it runs, a savepoint until it
ends, and COMMIT or ROLLBACK is the last to take it. A task that still waits for the lock then gets `the
transaction is over`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence, Set
from contextlib import asynccontextmanager
from itertools import count
from math import inf
from time import monotonic
from typing import Final, Protocol, TypeAlias, TypeVar

import asyncpg

from hubbub import inputs
from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.postgres.connection import Connection, now, run
from hubbub.postgres.errors import FAILURES, to_error_of_application, transaction_failed
from hubbub.postgres.statement import ROWS_PER_STEP, Copy, Lookup, Row, Statement, count_of

T = TypeVar("T")
R = TypeVar("R")

Record: TypeAlias = asyncpg.Record
"""A row: its values by the name of a column or by position."""

ROLLBACK_GRACE_SECONDS: Final = 1.0
"""How long a ROLLBACK may take before the connection is terminated, which rolls back as well. It bounds by how
much a call against a server that hangs exceeds its deadline."""


BEGIN_DISTRIBUTED: Final = "BEGIN; SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
"""The BEGIN where rooms are distributed. After a plain one, Citus refuses a change of `users` that follows a
statement about several rooms."""


class Locks(Protocol):
    """The rows that a transaction of the application's has locked, by their keys."""

    def locked_by(self, task: asyncio.Task[object] | None) -> Set[Hashable]:
        """The rows that this task has locked, and may have unlocked since."""
        ...

    async def holds(self, key: Hashable) -> bool:
        """Whether the row is locked now. Raises: Unavailable."""
        ...


class OpenTransaction:
    """An executor on one connection between BEGIN and COMMIT, or between SAVEPOINT and RELEASE.

    Concurrent callers run one after the other. While a savepoint is open, use its executor. A call of the
    transaction around it waits for the end of the savepoint, until the deadline of the call. So no statement ever
    runs beside another one, or after the end on a connection that another caller has by then.
    """

    def __init__(
        self,
        connection: Connection,
        deadline_seconds: float,
        savepoints: count[int],
        deadline: float | None = None,
        instrumentation: Instrumentation = SILENT,
        *,
        locked: set[Hashable] | None = None,
    ) -> None:
        """`savepoints` numbers the savepoints of the whole transaction. `locked` is what it has locked so far."""
        self.locked: set[Hashable] = set() if locked is None else locked
        """The keys of rows that were changed."""
        self.connection = connection
        self._deadline_seconds = deadline_seconds
        self._deadline = deadline
        self._savepoints = savepoints
        self._instrumentation = instrumentation
        self._lock = asyncio.Lock()
        self._actions: list[Callable[[], None]] = []
        self._over = False

    @classmethod
    @asynccontextmanager
    async def begin(
        cls,
        connection: Connection,
        deadline_seconds: float,
        deadline: float | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> AsyncIterator[OpenTransaction]:
        """BEGIN, the block, COMMIT. ROLLBACK when one of them fails. The deadline is for all of it."""
        transaction = cls(connection, deadline_seconds, count(1), deadline, instrumentation)
        try:
            begin = BEGIN_DISTRIBUTED if transaction.is_distributed else "BEGIN"
            await transaction._command(begin, transaction.deadline())
            yield transaction
            await transaction._commit()
        except BaseException:
            await transaction._roll_back("ROLLBACK")
            raise

    @property
    def is_distributed(self) -> bool:
        return self.connection.layout != self.connection.schema

    def deadline(self) -> float:
        return self._no_later_than(now() + self._deadline_seconds)

    def _no_later_than(self, deadline: float | None) -> float:
        if deadline is None:
            return self.deadline()
        return deadline if self._deadline is None else min(deadline, self._deadline)

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        sql = statement.in_layout[self.connection.layout]
        rows = await self._run(statement.name, lambda connection: connection.fetch(sql, *args), deadline)
        if len(rows) > ROWS_PER_STEP:
            return await statement.build_in_slices(rows)
        return statement.build(rows)

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        sql = statement.in_layout[self.connection.layout]
        row = await self._run(statement.name, lambda connection: connection.fetchrow(sql, *args), deadline)
        return None if row is None else statement.build([row])[0]

    async def look_up(self, lookup: Lookup[T], *key: object) -> T | None:
        return await self.fetch_one(lookup, *key)  # not shared: only this connection sees its own changes

    fetch_shared = fetch_all  # for the same reason

    async def fetch_shared_by_each(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> list[T]:
        *rest, each = args
        return await self.fetch_all(statement, *rest, None if each is None else [each], deadline=deadline)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        sql = statement.in_layout[self.connection.layout]
        tag = await self._run(statement.name, lambda connection: connection.execute(sql, *args))
        return count_of(tag)

    async def fetch_rows(self, sql: str, args: Sequence[object]) -> list[Record]:
        """Run a statement of the application's own. Its rows are as asyncpg gives them."""
        return await self._run_own(sql, lambda connection: connection.fetch(sql, *args))

    async def fetch_row(self, sql: str, args: Sequence[object]) -> Record | None:
        """As `fetch_rows`, for the first row."""
        return await self._run_own(sql, lambda connection: connection.fetchrow(sql, *args))

    async def execute_sql(self, sql: str, args: Sequence[object]) -> int:
        """As `fetch_rows`, for the number of rows that the statement changed or found."""
        return count_of(await self._run_own(sql, lambda connection: connection.execute_one(sql, args)))

    async def _run_own(self, sql: str, call: Callable[[Connection], Awaitable[R]]) -> R:
        _check_sql(sql)

        async def translated(connection: Connection) -> R:
            try:
                return await call(connection)
            except FAILURES as error:
                known = to_error_of_application(error, lost=connection.is_closed())
                if known is None:
                    raise
                raise known from error

        return await self._run("sql of the application", translated)

    async def use_one_snapshot(self) -> None:
        """Read the database as it is now until the transaction ends, and refuse changes. Call it first."""
        command = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        await self._run("SET", lambda connection: connection.execute(command))

    async def copy(self, into: Copy, rows: Iterable[Row] | AsyncIterable[Row]) -> None:
        """Insert the rows by COPY: all of them, or none if one is refused. It raises what an INSERT raises.

        Rows of an asynchronous iterable are sent as they come, and PostgreSQL stores them meanwhile.
        """
        await self._run(
            "COPY",
            lambda connection: connection.copy_records_to_table(
                into.table, records=rows, columns=into.columns, schema_name=connection.schema
            ),
        )

    async def fetch_in_savepoint(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> list[T]:
        async with self.transaction(deadline=deadline) as savepoint:
            return await savepoint.fetch_all(statement, *args)

    @asynccontextmanager
    async def transaction(self, *, deadline: float | None = None) -> AsyncIterator[OpenTransaction]:
        """A savepoint. When the block raises, only the changes of the block are undone."""
        name = f"hubbub_{next(self._savepoints)}"
        deadline = self._deadline if deadline is None else self._no_later_than(deadline)
        inner = OpenTransaction(
            self.connection,
            self._deadline_seconds,
            self._savepoints,
            deadline,
            self._instrumentation,
            locked=self.locked,
        )
        before = set(self.locked)
        async with self._exclusive(inner.deadline()) as deadline:
            self._check_open()
            await self._command(f"SAVEPOINT {name}", deadline)
            try:
                yield inner
                await inner._finish(f"RELEASE {name}")
            except BaseException:
                await inner._roll_back(f"ROLLBACK TO {name}; RELEASE {name}")
                self.locked.intersection_update(before)
                raise
        self._actions += inner._actions

    def note_locked(self, key: Hashable) -> None:
        self.locked.add(key)

    def locked_by_caller(self) -> Set[Hashable]:
        """None: a transaction does not wait for itself."""
        return frozenset()

    async def check_not_locked_by_caller(self, *keys: Hashable) -> None:
        """Nothing, for the same reason."""

    def after_commit(self, action: Callable[[], None]) -> None:
        self._check_open()
        self._actions.append(action)

    def run_actions(self) -> None:
        """Run the actions that waited for the COMMIT, in the order in which they were given."""
        for action in self._actions:
            run_action(action)

    async def _run(
        self, name: str, call: Callable[[Connection], Awaitable[R]], deadline: float | None = None
    ) -> R:
        async with self._exclusive(self._no_later_than(deadline)) as call_deadline:
            self._check_open()
            return await self._call(name, call, call_deadline)

    @asynccontextmanager
    async def _exclusive(self, deadline: float) -> AsyncIterator[float]:
        """Hold the connection's lock. Yields the deadline, which includes the wait for the lock."""
        seconds = deadline - now()
        try:
            async with asyncio.timeout_at(deadline):
                await self._lock.acquire()
        except TimeoutError as error:
            raise Unavailable("hub", f"the transaction was in use for {seconds:.3g} s") from error
        try:
            yield deadline
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._over:
            raise Unavailable("hub", "the transaction is over", retryable=False)

    async def _commit(self) -> None:
        """Only a COMMIT that was sent and not answered leaves an unknown outcome."""
        sent = not self.connection.is_closed()  # on a closed connection the changes are already lost
        if await self._finish("COMMIT", writes=sent) != "COMMIT":
            # PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, and without an error.
            raise transaction_failed()

    async def _finish(self, command: str, *, writes: bool = False) -> str:
        """Run the last command. A statement that runs may end first; one that still waits is refused."""
        self._over = True
        async with self._exclusive(self.deadline()) as deadline:
            return await self._command(command, deadline, writes=writes)

    async def _roll_back(self, command: str) -> None:
        """Run the last command after a failure, whose error is on its way to the caller.

        A lost connection has already undone everything, and one on which the command fails is terminated to do so.
        """
        self._over = True
        if self.connection.is_abandoned:  # a child process leaves the block: there may be no loop any more
            return
        try:
            async with self._exclusive(now() + ROLLBACK_GRACE_SECONDS) as deadline:
                if not self.connection.is_closed():
                    await self._command(command, deadline)
        except (HubbubError, *FAILURES):
            self.connection.terminate()
        except BaseException:  # cancelled a second time: leave no transaction open
            self.connection.terminate()
            raise

    async def _command(self, command: str, deadline: float, *, writes: bool = False) -> str:
        name = command.partition(" ")[0].rstrip(";")
        return await self._call(name, lambda connection: connection.execute(command), deadline, writes=writes)

    async def _call(
        self, name: str, call: Callable[[Connection], Awaitable[R]], deadline: float, *, writes: bool = False
    ) -> R:
        """Only a COMMIT `writes`: before it the changes are certainly undone when the connection is lost."""
        self.connection.quiet_since = inf
        try:
            return await run(
                self.connection,
                call,
                deadline=deadline,
                seconds=self._deadline_seconds,
                writes=writes,
                name=name,
                instrumentation=self._instrumentation,
            )
        finally:
            self.connection.quiet_since = monotonic()


def run_action(action: Callable[[], None]) -> None:
    """Run it after a COMMIT, and report what it raises: the commit stands."""
    with ReportErrors("an action after a COMMIT"):
        action()


# Statements of the application's own

_MAX_SQL_LENGTH: Final = 1024 * 1024
_FIRST_WORDS = re.compile(
    r"(?:\s|--[^\n]*|/\*.*?\*/)*+(?P<command>[a-z]+)(?:\s+(?P<scope>[a-z]+))?", re.DOTALL | re.IGNORECASE
)
_OF_TRANSACTIONS = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
_OF_SESSIONS = {"SET", "RESET", "DISCARD", "LISTEN", "UNLISTEN", "PREPARE", "DEALLOCATE"}
_SCOPES = {"LOCAL", "TRANSACTION", "CONSTRAINTS"}


def _check_sql(sql: object) -> None:
    """Check a statement of the application's own, for a transaction of hubbub's.

    The block ends the transaction, and the session belongs to other callers afterwards. So the commands that end
    the one or change the other are refused.

    Raises: Invalid.
    """
    words = _FIRST_WORDS.match(inputs.text("sql", sql, longest=_MAX_SQL_LENGTH))
    if words is None:
        return
    command, scope = words["command"].upper(), (words["scope"] or "").upper()
    if command in _OF_TRANSACTIONS:
        reason = f"must not be {command}: the block ends the transaction, and `savepoint` makes savepoints"
        raise Invalid("sql", reason)
    if command in _OF_SESSIONS and not (command == "SET" and scope in _SCOPES):
        reason = f"must not be {command}, which outlives the transaction: use SET LOCAL for a setting"
        raise Invalid("sql", reason)
