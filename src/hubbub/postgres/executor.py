"""What repositories run their statements on: a pool or a transaction, and they cannot tell which."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from hubbub.postgres.lookup import Lookup
from hubbub.postgres.statement import Statement

T = TypeVar("T")


class Executor(Protocol):
    """Runs statements. Every method raises the errors of `hubbub.errors`, and ends by its deadline.

    A call of several statements asks for `deadline()` once and gives it to each of them as `by`, so that it ends
    as soon as a call of one.
    """

    def deadline(self) -> float:
        """When a call that starts now has to end, in the time of the event loop."""
        ...

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        """Every row, as models."""
        ...

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        """The first row as a model, or None where there is none."""
        ...

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        """The row of the key, or None, in a statement shared with others who ask now, unless in a transaction."""
        ...

    def fetch_shared(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        """As `fetch_all`, shared with others who ask for the same now, unless in a transaction.

        The statement begins after the call, so the rows are no older than it. The list belongs to all who share
        it: nobody may change it.
        """
        ...

    async def execute(self, statement: Statement[T], *args: object) -> int:
        """The number of rows that the statement changed."""
        ...

    async def attempt(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        """As `fetch_all`, for a statement whose failure is expected: what runs after it still can."""
        ...

    def transaction(self, *, deadline: float | None = None) -> AbstractAsyncContextManager[Executor]:
        """All or nothing: a transaction on a pool, a savepoint in a transaction. `by` is for the whole block."""
        ...

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once what was done so far is durable; never if it is rolled back."""
        ...
