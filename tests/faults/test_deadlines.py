"""A server is frozen: it takes connections and says nothing. No call waits for it longer than its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import pytest

from faults.chat import Chat
from faults.figures import Figures
from faults.fragile import FragileServers
from faults.scale import SCALE
from hubbub import Hub, Settings, Unavailable

DEADLINE_SECONDS = 1.0
# More callers than the pool has connections: some wait for one, and their deadline covers that too.
CALLERS = 30

Calls = Mapping[str, Callable[[], Awaitable[object]]]


@pytest.fixture
def impatient(chat: Chat) -> Settings:
    return Settings(
        postgres=replace(chat.settings.postgres, deadline_seconds=DEADLINE_SECONDS, pool_size=5),
        redis=replace(
            chat.settings.redis, deadline_seconds=DEADLINE_SECONDS, connect_timeout_seconds=DEADLINE_SECONDS / 2
        ),
    )


async def took(name: str, call: Callable[[], Awaitable[object]]) -> tuple[float, str]:
    """How many seconds it took until the call was answered or raised Unavailable, and its name."""
    clock = asyncio.get_running_loop().time
    began = clock()
    with suppress(Unavailable):
        await call()
    return clock() - began, name


async def slowest(calls: Calls, settings: Settings) -> tuple[float, str]:
    """All calls at once, each many times, then the start of another hub: what took longest."""
    times = await asyncio.gather(*(took(name, call) for name, call in calls.items() for _ in range(CALLERS)))
    another = Hub(settings)
    start = await took("start", another.start)
    return max(*times, start, await took("close", another.close))


@pytest.mark.guarantee("G11", "PostgreSQL frozen, deadline 1 s")
async def test_no_call_waits_longer_for_a_frozen_postgresql(
    chat: Chat, impatient: Settings, fragile: FragileServers, figures: Figures
) -> None:
    room_id, user_id = chat.room_ids[0], chat.user_ids[0]

    async def together(hub: Hub) -> None:
        async with hub.transaction() as tx:
            await tx.messages.send(room_id, user_id, "hello")

    async with Hub(impatient) as hub:
        message = await hub.messages.send(room_id, user_id, "hello")
        calls: Calls = {
            "messages.send": lambda: hub.messages.send(room_id, user_id, "hello"),
            "messages.edit": lambda: hub.messages.edit(message.id, "edited", by=user_id),
            "messages.page": lambda: hub.messages.page(room_id),
            "messages.since": lambda: hub.messages.since(room_id, message.cursor),
            "receipts.mark_read": lambda: hub.receipts.mark_read(room_id, user_id, up_to=message.seq),
            "rooms.list_for": lambda: hub.rooms.list_for(user_id),
            "rooms.create": lambda: hub.rooms.create("another", created_by=user_id),
            "room_users.is_member": lambda: hub.room_users.is_member(room_id, user_id),
            "users.get": lambda: hub.users.get(user_id),
            "transaction": lambda: together(hub),
        }
        with fragile.frozen("postgresql"):
            seconds, name = await slowest(calls, impatient)
    figures.found(f"the longest of {len(calls) * CALLERS} calls took {seconds:.2f} s ({name})")
    assert seconds <= (DEADLINE_SECONDS + 1) * SCALE.patience


@pytest.mark.guarantee("G11", "Redis frozen, deadline 1 s")
async def test_no_call_waits_longer_for_a_frozen_redis(
    chat: Chat, impatient: Settings, fragile: FragileServers, figures: Figures
) -> None:
    room_id, user_id = chat.room_ids[0], chat.user_ids[0]

    async with Hub(impatient) as hub:
        token = await hub.sessions.create_session(user_id)
        calls: Calls = {
            "messages.send": lambda: hub.messages.send(room_id, user_id, "hello"),
            "sessions.create_session": lambda: hub.sessions.create_session(user_id),
            "sessions.get_session": lambda: hub.sessions.get_session(token),
            "sessions.revoke_all": lambda: hub.sessions.revoke_all(user_id),
            "presence.is_online": lambda: hub.presence.is_online([user_id]),
            "typing.start": lambda: hub.typing.start(room_id, user_id),
            "typing.who_types": lambda: hub.typing.who_types(room_id),
            "cache.user": lambda: hub.cache.user(user_id),
            "cache.newest_page": lambda: hub.cache.newest_page(room_id),
            "realtime.publish": lambda: hub.realtime.publish("channel", "hello"),
            "limits.take": lambda: hub.limits.take("name", "key", capacity=1, refill_per_second=1),
        }
        with fragile.frozen("valkey"):
            seconds, name = await slowest(calls, impatient)
    figures.found(f"the longest of {len(calls) * CALLERS} calls took {seconds:.2f} s ({name})")
    assert seconds <= (DEADLINE_SECONDS + 1) * SCALE.patience
