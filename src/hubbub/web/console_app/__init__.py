"""The console as an ASGI application: a page, its figures, the log of a room and the sessions of a user.

A function of the application authorizes requests to `hubbub.web.console`. `hubbub console` needs a token: the
address has it at first, and a cookie replaces it from then on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from functools import partial
from html import escape
from pathlib import Path
from time import time
from typing import Final
from urllib.parse import parse_qs
from uuid import UUID

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubbub import inputs
from hubbub.diagnostics import find_room, find_user
from hubbub.diagnostics.doctor import check_servers
from hubbub.diagnostics.figures import (
    BusyRoom,
    Poller,
    SlowStatement,
    Typing,
    ask_postgres,
    ask_redis,
    block_hits,
    commands_per_second,
    commits_per_second,
    key_hits,
    messages_per_second,
    slowest,
)
from hubbub.diagnostics.report import Report
from hubbub.errors import Forbidden, HubbubError, Invalid, NotFound
from hubbub.events import LogEvent, MessageSent
from hubbub.hub import Hub
from hubbub.instrumentation import PoolUse, percentile
from hubbub.positions import ANY_ENTRY, Position
from hubbub.repositories.messages.log import Logs
from hubbub.services.feed.announcements import ProcessFigures
from hubbub.web.logins import SAFE_METHODS, hub_from, is_from_own_page, value_of
from hubbub.web.problems import Refused, answer

Authorize = Callable[[Request], Awaitable[bool] | bool]

PAGE: Final = Path(__file__).parent / "page"
FILES: Final = {
    "console.js": "text/javascript",
    "plot.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
ENTRIES: Final = 40
"""Entries of a log on a page. The readers of each message are queried."""
READERS: Final = 5
"""Readers that are named per message."""
DEVICE_CHARACTERS: Final = 200
TOKEN_BYTES: Final = 32
POLL_SECONDS: Final = 0.9
"""The figures are asked again if they are older. The page asks every second."""
STATEMENTS_SECONDS: Final = 5.0
"""The view of the extension reads all that it keeps, up to 5,000 statements by default."""
REPORT_SECONDS: Final = 60.0
"""A report hashes a password, which takes a core a quarter of a second."""
SENDS_POLLS: Final = 10
"""The percentiles cover the sends of the last ten polls (ten seconds)."""
MAX_POINTS: Final = 300
"""Points of the plots: five minutes."""


class Console:
    """`hubbub.web.console` has the arguments."""

    def __init__(self, hub: Hub | Callable[[], Hub] | None, *, authorize: Authorize, allow_changes: bool) -> None:
        self._hub = hub
        self._authorize = authorize
        self._allow_changes = allow_changes
        self._monitor: Monitor | None = None
        self._router = Router(
            [
                Route("/", self._page),
                Route("/figures", self._json(self._figures)),
                Route("/findings", self._json(self._findings)),
                Route("/rooms/{room:path}/log", self._json(self._log)),
                Route("/users/{user:path}/sessions", self._json(self._sessions)),
                Route("/users/{user}/sessions/{session_id}", self._json(self._revoke), methods=["DELETE"]),
                *(Route(f"/{name}", partial(_file, name)) for name in FILES),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            raise RuntimeError("the console has no lifespan of its own")
        path, root = scope["path"], scope.get("root_path", "")
        if path.rstrip("/") == root.rstrip("/"):  # with or without the slash, as frameworks have it below a mount
            scope = {**scope, "path": f"{root.rstrip('/')}/"}
        app: ASGIApp = self._router
        try:
            await self._check(Request(scope))
        except (HubbubError, Refused) as error:
            app = answer(error)
        await app(scope, receive, _with_headers(send))

    async def _check(self, request: Request) -> None:
        """Raises: Refused, Forbidden, and what `authorize` raises."""
        if not await value_of(self._authorize(request)):
            raise Refused(403, "The console is for operators.")
        if request.method in SAFE_METHODS:
            return
        if not self._allow_changes:
            raise Forbidden("change", "the console only reads")
        if not is_from_own_page(request, ()):
            raise Refused(403, "A change needs an Origin header that names this host.")

    def _json(self, find: Callable[[Hub, Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                found = await find(hub_from(self._hub, request), request)
            except (HubbubError, Refused) as error:
                return answer(error)
            return Response(msgspec.json.encode(found), media_type="application/json")

        return endpoint

    def _monitor_of(self, hub: Hub) -> Monitor:
        if self._monitor is None or self._monitor.hub is not hub:
            self._monitor = Monitor(hub)
        return self._monitor

    async def _page(self, request: Request) -> Response:
        root = escape(request.scope.get("root_path", "").rstrip("/"))
        page = (PAGE / "index.html").read_text().replace("{root}", root)
        page = page.replace("{changes}", "yes" if self._allow_changes else "no")
        return Response(page, media_type="text/html")

    async def _figures(self, hub: Hub, _: Request) -> object:
        return await self._monitor_of(hub).figures()

    async def _findings(self, hub: Hub, _: Request) -> object:
        return await self._monitor_of(hub).report()

    async def _log(self, hub: Hub, request: Request) -> object:
        """The entries before a seq, or the newest, in the order of the log."""
        room = await hub.rooms.get(await find_room(hub, request.path_params["room"]))
        before = _seq(request.query_params.get("before"))
        end = room.last_seq if before is None else min(before - 1, room.last_seq)
        start = max(end - ENTRIES, 0)
        entries: list[LogEvent] = []
        position = Position(start, ANY_ENTRY)
        while position.seq < end:  # a read ends after about a megabyte
            log_slice = await Logs(hub._pool).read(room.id, position, end - position.seq)
            entries += [entry.event for entry in log_slice.entries if entry.event.seq <= end]
            position = Position(max(log_slice.complete_up_to, position.seq + 1), ANY_ENTRY)
        readers = {}
        for event in entries:  # one after the other, so that a page takes one connection
            if isinstance(event, MessageSent) and event.message.deleted_at is None:
                readers[event.message.id] = await _readers(hub, event.message.id)
        ids = {user_id for event in entries for user_id in _people(event)}
        users = await hub.users.get_many(ids.union(*(names for names, _ in readers.values())))
        return {
            "room": {"id": room.id, "name": room.name, "last_seq": room.last_seq},
            "older": start + 1 if start else None,
            "entries": entries,
            "readers": {id: {"user_ids": names, "more": more} for id, (names, more) in readers.items()},
            "users": {id: user.username for id, user in users.items()},
        }

    async def _sessions(self, hub: Hub, request: Request) -> object:
        user = await find_user(hub, request.path_params["user"])
        sessions = await hub.sessions.list(user.id)
        return {
            "user": {"id": user.id, "username": user.username, "is_online": user.is_online},
            "sessions": [
                {
                    "id": session.id,
                    "device": str(session.data.get("device", ""))[:DEVICE_CHARACTERS],
                    "created_at": session.created_at,
                    "seen_at": session.seen_at,
                    "expires_at": session.expires_at,
                }
                for session in sessions
            ],
        }

    async def _revoke(self, hub: Hub, request: Request) -> object:
        user_id = inputs.uuid("user", request.path_params["user"])
        if not await hub.sessions.revoke(user_id, request.path_params["session_id"]):
            raise NotFound("session", "of that id")
        return {"revoked": True}


def _seq(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise Invalid("before", "must be a seq")
    return int(text)


def _people(event: LogEvent) -> set[UUID]:
    """The users whom an entry names."""
    ids = {getattr(event, "user_id", None), getattr(event, "by", None)}
    message = getattr(event, "message", None)
    if message is not None:
        ids.add(message.user_id)
    return {id for id in ids if id is not None}


async def _readers(hub: Hub, message_id: UUID) -> tuple[list[UUID], bool]:
    """The first readers, and whether there are more."""
    try:
        found = await hub.receipts.readers(message_id, limit=READERS)
    except NotFound:  # purged a moment ago
        return [], False
    return [receipt.user_id for receipt in found.items], found.next is not None


async def _file(name: str, _: Request) -> Response:
    return Response((PAGE / name).read_bytes(), media_type=FILES[name])


def _with_headers(send: Send) -> Send:
    """Adds `HEADERS` to an answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers


class TokenLogin:
    """Accepts a browser with the token, and gives it a cookie, whose value is another secret.

    The answer redirects the browser to the address without the token, so that it is not shown or stored.
    """

    def __init__(self, hub: Hub, port: int, *, allow_changes: bool) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._key = secrets.token_urlsafe(TOKEN_BYTES)
        self._cookie = f"hubbub-console-{port}"  # cookies of a host are shared by its ports
        self._console = Console(hub, authorize=self._has_cookie, allow_changes=allow_changes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["query_string"]:
            await self._log_in(scope["query_string"])(scope, receive, _with_headers(send))
        else:
            await self._console(scope, receive, send)

    def _log_in(self, query: bytes) -> Response:
        token = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        if not _equal(token, self.token):
            return answer(
                Refused(403, "The token is wrong. `hubbub console` prints the address with the right one.")
            )
        cookie = f"{self._cookie}={self._key}; Path=/; HttpOnly; SameSite=Lax"
        return Response(status_code=303, headers={"Location": "/", "Set-Cookie": cookie})

    def _has_cookie(self, request: Request) -> bool:
        return _equal(request.cookies.get(self._cookie, ""), self._key)


def _equal(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(errors="surrogateescape"), secret.encode())


class Server(msgspec.Struct, frozen=True):
    """`error` is the reason without an answer. `state` has figures by name, those that are unknown as None."""

    name: str
    where: str
    error: str | None
    state: dict[str, float | None]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The rates at a time, in seconds since 1970."""

    at: float
    messages: float | None
    commands: float | None


class Processes(msgspec.Struct, frozen=True):
    """All processes of the chat together: those that have followers or sent something. Durations in seconds."""

    number: int
    followers: int
    sends_p50: float | None
    sends_p99: float | None


class Figures(msgspec.Struct, frozen=True):
    """`pool` is that of this process, `typing` None without an answer of Redis."""

    postgresql: Server
    redis: Server
    pool: PoolUse
    processes: Processes
    typing: Typing | None
    is_estimate: bool
    rooms: list[BusyRoom]
    statements: list[SlowStatement] | None
    points: list[Point]


class Monitor:
    """The figures of the page: both servers of a hub are asked once for all viewers, while pages ask."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._stored = Poller(partial(ask_postgres, hub._pool))
        self._live = Poller(partial(ask_redis, hub._connection))
        self._statements: Poller[list[SlowStatement] | None] = Poller(partial(slowest, hub._pool))
        self._points: deque[Point] = deque(maxlen=MAX_POINTS)
        self._asked: deque[dict[str, ProcessFigures]] = deque(maxlen=SENDS_POLLS + 1)
        self._due = self._statements_due = self._report_due = 0.0
        self._polling, self._reporting = asyncio.Lock(), asyncio.Lock()
        self._report: Report | None = None

    async def figures(self) -> Figures:
        """The figures, of the last second. Does not raise for a server."""
        async with self._polling:
            now = asyncio.get_running_loop().time()
            if now >= self._due:
                if now >= self._due + SENDS_POLLS * POLL_SECONDS:  # no page has asked for a while
                    self._asked.clear()
                polls = [self._stored.poll(), self._live.poll()]
                if now >= self._statements_due:
                    polls.append(self._statements.poll())
                    self._statements_due = now + STATEMENTS_SECONDS
                await asyncio.gather(*polls)
                self._due = now + POLL_SECONDS
                self._asked.append(self.hub._feed.figures())
                self.hub._feed.ask_for_figures()
                rates = messages_per_second(self._stored), commands_per_second(self._live)
                self._points.append(Point(time(), *rates))
            return self._figures()

    async def report(self) -> Report:
        """The findings of `hubbub doctor`, of the last minute."""
        async with self._reporting:
            now = asyncio.get_running_loop().time()
            if self._report is None or now >= self._report_due:
                self._report = await check_servers(self.hub.settings, processes=1)
                self._report_due = now + REPORT_SECONDS
            return self._report

    def _figures(self) -> Figures:
        live = self._live.latest
        return Figures(
            postgresql=self._postgresql(),
            redis=self._redis(),
            pool=self.hub._pool.use,
            processes=self._processes(),
            typing=live and live.typing,
            is_estimate=live is not None and not live.sessions.is_exact,
            rooms=[] if self._stored.latest is None else self._stored.latest.busiest,
            statements=self._statements.latest,
            points=list(self._points),
        )

    def _processes(self) -> Processes:
        """The sends are those since the oldest answer of each process that is kept here."""
        now, sends = self._asked[-1], Counter[int]()
        for name, figures in now.items():
            sends.update(figures.sends)
            sends.subtract(next(asked[name].sends for asked in self._asked if name in asked))
        return Processes(
            sum(bool(one.followers or one.sends) for one in now.values()),
            sum(one.followers for one in now.values()),
            percentile(sends, 0.5),
            percentile(sends, 0.99),
        )

    def _postgresql(self) -> Server:
        settings, stored = self.hub.settings.postgres, self._stored.latest
        where = f"{settings.where}/{settings.database}"
        if stored is None:
            return Server("PostgreSQL", where, self._stored.reason, {})
        server = stored.server
        state: dict[str, float | None] = {
            **{name: row.rows for name, row in stored.rows.items()},
            "connections": server.connections,
            "max_connections": server.max_connections,
            "pooled": server.pooled,
            "active": server.active,
            "waiting": server.waiting,
            "longest_seconds": server.longest_seconds,
            "commits_per_second": commits_per_second(self._stored),
            "hits": block_hits(self._stored),
        }
        return Server(f"PostgreSQL {server.version}", where, None, state)

    def _redis(self) -> Server:
        where, live = self.hub.settings.redis.where, self._live.latest
        if live is None:
            return Server("Redis", where, self._live.reason, {})
        number = live.server.number
        state: dict[str, float | None] = {
            "online": live.online,
            "sessions": live.sessions.number,
            "channels": number("pubsub_channels"),
            "clients": number("connected_clients"),
            "memory": number("used_memory"),
            "maxmemory": number("maxmemory"),
            "evicted": number("evicted_keys"),
            "commands_per_second": commands_per_second(self._live),
            "hits": key_hits(self._live),
        }
        return Server(f"{live.server.name} {live.server.version}", where, None, state)
