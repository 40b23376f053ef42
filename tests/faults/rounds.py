"""Reads what a client asks of PostgreSQL: the answer alone does not say whether it is one to a write."""

from __future__ import annotations

import re
from collections import deque

WRITES = re.compile(rb"\b(INSERT INTO|UPDATE|DELETE FROM)\b")


class Rounds:
    """What a client asks on a connection without TLS. A round is what one ReadyForQuery answers.

    asyncpg's `fetchrow` asks for one row, and PostgreSQL says of every statement that has given it, of a write as
    of a read, that there may be more of them. So the SQL in front of it decides: it is sent once on a connection,
    under a name by which it is run from then on.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._header = 4  # the first message has no type
        self._writing: dict[bytes, bool] = {}
        self._round_writes = False
        self._unanswered: deque[bool] = deque()

    @property
    def writes(self) -> bool:
        """Whether the round that is answered next runs a statement that writes."""
        return self._unanswered[0]

    def is_answered(self) -> None:
        """The next round was."""
        self._unanswered.popleft()

    def feed(self, data: bytes) -> None:
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
        elif kind in {b"S", b""}:  # Sync, and who logs in
            self._end(writes=self._round_writes)

    def _end(self, *, writes: bool) -> None:
        self._unanswered.append(writes)
        self._round_writes = False
