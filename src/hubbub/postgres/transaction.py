"""A transaction, its savepoints, and the actions that wait for its COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from hubbub.errors import HubbubError, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.postgres.copy import Copy, Row
from hubbub.postgres.failures import aborted
from hubbub.postgres.lookup import Lookup
from hubbub.postgres.run import FAILURES, carry_out, now, run
from hubbub.postgres.statement import Statement, count_of

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

# How long a ROLLBACK may take before the connection is terminated, which rolls back as well.
ROLLBACK_GRACE_SECONDS = 1.0


class Transaction:
    """An executor on one connection between BEGIN and COMMIT, or between SAVEPOINT and RELEASE.

    Callers that use it at the same time take turns, statement by statement. A savepoint is one long turn: while it
    is open, use its executor, not the one around it, which waits for the end of the savepoint until its deadline.
    Its own end is the last turn. So no statement ever runs beside another, or after the end on a connection that
    somebody else has by then.
    """

    def __init__(
        self,
        connection: Connection,
        deadline_seconds: float,
        names: count[int],
        deadline: float | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._deadline = deadline
        self._names = names
        self._instrumentation = instrumentation
        self._turn = asyncio.Lock()
        self._actions: list[Callable[[], None]] = []
        self._over = False

    @classmethod
    @asynccontextmanager
    async def on(
        cls,
        connection: Connection,
        deadline_seconds: float,
        deadline: float | None = None,
        instrumentation: Instrumentation = SILENT,
    ) -> AsyncIterator[Transaction]:
        """BEGIN, the block, COMMIT; ROLLBACK when one of them fails. None of it ends later than `by`."""
        transaction = cls(connection, deadline_seconds, count(1), deadline, instrumentation)
        try:
            await transaction._command("BEGIN", transaction.deadline())
            yield transaction
            await transaction._commit()
        except BaseException:
            await transaction._undo("ROLLBACK")
            raise

    def deadline(self) -> float:
        return self._no_later_than(now() + self._deadline_seconds)

    def _no_later_than(self, deadline: float | None) -> float:
        if deadline is None:
            return self.deadline()
        return deadline if self._deadline is None else min(deadline, self._deadline)

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        rows = await self._run(statement.name, lambda connection: connection.fetch(statement.sql, *args), deadline)
        model = statement.model
        return [model(*row) for row in rows]

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        row = await self._run(
            statement.name, lambda connection: connection.fetchrow(statement.sql, *args), deadline
        )
        return None if row is None else statement.model(*row)

    async def look_up(self, lookup: Lookup[T], *key: object) -> T | None:
        return await self.fetch_one(lookup, *key)  # on this connection, which alone sees what was done here

    fetch_shared = fetch_all  # for the same reason

    async def execute(self, statement: Statement[T], *args: object) -> int:
        tag = await self._run(statement.name, lambda connection: connection.execute(statement.sql, *args))
        return count_of(tag)

    async def see_one_state(self) -> None:
        """Read the database as it is now until the transaction ends, and change nothing. To be asked for first."""
        await self._run(
            "SET",
            lambda connection: connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
        )

    async def copy(self, into: Copy, rows: Iterable[Row] | AsyncIterable[Row]) -> None:
        """Add the rows by COPY: all, or none when one of them breaks a rule. Raises as an INSERT would.

        What comes of an asynchronous iterable is sent as it comes, and PostgreSQL takes it in meanwhile.
        """
        await self._run(
            "COPY",
            lambda connection: connection.copy_records_to_table(into.table, records=rows, columns=into.columns),
        )

    async def attempt(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        async with self.transaction(deadline=deadline) as savepoint:
            return await savepoint.fetch_all(statement, *args)

    @asynccontextmanager
    async def transaction(self, *, deadline: float | None = None) -> AsyncIterator[Transaction]:
        """A savepoint: when the block raises, what it did is undone, and nothing else."""
        name = f"hubbub_{next(self._names)}"
        deadline = self._deadline if deadline is None else self._no_later_than(deadline)
        inner = Transaction(self._connection, self._deadline_seconds, self._names, deadline, self._instrumentation)
        async with self._taking_turns(inner.deadline()) as deadline:
            self._check_open()
            await self._command(f"SAVEPOINT {name}", deadline)
            try:
                yield inner
                await inner._keep(f"RELEASE {name}")
            except BaseException:
                await inner._undo(f"ROLLBACK TO {name}; RELEASE {name}")
                raise
        self._actions += inner._actions

    def after_commit(self, action: Callable[[], None]) -> None:
        self._check_open()
        self._actions.append(action)

    def leave(self) -> None:
        """Do what waited for the COMMIT, in the order in which it was asked for."""
        carry_out(self._actions)

    async def _run(
        self, name: str, call: Callable[[Connection], Awaitable[R]], deadline: float | None = None
    ) -> R:
        seconds = self._deadline_seconds
        async with self._taking_turns(self._no_later_than(deadline)) as ends_at:
            self._check_open()
            return await run(
                self._connection,
                call,
                deadline=ends_at,
                seconds=seconds,
                writes=False,
                name=name,
                instrumentation=self._instrumentation,
            )

    @asynccontextmanager
    async def _taking_turns(self, deadline: float) -> AsyncIterator[float]:
        """The connection to oneself, once it is free. Gives the deadline, which covers the waiting for it."""
        seconds = deadline - now()
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError as error:
            raise Unavailable("hub", f"the transaction was in use for {seconds:.3g} s") from error
        try:
            yield deadline
        finally:
            self._turn.release()

    def _check_open(self) -> None:
        if self._over:
            raise Unavailable("hub", "the transaction is over", retryable=False)

    async def _commit(self) -> None:
        """Only a COMMIT that was sent and not answered leaves an unknown outcome."""
        sent = not self._connection.is_closed()  # or what was done is gone already, with the connection
        if await self._keep("COMMIT", writes=sent) != "COMMIT":
            # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and without an error.
            raise aborted()

    async def _keep(self, command: str, *, writes: bool = False) -> str:
        """The last turn. Who has a turn may finish; who still waits for one comes too late."""
        self._over = True
        async with self._taking_turns(self.deadline()) as deadline:
            return await self._command(command, deadline, writes=writes)

    async def _undo(self, command: str) -> None:
        """The last turn, when something failed: the error on its way up says what.

        A connection that is lost has undone all of it, and one whose command fails is lost on purpose.
        """
        self._over = True
        try:
            async with self._taking_turns(now() + ROLLBACK_GRACE_SECONDS) as deadline:
                if not self._connection.is_closed():
                    await self._command(command, deadline)
        except (HubbubError, *FAILURES):
            self._connection.terminate()
        except BaseException:  # cancelled a second time: leave no transaction open behind
            self._connection.terminate()
            raise

    async def _command(self, command: str, deadline: float, *, writes: bool = False) -> str:
        return await run(
            self._connection,
            lambda connection: connection.execute(command),
            deadline=deadline,
            seconds=self._deadline_seconds,
            writes=writes,
            name=command.partition(" ")[0],
            instrumentation=self._instrumentation,
        )
