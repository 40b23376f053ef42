"""Pub/sub under load: nothing is lost, and Redis reads seldom, on which its throughput depends."""

from __future__ import annotations

import asyncio

from hubbub import Hub
from performance.conftest import Reads
from waiting import until

PUBLISHERS = 200
MESSAGES = 10_000


async def test_ten_thousand_messages_reach_every_subscriber_once_and_in_order(hub: Hub, reads: Reads) -> None:
    channel = "news"
    received: list[list[str]] = [[], [], []]
    for each in received:
        await hub.realtime.subscribe_to_channel(channel, each.append)
    before = await reads.count()

    async def publisher(first: int) -> None:
        for number in range(first, MESSAGES, PUBLISHERS):
            assert await hub.realtime.publish(channel, str(number)) == 1  # one connection for all three

    await asyncio.gather(*(publisher(number) for number in range(PUBLISHERS)))
    await until(lambda: all(len(each) == MESSAGES for each in received))
    assert received[0] == received[1] == received[2]
    assert sorted(map(int, received[0])) == list(range(MESSAGES))
    for first in range(PUBLISHERS):
        mine = [number for number in map(int, received[0]) if number % PUBLISHERS == first]
        assert mine == sorted(mine)
    # Concurrent messages of 200 publishers are written together.
    assert await reads.count() - before <= MESSAGES / 20


async def test_two_hundred_session_lookups_are_few_reads_of_redis(hub: Hub, reads: Reads) -> None:
    ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    token = await hub.sessions.create_session(ada.id)
    before = await reads.count()
    sessions = await asyncio.gather(*(hub.sessions.get_session(token) for _ in range(200)))
    assert all(session is not None and session.user_id == ada.id for session in sessions)
    assert await reads.count() - before <= 10
