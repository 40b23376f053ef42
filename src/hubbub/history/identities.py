"""Ids for what has none: made from what is known of it, so that the same line makes the same message again."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

from hubbub.postgres import FastUUID

# What is left of 80 bits of a hash beside the version and the variant of a UUID.
_HASHED: Final = (1 << 80) - 1 - (0xF << 76) - (0x3 << 62)
_VERSION_7: Final = (7 << 76) | (2 << 62)
_VERSION_8: Final = (8 << 76) | (2 << 62)

# Nobody has this domain, and no mail is ever sent there (RFC 2606).
NO_EMAIL: Final = "import.invalid"


def derive_room_id(name: str) -> UUID:
    """The room that history without ids means by a name. Names of rooms are not unique; this id is."""
    return _named(f"room\0{name}")


def derive_user_id(nickname: str) -> UUID:
    """The user that history without ids means by a nickname, in any case."""
    return _named(f"user\0{nickname.casefold()}")


def email_of(user_id: UUID) -> str:
    """The address of a user who came without one."""
    return f"{user_id.hex}@{NO_EMAIL}"


def derive_message_id(line: int, room: str, user: str, at: datetime, content: str) -> UUID:
    """The id of the message on a line: a UUIDv7 of its time and, for the rest, of a hash of all that it is.

    `room` is the id of the room in hexadecimal. The number of the line tells apart what somebody said twice in one
    minute. Ids in the order of time are inserted faster than random ones.
    """
    hashed = int.from_bytes(sha256(f"{line}\0{room}\0{user}\0{content}".encode()).digest()[:10])
    since = max(int(at.timestamp() * 1000), 0)
    return FastUUID(((since << 80) | (hashed & _HASHED) | _VERSION_7).to_bytes(16))


def _named(name: str) -> UUID:
    hashed = int.from_bytes(sha256(f"hubbub\0{name}".encode()).digest()[:16])
    return FastUUID((hashed & ~((0xF << 76) | (0x3 << 62)) | _VERSION_8).to_bytes(16))
