"""Server-Sent Events: a client that receives events over HTTP and sends each command as a request."""

from __future__ import annotations

import random
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from hubbub.events import FeedEvent
from hubbub.services.feed import Follower
from hubbub.web import frames
from hubbub.web.connections import GatewayConnection

COMMENT_SECONDS: Final = 15.0
"""How often a silent stream has a comment. Proxies cut lines that are silent for longer."""
MAX_ROOMS_IN_ID: Final = 100
"""An id is sent back in a header, of which proxies take 4 to 8 KB. One of 100 rooms has 5 KB."""
RETRY_SECONDS: Final = (1.0, 5.0)
"""How long an `EventSource` whose stream was cut waits. By itself each waits as long as all others."""
_ROOM: Final = struct.Struct(">16s21s")

HEADERS: Final = (
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
    """A client that reads a response without an end."""

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
            await self._asgi_send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
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
