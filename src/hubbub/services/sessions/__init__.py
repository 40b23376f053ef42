"""Who is logged in, and on which devices."""

from hubbub.services.sessions.service import SessionService

__all__ = ["SessionService"]
