"""A client of the gateway for bots and tests (docs/protocol.md), on `websockets`.

    async with client.connect("ws://127.0.0.1:8000/chat", token=token, positions=stored) as chat:
        async for event in chat:
            if isinstance(event, MessageSent) and event.message.content == "ping":
                await chat.send(event.room_id, "pong")
            store(chat.positions)

It reconnects automatically, with random exponential backoff, and continues where it was. The iteration misses no
event and repeats none. `positions` are those of the events that it has returned.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from inspect import isawaitable
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.events import FeedEvent, LoggedEvent, MemberLeft, Resync, RoomGone
from hubbub.models import Message
from hubbub.positions import fingerprints, number_of_pages, page_of

try:
    from websockets.asyncio.client import ClientConnection
    from websockets.asyncio.client import connect as open_socket
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
    from websockets.typing import Subprotocol
except ImportError as error:
    raise ImportError("hubbub.client needs websockets: pip install 'hubbub[web]'") from error

logger = logging.getLogger("hubbub.client")

SUBPROTOCOL: Final = Subprotocol("hubbub.1")
POSITIONS_PER_FRAME: Final = 500
"""A frame has less than 40 KB. The gateway takes 64 KiB by default."""
MANY_ROOMS: Final = 128
"""A client in more rooms sends fingerprints of its positions first: 128 positions are 9 KB."""
FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 30.0
"""Pauses are random up to a limit that begins with the former, doubles per attempt, and ends with the latter."""
STABLE_SECONDS: Final = 10.0
"""A connection that was ready for this long ends the growth of the pauses."""
CONNECT_SECONDS: Final = 10.0
"""How long an attempt to connect takes at most."""
SILENCE_SECONDS: Final = 10.0
"""The client closes a connection that was silent this long beyond the server's `ping_seconds`."""
COMMAND_ATTEMPTS: Final = 10
"""How often a command is sent: again after a lost connection, a rate limit or an unavailable server."""


class CommandFailed(HubbubError):
    """The gateway refused a command. The fields are those of an `error` in docs/protocol.md."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(f"{answer['error']}: {answer['detail']}")
        self.error: str = answer["error"]
        self.detail: str = answer["detail"]
        self.field: str | None = answer.get("field")
        self.retry: bool = answer.get("retry", False)
        self.retry_after_seconds: float | None = answer.get("retry_after_seconds")
        self.outcome_unknown: bool = answer.get("outcome_unknown", False)
        """Whether the change may have been made."""


class Ended(HubbubError):
    """The gateway has closed the connection for good, by this code of docs/protocol.md."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the gateway has closed the connection: {code}, {reason}")
        self.code = code


_Token = str | Callable[[], str | Awaitable[str]] | None
_events = msgspec.json.Decoder(FeedEvent)
_frames = msgspec.json.Decoder(dict[str, Any])
_EVENTS: Final = {kind.__struct_config__.tag for kind in FeedEvent.__args__}


class _Type(msgspec.Struct):
    type: str


_types = msgspec.json.Decoder(_Type)


class Client:
    """One user of a chat. `async with` connects, and the iteration returns events.

    Events that are not read stay in memory. One task at a time may iterate, and any number may give commands.
    """

    def __init__(
        self,
        url: str,
        *,
        token: _Token = None,
        positions: Mapping[UUID, str] | None = None,
        device: str | None = None,
    ) -> None:
        self._url = url.rstrip("/") + "/socket"
        self._token = token
        self._device = device
        self._received = None if positions is None else dict(positions)
        self.positions: dict[UUID, str] = dict(positions or {})
        """The cursor of each room after the events that were returned: `positions` of the next client."""
        self.user_id: UUID | None = None
        self._events: deque[FeedEvent] = deque()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._refs = 0
        self._socket: ClientConnection | None = None
        self._is_ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._running: asyncio.Task[None] | None = None
        self._ping_seconds = 25.0
        self._spread_seconds = 0.0
        self._frame_bytes: float = math.inf
        self._ready_at = math.inf
        self._has_expiry = False
        """Whether the token of this connection expires."""

    async def __aenter__(self) -> Self:
        """Raises: Ended (the gateway refuses the client), Invalid (`url`)."""
        self._running = asyncio.create_task(self._run(), name="hubbub: client")
        try:
            await self._is_ready.wait()
        except asyncio.CancelledError:
            await self._close()
            raise
        if self._error is not None:
            await self._close()
            raise self._error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FeedEvent:
        """Raises: Ended."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        event = self._events.popleft()
        self._move(self.positions, event)
        return event

    async def send(self, room_id: UUID, content: str, *, id: UUID | None = None, **fields: object) -> Message:
        """Send a message, once, also if the connection is lost meanwhile.

        Raises: CommandFailed, Ended, Unavailable (the connection was lost repeatedly, so the outcome is unknown).
        """
        sent = await self.command("send", room_id=room_id, content=content, id=id or uuid7(), **fields)
        return msgspec.convert(sent, Message)

    async def command(self, name: str, /, **fields: object) -> Any:  # noqa: ANN401 - as the command has it
        """The result of a command. It is sent again when the connection was lost before the answer.

        So give `create` an `id`, and an id of your own to commands of the application that must not be done twice.

        Raises: CommandFailed (`too-large` where the frame has more bytes than the gateway takes), Ended,
        Unavailable (the connection was lost repeatedly, so the outcome is unknown).
        """
        for attempt in range(COMMAND_ATTEMPTS):
            try:
                return await self._command(name, fields)
            except Unavailable:  # the connection was lost
                continue
            except CommandFailed as error:
                if not error.retry or attempt == COMMAND_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(error.retry_after_seconds or 1)
        raise Unavailable("hub", "the connection was lost repeatedly", outcome_unknown=True)

    async def _command(self, name: str, fields: Mapping[str, object]) -> object:
        await self._is_ready.wait()
        if self._error is not None:
            raise self._error
        if (socket := self._socket) is None:  # lost again before this task resumed
            raise Unavailable("hub", "the connection was lost")
        self._refs += 1
        ref = self._refs
        frame = msgspec.json.encode({"type": name, "ref": ref, **fields})
        if len(frame) > self._frame_bytes:  # the gateway would close the connection
            detail = f"a command may have {self._frame_bytes:.0f} bytes"
            raise CommandFailed({"error": "too-large", "detail": detail})
        answer = self._answers[ref] = asyncio.get_running_loop().create_future()
        try:
            with suppress(ConnectionClosed):  # then the answer is an error
                await socket.send(frame, text=True)
            found = await answer
        finally:
            self._answers.pop(ref, None)
        if found["type"] == "error":
            raise CommandFailed(found)
        return found.get("result")

    async def _run(self) -> None:
        attempt = 0
        try:
            while True:
                self._ready_at = math.inf
                shortest = longest = 0.0
                try:
                    shortest, longest = await self._connect()
                except ConnectionClosed as closed:
                    # uvicorn closes all connections with 1012 when it shuts down, without a `bye`.
                    if closed.rcvd is not None and closed.rcvd.code in {1012, 1013}:
                        longest = self._spread_seconds
                except (OSError, InvalidHandshake, TimeoutError) as error:
                    logger.debug("a connection was lost: %s", error)
                if asyncio.get_running_loop().time() - self._ready_at > STABLE_SECONDS:
                    attempt = 0
                self._lose()
                backoff = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10))
                attempt += 1
                # The pause spreads load and guards nothing.
                await asyncio.sleep(random.uniform(shortest, max(longest, backoff)))  # noqa: S311
        except InvalidURI as error:
            self._error = Invalid("url", str(error))
        except Ended as error:
            self._error = error
        except Exception as error:
            logger.exception("the client ends by an unforeseen error")
            self._error = error  # the callers get it as well
        finally:
            self._error = self._error or Ended(1000, "the client is closed")
            self._lose()
            self._is_ready.set()
            self._changed.set()

    def _lose(self) -> None:
        """The connection is gone, and no answer comes any more."""
        self._socket = None
        self._is_ready.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(
                    self._error or Unavailable("hub", "the connection was lost", outcome_unknown=True)
                )

    async def _connect(self) -> tuple[float, float]:
        """One connection, until the server says `bye`. Returns the bounds of the next pause, in seconds.

        Raises: Ended, and errors of the network.
        """
        self._has_expiry = False
        token = await self._ask_for_token()  # the gateway waits 10 seconds for the `hello` that has it
        async with open_socket(
            self._url,
            subprotocols=[SUBPROTOCOL],
            compression=None,
            open_timeout=CONNECT_SECONDS,
            ping_interval=None,
            max_size=None,
        ) as socket:
            await self._hello(socket, token)
            while True:
                async with asyncio.timeout(self._ping_seconds + SILENCE_SECONDS):
                    text = await socket.recv(decode=False)
                for line in bytes(text).split(b"\n"):
                    if (pause := await self._take(socket, line)) is not None:
                        return pause

    async def _ask_for_token(self) -> str | None:
        """Raises: ConnectionError (the callable has failed, which is logged)."""
        with ReportErrors("the source of tokens"):
            given = self._token() if callable(self._token) else self._token
            token: str | None = await given if isawaitable(given) else given
            return token
        raise ConnectionError("there is no token")

    async def _hello(self, socket: ClientConnection, token: str | None) -> None:
        rooms = self._received
        hello: dict[str, Any] = {"type": "hello", "token": token, "device": self._device}
        if rooms is not None and len(rooms) > MANY_ROOMS:
            hello["pages"] = "".join(fingerprints(rooms, number_of_pages(len(rooms))))
        else:
            hello["positions"] = rooms
        await socket.send(msgspec.json.encode(hello), text=True)

    async def _send_pages(self, socket: ClientConnection, asked: Collection[int]) -> None:
        """Send the positions of the pages that differ."""
        received = self._received or {}
        pages = number_of_pages(len(received))
        rooms = [(id, cursor) for id, cursor in received.items() if page_of(id, pages) in asked]
        for at in range(0, max(len(rooms), 1), POSITIONS_PER_FRAME):
            end = at + POSITIONS_PER_FRAME
            frame = {"type": "positions", "positions": dict(rooms[at:end]), "more": end < len(rooms)}
            await socket.send(msgspec.json.encode(frame), text=True)

    async def _take(self, socket: ClientConnection, line: bytes) -> tuple[float, float] | None:
        """Apply a frame. Returns the bounds of the pause if it is the last one. Raises: Ended."""
        if _types.decode(line).type in _EVENTS:
            event = _events.decode(line)
            self._move(self._received if self._received is not None else {}, event)
            self._events.append(event)
            self._changed.set()
            return None
        frame = _frames.decode(line)
        match frame["type"]:
            case "ask":
                await self._send_pages(socket, set(frame["pages"]))
            case "ready":
                self._ready(socket, frame)
            case "ack" | "error":
                answer = self._answers.get(frame["ref"])
                if answer is not None and not answer.done():
                    answer.set_result(frame)
            case "bye":
                return self._bye(frame)
        return None

    def _ready(self, socket: ClientConnection, frame: Mapping[str, Any]) -> None:
        self.user_id = UUID(frame["user_id"])
        self._ping_seconds = frame["ping_seconds"]
        self._spread_seconds = frame.get("spread_seconds", 0.0)
        self._frame_bytes = frame.get("limits", {}).get("frame_bytes", math.inf)
        self._ready_at = asyncio.get_running_loop().time()
        self._has_expiry = frame["expires_in_seconds"] is not None
        positions = {UUID(room_id): cursor for room_id, cursor in frame["positions"].items()}
        if self._received is None:
            self._received = positions
            self.positions = dict(positions)
        self._socket = socket
        self._is_ready.set()

    def _bye(self, frame: Mapping[str, Any]) -> tuple[float, float]:
        if frame["code"] == 4401 and self._has_expiry and callable(self._token):
            return 0.0, 0.0  # the token has expired, and the callable returns another one
        # With 4503 the positions are of another database. The caller decides what to do.
        if not frame["reconnect"] or frame["code"] == 4503:
            raise Ended(frame["code"], frame["reason"])
        within_seconds: float = frame["within_seconds"]
        if frame["code"] == 4429:
            return within_seconds, 2 * within_seconds
        return 0.0, within_seconds

    def _move(self, positions: dict[UUID, str], event: FeedEvent) -> None:
        if isinstance(event, RoomGone) or (isinstance(event, MemberLeft) and event.user_id == self.user_id):
            positions.pop(event.room_id, None)
        elif isinstance(event, LoggedEvent | Resync):
            positions[event.room_id] = event.cursor


def connect(
    url: str,
    *,
    token: _Token = None,
    positions: Mapping[UUID, str] | None = None,
    device: str | None = None,
) -> Client:
    """A client of the gateway that is mounted at `url`, such as `wss://example.org/chat`, for `async with`.

    `token` is that of a session or of `Gateway.token`, or a callable that returns it before each connection. When
    the callable raises, the client reports the exception and calls it again later. With a callable that always
    raises, `async with` waits without end.
    `positions` are those of an earlier client: the iteration goes on from them.

    Raises: on entering, Ended (the gateway refuses the client), Invalid (`url`).
    """
    return Client(url, token=token, positions=positions, device=device)
