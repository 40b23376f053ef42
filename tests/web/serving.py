"""The gateway on a real server, and a client that speaks its protocol over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from hubbub.web import COOKIE, Gateway
from waiting import HANGS_AFTER_SECONDS


@asynccontextmanager
async def serving(gateway: Gateway, **options: object) -> AsyncIterator[int]:
    """A server of this gateway alone, and its port."""
    async with running(Starlette(routes=[Mount("/chat", gateway)]), **options) as port:
        yield port


@asynccontextmanager
async def running(app: Any, **options: object) -> AsyncIterator[int]:  # noqa: ANN401 - of any framework
    """A server with the settings of the documentation, and its port."""
    settings: dict[str, Any] = {
        "ws": "hubbub.web.serving:WebSockets",
        "ws_max_size": 64 * 1024,
        "ws_per_message_deflate": False,
        "lifespan": "off",
        "log_level": "warning",
        "timeout_graceful_shutdown": 5,
    }
    server = uvicorn.Server(uvicorn.Config(app, **settings | options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:  # noqa: ASYNC110 - uvicorn does not notify
            await asyncio.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            await running


class Client:
    """A client of the protocol. `frames` are received frames that no call has returned yet."""

    def __init__(
        self,
        port: int,
        token: str | None = None,
        *,
        cookie: str | None = None,
        origin: str | None = None,
        subprotocols: list[str] | None = None,
    ) -> None:
        self.token = token
        headers = {} if cookie is None else {"Cookie": f"{COOKIE}={cookie}"}
        self._connecting = connect(
            f"ws://127.0.0.1:{port}/chat/socket",
            origin=None if origin is None else Origin(origin),
            additional_headers=headers,
            subprotocols=[Subprotocol(one) for one in subprotocols or ["hubbub.1"]],
            open_timeout=HANGS_AFTER_SECONDS,
            ping_interval=None,
            max_size=None,
        )
        self.socket: ClientConnection
        self.frames: deque[dict[str, Any]] = deque()
        self.positions: dict[str, str] = {}
        self.user_id = ""
        self._refs = 0

    async def __aenter__(self) -> Self:
        self.socket = await self._connecting
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.socket.close()

    async def send(self, frame: Mapping[str, object] | str) -> None:
        await self.socket.send(frame if isinstance(frame, str) else json.dumps(frame, default=str))

    async def hello(self, positions: Mapping[str, str] | None = None, **more: object) -> dict[str, Any]:
        """Send `hello`, and return the `ready`."""
        hello = {"type": "hello", "token": self.token, "positions": positions, **more}
        await self.send(hello)
        ready = await self.next("ready")
        known = self.positions if positions is None else positions
        self.positions = {**(known if ready["resumed"] else {}), **ready["positions"]}
        self.user_id = ready["user_id"]
        return ready

    async def next(self, *types: str) -> dict[str, Any]:
        """The next frame of one of these types. Earlier frames of other types stay in `frames`."""
        looked_at: deque[dict[str, Any]] = deque()
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while True:
                if not self.frames:
                    await self._receive()
                frame = self.frames.popleft()
                if frame["type"] in types:
                    self.frames.extendleft(reversed(looked_at))
                    self._apply(frame)
                    return frame
                looked_at.append(frame)

    async def _receive(self) -> None:
        text = await self.socket.recv()
        assert isinstance(text, str)
        self.frames.extend(map(json.loads, text.split("\n")))

    def _apply(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "room_gone" or (frame["type"] == "member_left" and frame["user_id"] == self.user_id):
            self.positions.pop(frame["room_id"], None)
        elif "cursor" in frame:
            self.positions[frame["room_id"]] = frame["cursor"]

    async def command(self, name: str, /, **fields: object) -> Any:  # noqa: ANN401
        """Run a command that has to succeed. Returns its result."""
        answer = await self.answer(name, **fields)
        assert answer["type"] == "ack", answer
        return answer["result"]

    async def refused(self, name: str, /, **fields: object) -> dict[str, Any]:
        """Run a command that has to fail. Returns its error."""
        answer = await self.answer(name, **fields)
        assert answer["type"] == "error", answer
        return answer

    async def answer(self, name: str, /, **fields: object) -> dict[str, Any]:
        self._refs += 1
        given = {key: str(value) if isinstance(value, UUID) else value for key, value in fields.items()}
        await self.send({"type": name, "ref": self._refs, **given})
        answer = await self.next("ack", "error")
        assert answer["ref"] == self._refs
        return answer

    async def messages(self, number: int) -> list[str]:
        """The contents of the next messages."""
        return [(await self.next("message_sent"))["message"]["content"] for _ in range(number)]

    async def closed(self) -> int:
        """The code with which the server closes."""
        with suppress(ConnectionClosed):
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                while True:
                    await self._receive()
        assert self.socket.close_code is not None
        return self.socket.close_code
