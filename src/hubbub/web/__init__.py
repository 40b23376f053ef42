"""Errors as answers, and logins by cookie or token, for Starlette, FastAPI and Litestar (docs/web.md)."""

try:
    import starlette.exceptions  # noqa: F401 - a message that names the extra
except ImportError as error:
    raise ImportError("hubbub.web needs Starlette: pip install 'hubbub[web]'") from error

from hubbub.web.logins import COOKIE, current_session, current_user, session_cookie, session_token
from hubbub.web.problems import Problem, Refused, exception_handlers, litestar_exception_handlers, problem

__all__ = [
    "COOKIE",
    "Problem",
    "Refused",
    "current_session",
    "current_user",
    "exception_handlers",
    "litestar_exception_handlers",
    "problem",
    "session_cookie",
    "session_token",
]
