"""What goes to Redis and what comes back, and how a caller says which kind of reply it expects.

A reply of the wrong kind is a bug of the caller or of a script, not an event of the network: it raises
TypeError.
"""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

Part: TypeAlias = str | bytes | int | float
"""One word of a command. Text goes out as UTF-8."""

Reply: TypeAlias = "bool | int | float | bytes | list[Reply] | dict[bytes, Reply] | None"
"""One answer. Strings stay bytes: decoding is the caller's."""


def ignore(reply: Reply) -> None:
    """Any reply, thrown away: for what is done for its effect."""


def as_int(reply: Reply) -> int:
    """A count, or what a script returned as a number."""
    if not isinstance(reply, int):
        raise _unexpected(reply, "an integer")
    return reply


def as_bool(reply: Reply) -> bool:
    """What a script returned as true or false: Lua's true is 1, its false is nothing."""
    return bool(reply)


def as_bytes(reply: Reply) -> bytes:
    """A string that must be there."""
    if not isinstance(reply, bytes):
        raise _unexpected(reply, "a string")
    return reply


def as_optional_bytes(reply: Reply) -> bytes | None:
    """A string, or None where there is none, as of GET."""
    if reply is not None and not isinstance(reply, bytes):
        raise _unexpected(reply, "a string or nothing")
    return reply


def as_list(reply: Reply) -> list[Reply]:
    """A list of whatever."""
    if not isinstance(reply, list):
        raise _unexpected(reply, "an array")
    return reply


def as_bytes_list(reply: Reply) -> list[bytes]:
    """A list of strings, as of SMEMBERS."""
    return [as_bytes(item) for item in as_list(reply)]


def as_ids(reply: Reply) -> list[UUID]:
    """Ids of users or rooms. What somebody else has put into a key and is no id is passed over."""
    return [id for text in as_bytes_list(reply) if (id := _id(text)) is not None]


def _id(text: bytes) -> UUID | None:
    try:
        return UUID(text.decode())
    except ValueError:
        return None


def _unexpected(reply: Reply, wanted: str) -> TypeError:
    # Only the kind of the reply: its content may be secret.
    return TypeError(f"Redis replied with {type(reply).__name__} where {wanted} was expected")
