from __future__ import annotations

import asyncio
import logging

import pytest

from hubbub.redis import Gap, Subscriptions
from hubbub.redis import subscriptions as module
from impostor import command, handshake, impostor


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 200 OK\r\n", b"+too much\r\n", b"*0\r\n"])
async def test_a_server_that_breaks_the_protocol_is_left_and_a_gap_told(nonsense: bytes) -> None:
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


async def test_a_confirmation_that_an_unsubscribe_follows_confirms_nothing() -> None:
    confirm = asyncio.Event()
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = await handshake(reader, writer)
        asked.extend([(await command(reader, parser))[0] for _ in range(3)])
        for verb in (b"subscribe", b"unsubscribe"):
            writer.write(b">3\r\n$%d\r\n%b\r\n$4\r\nroom\r\n:1\r\n" % (len(verb), verb))
        await confirm.wait()
        writer.write(b">3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n")
        await reader.read()

    async with impostor(talk) as settings:
        subscriptions = Subscriptions(settings)
        await subscriptions.start()
        first = asyncio.create_task(subscriptions.subscribe("room"))
        await asyncio.sleep(0.02)
        first.cancel()
        await asyncio.wait([first])
        await asyncio.sleep(0.02)
        second = asyncio.create_task(subscriptions.subscribe("room"))
        await asyncio.sleep(0.1)
        assert asked == [b"SUBSCRIBE", b"UNSUBSCRIBE", b"SUBSCRIBE"]
        assert not second.done()
        confirm.set()
        await second
        await subscriptions.close()


async def test_what_a_busy_server_refuses_is_asked_for_again_together(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ASK_AGAIN_SECONDS", 0.05)
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
