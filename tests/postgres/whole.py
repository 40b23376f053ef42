"""Whether a pool is as it was in the beginning, after whatever was done to it."""

from __future__ import annotations

import asyncio

from hubbub.postgres import Pool
from postgres.notes import ONE, Watch
from postgres.trouble import eventually


async def is_whole(pool: Pool, watch: Watch, *, places: int = 2) -> None:
    """No connection is used or in a transaction, and `places` callers are served at a time, not one more."""

    async def at_rest() -> bool:
        return pool.size == pool.idle and set(await watch.states()) <= {"idle"}

    await eventually(at_rest)
    inside = asyncio.Barrier(places + 1)

    async def use() -> None:
        async with pool.transaction():
            await inside.wait()

    users = [asyncio.create_task(use()) for _ in range(places)]
    await eventually(lambda: _waiting(inside, places))
    late = asyncio.create_task(pool.fetch_one(ONE))
    await asyncio.wait([late], timeout=0.05)
    assert not late.done()
    await inside.wait()
    await asyncio.gather(*users)
    assert await late == 1
    assert len(await watch.states()) == pool.size == pool.idle == places


async def _waiting(barrier: asyncio.Barrier, count: int) -> bool:
    return barrier.n_waiting == count
