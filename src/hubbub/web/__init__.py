"""A gateway for clients (docs/protocol.md). Errors as answers, and logins, for web frameworks (docs/web.md)."""

try:
    import starlette.exceptions  # noqa: F401 - a message that names the extra
except ImportError as error:
    raise ImportError("hubbub.web needs Starlette: pip install 'hubbub[web]'") from error

from hubbub.web.commands import Call, Send
from hubbub.web.frames import Limits
from hubbub.web.gateway import Gateway
from hubbub.web.logins import COOKIE, acting_user, current_session, current_user, session_cookie, session_token
from hubbub.web.problems import Problem, Refused, exception_handlers, litestar_exception_handlers, problem

__all__ = [
    "COOKIE",
    "Call",
    "Gateway",
    "Limits",
    "Problem",
    "Refused",
    "Send",
    "acting_user",
    "current_session",
    "current_user",
    "exception_handlers",
    "litestar_exception_handlers",
    "problem",
    "session_cookie",
    "session_token",
]
