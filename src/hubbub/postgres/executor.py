"""The interface on which repositories run their statements, on a pool and in a transaction alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Set
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar
from uuid import UUID

from hubbub.postgres.statement import Lookup, Statement

T = TypeVar("T")


def key_of_account(user_id: UUID) -> Hashable:
    """The key of the row of an account for `Executor.note_locked`. Other changes have the id as an argument."""
    return "account", user_id


def key_of_value(column: str, value: object) -> Hashable:
    """The key of a unique value, for `Executor.note_locked`. Others wait for the COMMIT to store it."""
    return column, str(value)


class Executor(Protocol):
    """Runs statements. Every method raises the errors of `hubbub.errors` and ends by its deadline.

    Deadlines are times of the event loop. An operation of several statements calls `deadline()` once and passes
    the result to each of them. It then ends as soon as an operation of one statement.
    """

    @property
    def is_distributed(self) -> bool:
        """Whether the rooms are distributed over several nodes. A statement then locks rows of one room only."""
        ...

    def deadline(self) -> float:
        """The time by which a call that starts now has to end."""
        ...

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        """Every row, as a model."""
        ...

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        """The first row as a model, or None if there is none."""
        ...

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        """The row of the key, or None. On a pool, concurrent lookups of one kind share a statement."""
        ...

    def fetch_shared(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        """Every row. On a pool, concurrent calls with the same arguments share a statement.

        The statement begins after the call, so the rows are at least as recent as the call. All callers get the
        same list and must not change it.
        """
        ...

    def fetch_shared_by_each(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        """As `fetch_shared`, for calls that differ in the last argument: the statement gets an array of these.

        A call without a last argument, None, shares with its equals, and the statement gets NULL.
        """
        ...

    async def execute(self, statement: Statement[T], *args: object) -> int:
        """Run the statement. Returns the number of rows that it changed."""
        ...

    async def attempt(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        """As `fetch_all`, for a statement that may fail: a transaction can go on after it."""
        ...

    def transaction(self, *, deadline: float | None = None) -> AbstractAsyncContextManager[Executor]:
        """All or nothing: a transaction on a pool, a savepoint in a transaction. The deadline is for the block."""
        ...

    def note_locked(self, key: Hashable) -> None:
        """Note that a row was changed or a unique value was stored, which is locked until the COMMIT.

        The key of a room is its id, that of a membership a pair of ids, and that of an account `key_of_account`.
        That of a value is `key_of_value`.
        """
        ...

    def locked_by_caller(self) -> Set[Hashable]:
        """The rows that transactions of the same task have locked, and may have freed since."""
        ...

    async def check_not_locked_by_caller(self, *keys: Hashable) -> None:
        """Refuse a change of one of these rows that would wait for a transaction of the same task.

        It is needed only while `locked_by_caller` returns rows. Raises: Invalid.
        """
        ...

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once the changes made so far are durable. It is never called if they are rolled back."""
        ...
