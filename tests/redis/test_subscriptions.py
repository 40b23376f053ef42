from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from hubbub import scheduling
from hubbub.errors import Invalid, Unavailable
from hubbub.redis import Connection, Gap, Received, Subscription, Subscriptions
from hubbub.redis import subscriptions as module
from hubbub.redis.subscriptions import Listener, SubscriptionProtocol
from impostor import command, handshake, impostor
from redis_server import PASSWORD, Server
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

ANOTHER_PROCESS = """
import asyncio, sys
from hubbub.redis import Connection
from hubbub.settings import RedisSettings

async def main():
    connection = Connection(RedisSettings(host="127.0.0.1", port=int(sys.argv[1]), password=sys.argv[2]))
    await connection.start()
    for number in range(100):
        await connection.execute("PUBLISH", "room", number)
    await connection.close()

asyncio.run(main())
"""


async def subscribers(connection: Connection, channel: str) -> int:
    """The number of subscribed connections of the channel, by the server's count."""
    reply = await connection.execute("PUBSUB", "NUMSUB", channel)
    assert isinstance(reply, list)
    count = reply[1]
    assert isinstance(count, int)
    return count


async def receive(subscription: Subscription, count: int) -> list[Received]:
    async with asyncio.timeout(30):
        return [await anext(subscription) for _ in range(count)]


@asynccontextmanager
async def a_script_that_runs_too_long(server: Server) -> AsyncIterator[None]:
    """The server answers BUSY to all clients until the script is killed, at the end."""
    slow, other = Connection(server.settings), Connection(server.settings)
    await asyncio.gather(slow.start(), other.start())
    await other.execute("CONFIG", "SET", "lua-time-limit", 1)
    script = slow.execute("EVAL", "while true do end", 0)

    async def is_busy() -> bool:
        try:
            await other.execute("PING")
        except Unavailable:
            return True
        return False

    try:
        await until_it_answers(is_busy)
        yield
    finally:
        await other.execute("SCRIPT", "KILL")
        await asyncio.gather(script, return_exceptions=True)
        await asyncio.gather(slow.close(), other.close())


async def test_messages_published_after_subscribing_arrive_in_order(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    async with await subscriptions.subscribe("room") as subscription:
        for number in range(10):
            assert await connection.execute("PUBLISH", "room", number) == 1
        assert await receive(subscription, 10) == [str(number).encode() for number in range(10)]
    await until_no_subscriber_is_left(connection, "room")


async def until_no_subscriber_is_left(connection: Connection, channel: str) -> None:
    async def is_unused() -> bool:
        return await subscribers(connection, channel) == 0

    await until_it_answers(is_unused)


async def test_thousand_subscribers_of_a_channel_are_one_subscription_in_redis(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    all_subscribers = await asyncio.gather(*(subscriptions.subscribe("room") for _ in range(1_000)))
    assert await subscribers(connection, "room") == 1
    assert await connection.execute("PUBLISH", "room", "to all") == 1
    assert [await receive(one, 1) for one in all_subscribers] == [[b"to all"]] * 1_000
    for one in all_subscribers[1:]:
        one.unsubscribe()
    await connection.execute("PUBLISH", "room", "to the last")
    assert await receive(all_subscribers[0], 1) == [b"to the last"]


async def test_three_thousand_concurrent_subscriptions_all_receive(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    rooms = [f"room:{number}" for number in range(3_000)]
    all_subscribers = await asyncio.gather(*(subscriptions.subscribe(room) for room in rooms))
    await connection.execute_many([("PUBLISH", room, room) for room in rooms])
    assert [await receive(one, 1) for one in all_subscribers] == [[room.encode()] for room in rooms]


async def test_subscribers_that_come_and_go_at_random_miss_no_message_while_subscribed(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    chance = random.Random(11)  # the same sequence every time
    rooms = ["red", "green", "blue"]

    async def visitor(name: int) -> None:
        for visit in range(30):
            room = chance.choice(rooms)
            word = f"{name}:{visit}".encode()
            async with await subscriptions.subscribe(room) as subscription:
                await connection.execute("PUBLISH", room, word)
                async with asyncio.timeout(30):
                    while (received := await anext(subscription)) != word:
                        assert not isinstance(received, Gap)
            if chance.random() < 0.5:
                await asyncio.sleep(0)

    await asyncio.gather(*(visitor(name) for name in range(20)))
    for room in rooms:
        await until_no_subscriber_is_left(connection, room)


async def test_subscriber_that_returns_at_once_receives_messages(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    for number in range(50):
        subscription = await subscriptions.subscribe("room")
        await connection.execute("PUBLISH", "room", number)
        assert await receive(subscription, 1) == [str(number).encode()]
        subscription.unsubscribe()
        if number % 3 == 0:
            await asyncio.sleep(0)  # the UNSUBSCRIBE is in flight when the next one comes
    await until_no_subscriber_is_left(connection, "room")


async def test_cancelled_subscribe_leaves_no_subscription_in_redis(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    for turns in range(10):
        task = asyncio.create_task(subscriptions.subscribe("room"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Subscription):
            outcome.unsubscribe()
    await until_no_subscriber_is_left(connection, "room")


async def test_messages_of_another_process_are_received(server: Server, subscriptions: Subscriptions) -> None:
    async with await subscriptions.subscribe("room") as subscription:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ANOTHER_PROCESS, str(server.port), PASSWORD
        )
        assert await receive(subscription, 100) == [str(number).encode() for number in range(100)]
        assert await process.wait() == 0


async def test_killed_server_leads_to_a_gap_and_then_to_new_messages(
    server: Server, connection: Connection, subscriptions: Subscriptions
) -> None:
    async with await subscriptions.subscribe("room") as subscription:
        for _ in range(3):
            server.kill()
            await until(lambda: not subscriptions.connected)
            server.start()
            assert await receive(subscription, 1) == [Gap("reconnected")]
            await connection.execute("PUBLISH", "room", "back")
            assert await receive(subscription, 1) == [b"back"]


async def test_repeatedly_cut_subscription_loses_no_message_without_a_gap(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    halt = asyncio.Event()
    received: list[Received] = []

    async def publisher() -> int:
        number = 0
        while not halt.is_set():
            await connection.execute("PUBLISH", "room", number)
            number += 1
            await asyncio.sleep(0)
        return number

    async def listen(subscription: Subscription) -> None:
        async for one in subscription:
            received.append(one)  # noqa: PERF401 - seen by the test as it grows

    subscription = await subscriptions.subscribe("room", buffer=1_000_000)
    publishing = asyncio.create_task(publisher())
    listening = asyncio.create_task(listen(subscription))
    for _ in range(20):
        gaps = received.count(Gap("reconnected"))
        await connection.execute("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda gaps=gaps: received.count(Gap("reconnected")) > gaps)  # type: ignore[misc]
    halt.set()
    # The last message may have been published before the subscription was live. One more certainly comes after it.
    published = await publishing
    await connection.execute("PUBLISH", "room", published)
    await until(lambda: received[-1] == str(published).encode())
    subscription.unsubscribe()
    await listening
    for one, after in pairwise(received):
        if isinstance(one, bytes) and isinstance(after, bytes):
            assert int(after) == int(one) + 1
    numbers = [int(one) for one in received if isinstance(one, bytes)]
    assert numbers == sorted(set(numbers))


async def test_frozen_server_is_noticed_without_any_messages(server: Server) -> None:
    settings = replace(server.settings, deadline_seconds=0.3, connect_timeout_seconds=0.3)
    subscriptions = Subscriptions(settings, heartbeat_seconds=0.1)
    await subscriptions.start()
    subscription = subscriptions.subscribe_soon("room")  # without a deadline for the confirmation
    assert await receive(subscription, 1) == [Gap("reconnected")]
    server.freeze()
    await until(lambda: not subscriptions.connected)
    server.thaw()
    assert await receive(subscription, 1) == [Gap("reconnected")]
    await subscriptions.close()


async def test_quiet_subscription_is_probed_and_kept(server: Server, connection: Connection) -> None:
    subscriptions = Subscriptions(server.settings, heartbeat_seconds=0.02)
    await subscriptions.start()
    subscription = await subscriptions.subscribe("room")

    async def was_pinged() -> bool:
        reply = await connection.execute("INFO", "commandstats")
        assert isinstance(reply, bytes)
        line = next((one for one in reply.splitlines() if one.startswith(b"cmdstat_ping:")), b"calls=0,")
        return int(line.partition(b"calls=")[2].partition(b",")[0]) >= 5

    await until_it_answers(was_pinged)
    await connection.execute("PUBLISH", "room", "still here")
    assert await receive(subscription, 1) == [b"still here"]
    await subscriptions.close()


async def test_slow_subscriber_loses_the_oldest_messages_and_gets_their_number(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    slow = await subscriptions.subscribe("room", buffer=10)
    quick = await subscriptions.subscribe("room", buffer=100)
    for number in range(50):
        await connection.execute("PUBLISH", "room", number)
    assert await receive(quick, 50) == [str(number).encode() for number in range(50)]
    assert slow.dropped == 40
    assert await receive(slow, 11) == [Gap("overflow", 40), *(str(n).encode() for n in range(40, 50))]
    assert quick.dropped == 0


async def test_callback_that_raises_is_logged_and_does_not_affect_others(
    connection: Connection, subscriptions: Subscriptions, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Received] = []

    def broken(_: Received) -> None:
        raise ZeroDivisionError

    await subscriptions.subscribe_with("room", broken)
    await subscriptions.subscribe_with("room", received.append)
    for number in range(2):
        await connection.execute("PUBLISH", "room", number)
    await until(lambda: len(received) == 2)
    complaints = [one for one in caplog.records if one.exc_info and one.exc_info[0] is ZeroDivisionError]
    assert len(complaints) == 2
    assert subscriptions.connected


async def test_callback_may_subscribe_and_unsubscribe(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    received: list[str] = []
    leave: list[Callable[[], None]] = []

    def once(_: Received) -> None:
        received.append("once")
        leave[0]()
        subscriptions.subscribe_soon("another room")

    def always(_: Received) -> None:
        received.append("always")

    leave.append((await subscriptions.subscribe_with("room", once)).unsubscribe)
    await subscriptions.subscribe_with("room", always)
    for _ in range(2):
        await connection.execute("PUBLISH", "room", "knock")
    await until(lambda: len(received) == 3)
    assert received == ["once", "always", "always"]


async def test_subscribe_without_a_server_fails_in_time_and_leaves_no_subscription(server: Server) -> None:
    server.kill()
    subscriptions = Subscriptions(replace(server.settings, connect_timeout_seconds=0.3))
    await subscriptions.start()
    with pytest.raises(Unavailable, match="no connection"):
        await subscriptions.subscribe("room")
    server.start()
    await until(lambda: subscriptions.connected)
    connection = Connection(server.settings)
    await connection.start()
    assert await subscribers(connection, "room") == 0
    await asyncio.gather(connection.close(), subscriptions.close())


async def test_subscribe_at_a_frozen_server_fails_at_the_deadline(
    server: Server, subscriptions: Subscriptions
) -> None:
    hasty = Subscriptions(replace(server.settings, deadline_seconds=0.2))
    await hasty.start()
    server.freeze()
    with pytest.raises(Unavailable, match="not confirmed"):
        await hasty.subscribe("room")
    await hasty.close()


async def test_subscribe_soon_gets_a_gap_once_it_is_live(
    server: Server, connection: Connection, subscriptions: Subscriptions
) -> None:
    server.kill()
    await until(lambda: not subscriptions.connected)
    early = subscriptions.subscribe_soon("room")
    server.start()
    assert await receive(early, 1) == [Gap("reconnected")]
    late = subscriptions.subscribe_soon("room")
    assert await receive(late, 1) == [Gap("reconnected")]
    await connection.execute("PUBLISH", "room", "now")
    assert await receive(early, 1) == await receive(late, 1) == [b"now"]


async def test_subscribe_soon_with_a_callback_gets_a_gap_once_it_is_live(
    server: Server, connection: Connection, subscriptions: Subscriptions
) -> None:
    server.kill()
    await until(lambda: not subscriptions.connected)
    received: list[Received] = []
    early = subscriptions.subscribe_soon_with("room", received.append)
    assert received == []
    server.start()
    await until(lambda: len(received) == 1)
    late = subscriptions.subscribe_soon_with("room", received.append)
    assert received == [Gap("reconnected")] * 2  # at once, because the channel is already live
    await connection.execute("PUBLISH", "room", "now")
    await until(lambda: len(received) == 4)
    assert received[2:] == [b"now", b"now"]
    assert await subscribers(connection, "room") == 1
    early.unsubscribe()
    early.unsubscribe()
    await connection.execute("PUBLISH", "room", "later")
    await until(lambda: len(received) == 5)
    late.unsubscribe()
    await until_no_subscriber_is_left(connection, "room")
    with pytest.raises(Invalid, match="channel"):
        subscriptions.subscribe_soon_with("", received.append)


async def test_subscribe_soon_with_a_callback_may_be_repeated_at_once(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    for number in range(50):
        received: list[Received] = []
        subscription = subscriptions.subscribe_soon_with("room", received.append)
        await until(lambda received=received: bool(received))  # type: ignore[misc]
        await connection.execute("PUBLISH", "room", number)
        await until(lambda received=received: len(received) == 2)  # type: ignore[misc]
        assert received == [Gap("reconnected"), str(number).encode()]
        subscription.unsubscribe()
        if number % 3 == 0:
            await asyncio.sleep(0)  # the UNSUBSCRIBE is in flight when the next one comes
    await until_no_subscriber_is_left(connection, "room")


async def test_subscribe_soon_with_a_callback_does_not_raise_while_the_login_is_refused(
    server: Server, connection: Connection
) -> None:
    subscriptions = Subscriptions(replace(server.settings, password="another"))
    await subscriptions.start()
    received: list[Received] = []
    subscription = subscriptions.subscribe_soon_with("room", received.append)
    assert subscriptions.failure is not None
    assert not received
    await subscriptions.close()
    subscription.unsubscribe()
    after = subscriptions.subscribe_soon_with("room", received.append)
    after.unsubscribe()
    assert not received


async def test_close_ends_iterations_and_fails_pending_subscribes(
    server: Server, subscriptions: Subscriptions
) -> None:
    subscription = await subscriptions.subscribe("room")
    reading = asyncio.create_task(anext(subscription, None))
    server.freeze()
    pending = asyncio.create_task(subscriptions.subscribe("another room"))
    await asyncio.sleep(0.01)
    await asyncio.gather(subscriptions.close(), subscriptions.close())
    assert await reading is None
    assert [one async for one in subscription] == []
    with pytest.raises(Unavailable, match="closed"):
        await pending
    with pytest.raises(Unavailable, match="closed"):
        subscriptions.subscribe_soon("room")
    subscription.unsubscribe()


async def test_channel_without_permission_is_refused_and_the_others_are_not(
    server: Server, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.execute("ACL", "SETUSER", "guest", "on", ">of-the-guest", "+@all", "resetchannels", "&open:*")
    subscriptions = Subscriptions(replace(server.settings, username="guest", password="of-the-guest"))
    await subscriptions.start()
    outcomes = await asyncio.gather(
        *(subscriptions.subscribe(name) for name in ("open:a", "closed", "open:b")), return_exceptions=True
    )
    refused = outcomes[1]
    assert isinstance(refused, Unavailable)
    assert not refused.retryable
    for name, one in (("open:a", outcomes[0]), ("open:b", outcomes[2])):
        assert isinstance(one, Subscription)
        await connection.execute("PUBLISH", name, "welcome")
        assert await receive(one, 1) == [b"welcome"]
    await connection.execute("ACL", "SETUSER", "guest", "&*")
    again = await subscriptions.subscribe("closed")
    await connection.execute("PUBLISH", "closed", "welcome after all")
    assert await receive(again, 1) == [b"welcome after all"]
    assert caplog.record_tuples[-1][:2] == ("hubbub.redis", logging.ERROR)
    await subscriptions.close()


async def test_refusal_fails_a_later_subscribe_at_once_beside_another_subscriber(
    server: Server, connection: Connection
) -> None:
    await connection.execute("ACL", "SETUSER", "guest", "on", ">of-the-guest", "+@all", "resetchannels")
    subscriptions = Subscriptions(replace(server.settings, username="guest", password="of-the-guest"))
    await subscriptions.start()
    received: list[Received] = []
    subscriptions.subscribe_soon_with("closed", received.append)
    for _ in range(2):
        with pytest.raises(Unavailable, match="NOPERM") as refused:
            await subscriptions.subscribe("closed")
        assert not refused.value.retryable
    await connection.execute("ACL", "SETUSER", "guest", "&*")
    await subscriptions.subscribe("closed")
    assert received == [Gap("reconnected")]
    await subscriptions.close()


async def test_subscription_refused_by_a_busy_server_is_live_afterwards(
    server: Server, connection: Connection, subscriptions: Subscriptions
) -> None:
    received: list[Received] = []
    async with a_script_that_runs_too_long(server):
        subscriptions.subscribe_soon_with("room", received.append)
        with pytest.raises(Unavailable, match="BUSY") as refused:
            await subscriptions.subscribe("room")
        assert refused.value.retryable
    await until(lambda: bool(received))
    await connection.execute("PUBLISH", "room", "now")
    await until(lambda: len(received) == 2)
    assert received == [Gap("reconnected"), b"now"]


async def test_subscribe_after_a_refusal_does_not_wait_for_the_retry(
    server: Server, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_REFUSED_SECONDS", 3600)
    received: list[Received] = []
    async with a_script_that_runs_too_long(server):
        subscriptions.subscribe_soon_with("room", received.append)
        with pytest.raises(Unavailable, match="BUSY"):
            await subscriptions.subscribe("room")
    await subscriptions.subscribe("room")
    assert received == [Gap("reconnected")]


async def test_refused_subscription_is_not_retried_after_close(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_REFUSED_SECONDS", 3600)
    subscriptions = Subscriptions(server.settings)
    await subscriptions.start()
    async with a_script_that_runs_too_long(server):
        subscriptions.subscribe_soon("room")
        with pytest.raises(Unavailable, match="BUSY"):
            await subscriptions.subscribe("room")
    await subscriptions.close()
    closed = weakref.ref(subscriptions)
    del subscriptions
    gc.collect()
    assert closed() is None  # a timer would keep it


async def test_invalid_channel_or_buffer_is_refused(subscriptions: Subscriptions) -> None:
    with pytest.raises(Invalid, match="channel"):
        await subscriptions.subscribe("")
    with pytest.raises(Invalid, match="channel"):
        await subscriptions.subscribe("\ud800")
    with pytest.raises(Invalid, match="buffer"):
        await subscriptions.subscribe("room", buffer=0)


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 200 OK\r\n", b"+too much\r\n", b"*0\r\n"])
async def test_server_that_breaks_the_protocol_leads_to_a_reconnect_and_a_gap(nonsense: bytes) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        parser = await handshake(reader, writer)
        await command(reader, parser)
        writer.write(b">3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n")
        if connections == 1:
            writer.write(nonsense)
        await reader.read()

    async with impostor(talk) as settings:
        subscriptions = Subscriptions(settings)
        await subscriptions.start()
        subscription = await subscriptions.subscribe("room")
        async with asyncio.timeout(30):
            assert await anext(subscription) == Gap("reconnected")
        assert connections == 2
        await subscriptions.close()


async def test_confirmation_followed_by_an_unsubscribe_does_not_count() -> None:
    confirm = asyncio.Event()
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        for _ in range(3):
            asked.append((await command(reader, parser))[0])  # noqa: PERF401 - seen by the test as it grows
        for verb in (b"subscribe", b"unsubscribe"):
            writer.write(b">3\r\n$%d\r\n%b\r\n$4\r\nroom\r\n:1\r\n" % (len(verb), verb))
        await confirm.wait()
        writer.write(b">3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n")
        await reader.read()

    async with impostor(talk) as settings:
        subscriptions = Subscriptions(settings)
        await subscriptions.start()
        first = asyncio.create_task(subscriptions.subscribe("room"))
        await until(lambda: asked == [b"SUBSCRIBE"])
        first.cancel()
        await asyncio.wait([first])
        await until(lambda: asked == [b"SUBSCRIBE", b"UNSUBSCRIBE"])
        second = asyncio.create_task(subscriptions.subscribe("room"))
        await until(lambda: asked == [b"SUBSCRIBE", b"UNSUBSCRIBE", b"SUBSCRIBE"])
        await asyncio.sleep(0.1)  # until the two replies have arrived
        assert not second.done()
        confirm.set()
        await second
        await subscriptions.close()


async def test_channels_refused_by_a_busy_server_are_retried_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_REFUSED_SECONDS", 0.05)
    asked: list[list[bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        for _ in range(2):
            asked.append(sorted(await command(reader, parser)))
            writer.write(b"-BUSY a script runs\r\n")
        asked.append(sorted(await command(reader, parser)))
        for name in (b"blue", b"red"):
            writer.write(b">3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(name), name))
        await reader.read()

    async with impostor(talk) as settings:
        subscriptions = Subscriptions(settings)
        await subscriptions.start()
        rooms = [subscriptions.subscribe_soon(name) for name in ("red", "blue")]
        async with asyncio.timeout(30):
            assert [await anext(room) for room in rooms] == [Gap("reconnected")] * 2
        await subscriptions.close()
    assert asked == [[b"SUBSCRIBE", b"blue", b"red"]] * 3
    told = [level for name, level, _ in caplog.record_tuples if name == "hubbub.redis"]
    assert told == [logging.WARNING] * 2


def forget(_: Listener) -> None:
    """Does nothing, because these tests do not unsubscribe."""


async def unread(subscription: Subscription) -> list[bytes | Gap]:
    count = len(subscription._received) + (subscription._gap is not None)
    return [await anext(subscription) for _ in range(count)]


async def test_gap_that_does_not_fit_the_buffer_is_kept() -> None:
    subscription = Subscription(b"room", forget, buffer=1)
    subscription.receive(Gap("reconnected"))
    subscription.receive(b"a")
    assert await unread(subscription) == [Gap("reconnected"), b"a"]


async def test_messages_and_gaps_that_do_not_fit_become_one_gap() -> None:
    subscription = Subscription(b"room", forget, buffer=2)
    for received in (b"a", Gap("reconnected"), b"b", b"c", b"d"):
        subscription.receive(received)
    assert await unread(subscription) == [Gap("overflow", 2), b"c", b"d"]
    assert subscription.dropped == 2


async def test_consecutive_reconnects_are_one_gap() -> None:
    subscription = Subscription(b"room", forget, buffer=2)
    subscription.receive(b"a")
    for _ in range(5):
        subscription.receive(Gap("reconnected"))
    assert await unread(subscription) == [b"a", Gap("reconnected")]
    assert subscription.dropped == 0


async def test_unread_messages_are_bounded_in_bytes() -> None:
    subscription = Subscription(b"room", forget, buffer=1_000)
    payloads = [b"%3d" % number + bytes(module.MAX_UNREAD_BYTES // 4) for number in range(20)]
    for payload in payloads:
        subscription.receive(payload)
    assert await unread(subscription) == [Gap("overflow", 17), *payloads[17:]]
    for payload in payloads[:3]:  # a payload that was read no longer waits
        subscription.receive(payload)
    assert await unread(subscription) == payloads[:3]
    assert subscription.dropped == 17


async def test_message_above_the_bound_is_dropped() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    subscription.receive(b"before")
    subscription.receive(bytes(module.MAX_UNREAD_BYTES + 1))
    subscription.receive(b"after")
    assert await unread(subscription) == [Gap("overflow", 2), b"after"]


async def test_dropped_messages_are_reported_once_and_counted_in_total() -> None:
    subscription = Subscription(b"room", forget, buffer=1)
    for received in (b"a", b"b"):
        subscription.receive(received)
    assert await unread(subscription) == [Gap("overflow", 1), b"b"]
    for received in (b"c", b"d", b"e"):
        subscription.receive(received)
    assert await unread(subscription) == [Gap("overflow", 2), b"e"]
    assert subscription.dropped == 3


async def test_cancelled_reader_loses_no_message() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    reader = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    subscription.receive(b"a")
    reader.cancel()
    await asyncio.wait([reader])
    assert await anext(subscription) == b"a"


async def test_second_concurrent_reader_is_refused() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    first = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await anext(subscription)
    subscription.receive(b"a")
    assert await first == b"a"


async def test_unsubscribe_ends_the_iteration_of_a_waiting_reader() -> None:
    subscription = Subscription(b"room", forget, buffer=10)
    reader = asyncio.create_task(collect(subscription))
    await asyncio.sleep(0)
    subscription.receive(b"a")
    await asyncio.sleep(0)
    subscription.unsubscribe()
    subscription.receive(b"too late")
    assert await reader == [b"a"]


async def collect(subscription: Subscription) -> list[bytes | Gap]:
    return [received async for received in subscription]


async def test_channels_of_a_new_connection_are_asked_for_in_several_turns_of_the_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHANNELS_PER_TURN", 10)
    asked: list[int] = []
    change = SubscriptionProtocol.change

    def noting(protocol: SubscriptionProtocol, *, subscribe: list[bytes], unsubscribe: list[bytes]) -> None:
        asked.append(len(subscribe))
        change(protocol, subscribe=subscribe, unsubscribe=unsubscribe)

    monkeypatch.setattr(SubscriptionProtocol, "change", noting)
    received: list[Received] = []
    subscriptions = Subscriptions(server.settings)
    for number in range(95):
        subscriptions.subscribe_soon_with(f"channel:{number}", received.append)
    await subscriptions.start()
    await until(lambda: len(received) == 95)
    assert asked == [10] * 9 + [5]
    await subscriptions.close()


async def test_messages_that_arrive_together_are_delivered_in_their_order_over_many_turns(
    connection: Connection, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Received] = []
    subscriptions.subscribe_soon_with("room", received.append)
    await until(lambda: len(received) == 1)
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    published = connection.execute_many([("PUBLISH", "room", str(number)) for number in range(500)])
    most = 0
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while len(received) < 501:
            before = len(received)
            await asyncio.sleep(0)
            most = max(most, len(received) - before)
    assert received[1:] == [str(number).encode() for number in range(500)]
    assert most <= 2
    await published


async def test_connection_that_is_lost_before_all_was_delivered_gives_a_gap_and_goes_on(
    connection: Connection, subscriptions: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[Received] = []

    def receive(one: Received) -> None:
        received.append(one)
        if one == b"early" and received.count(one) == 1 and subscriptions._protocol is not None:
            subscriptions._protocol.drop("a test")

    subscriptions.subscribe_soon_with("room", receive)
    await until(lambda: len(received) == 1)
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    await connection.execute_many([("PUBLISH", "room", "early") for _ in range(500)])
    await until(lambda: received.count(Gap("reconnected")) == 2)
    assert received.index(Gap("reconnected"), 1) < 501
    await connection.execute("PUBLISH", "room", "late")
    await until(lambda: received[-1] == b"late")
