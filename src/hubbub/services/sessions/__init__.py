"""Logins, in Redis or in PostgreSQL: created, looked up, listed and revoked."""

from hubbub.services.sessions.durable import DurableSessions
from hubbub.services.sessions.sessions import SessionService, find_ended, key_of

__all__ = ["DurableSessions", "SessionService", "find_ended", "key_of"]
