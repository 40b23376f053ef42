"""One open connection that speaks RESP: what the two kinds of it have in common."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

import hiredis

from hubbub.errors import Unavailable
from hubbub.redis.refusals import ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubbub.redis.replies import Part

pack = cast("Callable[[tuple[Part, ...]], bytes]", hiredis.pack_command)
"""A command as it goes over the wire. Raises TypeError for a word that is not a Part."""

INCOMPLETE: Final = object()
"""What the parser gives while the next reply is incomplete. Its default, False, is a reply in RESP3."""


class Wire(asyncio.Protocol):
    """Takes the transport over after the handshake; of no further use once the connection is lost."""

    def __init__(self, on_writable: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_writable = on_writable
        self._stream: asyncio.StreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._reason = "the server closed the connection"
        self.reader = hiredis.Reader(replyError=ReplyError, notEnoughData=INCOMPLETE)
        self.writable = False
        self.heard_at = self._loop.time()
        self.lost: asyncio.Future[Unavailable] = self._loop.create_future()
        """Done, with the reason, once the connection is gone."""

    def take_over(self, stream: asyncio.StreamWriter) -> None:
        """Become the protocol of the stream's transport: from here on all bytes arrive here."""
        # A StreamWriter closes its transport when it is collected, so it has to live as long as the wire.
        self._stream = stream
        self._transport = stream.transport
        stream.transport.set_protocol(self)
        self.heard_at = self._loop.time()
        self.writable = True

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport. Only while `writable`."""
        if self._transport is not None:
            self._transport.write(data)

    def drop(self, reason: str) -> None:
        """Give the connection up at once, without waiting for what is still under way."""
        if self._transport is None or self.lost.done():
            return
        self.writable = False
        self._reason = reason
        self._transport.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self.writable = True
            self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable = False
        self._stream = self._transport = None
        reason = f"{self._reason}: {exc}" if exc is not None else self._reason
        self.lost.set_result(Unavailable("redis", reason))
