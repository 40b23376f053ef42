"""A session as it stands in Redis: JSON that other programs can read, with places that scripts can count on.

    {"seenAt":1795413600.000,"expiresAt":1795500000.000,"createdAt":1795413600.000,"userId":"...","data":{...}}

Up to the data all have the same length, so a script reads and writes one of them without taking the JSON apart
(Redis' own cjson would turn an empty list of the data into an object, and large numbers into others). Times are
seconds since 1970. The user id stands outside of the data: nothing in the data can name another user.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.models import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("hubbub.sessions")

LONGEST_DATA_BYTES: Final = 4_096


class _Stored(msgspec.Struct, frozen=True, rename="camel", gc=False):
    seen_at: datetime
    expires_at: datetime
    created_at: datetime
    user_id: UUID
    data: dict[str, object]


_decode = msgspec.json.Decoder(_Stored, strict=False).decode  # not strict: a number may become a time


def read(value: bytes | None, session_id: str) -> Session | None:
    """The session that Redis holds; None for nothing, and for what is no session."""
    if value is None:
        return None
    try:
        found = _decode(value)
    except (msgspec.DecodeError, RecursionError):
        logger.warning("what Redis holds for the session %s is no session", session_id)
        return None
    return Session(session_id, found.user_id, found.data, found.created_at, found.seen_at, found.expires_at)


def encode(field: str, data: Mapping[str, object]) -> bytes:
    """The JSON of session data.

    Raises `Invalid` unless it comes back the same, and for more than 4 KiB or 32 levels of it.
    """
    return inputs.json_object(field, data, longest_bytes=LONGEST_DATA_BYTES)
