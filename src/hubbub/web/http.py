"""Commands by HTTP, the streams of Server-Sent Events, and requests by pages of other origins."""

from __future__ import annotations

import random
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Invalid, RateLimited
from hubbub.events import FeedEvent
from hubbub.services.feed import Follower
from hubbub.web import frames
from hubbub.web.commands import Call
from hubbub.web.connections import GatewayConnection
from hubbub.web.documents import asyncapi, openapi
from hubbub.web.frames import Subscription
from hubbub.web.logins import SAFE_METHODS, Identity, bearer_of, not_logged_in
from hubbub.web.problems import SERVER_ERROR, Refused, answer

if TYPE_CHECKING:
    from hubbub.web.gateway import Gateway

SUBSCRIPTION_BYTES: Final = 1024 * 1024
"""The body of a request for a stream: 10,000 positions of 70 bytes."""
READS: Final = {
    "/me": "me",
    "/rooms": "rooms",
    "/rooms/{room_id}": "room",
    "/rooms/{room_id}/messages": "page",
    "/rooms/{room_id}/members": "members",
    "/public_rooms": "public_rooms",
    "/users": "users",
    "/sessions": "sessions",
}
"""The commands that only read, by path."""
NO_STORE: Final = {"Cache-Control": "no-store"}

COMMENT_SECONDS: Final = 15.0
"""How often a silent stream has a comment. Proxies close connections that are silent for longer."""
MAX_ROOMS_IN_ID: Final = 100
"""An id is sent back in a header, of which proxies take 4 to 8 KB. One of 100 rooms has 5 KB."""
RETRY_SECONDS: Final = (1.0, 5.0)
"""How long an `EventSource` whose stream was cut waits. By itself each waits as long as all others."""
_ROOM: Final = struct.Struct(">16s21s")

STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


def encode_id(positions: Mapping[UUID, str]) -> str | None:
    """The positions as the id of an event. None if they are too many."""
    if len(positions) > MAX_ROOMS_IN_ID:
        return None
    rooms = [_ROOM.pack(room_id.bytes, urlsafe_b64decode(cursor)) for room_id, cursor in positions.items()]
    return urlsafe_b64encode(b"".join(rooms)).decode()


def decode_id(id: str) -> dict[UUID, str] | None:
    """The positions in an id. None for any other text."""
    try:
        rooms = _ROOM.iter_unpack(urlsafe_b64decode(id))
        return {UUID(bytes=room): urlsafe_b64encode(cursor).decode() for room, cursor in rooms}
    except (ValueError, NotBase64, struct.error):
        return None


def _retry(shortest: float, longest: float) -> bytes:
    """The field that has an `EventSource` wait for a random time, in milliseconds, before it connects again."""
    seconds = random.uniform(shortest, longest)  # noqa: S311 - spreads load, guards nothing
    return b"retry: %d\n\n" % (seconds * 1_000)


class EventStream(GatewayConnection):
    """A client that reads events from a response without an end, and sends each command as a request."""

    silence_seconds = COMMENT_SECONDS
    has_ids = False
    """Whether events have ids, which an `EventSource` sends back when it connects again."""
    _has_begun = False
    _id: str | None = None

    async def _send(self, text: str) -> None:
        if text == frames.PING:
            await self._send_body(b":\n\n")
            return
        id = f"\nid: {self._id}" if self._id is not None else ""
        self._id = None
        await self._send_body(("data: " + text.replace("\n", "\n\ndata: ") + id + "\n\n").encode())

    async def _send_body(self, body: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            if self.has_ids:
                body = _retry(*RETRY_SECONDS) + body
            await self._asgi_send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
            body = b":\n\n" + body
        await self._asgi_send({"type": "http.response.body", "body": body, "more_body": True})

    async def _finish(self, code: int) -> None:
        returns = self.has_ids and code in frames.RECONNECTS
        body = _retry(0, self.gateway.spread_seconds) if returns else b""
        await self._asgi_send({"type": "http.response.body", "body": body, "more_body": False})

    async def _receive(self) -> None:
        while (await self._asgi_receive())["type"] != "http.disconnect":
            pass

    def _ready(self, follower: Follower) -> str:
        self._note_id(follower)
        return super()._ready(follower)

    def _events(self, follower: Follower, event: FeedEvent) -> str:
        text = super()._events(follower, event)
        self._note_id(follower)
        return text

    def _note_id(self, follower: Follower) -> None:
        """The last of the frames that are sent next has the positions after all of them."""
        if self.has_ids:
            # To encode many and then find that they do not fit would cost 10 ms per event in 10,000 rooms.
            fits = len(follower.positions) <= MAX_ROOMS_IN_ID
            self._id = (encode_id(follower.cursors) if fits else None) or ""


class Http:
    """Requests that authenticate each time."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._subscription = msgspec.json.Decoder(Subscription)
        self._documents: dict[str, tuple[int, bytes]] = {}
        """By name: the number of commands when it was made, and the document."""

    def routes(self) -> list[BaseRoute]:
        events = _Route("/events", _Stream(self._stream), methods=["GET", "POST"])
        if events.methods:
            events.methods.discard("HEAD")  # Starlette adds it. Its answer would be a stream without an end.
        return [
            events,
            _Route("/commands", self._endpoint(self._command), methods=["POST"]),
            _Route("/sessions/{session_id}", self._by_address("revoke"), methods=["DELETE"]),
            _Route("/openapi.json", self._openapi, methods=["GET"]),
            _Route("/asyncapi.json", self._asyncapi, methods=["GET"]),
            *(_Route(path, self._by_address(name), methods=["GET"]) for path, name in READS.items()),
        ]

    def _endpoint(self, do: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            with ReportErrors("a request"):
                try:
                    result = frames.encode(await do(request))
                except (HubbubError, Refused) as error:
                    return answer(error)
                except ClientDisconnect:  # before the end of the body
                    return Response(status_code=400)
                return Response(result, media_type="application/json", headers=NO_STORE)
            return answer(SERVER_ERROR)

        return endpoint

    async def _command(self, request: Request) -> object:
        call = await self._call(request)
        body = await self._body(request, self._gateway.limits.frame_bytes)
        try:
            kind, _ = frames.envelope(body)
        except frames.NotAFrame as error:
            raise Invalid("frame", "must be a JSON object with a type") from error
        command = self._gateway.commands.get(kind)
        if command is None:
            raise Invalid("type", "must be a command of the gateway")
        return await self._gateway.do(command, call, command.decode(body))

    def _by_address(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a command whose fields are in the path and the query."""

        async def do(request: Request) -> object:
            call = await self._call(request)
            command = self._gateway.commands[name]
            fields: dict[str, Any] = {**request.query_params, **request.path_params, "type": name}
            if "user_ids" in fields:
                fields["user_ids"] = fields["user_ids"].split(",")
            try:
                frame = msgspec.convert(fields, command.frame, strict=False)
            except msgspec.ValidationError as error:
                raise frames.invalid(error) from error
            return await self._gateway.do(command, call, frame)

        return self._endpoint(do)

    async def _call(self, request: Request) -> Call:
        """The call of the request. Raises: Refused, RateLimited, Unavailable."""
        identity = await self._identity(request)
        return Call(self._gateway.hub_of(request), identity.user_id, identity.token)

    async def _identity(self, request: Request) -> Identity:
        """The identity of the request, within its rate. Raises: Refused, RateLimited, Unavailable."""
        gateway = self._gateway
        if not gateway.accepts_origin(request):
            raise Refused(403, "The origin is not one of the gateway's.")
        is_safe = request.method in SAFE_METHODS and request.headers.get("sec-fetch-site") != "cross-site"
        identity = await gateway.identify(request, bearer_of(request), needs_origin=not is_safe)
        if identity is None:
            raise not_logged_in()
        limits = gateway.limits
        verdict = await gateway.hub_of(request).limits.take(
            "gateway",
            str(identity.user_id),
            capacity=limits.burst,
            refill_per_second=limits.frames_per_second,
            fail_open=True,
        )
        if not verdict.allowed:
            raise RateLimited(verdict.retry_after_seconds)
        if identity.user_id in await gateway.are_banned([identity.user_id]):
            raise Refused(403, "The user is banned.")
        return identity

    async def _body(self, request: Request, most: int) -> bytes:
        """The JSON of a request. Raises: Refused."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "The body must be of the type application/json.")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise Refused(413, f"The body must have at most {most} bytes.")
        return bytes(body)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = self._gateway.next_number()
        stream: EventStream | None = None
        refusal: Response | None = None
        with ReportErrors("a request for a stream"):
            try:
                stream = await self._stream_of(Request(scope, receive), number, send)
            except (HubbubError, Refused) as error:
                refusal = answer(error)
            except ClientDisconnect:  # before the end of the body
                return
        if stream is not None:
            await stream.run()
        else:
            await (refusal or answer(SERVER_ERROR))(scope, receive, send)

    async def _stream_of(self, request: Request, number: int, send: Send) -> EventStream:
        """The stream of a valid request. Raises: Refused, HubbubError, ClientDisconnect."""
        identity = await self._identity(request)
        watched = self._watched(request)
        subscription = await self._subscribed(request)
        hub, device = self._gateway.hub_of(request), subscription.device
        stream = EventStream(self._gateway, hub, identity, device, number, request.receive, send)
        stream.has_ids = request.method == "GET"
        stream.watched = watched
        stream.positions = subscription.positions
        return stream

    def _watched(self, request: Request) -> list[UUID]:
        """The rooms that the address names. Raises: Invalid."""
        named, most = request.query_params.get("watch"), self._gateway.limits.watched_rooms
        ids = named.split(",", most) if named else []
        try:
            found = msgspec.convert(ids, list[UUID], strict=False)
        except msgspec.ValidationError as error:
            raise Invalid("watch", f"must be the ids of at most {most} rooms") from error
        if len(found) > most:
            raise Invalid("watch", f"must be the ids of at most {most} rooms")
        return found

    async def _subscribed(self, request: Request) -> Subscription:
        if request.method == "POST":
            found = frames.decode(self._subscription, await self._body(request, SUBSCRIPTION_BYTES))
            frames.check_device(found.device)
            return found
        last_id = request.headers.get("last-event-id")
        return Subscription(positions=decode_id(last_id) if last_id else None)

    async def _openapi(self, request: Request) -> Response:
        body = self._document("openapi", lambda: openapi(self._gateway.commands, READS))
        servers = frames.encode([{"url": request.scope.get("root_path") or "/"}])
        return Response(b'{"servers":' + servers + b"," + body[1:], media_type="application/json")

    async def _asyncapi(self, _: Request) -> Response:
        body = self._document("asyncapi", lambda: asyncapi(self._gateway.commands))
        return Response(body, media_type="application/json")

    def _document(self, name: str, make: Callable[[], dict[str, Any]]) -> bytes:
        """A document about the commands. It is made once, and again where the application has added a command."""
        number = len(self._gateway.commands)
        if self._documents.get(name, (0, b""))[0] != number:
            self._documents[name] = number, frames.encode(make())
        return self._documents[name][1]


class _Route(Route):
    """A route that answers to other methods as the gateway answers to other errors."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = sorted(self.methods or ())
        if scope["method"] in methods:
            await self.app(scope, receive, send)
        else:
            refused = Refused(405, f"The path takes {' and '.join(methods)}.", {"Allow": ", ".join(methods)})
            await answer(refused)(scope, receive, send)


class _Stream:
    """An ASGI application, which Starlette gives the request as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


# A browser asks the server about requests by pages of other origins (CORS).

PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "7200",  # seconds: as long as Chromium keeps it at most
}


def preflight(scope: Scope) -> Response | None:
    """The answer to a browser that asks whether a page may send a request. None for any other request."""
    if scope["method"] != "OPTIONS" or "access-control-request-method" not in Headers(scope=scope):
        return None
    return Response(status_code=204, headers=PREFLIGHT)


def readable_by(origin: str, send: Send) -> Send:
    """Adds the headers with which pages of the origin may read an answer. A cookie counts, as on a WebSocket."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = "Retry-After"
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_headers
