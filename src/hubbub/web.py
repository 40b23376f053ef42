"""Errors as answers, and logins by cookie or token, for Starlette, FastAPI and Litestar (docs/web.md).

`current_session` and `current_user` find the hub as `state.hub` of the application. `state.origins`, if it exists,
has the origins of the application's own pages on other hosts, such as `https://app.example.org`.

A browser sends a cookie with requests that another site has caused. So a cookie counts only in a request that
changes nothing, or whose `Origin` is the host that it goes to. A WebSocket can change things, so it needs one too.
A bearer token needs none, because only the application's own code can add it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from hubbub.errors import Conflict, HubbubError, Invalid, NotAMember, NotFound, RateLimited, Unavailable
from hubbub.hub import Hub
from hubbub.models import Session, User, Value

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.websockets import WebSocket, WebSocketState
except ImportError as error:
    raise ImportError("hubbub.web needs Starlette: pip install 'hubbub[web]'") from error

if TYPE_CHECKING:
    import litestar

    class Connection(Protocol):
        """A request or WebSocket of any of these frameworks."""

        @property
        def scope(self) -> Any: ...  # noqa: ANN401

else:
    Connection = HTTPConnection  # as which FastAPI passes either of them

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

logger = logging.getLogger("hubbub.web")

COOKIE: Final = "__Host-session"
"""The name of the cookie. With this prefix a browser takes it only over TLS, from this host and for all paths."""

SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS", "TRACE"}

RETRY_AFTER_SECONDS: Final = 1
"""For a server that cannot be reached: about the pause between two attempts of hubbub's own."""

# The status and the title of each error, by its class or the nearest one above it.
_ANSWERS: Final[dict[type[HubbubError], tuple[int, str]]] = {
    Invalid: (422, "Invalid value"),
    NotFound: (404, "Not found"),
    NotAMember: (403, "Not a member"),
    Conflict: (409, "Already in use"),
    RateLimited: (429, "Too many attempts"),
    Unavailable: (503, "Temporarily unavailable"),
    HubbubError: (500, "Server error"),
}


class Refused(HTTPException):
    """The request has no valid session (401), or a cookie that another site may have sent (403)."""


class Problem(Value, frozen=True, omit_defaults=True):
    """An error for a client, by RFC 9457. `type` identifies the kind of error.

    `field` is the argument that an `Invalid` names. `outcome_unknown` is that of `Unavailable`.
    """

    type: str
    title: str
    status: int
    detail: str
    field: str | None = None
    outcome_unknown: bool = False
    retry_after_seconds: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, except those about its length."""
        retry = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return {"Content-Type": "application/problem+json", **retry}


def problem(error: HubbubError | Refused) -> Problem:
    """The error as a client may see it, without names of servers. The log has the cause of a server error."""
    if isinstance(error, Refused):
        return _problem(
            error.status_code, "Not logged in" if error.status_code == 401 else "Refused", error.detail
        )
    status, title = next(_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS)
    match error:
        case Unavailable(outcome_unknown=unknown):
            detail = "A server does not answer." + (" Whether the change was made is unknown." if unknown else "")
            retry = RETRY_AFTER_SECONDS if error.retryable else None
            return _problem(status, title, detail, outcome_unknown=unknown, retry_after_seconds=retry)
        case RateLimited(retry_after_seconds=seconds):
            return _problem(status, title, str(error), retry_after_seconds=max(1, math.ceil(seconds)))
        case Invalid():
            return _problem(status, title, error.reason, field=error.field)
    if status == 500:
        logger.error("a request failed: %s", error, exc_info=error)
        return _problem(status, title, "The log of the server has the cause.")
    return _problem(status, title, str(error))


def _problem(status: int, title: str, detail: str, **details: Any) -> Problem:  # noqa: ANN401
    return Problem("urn:hubbub:" + title.lower().replace(" ", "-"), title, status, detail, **details)


async def _answer(request: HTTPConnection, error: HubbubError | Refused) -> Response | None:
    told = problem(error)
    if isinstance(request, WebSocket):
        can_answer = "websocket.http.response" in request.scope.get("extensions", {})
        if request.application_state is not WebSocketState.CONNECTING or not can_answer:
            retry_later = 1013 if told.retry_after_seconds else 1011
            await request.close(retry_later if told.status >= 500 else 1008, told.title)
            return None
    return Response(msgspec.json.encode(told), told.status, {**_extra_headers(error), **told.headers})


def _litestar_answer(_: litestar.Request[Any, Any, Any], error: HubbubError | Refused) -> litestar.Response[bytes]:
    import litestar  # noqa: PLC0415 - Litestar calls this, so it is loaded

    told = problem(error)
    headers = {**_extra_headers(error), **told.headers}
    media_type = headers.pop("Content-Type")
    return litestar.Response(
        msgspec.json.encode(told), status_code=told.status, headers=headers, media_type=media_type
    )


def _extra_headers(error: HubbubError | Refused) -> Mapping[str, str]:
    return error.headers or {} if isinstance(error, Refused) else {}


exception_handlers: Final[dict[Any, Any]] = {HubbubError: _answer, Refused: _answer}
"""For `FastAPI(exception_handlers=...)` and `Starlette(exception_handlers=...)`: errors become problems.

A WebSocket that was accepted is closed: with 1008 for an error of the client, 1011 of the server, and 1013 if the
client should try again later."""

litestar_exception_handlers: Final[dict[Any, Any]] = {HubbubError: _litestar_answer, Refused: _litestar_answer}
"""For `Litestar(exception_handlers=...)`."""


def session_cookie(token: str | None, *, max_age_seconds: int | None = None) -> str:
    """The value of a `Set-Cookie` header: for the token of a session, or with None to clear the cookie.

    Scripts cannot read the cookie, and requests from other sites do not carry it, except links that are followed.
    Without `max_age_seconds` it ends with the browser. The session ends by itself, whatever the cookie says.

    Raises: Invalid (the token is not one of a session).
    """
    if token is None:
        token, max_age_seconds = "", 0
    elif not re.fullmatch(r"[A-Za-z0-9_-]+", token):
        raise Invalid("token", "must be the token of a session")
    age = "" if max_age_seconds is None else f"; Max-Age={max_age_seconds:d}"
    return f"{COOKIE}={token}{age}; Path=/; Secure; HttpOnly; SameSite=Lax"


def session_token(request: Connection) -> str | None:
    """The bearer token or the cookie of the request, for `hub.follow(token=)` and to rotate or delete the session.

    Whether there is such a session is a question for `current_session`.

    Raises: Refused (a cookie that another site may have sent).
    """
    connection = HTTPConnection(request.scope)
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    token = _cookie(connection)
    if token and connection.scope.get("method") not in SAFE_METHODS and not _is_from_own_page(connection):
        raise Refused(403, "A cookie needs an Origin header that names this host.")
    return token or None


async def current_session(request: Connection) -> Session:
    """The session of the bearer token or of the cookie. `Depends` of FastAPI takes it, also for a WebSocket.

    In Starlette and Litestar, call it with the request or the WebSocket.

    Raises: Refused, Unavailable.
    """
    token = session_token(request)
    session = None if token is None else await _hub(request).sessions.get_session(token)
    if session is None:
        raise _not_logged_in()
    return session


async def current_user(request: Connection) -> User:
    """The user of `current_session`, from the cache.

    Raises: Refused, Unavailable.
    """
    session = await current_session(request)
    try:
        return await _hub(request).cache.user(session.user_id)
    except NotFound:
        raise _not_logged_in() from None  # the account was deleted a moment ago


def _not_logged_in() -> Refused:
    return Refused(401, "There is no session, or it has ended.", {"WWW-Authenticate": "Bearer"})


def _cookie(connection: HTTPConnection) -> str:
    # Starlette also strips spaces that are not ASCII. A browser takes a name that begins with such a space from a
    # neighbouring host, because to the browser it has no prefix. For the same reason two values count as none.
    pairs = [pair.strip(" ") for line in connection.headers.getlist("cookie") for pair in line.split(";")]
    values = [value for name, _, value in (pair.partition("=") for pair in pairs) if name == COOKIE]
    return values[0] if len(values) == 1 else ""


def _is_from_own_page(connection: HTTPConnection) -> bool:
    origin, host = connection.headers.get("origin"), connection.headers.get("host", "")
    if origin == f"https://{host}" or origin in _state(connection, "origins", ()):
        return True
    is_local = re.fullmatch(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?", host)
    return bool(is_local) and origin == f"http://{host}"  # where browsers accept such a cookie without TLS


def _hub(request: Connection) -> Hub:
    hub = _state(HTTPConnection(request.scope), "hub", None)
    if not isinstance(hub, Hub):
        raise RuntimeError("there is no hub: set `app.state.hub = hub` when the application starts")  # noqa: TRY004
    return hub


def _state(connection: HTTPConnection, name: str, default: Any) -> Any:  # noqa: ANN401
    """The value in the state of the request, which has that of the lifespan, or of the application."""
    state = connection.scope.get("state") or {}
    return state[name] if name in state else getattr(connection.app.state, name, default)
