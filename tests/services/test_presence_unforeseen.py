"""Data of other programs in the keys of presence, and malformed replies. Neither ends a background task."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

from hubbub.redis import Connection, Subscriptions
from hubbub.services.presence.leases import (
    BUCKETS,
    USERS_PER_SWEEP,
    Lease,
    Leases,
    Sweeper,
    bucket_of,
    leases_key,
    online_key,
)
from reports import reports
from services.odd_answers import answering
from services.presence_events import PresenceListener, opened
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

STRAYS = [
    b"junk",
    b"",
    b"\xff\x00",
    b'","isOnline":true}',
    b"long" * 100_000,
    b"urn:uuid:01920000-0000-7000-8000-000000000000",
    b"{01920000-0000-7000-8000-000000000000}",
    b"01920000-0000-7000-8000-00000000ABCD",
    b"01920000-0000-7000-8000-000000000000\n",
    b"01920000000070008000000000000000",
]
"""Members that are no ids as hubbub writes them, though some can be read as one."""


async def test_members_that_are_not_ids_are_swept_and_do_not_delay_users(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """There are more than fit into a script, before Ada, and three processes find them."""
    ada = uuid4()
    key = online_key(bucket_of(ada))
    strays = [*STRAYS, *(b"stray %d" % n for n in range(USERS_PER_SWEEP))]
    await connection.execute("ZADD", key, *[word for stray in strays for word in (1, stray)])
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(PresenceListener(connection, subscriptions).listening())
        presence, *_ = [
            await stack.enter_async_context(opened(connection, subscriptions, grace_seconds=0)) for _ in range(3)
        ]
        async with presence.online(ada):
            pass
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            heard = await listener.until_offline({ada})
        assert [change.is_online for change in heard if change.user_id == ada] == [True, False]

        async def none_is_left() -> bool:
            return await connection.execute("EXISTS", key) == 0

        await until_it_answers(none_is_left)


async def test_device_name_that_is_not_utf_8_hides_no_other_device(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions) as presence, presence.online(ada, "phone"):
        await connection.execute("ZADD", leases_key(ada), 2**53, b"0" * 32 + b":\xff")
        names = [device.name for device in await presence.devices(ada)]
        assert sorted(map(str, names)) == ["phone", "\N{REPLACEMENT CHARACTER}"]


async def test_malformed_reply_does_not_end_sweeping() -> None:
    swept: list[int] = []
    nobody = b"*2\r\n:0\r\n*0\r\n"
    async with answering(b"+what?\r\n", nobody) as (connection, _):
        sweeper = Sweeper(
            connection,
            every_seconds=0.01,
            heartbeat_seconds=1,
            on_transition=lambda _: None,
            on_empty=swept.append,
        )
        with reports() as reported:
            sweeper.task.start()
            await until(lambda: len(swept) >= 2 * BUCKETS - 1)
            await sweeper.task.close()
    assert swept[: 2 * BUCKETS - 1] == [*range(1, BUCKETS), *range(BUCKETS)]
    assert [context["message"] for context in reported] == ["sweeping presence failed"]


async def test_lease_is_sent_again_after_a_malformed_reply() -> None:
    ada = uuid4()
    came: list[list[UUID]] = []
    async with answering(b":1\r\n", b"*1\r\n$36\r\n%s\r\n" % str(ada).encode(), b"*0\r\n") as (connection, _):
        leases = Leases(
            connection,
            heartbeat_seconds=60,
            grace_seconds=1,
            on_transition=lambda user_ids: came.append(list(user_ids)),
        )
        with reports() as reported:
            leases.start()
            await leases.acquire(lease := Lease(ada, None))
            await until(lambda: len(came) == 2)  # the first script may have run
            await leases.release(lease)
            await leases.task.close()
    assert came[:2] == [[ada], [ada]]
    assert [context["message"] for context in reported] == ["sending leases failed"]
