"""Sessions and their values in Redis."""

from __future__ import annotations

from hubbub.models import Session
from hubbub.redis import Connection
from hubbub.redis.replies import as_optional_bytes
from hubbub.services.sessions import SessionService, key_of

PHONE = {"device": "phone"}


async def found(sessions: SessionService, token: str) -> Session:
    session = await sessions.get_session(token)
    assert session is not None
    return session


async def unseen_for_years(connection: Connection, token: str) -> None:
    """Set the time of the last lookup to 2023, so that the next lookup writes it."""
    await connection.execute("SETRANGE", key_of(token).name, len('{"seenAt":'), "1700000000.000")


async def value_of(connection: Connection, token: str) -> bytes:
    value = as_optional_bytes(await connection.execute("GET", key_of(token).name))
    assert value is not None
    return value
