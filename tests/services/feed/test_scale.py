"""Many followers of many rooms in one process: one subscription per room, and bounded memory per follower."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter

from hubbub import Follower, Hub, Settings
from hubbub.postgres import Pool, Statement
from services.feed.conftest import NO_HEARTBEAT
from services.feed.reading import take
from waiting import until

BYTES_PER_FOLLOWER = 8 * 1024
FILL = (
    Statement(
        "test.people",
        int,
        """
        INSERT INTO users (email, username, password_hash)
        SELECT 'user-' || n || '@example.org', 'user-' || n, '!'
        FROM generate_series(0, $1::integer - 1) AS n
        """,
    ),
    Statement(
        "test.rooms",
        int,
        "INSERT INTO rooms (name) SELECT 'room-' || n FROM generate_series(0, $1::integer - 1) AS n",
    ),
    Statement(
        "test.members",
        int,
        """
        WITH people AS (
            SELECT id, row_number() OVER (ORDER BY username) AS number
            FROM users
        ), targets AS (
            SELECT id, row_number() OVER (ORDER BY name) - 1 AS number, count(*) OVER () AS rooms
            FROM rooms
        )
        INSERT INTO room_users (room_id, user_id)
        SELECT targets.id, people.id
        FROM people
        CROSS JOIN generate_series(0, $1::integer - 1) AS n
        JOIN targets ON targets.number = (people.number * 7 + n * 13) % targets.rooms
        """,
    ),
)
PEOPLE = Statement("test.all_people", lambda user_id: user_id, "SELECT id FROM users")
MEMBERS = Statement(
    "test.one_member",
    lambda room_id, user_id: (room_id, user_id),
    "SELECT room_id, min(user_id::text)::uuid FROM room_users GROUP BY room_id",
)


async def enter_all(hub: Hub, pool: Pool, *, people: int, rooms: int, each: int) -> list[Follower]:
    """Followers for this many users, each a member of `each` rooms."""
    for statement, number in zip(FILL, (people, rooms, each), strict=True):
        await pool.execute(statement, number)
    followers = [hub.follow(user_id) for user_id in await pool.fetch_all(PEOPLE)]
    for start in range(0, people, 100):
        await asyncio.gather(*(one.__aenter__() for one in followers[start : start + 100]))
    return followers


async def test_idle_followers_take_one_subscription_per_room_and_little_memory(
    settings: Settings, pool: Pool
) -> None:
    people, rooms = 1_000, 300
    async with Hub(settings, options=NO_HEARTBEAT) as hub:
        tracemalloc.start()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        followers = await enter_all(hub, pool, people=people, rooms=rooms, each=10)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert sum(len(one.positions) for one in followers) == people * 10
        assert len(hub._feed._rooms._rooms) == rooms
        channels = Counter(hub._subscriptions._channels)
        assert sum(name.startswith(b"room:") for name in channels) == rooms
        assert used / people < BYTES_PER_FOLLOWER
        for one in followers:
            one.close()
        await until(lambda: not hub._feed._rooms._rooms)


async def test_all_followers_of_a_large_room_receive_everything(settings: Settings, pool: Pool) -> None:
    async with Hub(settings, options=NO_HEARTBEAT) as hub, Hub(settings, options=NO_HEARTBEAT) as other:
        followers = await enter_all(hub, pool, people=500, rooms=1, each=1)
        ((room_id, user_id),) = await pool.fetch_all(MEMBERS)
        receiving = [asyncio.create_task(take(one, 40)) for one in followers]
        for number in range(20):
            for sender in (hub, other):
                await sender.messages.send(room_id, user_id, str(number))
        histories = await asyncio.gather(*receiving)
        assert all(history == histories[0] for history in histories)
        assert [event.seq for event in histories[0] if hasattr(event, "seq")] == list(range(1, 41))
        for one in followers:
            one.close()
