"""Concurrent callers share statements: lookups by key, and statements with the same arguments.

`hubbub.batching` decides when a statement is sent and which callers share it. Callers that come while a statement
is in flight share the next one, never that one. So a caller that asks after a change was acknowledged sees the
change, in whichever process it was made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from hubbub.batching import Batcher, PlainQueue
from hubbub.postgres.executor import Executor
from hubbub.postgres.statement import Lookup, Statement

T = TypeVar("T")

Args: TypeAlias = tuple[object, ...]

Asked: TypeAlias = tuple[Statement[Any], Args]

CALLERS_PER_STATEMENT: Final = 500
"""More make a statement no cheaper per caller, and keep the event loop busy for longer at a time."""

MOST_SPARE: Final = 20
"""Batchers kept for later statements: about as many as run at a time on a pool. A new one costs 4 µs, and there
would be one per `fetch_shared`."""


class SharedStatements:
    """The statements that callers of a pool share: a batcher per lookup, and one per statement and arguments."""

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor = executor
        self._deadline_seconds = deadline_seconds
        self._lookups: dict[Lookup[Any], Batcher[Args, Any]] = {}
        self._statements: dict[Asked, Batcher[Asked, Any]] = {}
        self._asked: dict[Batcher[Asked, Any], Asked] = {}
        self._spare: list[Batcher[Asked, Any]] = []

    def look_up(self, lookup: Lookup[T], key: Args) -> Awaitable[T | None]:
        """The row of the key, or None."""
        batcher = self._lookups.get(lookup)
        if batcher is None:
            batcher = self._lookups[lookup] = Batcher(
                lookup.name,
                lambda key, deadline: self._executor.fetch_one(lookup, *key, deadline=deadline),
                partial(self._find_many, lookup),
                deadline_seconds=self._deadline_seconds,
                queue=PlainQueue(),
                per_batch=CALLERS_PER_STATEMENT,
            )
        return batcher.call(key)

    async def _find_many(self, lookup: Lookup[T], keys: Sequence[Args], deadline: float) -> list[T | None]:
        key_of_args = lookup.key_of_args
        asked = [key_of_args(*key) for key in keys]
        distinct = dict(zip(asked, keys, strict=True))
        if len(distinct) == 1:
            return [await self._executor.fetch_one(lookup, *keys[0], deadline=deadline)] * len(keys)
        columns = zip(*distinct.values(), strict=True)
        rows = await self._executor.fetch_all(lookup.many, *columns, deadline=deadline)
        key_of_row = lookup.key_of_row
        return list(map({key_of_row(row): row for row in rows}.get, asked))

    async def fetch(self, statement: Statement[T], args: Args, deadline: float | None) -> list[T]:
        """Every row."""
        asked = (statement, args)
        batcher = self._statements.get(asked)
        if batcher is None:
            batcher = self._spare.pop() if self._spare else self._new_batcher()
            self._statements[asked] = batcher
            self._asked[batcher] = asked
        rows: list[T] = await batcher.call(asked, deadline=deadline)
        return rows

    def _new_batcher(self) -> Batcher[Asked, Any]:
        batcher = Batcher[Asked, Any](
            "share a statement",
            lambda asked, deadline: self._executor.fetch_all(asked[0], *asked[1], deadline=deadline),
            self._fetch_for_all,
            deadline_seconds=self._deadline_seconds,
            queue=PlainQueue(),
            per_batch=CALLERS_PER_STATEMENT,
            on_idle=lambda: self._free(batcher),
        )
        return batcher

    async def _fetch_for_all(self, asked: Sequence[Asked], deadline: float) -> list[list[Any]]:
        statement, args = asked[0]  # as all the others
        return [await self._executor.fetch_all(statement, *args, deadline=deadline)] * len(asked)

    def _free(self, batcher: Batcher[Asked, Any]) -> None:
        """No caller waits for its rows any more. It serves the next statement, with other arguments."""
        del self._statements[self._asked.pop(batcher)]
        if len(self._spare) < MOST_SPARE:
            self._spare.append(batcher)

    async def close(self) -> None:
        """Refuse new callers, and wait for the statements in flight: the pool bounds how long they take."""
        for lookups in self._lookups.values():
            await lookups.drain()
        for rows in list(self._statements.values()):
            await rows.drain()
