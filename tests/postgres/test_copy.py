from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hubbub import Conflict, Invalid
from hubbub.postgres import Copy, FastUUID, Pool
from hubbub.postgres.statement import Statement
from postgres.notes import IDS, WRITE, ids

NOTES = Copy("notes", ("id", "body"))
BODIES = Statement("test.bodies", str, "SELECT body FROM notes ORDER BY id")


async def test_rows_are_there_once_the_transaction_is(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.copy(NOTES, [(1, "a\tb\n\\N"), (2, "b")])
        assert await ids(pool) == []
    assert await pool.fetch_all(BODIES) == ["a\tb\n\\N", "b"]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([(1, "a"), (1, "b")], Conflict),
        ([(1, "a"), (2, "")], Invalid),
        ([(1, "a"), (2, None)], Invalid),
    ],
)
async def test_one_row_that_breaks_a_rule_refuses_all(
    pool: Pool, rows: list[tuple[object, ...]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with pool.transaction() as tx:
            await tx.copy(NOTES, rows)
    assert await ids(pool) == []


async def test_rows_may_come_while_the_copy_is_under_way(pool: Pool) -> None:
    async def rows() -> AsyncIterator[tuple[object, ...]]:
        for number in range(1, 4):
            await asyncio.sleep(0)
            yield number, "x" * 1_000_000

    async with pool.transaction() as tx:
        await tx.copy(NOTES, rows())
    assert await ids(pool) == [1, 2, 3]


async def test_what_fails_while_rows_are_made_fails_the_copy(pool: Pool) -> None:
    async def rows() -> AsyncIterator[tuple[object, ...]]:
        yield 1, "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as tx:
            await tx.copy(NOTES, rows())
    assert await ids(pool) == []


async def test_one_state_is_seen_until_the_end_and_cannot_be_changed(pool: Pool) -> None:
    async with pool.transaction() as tx:
        await tx.use_one_snapshot()
        assert await tx.fetch_all(IDS) == []
        await pool.execute(WRITE, 1, "a")
        assert await tx.fetch_all(IDS) == []
    assert await ids(pool) == [1]


def test_a_fast_uuid_is_one_like_any_other() -> None:
    raw = bytes(range(16))
    assert FastUUID(raw) == UUID(bytes=raw)
    assert hash(FastUUID(raw)) == hash(UUID(bytes=raw))
    assert isinstance(FastUUID(raw), UUID)
