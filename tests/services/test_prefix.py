"""REDIS_PREFIX: on a shared Redis a hub uses no name without the prefix, and receives nothing of other hubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hubbub import Hub, Invalid, MessageSent, Room, Settings, User
from hubbub.redis import Connection
from hubbub.redis.commands import prefixed
from hubbub.redis.replies import as_bytes_list
from rights import PASSWORD, user_line
from waiting import until_it_answers

PREFIX = "shop:chat:"
SECRET = "correct horse battery"


@pytest.fixture
async def prefixed_settings(settings: Settings, administrator_of_redis: Connection) -> Settings:
    """Settings of a Redis user who may use nothing without the prefix."""
    _, *words = user_line()
    rules = [f"{word[0]}{PREFIX}{word[1:]}" if word[0] in "~&" else word for word in words]
    await administrator_of_redis.execute("ACL", "SETUSER", "prefixed", *rules, f"&{PREFIX}news")
    redis = replace(settings.redis, username="prefixed", password=PASSWORD, prefix=PREFIX)
    return replace(settings, redis=redis)


@pytest.fixture
async def hubs(prefixed_settings: Settings) -> AsyncIterator[tuple[Hub, Hub]]:
    async with Hub(prefixed_settings) as hub, Hub(prefixed_settings) as other:
        yield hub, other


async def test_every_part_works_under_a_prefix_and_names_nothing_without_it(
    hubs: tuple[Hub, Hub], hub: Hub, administrator_of_redis: Connection, ada: User, room: Room
) -> None:
    mine, other = hubs
    account = await mine.register("grace@example.org", "grace", SECRET)
    await mine.room_users.add(room.id, account.id)
    assert await mine.authenticate("grace@example.org", SECRET, address="192.0.2.1") == account
    token = await mine.sessions.create_session(account.id, {"n": 1})
    await mine.sessions.create_session(account.id)
    assert len(await other.sessions.list(account.id)) == 2
    assert await hub.sessions.get_session(token) is None
    new_token = await other.sessions.rotate(token)
    assert new_token is not None
    assert await mine.sessions.get_session(new_token) is not None

    async def is_cached() -> bool:  # not while the entry of a moment ago is being deleted
        assert await mine.cache.user(account.id) == account
        return bool(await administrator_of_redis.execute("KEYS", f"{PREFIX}cache:*"))

    await until_it_answers(is_cached)
    async with mine.presence.online(account.id), other.follow(account.id, typing=True) as feed:
        assert await other.presence.is_online([account.id]) == {account.id: True}
        assert await hub.presence.is_online([account.id]) == {account.id: False}
        assert await mine.typing.start(room.id, ada.id)
        assert await other.typing.typing_users(room.id) == [ada.id]
        assert await hub.typing.typing_users(room.id) == []
        sent = await mine.messages.send(room.id, ada.id, "hello")
        async with asyncio.timeout(10):
            async for event in feed:
                if isinstance(event, MessageSent):
                    assert event.message == sent
                    break
        names = as_bytes_list(await administrator_of_redis.execute("KEYS", "*"))
        channels = as_bytes_list(await administrator_of_redis.execute("PUBSUB", "CHANNELS"))
    under_prefix = [name.decode() for name in names if name.startswith(PREFIX.encode())]
    kinds = {name.removeprefix(PREFIX).partition(":")[0] for name in under_prefix}
    assert kinds | {"cache"} == {"session", "presence", "typing", "limit", "cache"}
    assert f"{PREFIX}room:{room.id}".encode() in channels
    assert await mine.sessions.revoke_all(account.id) == 2


async def test_listener_receives_only_its_own_channels(hubs: tuple[Hub, Hub], hub: Hub) -> None:
    mine, other = hubs
    async with await other.realtime.listen("news") as messages:
        assert await mine.realtime.publish("news", "under the prefix") == 1
        assert await anext(messages) == "under the prefix"


@pytest.mark.parametrize("prefix", ["{a}", "a b", "a*", "ä", "x" * 65, "a\n", "a'"])
def test_prefix_that_could_mean_something_else_is_refused(settings: Settings, prefix: str) -> None:
    with pytest.raises(Invalid) as caught:
        replace(settings.redis, prefix=prefix)
    assert caught.value.field == "REDIS_PREFIX"


def test_prefix_goes_before_keys_and_channels_only() -> None:
    assert prefixed("p:", ("SET", b"key", "value")) == ("SET", b"p:key", "value")
    assert prefixed("p:", ("DEL", "a", "b")) == ("DEL", "p:a", "p:b")
    assert prefixed("p:", ("EVALSHA", "sha", 2, "a", "b", "c")) == ("EVALSHA", "sha", 2, "p:a", "p:b", "c")
    assert prefixed("p:", ("TIME",)) == ("TIME",)
