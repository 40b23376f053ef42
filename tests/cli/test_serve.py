"""`hubbub serve`: a process of its own, with its settings, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cli.running import started
from hubbub import Hub, Room, Settings, User
from waiting import HANGS_AFTER_SECONDS


@asynccontextmanager
async def served(settings: Settings, folder: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The address of the running command."""
    async with started(settings, folder, "serve", "--port", "0") as (line, process):
        assert line.startswith("clients connect to ws://127.0.0.1:")
        yield line.split()[-1], process


async def frame(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next frame of this type."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while True:
            for line in str(await client.recv()).split("\n"):
                found: dict[str, Any] = json.loads(line)
                if found["type"] == kind:
                    return found


async def test_clients_are_served_and_sent_elsewhere_at_the_end(
    settings: Settings, hub: Hub, ada: User, room: Room, tmp_path: Path
) -> None:
    token = await hub.sessions.create_session(ada.id)
    async with served(settings, tmp_path) as (address, process):
        origin = address.replace("ws://", "http://").removesuffix("/chat/socket")
        async with httpx.AsyncClient(base_url=origin, timeout=HANGS_AFTER_SECONDS) as http:
            assert (await http.get("/health")).json() == {"ready": True}
            bearer = {"Authorization": f"Bearer {token}"}
            assert (await http.get("/chat/me", headers=bearer)).json()["username"] == "ada"
            connecting = connect(address, subprotocols=["hubbub.1"], open_timeout=HANGS_AFTER_SECONDS)  # type: ignore[list-item]
            async with connecting as client:
                assert client.response is not None
                assert "permessage-deflate" not in client.response.headers.get("sec-websocket-extensions", "")
                await client.send(json.dumps({"type": "hello", "token": token}))
                await frame(client, "ready")
                await hub.messages.send(room.id, ada.id, "hello")
                assert (await frame(client, "message_sent"))["message"]["content"] == "hello"
                async with http.stream("POST", "/chat/events", json={}, headers=bearer) as stream:
                    process.send_signal(signal.SIGTERM)
                    bye = await frame(client, "bye")
                    assert (bye["code"], bye["reconnect"]) == (1012, True)
                    assert b'"code":1012' in await stream.aread()
                assert await process.wait() == 0
            assert client.close_code == 1012
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()


async def test_frame_that_is_too_large_closes(settings: Settings, hub: Hub, ada: User, tmp_path: Path) -> None:
    token = await hub.sessions.create_session(ada.id)
    async with (
        served(settings, tmp_path) as (address, _),
        connect(address, open_timeout=HANGS_AFTER_SECONDS) as client,
    ):
        await client.send(json.dumps({"type": "hello", "token": token}))
        await client.recv()
        await client.send("x" * (64 * 1024 + 1))
        with suppress(ConnectionClosed):
            while True:
                await client.recv()
        assert client.close_code == 1009


async def test_process_may_open_as_many_connections_as_the_system_allows(
    settings: Settings, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(soft, 512), hard)
    )  # a child begins with the limits of its parent
    try:
        async with served(settings, tmp_path) as (_, process):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_missing_extra_is_named_without_a_traceback(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('No starlette', name='starlette')")
    for command in (("serve",), ("console",), ("demo", "--serve")):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "hubbub", *command),
            env=os.environ | settings.to_env() | {"PYTHONPATH": str(tmp_path)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == 1
        assert b"pip install 'hubbub[web]'" in errors
        assert b"Traceback" not in errors
