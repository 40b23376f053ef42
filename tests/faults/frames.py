"""Cuts the streams of PostgreSQL and Redis into whole messages, for a relay that drops some of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

WRITES = re.compile(rb"\b(INSERT INTO|UPDATE|DELETE FROM)\b")


@dataclass(frozen=True, slots=True)
class AnswerFrame:
    """A message that PostgreSQL sends."""

    data: bytes

    @property
    def ends_statement(self) -> bool:
        """Whether it is CommandComplete or PortalSuspended.

        PortalSuspended ends a statement that has returned the requested number of rows. A writing statement has
        written all rows by then, however few were requested.
        """
        return self.data[:1] in {b"C", b"s"}

    @property
    def is_ready(self) -> bool:
        """Whether it is ReadyForQuery. Outside a transaction block it follows the commit."""
        return self.data[:1] == b"Z"


class Answers:
    """The messages that PostgreSQL sends on a connection without TLS, with a type and a length each."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[AnswerFrame]:
        self._buffer += data
        while len(self._buffer) >= 5:
            end = 1 + int.from_bytes(self._buffer[1:5], "big")
            if len(self._buffer) < end:
                return
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            yield AnswerFrame(frame)


class Rounds:
    """Finds the answers of PostgreSQL to writes. A round is all that one ReadyForQuery answers.

    The answer alone is not enough. asyncpg's `fetchrow` asks for one row, and then PostgreSQL ends a write like a
    read. So the SQL decides. A connection sends it once, with a name by which it runs the statement later.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._header = 4  # the first message has no type
        self._writing: dict[bytes, bool] = {}
        self._round_writes = False
        self._unanswered: deque[bool] = deque()

    @property
    def writes(self) -> bool:
        """Whether the next round to be answered runs a writing statement."""
        return self._unanswered[0]

    def is_answered(self) -> None:
        """Note that the next round was answered."""
        self._unanswered.popleft()

    def feed(self, data: bytes) -> None:
        """Read data of the client."""
        self._buffer += data
        while len(self._buffer) >= self._header:
            end = self._header - 4 + int.from_bytes(self._buffer[self._header - 4 : self._header], "big")
            if len(self._buffer) < end:
                return
            kind, body = self._buffer[: self._header - 4], self._buffer[self._header : end]
            self._buffer = self._buffer[end:]
            self._header = 5
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":  # Parse
            name, sql, _ = body.split(b"\0", 2)
            self._writing[name] = WRITES.search(sql) is not None
        elif kind == b"B":  # Bind
            _, name, _ = body.split(b"\0", 2)
            self._round_writes |= self._writing[name]
        elif kind == b"Q":  # Query
            self._end(writes=WRITES.search(body) is not None)
        elif kind in {b"S", b""}:  # Sync, and the login
            self._end(writes=self._round_writes)

    def _end(self, *, writes: bool) -> None:
        self._unanswered.append(writes)
        self._round_writes = False


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """A value that Redis sends."""

    data: bytes

    @property
    def is_published(self) -> bool:
        """Whether it is a published message, instead of an answer or a confirmation."""
        return self.data[:1] == b">" and b"message\r\n" in self.data[:24]


class Replies:
    """The values that a Redis server sends, in RESP3."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[ReplyFrame]:
        self._buffer += data
        while (end := _end(self._buffer, 0)) is not None:
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            yield ReplyFrame(frame)


_BULK = b"$=!"
_VALUES_PER_ELEMENT = {b"*": 1, b"~": 1, b">": 1, b"%": 2}


def _end(data: bytes, start: int) -> int | None:
    """The end of the value that starts here. None while a part of it is missing."""
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
