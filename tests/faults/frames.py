"""Cuts the streams of PostgreSQL and Redis into whole messages, as a relay has to that drops some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommandFrame:
    """A message of PostgreSQL's protocol."""

    data: bytes

    @property
    def ends_statement(self) -> bool:
        """Whether a statement was carried out (CommandComplete), or has given the rows that were asked for
        (PortalSuspended): one that writes has written all by then, however few of its rows were wanted."""
        return self.data[:1] in {b"C", b"s"}

    @property
    def is_ready(self) -> bool:
        """Whether it is ReadyForQuery: outside a transaction block the commit lies behind."""
        return self.data[:1] == b"Z"


class Commands:
    """What PostgreSQL sends on a connection without TLS: messages with a type and a length each."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[CommandFrame]:
        self._buffer += data
        while len(self._buffer) >= 5:
            end = 1 + int.from_bytes(self._buffer[1:5], "big")
            if len(self._buffer) < end:
                return
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            yield CommandFrame(frame)


@dataclass(frozen=True, slots=True)
class PushFrame:
    """A value that Redis sends."""

    data: bytes

    @property
    def is_published(self) -> bool:
        """Whether it is what somebody published, and no answer or confirmation."""
        return self.data[:1] == b">" and b"message\r\n" in self.data[:24]


class Pushes:
    """What a Redis server sends, in RESP3."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[PushFrame]:
        self._buffer += data
        while (end := _end(self._buffer, 0)) is not None:
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            yield PushFrame(frame)


_BULK = b"$=!"
_VALUES_PER_ELEMENT = {b"*": 1, b"~": 1, b">": 1, b"%": 2}


def _end(data: bytes, start: int) -> int | None:
    """Where the value that starts there ends; None while a part of it is missing."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, end = data[start : start + 1], line_end + 2
    if kind in _BULK:
        length = int(data[start + 1 : line_end])
        end += length + 2 if length >= 0 else 0
        return end if end <= len(data) else None
    if kind not in _VALUES_PER_ELEMENT:
        return end
    for _ in range(_VALUES_PER_ELEMENT[kind] * int(data[start + 1 : line_end])):
        inner = _end(data, end)
        if inner is None:
            return None
        end = inner
    return end
