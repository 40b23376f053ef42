from __future__ import annotations

import asyncio
import json
import logging
import random
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from hubbub import RedisSettings, Settings
from hubbub.errors import Invalid, Unavailable
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.services.realtime import CHANNEL_BYTES, MESSAGE_BYTES, RealtimeService
from redis_server import Server
from rights import as_redis_user, user_line
from waiting import until, until_it_answers

HOSTILE_NAMES = 100_000


@pytest.fixture
def redis_user(servers: Settings) -> RedisSettings:
    """A user that may also use the channels of an application."""
    return as_redis_user(servers.redis, "on-any-channel")


@pytest.fixture
def realtime(connection: Connection, subscriptions: Subscriptions) -> RealtimeService:
    return RealtimeService(connection, subscriptions)


async def test_typing_is_published_with_the_original_keys(
    realtime: RealtimeService, subscriptions: Subscriptions
) -> None:
    room_id, user_id = uuid4(), uuid4()
    async with await subscriptions.subscribe(f"typing:{room_id}") as messages:
        await realtime.publish_typing_indicator(room_id, user_id, True)
        received = await anext(messages)
    assert isinstance(received, bytes)
    assert json.loads(received) == {"userId": str(user_id), "isTyping": True}


async def test_presence_is_published_with_the_original_keys(
    realtime: RealtimeService, subscriptions: Subscriptions
) -> None:
    user_id = uuid4()
    async with await subscriptions.subscribe("presence") as messages:
        await realtime.publish_user_presence(user_id, False)
        received = await anext(messages)
    assert isinstance(received, bytes)
    assert json.loads(received) == {"userId": str(user_id), "isOnline": False}


async def test_messages_after_the_confirmation_are_not_missed(realtime: RealtimeService) -> None:
    received: list[str] = []
    async with await realtime.subscribe_to_channel("news", received.append):
        assert await realtime.publish("news", "first") == 1
        await realtime.publish("news", "second")
        await until(lambda: len(received) == 2)
    assert received == ["first", "second"]


async def test_unsubscribed_listener_receives_no_more_messages(realtime: RealtimeService) -> None:
    gone: list[str] = []
    stayed: list[str] = []
    handle = await realtime.subscribe_to_channel("news", gone.append)
    async with await realtime.subscribe_to_channel("news", stayed.append):
        handle.unsubscribe()
        handle.unsubscribe()
        await realtime.publish("news", "hello")
        await until(lambda: stayed == ["hello"])
    assert gone == []


async def test_thousand_listeners_of_a_channel_are_one_subscription_in_redis(
    realtime: RealtimeService, connection: Connection
) -> None:
    received: list[str] = []
    handles = await asyncio.gather(*[realtime.subscribe_to_channel("news", received.append) for _ in range(1000)])
    assert await realtime.publish("news", "hello") == 1
    await until(lambda: len(received) == 1000)
    for handle in handles:
        handle.unsubscribe()

    async def nobody_listens() -> bool:
        return await realtime.publish("news", "hello") == 0

    await until_it_answers(nobody_listens)


async def test_callback_that_raises_does_not_affect_others(
    realtime: RealtimeService, caplog: pytest.LogCaptureFixture
) -> None:
    def fall_over(message: str) -> None:
        raise ValueError(message)

    received: list[str] = []
    with caplog.at_level(logging.ERROR):
        async with (
            await realtime.subscribe_to_channel("news", fall_over),
            await realtime.subscribe_to_channel("news", received.append),
        ):
            await realtime.publish("news", "one")
            await realtime.publish("news", "two")
            await until(lambda: received == ["one", "two"])
    assert caplog.text.count("a subscriber of news raised") == 2


async def test_slow_listener_gets_the_number_of_lost_messages(realtime: RealtimeService) -> None:
    async with await realtime.listen("news", buffer=10) as slow, await realtime.listen("news") as quick:
        for number in range(25):
            await realtime.publish("news", str(number))
        while await anext(quick) != "24":
            pass
        received = [await anext(slow) for _ in range(11)]
    assert received == [Gap("overflow", 15), *[str(number) for number in range(15, 25)]]
    assert slow.dropped == 15


async def test_unsubscribe_ends_the_iteration(realtime: RealtimeService) -> None:
    messages = await realtime.listen("news")
    reader = asyncio.create_task(anext(messages, "the end"))
    await asyncio.sleep(0)
    messages.unsubscribe()
    assert await reader == "the end"


async def test_payload_that_is_not_utf8_arrives_with_surrogates(
    realtime: RealtimeService, connection: Connection
) -> None:
    async with await realtime.listen("news") as messages:
        await connection.execute("PUBLISH", "news", b"\xff\x00ok")
        received = await anext(messages)
    assert isinstance(received, str)
    assert received.encode(errors="surrogateescape") == b"\xff\x00ok"


PIECES = [
    "\r\n",
    "*",
    "?",
    "[a-z]",
    "\0",
    "\\",
    " ",
    "{",
    "}",
    "\N{PILE OF POO}",
    "\ud800",
    "é",
    "$5\r\n",
    "\u202e",
    "ab",
]


def _hostile_names() -> list[str]:
    source = random.Random(20)
    names = {"".join(source.choices(PIECES, k=source.randint(0, 9))) for _ in range(2 * HOSTILE_NAMES)}
    names |= {chr(source.randrange(0x110000)) * source.choice([1, 100, 600]) for _ in range(HOSTILE_NAMES // 10)}
    return sorted(names)[:HOSTILE_NAMES]


def _is_fit(name: str) -> bool:
    return 1 <= len(name.encode(errors="surrogatepass")) <= CHANNEL_BYTES and not any(
        0xD800 <= ord(character) <= 0xDFFF for character in name
    )


async def test_hostile_channel_name_is_used_literally_or_refused(realtime: RealtimeService) -> None:
    """Each message carries the name of its channel, so that a message on a wrong channel is noticed."""
    names = _hostile_names()
    assert len(names) > 50_000
    received = 0
    for start in range(0, len(names), 1000):
        received += await _round_trip(realtime, names[start : start + 1000])
    assert 0 < received == sum(map(_is_fit, names))


async def _round_trip(realtime: RealtimeService, names: list[str]) -> int:
    found: dict[str, list[str]] = {name: [] for name in names}
    outcomes = await asyncio.gather(
        *[realtime.subscribe_to_channel(name, found[name].append) for name in names], return_exceptions=True
    )
    refused = [name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Invalid)]
    fit = [name for name in names if name not in set(refused)]
    assert not any(map(_is_fit, refused))
    assert await asyncio.gather(*[realtime.publish(name, name) for name in fit]) == [1] * len(fit)
    await until(lambda: all(found[name] for name in fit))
    assert all(found[name] == [name] for name in fit)
    for outcome in outcomes:
        if not isinstance(outcome, BaseException):
            outcome.unsubscribe()
    return len(fit)


@pytest.mark.parametrize("channel", ["", "x" * 513, "é" * 257, "\ud800", b"news", None, 7])
async def test_invalid_channel_is_refused(realtime: RealtimeService, channel: object) -> None:
    with pytest.raises(Invalid, match="channel"):
        await realtime.publish(channel, "hello")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="channel"):
        await realtime.listen(channel)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="channel"):
        await realtime.subscribe_to_channel(channel, print)  # type: ignore[arg-type]


def own_channels() -> list[str]:
    """The channels that the Redis user may use. Any other channel of hubbub would not work."""
    return [word.removeprefix("&") for word in user_line() if word.startswith("&")]


@pytest.mark.parametrize("end", ["", "*", "\0", str(UUID(int=7))])
@pytest.mark.parametrize("own", own_channels())
async def test_channel_of_hubbub_is_refused(realtime: RealtimeService, own: str, end: str) -> None:
    channel = own.replace("*", end)
    with pytest.raises(Invalid, match="must not be a channel of hubbub"):
        await realtime.publish(channel, "hello")
    with pytest.raises(Invalid, match="must not be a channel of hubbub"):
        await realtime.listen(channel)
    with pytest.raises(Invalid, match="must not be a channel of hubbub"):
        await realtime.subscribe_to_channel(channel, print)


@pytest.mark.parametrize("channel", ["*", "[r]oom:*", "?resence", "Room:1", "rooms", "room", " room:1"])
async def test_pattern_is_the_name_of_another_channel(realtime: RealtimeService, channel: str) -> None:
    async with await realtime.listen(channel) as messages:
        await realtime.publish_user_presence(uuid4(), True)
        assert await realtime.publish(channel, "hello") == 1
        assert await anext(messages) == "hello"


@pytest.mark.parametrize("message", [b"hello", None, 7, {"a": 1}, "\udfff", "x" * (MESSAGE_BYTES + 1)])
async def test_invalid_message_is_refused(realtime: RealtimeService, message: object) -> None:
    with pytest.raises(Invalid, match="message"):
        await realtime.publish("news", message)  # type: ignore[arg-type]


async def test_empty_message_is_delivered(realtime: RealtimeService) -> None:
    async with await realtime.listen("news") as messages:
        await realtime.publish("news", "")
        assert await anext(messages) == ""


async def test_invalid_user_or_flag_is_refused(realtime: RealtimeService) -> None:
    with pytest.raises(Invalid, match="user_id"):
        await realtime.publish_user_presence("ada", True)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="is_online"):
        await realtime.publish_user_presence(uuid4(), "yes")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="is_typing"):
        await realtime.publish_typing_indicator(uuid4(), uuid4(), 1)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="room_id"):
        await realtime.publish_typing_indicator("engine-room", uuid4(), True)  # type: ignore[arg-type]


async def test_coroutine_function_as_callback_is_refused(realtime: RealtimeService) -> None:
    async def wait(_: str) -> None: ...

    with pytest.raises(Invalid, match="callback"):
        await realtime.subscribe_to_channel("news", wait)  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", [0, -1, 100_001, True, 1.5])
async def test_invalid_buffer_is_refused(realtime: RealtimeService, buffer: object) -> None:
    with pytest.raises(Invalid, match="buffer"):
        await realtime.listen("news", buffer=buffer)  # type: ignore[arg-type]


async def test_listeners_survive_repeatedly_cut_connections(
    realtime: RealtimeService, connection: Connection
) -> None:
    received: list[str] = []
    gaps: list[Gap] = []
    async with await realtime.subscribe_to_channel("news", received.append, on_gap=gaps.append):
        for cut in range(1, 11):
            assert await connection.execute("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await until(lambda cut=cut: len(gaps) == cut)  # type: ignore[misc]
            await realtime.publish("news", str(cut))
            await until(lambda cut=cut: received == [str(n) for n in range(1, cut + 1)])  # type: ignore[misc]
    assert set(gaps) == {Gap("reconnected")}


async def test_killed_server_is_unavailable_and_delivers_again_after_a_restart(own_server: Server) -> None:
    settings = replace(own_server.settings, connect_timeout_seconds=1)
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    await subscriptions.start()
    try:
        realtime = RealtimeService(connection, subscriptions)
        async with await realtime.listen("news") as messages:
            own_server.kill()
            with pytest.raises(Unavailable):
                await realtime.publish("news", "hello")
            own_server.start()
            assert await anext(messages) == Gap("reconnected")

            async def is_published() -> bool:
                try:
                    return await realtime.publish("news", "again") == 1
                except Unavailable:
                    return False

            await until_it_answers(is_published)
            assert await anext(messages) == "again"
    finally:
        await subscriptions.close()
        await connection.close()


async def test_frozen_server_fails_calls_at_the_deadline_and_delivers_again_after_a_thaw(
    own_server: Server,
) -> None:
    settings = replace(own_server.settings, deadline_seconds=0.5)
    connection, subscriptions = Connection(settings), Subscriptions(settings, heartbeat_seconds=0.2)
    await connection.start()
    await subscriptions.start()
    try:
        realtime = RealtimeService(connection, subscriptions)
        async with await realtime.listen("news") as messages, asyncio.timeout(40):
            own_server.freeze()
            with pytest.raises(Unavailable):
                await realtime.publish("news", "hello")
            with pytest.raises(Unavailable):
                await realtime.listen("other news")
            await until(lambda: not subscriptions.connected)
            own_server.thaw()
            while await anext(messages) != Gap("reconnected"):
                pass  # published while the server was frozen
            await until(lambda: connection.connected)
            await realtime.publish("news", "again")
            while await anext(messages) != "again":
                pass
    finally:
        await subscriptions.close()
        await connection.close()
