"""WebSockets: a client that sends commands and gets events over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Invalid, RateLimited, Unavailable
from hubbub.hub import Hub
from hubbub.positions import fingerprints, page_of
from hubbub.web import commands, frames
from hubbub.web.commands import Call, Command
from hubbub.web.connections import GatewayConnection
from hubbub.web.logins import Identity
from hubbub.web.problems import SERVER_ERROR, Refused, problem

if TYPE_CHECKING:
    from hubbub.web.gateway import Gateway

F = TypeVar("F", bound=frames.Frame)

LAST_FRAME: Final = "hubbub.last_frame"
"""An extension of ASGI: a callable that gets the frame to send before a server that ends closes the connection."""
HELLO_SECONDS: Final = 10.0
"""How long a connection may be open without a `hello`. A client has its token before it connects."""
MAX_ROOMS: Final = 10_000
"""Positions of one client: as many as `hub.follow` takes."""
MAX_FRAMES: Final = 200
"""Frames of positions of one client: ten times as many as the clients of hubbub send for `MAX_ROOMS`."""

_decode_hello = msgspec.json.Decoder(frames.Hello)
_decode_positions = msgspec.json.Decoder(frames.Positions)


class _Gone(Exception):
    """The client has gone, before its `hello`."""


class _Refused(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class Sockets:
    """The ASGI application of `/socket`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._restart = gateway.bye(1012)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        await receive()  # websocket.connect
        if not self._gateway.accepts_origin(request):
            await send({"type": "websocket.close"})  # before `accept`, which servers answer with 403
            return
        number = self._gateway.next_number()
        offered = scope.get("subprotocols") or []
        chosen = frames.SUBPROTOCOL if frames.SUBPROTOCOL in offered else None
        with suppress(OSError, _Gone):
            await send({"type": "websocket.accept", "subprotocol": chosen})
            if (set_last_frame := scope.get("extensions", {}).get(LAST_FRAME)) is not None:
                set_last_frame(self._restart)
            try:
                if offered and chosen is None:
                    raise _Refused(4426)  # noqa: TRY301 - as any other refusal
                async with asyncio.timeout(HELLO_SECONDS):
                    connection = await self._hello(request, number, receive, send)
            except TimeoutError:
                await self._refuse(send, 4408)
            except _Refused as refused:
                await self._refuse(send, refused.code)
            else:
                del request, offered
                await connection.run()

    async def _refuse(self, send: Send, code: int) -> None:
        await send({"type": "websocket.send", "text": self._gateway.bye(code)})
        await send({"type": "websocket.close", "code": code, "reason": frames.REASONS[code]})

    async def _hello(self, request: HTTPConnection, number: int, receive: Receive, send: Send) -> Socket:
        """A client that has sent a valid `hello`. Raises: _Gone, _Refused."""
        try:
            hello = _decode(frames.Hello, _decode_hello, await _text(receive))
            frames.check_device(hello.device)
        except (Invalid, frames.NotAFrame) as error:
            raise _Refused(4400) from error
        hub = self._gateway.hub_of(request)
        identity, code = None, 4500
        with ReportErrors("identifying a client"):
            try:
                found = await self._gateway.identify(request, hello.token)
                if found is None:
                    code = 4401
                elif found.user_id in await self._gateway.are_banned([found.user_id]):
                    code = 4403
                else:
                    identity = found
            except Unavailable:
                code = 1013
        if identity is None:
            raise _Refused(code)
        return Socket(self._gateway, hub, identity, hello, number, receive, send)


async def _positions(receive: Receive, positions: Mapping[UUID, str]) -> dict[UUID, str]:
    """These positions, and those in the next frames. Raises: Invalid, NotAFrame, _Gone, _Refused."""
    found = dict(positions)
    for _ in range(MAX_FRAMES):
        further = _decode(frames.Positions, _decode_positions, await _text(receive))
        found |= further.positions
        if len(found) > MAX_ROOMS:
            raise _Refused(4503)  # a client that starts fresh needs none of them
        if not further.more:
            return found
    raise _Refused(4400)


def _decode(kind: type[F], decoder: msgspec.json.Decoder[F], text: str) -> F:
    if frames.envelope(text)[0] != kind.__struct_config__.tag:
        raise frames.NotAFrame
    return frames.decode(decoder, text)


async def _text(receive: Receive) -> str:
    message = await receive()
    if message["type"] == "websocket.disconnect":
        raise _Gone
    text = message.get("text")
    if not isinstance(text, str):
        raise _Refused(4400)
    return text


class Socket(GatewayConnection):
    """A client on a WebSocket."""

    def __init__(  # noqa: PLR0917 - as an ASGI application gets them
        self,
        gateway: Gateway,
        hub: Hub,
        identity: Identity,
        hello: frames.Hello,
        number: int,
        receive: Receive,
        send: Send,
    ) -> None:
        super().__init__(gateway, hub, identity, hello.device, number, receive, send)
        self.positions = hello.positions
        self._more, self._pages = hello.more, hello.pages
        self._commands: dict[asyncio.Task[None], None] = {}  # a third of the size of an empty set
        self._answering: dict[asyncio.Task[None], None] = {}
        self._sends: dict[UUID, asyncio.Task[None]] = {}  # the newest of each room
        self._full_at = 0.0  # when the bucket of its rate is full, in the time of the event loop
        self._refusals = 0

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            if self._commands:  # what the client has sent is done, also if it has gone meanwhile
                await asyncio.wait(self._commands)

    async def _open(self) -> int | None:
        """Read the rest of the positions first: here the limit of connections bounds what is held of a user."""
        try:
            async with asyncio.timeout(HELLO_SECONDS) as self._receiving:
                if self._more:
                    self.positions = await _positions(self._asgi_receive, self.positions or {})
                if self._pages is not None:
                    self.positions, self._pages = await self._find_positions(self._pages), None
        except TimeoutError:
            return self.code or 4408
        except (Invalid, frames.NotAFrame):
            return 4400
        except _Refused as refused:
            return refused.code
        except Unavailable:
            return 1013
        finally:
            self._receiving = None
        return self.code or await super()._open()

    async def _find_positions(self, pages: str) -> dict[UUID, str]:
        """The positions of a client with these fingerprints: those that are the same here, and the others from it.

        Raises: Invalid, NotAFrame, Unavailable, _Gone, _Refused, OSError.
        """
        given = [
            pages[at : at + frames.FINGERPRINT_LENGTH] for at in range(0, len(pages), frames.FINGERPRINT_LENGTH)
        ]
        if len(given).bit_count() != 1 or len(given[-1]) != frames.FINGERPRINT_LENGTH:
            raise _Refused(4400)
        heads = await self.hub._feed.cursors_of(self.user_id)
        own = await asyncio.to_thread(fingerprints, heads, len(given))  # 20 ms for 10,000 rooms
        differing = {number for number, one in enumerate(given) if one != own[number]}
        known = {id: cursor for id, cursor in heads.items() if page_of(id, len(given)) not in differing}
        if not differing:
            return known
        del heads, own
        await self.write(frames.encode(frames.Ask(sorted(differing))).decode())
        return await _positions(self._asgi_receive, known)

    async def _send(self, text: str) -> None:
        try:
            await self._asgi_send({"type": "websocket.send", "text": text})
        except RuntimeError as error:  # of uvicorn, once it has closed the socket itself for want of a pong
            raise ConnectionResetError from error

    async def _finish(self, code: int) -> None:
        await self._asgi_send({"type": "websocket.close", "code": code, "reason": frames.REASONS[code]})

    async def _receive(self) -> None:
        while True:
            message: Mapping[str, Any] = await self._asgi_receive()
            if message["type"] == "websocket.disconnect":
                return
            if self.is_ending:
                continue
            text = message.get("text")
            try:
                if not isinstance(text, str):
                    raise frames.NotAFrame  # noqa: TRY301 - as any other
                kind, ref = frames.envelope(text)
            except frames.NotAFrame:
                self.close(4400)
                continue
            refused = self._refusal(kind, ref)
            if refused is not None:
                with suppress(OSError):
                    await self.write(frames.encode(refused).decode())
                continue
            while len(self._commands) >= self.gateway.limits.commands:
                await asyncio.wait(self._commands, return_when=asyncio.FIRST_COMPLETED)
            self._begin(self.gateway.commands[kind], ref, text)

    def _refusal(self, kind: str, ref: int | None) -> frames.Error | None:
        """Why this frame is not done."""
        if (seconds := self._seconds_over_rate()) > 0:
            self._refusals += 1
            if self._refusals > self.gateway.limits.burst:
                self.close(4429)
            return frames.Error.of(ref, problem(RateLimited(seconds)))
        self._refusals = 0
        if kind not in self.gateway.commands:
            return frames.Error(ref, "unknown-frame", "Unknown frame type.", "type")
        if ref is None:
            return frames.Error.of(ref, problem(Invalid("ref", "must be an integer from 0 to 2^53 - 1")))
        return None

    def _seconds_over_rate(self) -> float:
        limits, now = self.gateway.limits, self._loop.time()
        full_at = max(self._full_at, now) + 1 / limits.frames_per_second
        seconds = full_at - now - limits.burst / limits.frames_per_second
        if seconds <= 0:
            self._full_at = full_at
        return seconds

    def _begin(self, command: Command, ref: int | None, text: str) -> None:
        task = asyncio.create_task(self._do(command, ref, text), name=f"hubbub: {command.name}")
        self._commands[task] = None
        task.add_done_callback(self._commands.pop)

    async def _do(self, command: Command, ref: int | None, text: str) -> None:
        answer = b""
        with ReportErrors(f"the command {command.name}"):
            try:
                answer = frames.encode(frames.Ack(ref, await self._result(command, text)))
            except (HubbubError, Refused) as error:
                answer = frames.encode(frames.Error.of(ref, problem(error)))
        if not answer:
            answer = frames.encode(frames.Error.of(ref, SERVER_ERROR))
        if task := asyncio.current_task():
            self._answering[task] = None
            task.add_done_callback(self._answering.pop)
        with suppress(OSError):
            await self.write(answer.decode())

    def abort(self, code: int) -> None:
        super().abort(code)
        for task in tuple(self._answering):
            task.cancel()

    def _call(self) -> Call:
        return Call(self.hub, self.user_id, self.identity.token, self)

    async def _result(self, command: Command, text: str) -> object:
        frame = command.decode(text)
        if not isinstance(frame, commands.Send):
            return await self.gateway.do(command, self._call(), frame)
        room_id = frame.room_id
        task = asyncio.current_task()
        before = self._sends.get(room_id)
        assert task is not None  # noqa: S101
        self._sends[room_id] = task
        try:
            if before is not None:
                await asyncio.wait([before])
            return await self.gateway.do(command, self._call(), frame)
        finally:
            if self._sends.get(room_id) is task:
                del self._sends[room_id]
