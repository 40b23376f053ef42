"""A transaction, its savepoints, and the actions that wait for its COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from hubbub.errors import HubbubError, Unavailable
from hubbub.postgres.run import now, run
from hubbub.postgres.statement import Statement, count_of

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

# How long a ROLLBACK may take before the connection is terminated, which rolls back as well.
ROLLBACK_GRACE_SECONDS = 1.0


class Transaction:
    """An executor on one connection between BEGIN and COMMIT, or between SAVEPOINT and RELEASE.

    Callers that use it at the same time take turns, statement by statement. While a savepoint is open, use the
    executor of the savepoint, not the one around it.
    """

    def __init__(
        self, connection: Connection, deadline_seconds: float, turn: asyncio.Lock, names: count[int]
    ) -> None:
        self._connection = connection
        self._deadline_seconds = deadline_seconds
        self._turn = turn
        self._names = names
        self._actions: list[Callable[[], None]] = []
        self._over = False

    @classmethod
    @asynccontextmanager
    async def on(cls, connection: Connection, deadline_seconds: float) -> AsyncIterator[Transaction]:
        """BEGIN, the block, COMMIT; ROLLBACK when the block raises."""
        transaction = cls(connection, deadline_seconds, asyncio.Lock(), count(1))
        try:
            await transaction._command("BEGIN")
            yield transaction
        except BaseException:
            await transaction._roll_back("ROLLBACK")
            raise
        else:
            await transaction._commit()
        finally:
            transaction._over = True

    async def fetch_all(self, statement: Statement[T], *args: object) -> list[T]:
        async with self._turn:
            return await self._fetch_all(statement, *args)

    async def fetch_one(self, statement: Statement[T], *args: object) -> T | None:
        async with self._turn:
            row = await self._run(lambda connection: connection.fetchrow(statement.sql, *args))
        return None if row is None else statement.model(*row)

    async def execute(self, statement: Statement[T], *args: object) -> int:
        async with self._turn:
            return count_of(await self._run(lambda connection: connection.execute(statement.sql, *args)))

    async def attempt(self, statement: Statement[T], *args: object) -> list[T]:
        async with self._turn, self._savepoint():
            return await self._fetch_all(statement, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A savepoint: when the block raises, what it did is undone, and nothing else."""
        inner = Transaction(self._connection, self._deadline_seconds, self._turn, self._names)
        async with self._savepoint():
            try:
                yield inner
            finally:
                inner._over = True
        self._actions += inner._actions

    def after_commit(self, action: Callable[[], None]) -> None:
        self._actions.append(action)

    def leave(self) -> None:
        """Hand what waited for the COMMIT to the event loop, which runs each and reports one that raises."""
        for action in self._actions:
            asyncio.get_running_loop().call_soon(action)

    async def _fetch_all(self, statement: Statement[T], *args: object) -> list[T]:
        rows = await self._run(lambda connection: connection.fetch(statement.sql, *args))
        model = statement.model
        return [model(*row) for row in rows]

    @asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
        name = f"hubbub_{next(self._names)}"
        await self._command(f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            await self._roll_back(f"ROLLBACK TO {name}; RELEASE {name}")
            raise
        await self._command(f"RELEASE {name}")

    async def _commit(self) -> None:
        """Only a lost COMMIT leaves an unknown outcome: what ran before it is gone with the connection."""
        if await self._run(lambda connection: connection.execute("COMMIT"), writes=True) != "COMMIT":
            # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and without an error.
            reason = "the transaction was rolled back, because a statement in it had failed"
            raise Unavailable("postgresql", reason, retryable=False)

    async def _command(self, command: str, seconds: float | None = None) -> None:
        await self._run(lambda connection: connection.execute(command), seconds=seconds)

    async def _roll_back(self, command: str) -> None:
        """Undo. A connection that is lost has undone it already, and the error on its way up says why."""
        if self._connection.is_closed():
            return
        try:
            await self._command(command, seconds=ROLLBACK_GRACE_SECONDS)
        except HubbubError:
            self._connection.terminate()
        except BaseException:  # cancelled a second time: leave no transaction open behind
            self._connection.terminate()
            raise

    async def _run(
        self,
        call: Callable[[Connection], Awaitable[R]],
        *,
        writes: bool = False,
        seconds: float | None = None,
    ) -> R:
        if self._over:
            raise Unavailable("hub", "the transaction is over", retryable=False)
        seconds = self._deadline_seconds if seconds is None else seconds
        return await run(self._connection, call, deadline=now() + seconds, seconds=seconds, writes=writes)
