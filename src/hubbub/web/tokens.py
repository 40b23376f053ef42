"""Signed tokens: who a user is, for a short time, without a session. Pages of other origins have no cookie.

A token is `<user id, time of expiry>.<MAC>`, in base64. A token of a session has no dot, so the two differ.
"""

from __future__ import annotations

import struct
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest
from typing import Final
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid

MAC_BYTES: Final = 32
SHORTEST_SECRET: Final = 32
_CLAIMS: Final = struct.Struct(">16sd")


class Tokens:
    """Signs and checks tokens with one secret, which all processes of the application share."""

    def __init__(self, secret: bytes) -> None:
        """Raises: Invalid (a secret of fewer than 32 bytes)."""
        if not isinstance(secret, bytes) or len(secret) < SHORTEST_SECRET:
            raise Invalid("secret", f"must be at least {SHORTEST_SECRET} random bytes")
        self._key = blake2b(secret, person=b"hubbub.token").digest()

    def sign(self, user_id: UUID, seconds: float) -> str:
        """A token that is valid for `seconds`. Raises: Invalid."""
        expires_at = time.time() + inputs.positive("seconds", seconds)
        claims = urlsafe_b64encode(_CLAIMS.pack(inputs.uuid("user_id", user_id).bytes, expires_at))
        return (claims + b"." + self._mac(claims)).decode()

    def check(self, token: str) -> tuple[UUID, float] | None:
        """The user, and for how many seconds the token is still valid. None for any other text."""
        claims, _, mac = token.encode("utf-8", "replace").partition(b".")
        if not compare_digest(mac, self._mac(claims)):
            return None
        user_id, expires_at = _CLAIMS.unpack(urlsafe_b64decode(claims))
        seconds = expires_at - time.time()
        return (UUID(bytes=user_id), seconds) if seconds > 0 else None

    def _mac(self, claims: bytes) -> bytes:
        return urlsafe_b64encode(blake2b(claims, key=self._key, digest_size=MAC_BYTES).digest())
