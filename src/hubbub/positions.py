"""Positions in the log of a room, and the cursors that clients keep of them.

A position is a seq and a hash of the entry at that seq. If the entry differs from the one that a reader
has seen, the log was rewound, by a restore or by a failover that lost commits. The reader then gets a `Resync`. A
cursor is a position as text, bound to its room. A client cannot forge one for an entry that it has not seen,
because the hash has to match the entry in PostgreSQL. `NO_ENTRY` is the hash of a missing entry, whose row another
program deleted. A later entry at that seq means that the log was rewound.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Final
from uuid import UUID

import msgspec

from hubbub.errors import Invalid

_FORM: Final = struct.Struct(">B4sQ8s")  # version, room, seq, hash
_VERSION: Final = 1
_ENCODED_LENGTH: Final = 28
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

ROOMS_PER_PAGE: Final = 10
"""On average. A client in 10,000 rooms sends 12 KB of fingerprints, and few cursors that are equal."""
MAX_PAGES: Final = 1_024
"""Enough for 10,000 rooms, the most that a client may follow."""
FINGERPRINT_BYTES: Final = 9
"""12 characters. Two different pages have the same one with a probability of 2 to the power of -72."""

HASH_BYTES: Final = 8
_NO_ID: Final = bytes(16)


class Position(msgspec.Struct, frozen=True, gc=False):
    """A position in the log of a room, as a reader has seen it."""

    seq: int
    entry_hash: bytes

    def encode(self, room_id: UUID) -> str:
        """The cursor: 28 characters that are safe in a URL."""
        return urlsafe_b64encode(_FORM.pack(_VERSION, _tag(room_id), self.seq, self.entry_hash)).decode()

    def matches(self, seen: Position) -> bool:
        """Whether this is the entry that a reader has seen there. `ANY_ENTRY` matches every entry."""
        return self.seq == seen.seq and seen.entry_hash in (ANY_ENTRY, self.entry_hash)

    @classmethod
    def decode(cls, room_id: UUID, cursor: object, *, field: str = "after") -> Position:
        """The position in a cursor. Raises: Invalid (it is not a cursor, or of another room)."""
        if not isinstance(cursor, str) or len(cursor) != _ENCODED_LENGTH:
            raise Invalid(field, "is not a cursor")
        try:
            version, tag, seq, entry_hash = _FORM.unpack(urlsafe_b64decode(cursor))
        except (ValueError, NotBase64, struct.error) as error:
            raise Invalid(field, "is not a cursor") from error
        if version != _VERSION or seq >= 2**63:
            raise Invalid(field, "is not a cursor")
        if tag != _tag(room_id):
            raise Invalid(field, "is the cursor of another room")
        return cls(seq, entry_hash)


# The hash in the position of a reader that has not read the entry. No cursor contains it.
ANY_ENTRY: Final = b""
# The hash of a seq without an entry.
NO_ENTRY: Final = bytes(HASH_BYTES)
# Before the first entry of every log.
START: Final = Position(0, NO_ENTRY)


def message_hash(identity: UUID, at: datetime) -> bytes:
    """The hash of a message, from its id and time of creation, which never change."""
    return _digest(identity.bytes, at)


def event_hash(kind: str, message_id: UUID | None, user_id: UUID | None, at: datetime) -> bytes:
    """The hash of an entry that is not a message."""
    about = (message_id.bytes if message_id else _NO_ID) + (user_id.bytes if user_id else _NO_ID)
    return _digest(kind.encode() + about, at)


def _digest(what: bytes, at: datetime) -> bytes:
    microseconds = microseconds_since_epoch(at)
    return blake2b(what + microseconds.to_bytes(8, "big", signed=True), digest_size=HASH_BYTES).digest()


def microseconds_since_epoch(at: datetime) -> int:
    """Exact, as PostgreSQL stores the time. Cursors and ids of imported messages depend on it."""
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


# A page, a feed and a list have many cursors of few rooms, and a client may send 10,000 at once. A lookup is a
# tenth of a hash.
@lru_cache(maxsize=16_384)
def _tag(room_id: UUID) -> bytes:
    return blake2b(room_id.bytes, digest_size=4).digest()


# A client in many rooms sends its positions as fingerprints of pages, each with the cursors of about ten rooms.
# Both sides compute them, so that only the cursors of pages that differ are sent.


def number_of_pages(rooms: int) -> int:
    """A power of two, as any client may choose it."""
    return min(1 << max((rooms - 1) // ROOMS_PER_PAGE, 0).bit_length(), MAX_PAGES)


def page_of(room_id: UUID, pages: int) -> int:
    """The page of a room. Ids end in random bits."""
    return room_id.int & (pages - 1)


def fingerprints(cursors: Mapping[UUID, str], pages: int) -> list[str]:
    """The fingerprint of each page: a digest of its rooms and cursors."""
    lines: list[list[str]] = [[] for _ in range(pages)]
    for room_id, cursor in cursors.items():
        lines[room_id.int & (pages - 1)].append(room_id.hex + cursor)  # `page_of`, for 10,000 rooms at a time
    return [_fingerprint("".join(sorted(page))) for page in lines]


def _fingerprint(page: str) -> str:
    return urlsafe_b64encode(sha256(page.encode()).digest()[:FINGERPRINT_BYTES]).decode()
