"""Tokens, and where in Redis their sessions are."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from uuid import UUID

_TAG_BYTES: Final = 3
_SECRET_BYTES: Final = 32
_TOKEN = re.compile("[A-Za-z0-9_-]{47}")
_ID = re.compile("[0-9a-f]{64}")

# It has the form of a token, so what is no token is looked for like one, in as much time, and not found.
_NOBODYS_TOKEN: Final = "0" * 47


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where one session is. The keys of all sessions of a user, and of their list, are in one slot of a cluster:
    the braces say that only the tag, which comes from the user id, decides about the slot."""

    tag: str
    id: str

    @property
    def prefix(self) -> str:
        return f"session:{{{self.tag}}}:"

    @property
    def key(self) -> str:
        return f"session:{{{self.tag}}}:{self.id}"


def new_token(tag: str) -> str:
    """47 characters that are safe in a URL: the tag, by which the key is found, and 256 random bits."""
    return tag + secrets.token_urlsafe(_SECRET_BYTES)


def tag_of(user_id: UUID) -> str:
    """Four characters, many times more values than a cluster has slots."""
    return urlsafe_b64encode(sha256(user_id.bytes).digest()[:_TAG_BYTES]).decode()


def place_of(token: object) -> Place:
    """Where the session of this token is if there is one. Redis sees only the SHA-256 of the token."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        token = _NOBODYS_TOKEN
    return Place(token[:4], sha256(token.encode()).hexdigest())


def index_of(user_id: UUID) -> str:
    """The key of the list of the user's sessions: a sorted set of their ids by when they end."""
    return f"session:{{{tag_of(user_id)}}}:user:{user_id}"


def is_session_id(session_id: object) -> bool:
    return isinstance(session_id, str) and _ID.fullmatch(session_id) is not None
