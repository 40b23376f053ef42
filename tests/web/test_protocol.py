"""docs/protocol.md matches the gateway: its examples are sent, and its lists are compared with the code."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from hubbub import Hub, Room, User
from hubbub.events import FeedEvent
from hubbub.web import Gateway, frames
from hubbub.web.commands import COMMANDS
from web.serving import Client, serving

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
FROM_SERVER = (frames.Ask, frames.Ready, frames.Ack, frames.Error, frames.Ping, frames.Bye, *get_args(FeedEvent))
ROOM, MESSAGE = "01970000-0000-7000-8000-000000000001", "01970000-0000-7000-8000-000000000002"
ADA, BOB = "01970000-0000-7000-8000-00000000000a", "01970000-0000-7000-8000-00000000000b"


def examples(side: str) -> list[dict[str, Any]]:
    """The frames of one side in order."""
    found = []
    for block in re.findall(rf"```json {side}\n(.*?)```", TEXT, re.DOTALL):
        rest = block.strip()
        while rest:
            frame, end = json.JSONDecoder().raw_decode(rest)
            found.append(frame)
            rest = rest[end:].lstrip()
    return found


def test_every_frame_has_an_example() -> None:
    assert {frame["type"] for frame in examples("client")} == {"hello", "positions", *COMMANDS}
    assert {frame["type"] for frame in examples("server")} == {kind.__struct_config__.tag for kind in FROM_SERVER}


@pytest.mark.parametrize("frame", examples("server"), ids=lambda frame: frame["type"])
def test_example_of_the_server_has_the_fields_of_its_type(frame: dict[str, Any]) -> None:
    [kind] = [kind for kind in FROM_SERVER if kind.__struct_config__.tag == frame["type"]]
    decoded = msgspec.json.decode(json.dumps(frame), type=kind)
    assert json.loads(msgspec.json.encode(decoded)) == frame


def test_every_code_and_error_is_listed() -> None:
    for code in frames.REASONS:
        assert re.search(rf"\b{code}\b", TEXT), code
    limits = json.loads(msgspec.json.encode(frames.Limits()))
    [ready] = [frame for frame in examples("server") if frame["type"] == "ready"]
    assert ready["limits"] == limits


@pytest.fixture
async def client(hub: Hub, ada: User) -> AsyncIterator[Client]:
    token = await hub.sessions.create_session(ada.id)
    async with serving(Gateway(hub)) as port, Client(port, token) as client:
        yield client


async def test_every_example_of_a_client_can_be_sent(client: Client, ada: User, bob: User, room: Room) -> None:
    real = {ROOM: str(room.id), ADA: str(ada.id), BOB: str(bob.id), "AbC-123": str(client.token)}
    hello, positions, *commands = examples("client")
    assert (hello["type"], positions["type"]) == ("hello", "positions")
    await client.send({**hello, "token": client.token, "positions": {}, "more": True})
    await client.send(positions)
    await client.next("ready")
    for command in commands:
        text = json.dumps(command)
        for name, value in real.items():
            text = text.replace(name, value)
        await client.send(text)
        answer = await client.next("ack", "error")
        assert (answer["type"], answer["ref"]) == ("ack", command["ref"]), (command, answer)
