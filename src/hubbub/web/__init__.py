"""A gateway for clients (docs/protocol.md), and a console for operators (docs/operations.md).

Also errors as answers, and logins, for web frameworks (docs/web.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

try:
    import starlette.exceptions  # noqa: F401 - a message that names the extra
except ImportError as error:
    raise ImportError("hubbub.web needs Starlette: pip install 'hubbub[web]'") from error

from hubbub.errors import Invalid
from hubbub.renamed import renamed_argument
from hubbub.web.commands import Call, Send
from hubbub.web.frames import Limits
from hubbub.web.gateway import Gateway
from hubbub.web.logins import COOKIE, acting_user, current_session, current_user, session_cookie, session_token
from hubbub.web.problems import Problem, Refused, exception_handlers, litestar_exception_handlers, problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from hubbub.hub import Hub

__all__ = [
    "COOKIE",
    "Call",
    "Gateway",
    "Limits",
    "Problem",
    "Refused",
    "Send",
    "acting_user",
    "console",
    "current_session",
    "current_user",
    "exception_handlers",
    "litestar_exception_handlers",
    "problem",
    "session_cookie",
    "session_token",
]


def console(
    hub: Hub | Callable[[], Hub] | None = None,
    *,
    authorize: Callable[[Request], Awaitable[bool] | bool] | None = None,
    allow_changes: bool = False,
    may: Callable[[Request], Awaitable[bool] | bool] | None = None,
) -> ASGIApp:
    """An ASGI application with live figures for operators: `app.mount("/console", console(authorize=is_admin))`.

    `hub` is a hub, or a callable that returns it. Without one it is `state.hub` of the application.
    `authorize(request)` returns whether a request comes from an operator, and may be a coroutine function. It is
    called first for every request, also for files. The page shows messages, names and devices of all users. It
    changes nothing, unless `allow_changes` lets it revoke sessions. `may` is the former name of `authorize`.

    The figures need more rights than an application has: see docs/operations.md.

    Raises: Invalid (no `authorize`).
    """
    from hubbub.web.console_app import Console  # noqa: PLC0415 - for applications that mount it only

    authorize = renamed_argument(authorize, may, "may=", "authorize=")
    if authorize is None:
        raise Invalid(
            "authorize", "is required: it decides which users are operators. Without it all would have access"
        )
    return Console(hub, authorize=authorize, allow_changes=allow_changes)
