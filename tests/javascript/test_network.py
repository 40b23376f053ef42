"""hubbub.js in Node.js against the gateway, through a network that cuts connections, delays and splits data."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from browser.network import Network
from browser.shown import entry_of, shown_errors
from faults.checker import stored_in
from hubbub import Hub, Room, Settings, User
from hubbub.web import Gateway
from waiting import HANGS_AFTER_SECONDS
from web.serving import serving

TALK = Path(__file__).parent / "talk.js"
WATCH = Path(__file__).parent / "watch.js"
MESSAGES = 40


@pytest.fixture
async def network(hub: Hub) -> AsyncIterator[Network]:
    async with serving(Gateway(hub, spread_seconds=0.1)) as port, Network("127.0.0.1", port) as network:
        network.delay_seconds = 0.02
        yield network


class Talker:
    """A Node.js process that sends, and at the end prints what it received and shows."""

    def __init__(self, node: str, program: Path = TALK) -> None:
        self._node = node
        self._program = program
        self._process: asyncio.subprocess.Process

    async def start(self, **plan: object) -> None:
        self._process = await asyncio.create_subprocess_exec(
            self._node,
            "--experimental-websocket",
            "--no-warnings",
            self._program,
            json.dumps(plan, default=str),
            stdout=asyncio.subprocess.PIPE,
            limit=10_000_000,
        )
        await self.says("ready")

    async def says(self, words: str) -> None:
        assert await self._line() == f"{words}\n".encode()

    async def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(await self._line())
        await self._process.wait()
        return result

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            return await self._process.stdout.readline()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@pytest.mark.parametrize("streams", [False, True], ids=["WebSocket", "streams"])
async def test_clients_miss_nothing_and_show_nothing_twice_on_a_bad_network(
    network: Network, hub: Hub, settings: Settings, ada: User, bob: User, room: Room, *, streams: bool
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    await hub.room_users.add(room.id, bob.id)
    talkers = {user: Talker(node) for user in (ada, bob)}
    try:
        for user, talker in talkers.items():
            await talker.start(
                url=f"http://127.0.0.1:{network.port}/chat",
                token=await hub.sessions.create_session(user.id),
                roomId=room.id,
                name=user.username,
                number=MESSAGES,
                total=3 * MESSAGES,
                streams=streams,
            )

        async def break_off() -> None:
            for _ in range(6):
                await asyncio.sleep(random.uniform(0.1, 0.4))
                network.hang_up()

        breaking = asyncio.create_task(break_off())
        for number in range(MESSAGES):
            await hub.messages.send(room.id, ada.id, f"by another way {number}")
            await asyncio.sleep(0.02)
        await breaking
        results = [await talker.result() for talker in talkers.values()]
    finally:
        for talker in talkers.values():
            await talker.end()
    stored = await stored_in(settings.postgres)
    for result in results:
        assert "waiting" in result["states"]
        entries = [entry_of(event) for event in result["entries"]]
        assert list(shown_errors(stored, room.id, entries, result["messages"])) == []
        for author in ("ada", "bob"):
            own = [one["content"] for one in result["messages"] if one["content"].startswith(f"{author} ")]
            assert own == [f"{author} {number}" for number in range(MESSAGES)]


@pytest.mark.parametrize("streams", [False, True], ids=["WebSocket", "streams"])
async def test_presence_of_watched_rooms_comes_and_no_entry_is_lost_while_they_change(
    network: Network, hub: Hub, settings: Settings, ada: User, bob: User, room: Room, *, streams: bool
) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    await hub.room_users.add(room.id, bob.id)
    other = await hub.rooms.create("kitchen", created_by=ada.id)
    watcher = Talker(node, WATCH)
    try:
        await watcher.start(
            url=f"http://127.0.0.1:{network.port}/chat",
            token=await hub.sessions.create_session(ada.id),
            roomIds=[other.id, room.id],
            userId=bob.id,
            total=MESSAGES,
            streams=streams,
        )
        for number in range(MESSAGES):
            await hub.messages.send(room.id, bob.id, f"meanwhile {number}")
            await asyncio.sleep(0.01)
        await watcher.says("sees bob offline")
        async with hub.presence.online(bob.id):
            await watcher.says("sees bob online")
        result = await watcher.result()
    finally:
        await watcher.end()
    stored = await stored_in(settings.postgres)
    entries = [entry_of(event) for event in result["entries"]]
    assert list(shown_errors(stored, room.id, entries, result["messages"])) == []
    assert result["presence"] == [False, True, False]
