"""The words of a command, the replies to it, and functions that check the kind of a reply.

A reply of the wrong kind is a bug of the caller or of a script, not an event of the network. It raises TypeError.
"""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

Part: TypeAlias = str | bytes | int | float
"""One word of a command. Text goes out as UTF-8."""

Reply: TypeAlias = "bool | int | float | bytes | list[Reply] | dict[bytes, Reply] | None"
"""Strings are bytes. The caller decodes them."""


def as_int(reply: Reply) -> int:
    if not isinstance(reply, int):
        raise _unexpected(reply, "an integer")
    return reply


def as_bool(reply: Reply) -> bool:
    """True or false as a script returned it. Redis turns Lua's true into 1, and its false into None."""
    return bool(reply)


def as_bytes(reply: Reply) -> bytes:
    if not isinstance(reply, bytes):
        raise _unexpected(reply, "a string")
    return reply


def as_optional_bytes(reply: Reply) -> bytes | None:
    """A string, or None where there is none, as of GET."""
    if reply is not None and not isinstance(reply, bytes):
        raise _unexpected(reply, "a string or nothing")
    return reply


def as_list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise _unexpected(reply, "an array")
    return reply


def as_bytes_list(reply: Reply) -> list[bytes]:
    return [as_bytes(item) for item in as_list(reply)]


def as_ids(reply: Reply) -> list[UUID]:
    """Ids of users or rooms. Members that other programs have added and that are not ids are left out."""
    return [id for text in as_bytes_list(reply) if (id := _id(text)) is not None]


def _id(text: bytes) -> UUID | None:
    try:
        return UUID(text.decode())
    except ValueError:
        return None


def _unexpected(reply: Reply, wanted: str) -> TypeError:
    # Only the kind of the reply: its content may be secret.
    return TypeError(f"Redis replied with {type(reply).__name__} where {wanted} was expected")
