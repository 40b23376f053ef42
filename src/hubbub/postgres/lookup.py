"""Questions that callers who ask at the same time share: rows by their key, and statements as a whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from hubbub.postgres.sharing import Answers, Ask, Key, Queue
from hubbub.postgres.statement import Statement

if TYPE_CHECKING:
    from hubbub.postgres.executor import Executor

T = TypeVar("T")


class Lookup(Statement[T]):
    """A statement that finds the row of one key, with another, `many`, that finds the rows of many keys.

    The placeholders of the statement make up the key. `many` has as many, and each is an array: the n-th items of
    all of them are the n-th key. `named` gives the key a name, and `name_of` a row the name of its key: anything
    that is fast to compare. A UUID is not, its `int` is.
    """

    __slots__ = ("many", "name_of", "named")

    def __init__(
        self,
        name: str,
        model: Callable[..., T],
        sql: str,
        *,
        many: Statement[T],
        named: Callable[..., Hashable],
        name_of: Callable[[T], Hashable],
    ) -> None:
        super().__init__(name, model, sql)
        self.many = many
        self.named = named
        self.name_of = name_of


class Lookups:
    """The lookups of a pool: those of one kind that wait go out together, as do those who ask the very same."""

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor = executor
        self._deadline_seconds = deadline_seconds
        self._queues: dict[Lookup[Any], Queue[Any]] = {}
        self._shared: dict[tuple[Statement[Any], Key], Queue[Any]] = {}

    def find(self, lookup: Lookup[T], key: Key) -> Awaitable[T | None]:
        """The row of the key, or None. Raises `Unavailable`, by the deadline at the latest."""
        queue = self._queues.get(lookup)
        if queue is None:
            queue = self._queues[lookup] = Queue(lookup.name, self._by_key(lookup), self._deadline_seconds)
        return queue.find(lookup.named(*key), key)

    def _by_key(self, lookup: Lookup[T]) -> Ask[T | None]:
        async def ask(keys: Mapping[Hashable, Key], deadline: float | None) -> Answers[T | None]:
            if len(keys) == 1:
                [key] = keys.values()
                row = await self._executor.fetch_one(lookup, *key, deadline=deadline)
                return lambda _: row
            name_of = lookup.name_of
            rows = await self._executor.fetch_all(
                lookup.many, *zip(*keys.values(), strict=True), deadline=deadline
            )
            return {name_of(row): row for row in rows}.get

        return ask

    async def share(self, statement: Statement[T], args: Key, deadline: float | None) -> list[T]:
        """Every row, of a statement that all run together who wait to run it with the same arguments."""
        asked = (statement, args)
        queue = self._shared.get(asked)
        if queue is None:
            queue = self._shared[asked] = Queue(
                statement.name,
                self._as_it_is(statement),
                self._deadline_seconds,
                when_idle=lambda: self._shared.pop(asked, None),
            )
        rows: list[T] = await queue.find(None, args, deadline)
        return rows

    def _as_it_is(self, statement: Statement[T]) -> Ask[list[T]]:
        async def ask(keys: Mapping[Hashable, Key], deadline: float | None) -> Answers[list[T]]:
            [args] = keys.values()
            rows = await self._executor.fetch_all(statement, *args, deadline=deadline)
            return lambda _: rows

        return ask

    async def close(self) -> None:
        """Refuse those who wait, and let those who are under way arrive: the pool sees to it that they do."""
        for queue in (*self._queues.values(), *self._shared.values()):
            await queue.close()
