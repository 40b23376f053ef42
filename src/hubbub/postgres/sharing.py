"""Concurrent callers share statements: lookups by key, and statements with the same arguments.

`hubbub.batching` decides when a statement is sent and which callers share it. Callers that come while a statement
is in flight share the next one, never that one. So a caller that asks after a change was acknowledged sees the
change, in whichever process it was made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from hubbub.batching import Batcher, KeyedQueue, PlainQueue
from hubbub.postgres.statement import Executor, Lookup, Statement

T = TypeVar("T")

Args: TypeAlias = tuple[object, ...]

Asked: TypeAlias = tuple[Statement[Any], Args, object]
"""A statement, its arguments, and one of the array that is its last argument; None without such an array."""

CALLERS_PER_STATEMENT: Final = 500
"""More make a statement no cheaper per caller, and keep the event loop busy for longer at a time."""

SHARED_WORKERS: Final = 6
"""Shared statements in flight. They read pages, which keep processors busy: 20 at a time cost PostgreSQL a third
more than 6 on 2 cores, and a process decodes pages no faster than 3 connections deliver them."""


class SharedStatements:
    """The statements that callers of a pool share: a batcher per lookup, and one for statements by arguments."""

    def __init__(self, executor: Executor, deadline_seconds: float) -> None:
        self._executor = executor
        self._deadline_seconds = deadline_seconds
        self._lookups: dict[Lookup[Any], Callable[[Args], Awaitable[Any]]] = {}
        self._batchers: list[Batcher[Any, Any]] = []
        self._shared = Batcher[Asked, list[Any]](
            "share a statement",
            self._fetch,
            self._fetch_for_all,
            deadline_seconds=deadline_seconds,
            queue=KeyedQueue(keys_per_batch=1),
            per_batch=CALLERS_PER_STATEMENT,
            workers=SHARED_WORKERS,
        )

    def look_up(self, lookup: Lookup[T], key: Args) -> Awaitable[T | None]:
        """The row of the key, or None."""
        call = self._lookups.get(lookup) or self._share(lookup)
        return call(key)

    def _share(self, lookup: Lookup[Any]) -> Callable[[Args], Awaitable[Any]]:
        """Batches for a lookup. For rooms on several nodes only callers with equal keys share a statement: one for
        several rooms would need an answer of each node."""
        by_key = lookup.has_room and self._executor.is_distributed
        batcher = Batcher[Args, Any](
            lookup.name,
            lambda key, deadline: self._executor.fetch_one(lookup, *key, deadline=deadline),
            partial(self._find_many, lookup),
            deadline_seconds=self._deadline_seconds,
            queue=KeyedQueue(keys_per_batch=1) if by_key else PlainQueue(),
            per_batch=CALLERS_PER_STATEMENT,
            workers=SHARED_WORKERS if by_key else 1,
        )
        self._batchers.append(batcher)
        call = self._lookups[lookup] = (
            (lambda key: batcher.call(key, lookup.key_of_args(*key))) if by_key else batcher.call
        )
        return call

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

    def fetch(self, statement: Statement[T], args: Args, deadline: float | None) -> Awaitable[list[T]]:
        """Every row."""
        return self._shared.call((statement, args, None), (statement, args), deadline=deadline)

    def fetch_by_each(self, statement: Statement[T], args: Args, deadline: float | None) -> Awaitable[list[T]]:
        """Every row, of a statement with an array of the last arguments of all callers that share it."""
        *rest, each = args
        if each is None:
            return self.fetch(statement, args, deadline)
        shared = tuple(rest)
        return self._shared.call((statement, shared, each), (statement, shared), deadline=deadline)

    async def _fetch(self, asked: Asked, deadline: float) -> list[Any]:
        return (await self._fetch_for_all([asked], deadline))[0]

    async def _fetch_for_all(self, asked: Sequence[Asked], deadline: float) -> list[list[Any]]:
        statement, args, each = asked[0]  # the first two are those of all
        if each is not None:
            args = (*args, list({one[2] for one in asked}))
        return [await self._executor.fetch_all(statement, *args, deadline=deadline)] * len(asked)

    async def close(self) -> None:
        """Refuse new callers, and wait for the statements in flight: the pool bounds how long they take."""
        for batcher in (*self._batchers, self._shared):
            await batcher.drain()
