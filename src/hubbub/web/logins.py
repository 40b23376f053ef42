"""Logins by cookie or bearer token, and signed tokens.

`current_session` and `current_user` find the hub as `state.hub` of the application. `state.origins`, if it exists,
has the origins of the application's own pages on other hosts, such as `https://app.example.org`.

A browser sends a cookie with requests that another site has caused. So a cookie counts only in a request that
changes nothing, or whose `Origin` is the host that it goes to. A WebSocket can change things, so it needs one too.
A bearer token needs none, because only the application's own code can add it.

A signed token names a user for a short time, without a session: pages of other origins have no cookie. It is
`<user id, time of expiry>.<MAC>`, in base64. A token of a session has no dot, so the two differ.
"""

from __future__ import annotations

import re
import struct
import time
from asyncio import get_running_loop
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Collection
from hashlib import blake2b
from hmac import compare_digest
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import msgspec
from starlette.requests import HTTPConnection

from hubbub import inputs
from hubbub.acting_user import ActingUser
from hubbub.errors import Invalid, NotFound
from hubbub.hub import Hub
from hubbub.models import Session, User
from hubbub.web.problems import Refused

if TYPE_CHECKING:

    class Connection(Protocol):
        """A request or WebSocket of any of these frameworks."""

        @property
        def scope(self) -> Any: ...  # noqa: ANN401

else:
    Connection = HTTPConnection  # as which FastAPI passes either of them

COOKIE: Final = "__Host-session"
"""The name of the cookie. With this prefix a browser takes it only over TLS, from this host and for all paths."""

SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS", "TRACE"}

MAC_BYTES: Final = 32
MIN_SECRET: Final = 32
_CLAIMS: Final = struct.Struct(">16sd")


class Identity(msgspec.Struct, frozen=True):
    """The identity of a client: from a session, with its `token`, or from another source.

    It ends at `expires_at` on the loop's clock.
    """

    user_id: UUID
    token: str | None = None
    expires_at: float | None = None

    @property
    def expires_in_seconds(self) -> float | None:
        return None if self.expires_at is None else max(self.expires_at - get_running_loop().time(), 0)


def session_cookie(token: str | None, *, max_age_seconds: int | None = None) -> str:
    """The value of a `Set-Cookie` header: for the token of a session, or with None to clear the cookie.

    Scripts cannot read the cookie, and requests from other sites do not carry it, except links that are followed.
    Without `max_age_seconds` it ends with the browser. The session has a lifetime of its own.

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

    It does not check the session: see `current_session`.

    Raises: Refused (a cookie that another site may have sent).
    """
    connection = HTTPConnection(request.scope)
    if (token := bearer_of(connection)) is not None:
        return token
    token = cookie_of(connection)
    origins = _state(connection, "origins", ())
    if token and connection.scope.get("method") not in SAFE_METHODS and not is_from_own_page(connection, origins):
        raise Refused(403, "A cookie needs an Origin header that names this host.")
    return token or None


async def current_session(request: Connection) -> Session:
    """The session of the bearer token or of the cookie. `Depends` of FastAPI takes it, also for a WebSocket.

    In Starlette and Litestar, call it with the request or the WebSocket.

    Raises: Refused, Unavailable.
    """
    token = session_token(request)
    session = None if token is None else await hub_of(request).sessions.get_session(token)
    if session is None:
        raise not_logged_in()
    return session


async def current_user(request: Connection) -> User:
    """The user of `current_session`, from the cache.

    Raises: Refused, Unavailable.
    """
    session = await current_session(request)
    try:
        return await hub_of(request).cache.user(session.user_id)
    except NotFound:
        raise not_logged_in() from None  # the account was deleted a moment ago


async def acting_user(request: Connection) -> ActingUser:
    """`hub.as_user` for the user of `current_session`, whose operations check what this user may do.

    Raises: Refused, Unavailable.
    """
    session = await current_session(request)
    return hub_of(request).as_user(session.user_id)


def not_logged_in() -> Refused:
    """The refusal of a request without a valid session."""
    return Refused(401, "There is no session, or it has ended.", {"WWW-Authenticate": "Bearer"})


def bearer_of(connection: HTTPConnection) -> str | None:
    """The bearer token of the request, or None."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookie_of(connection: HTTPConnection) -> str:
    """The token in the cookie, or nothing."""
    # Starlette also strips spaces that are not ASCII. A browser takes a name that begins with such a space from a
    # neighbouring host, because to the browser it has no prefix. For the same reason two values count as none.
    pairs = [pair.strip(" ") for line in connection.headers.getlist("cookie") for pair in line.split(";")]
    values = [value for name, _, value in (pair.partition("=") for pair in pairs) if name == COOKIE]
    return values[0] if len(values) == 1 else ""


def is_from_own_page(connection: HTTPConnection, origins: Collection[str]) -> bool:
    """Whether the `Origin` is the host of the request, or one of these."""
    origin, host = connection.headers.get("origin"), connection.headers.get("host", "")
    if origin == f"https://{host}" or origin in origins:
        return True
    is_local = re.fullmatch(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?", host)
    return bool(is_local) and origin == f"http://{host}"  # where browsers accept such a cookie without TLS


def hub_of(request: Connection) -> Hub:
    """The hub in the state of the application."""
    hub = _state(HTTPConnection(request.scope), "hub", None)
    if not isinstance(hub, Hub):
        raise RuntimeError("there is no hub: set `app.state.hub = hub` when the application starts")  # noqa: TRY004
    return hub


def hub_from(given: Hub | Callable[[], Hub] | None, request: Connection) -> Hub:
    """The hub that an application was mounted with, or that of `hub_of`."""
    if given is None:
        return hub_of(request)
    return given if isinstance(given, Hub) else given()


async def value_of(found: Any) -> Any:  # noqa: ANN401 - what a callable of the application returns
    """The value that a function, or a coroutine function, of the application returned."""
    return await found if isawaitable(found) else found


def _state(connection: HTTPConnection, name: str, default: Any) -> Any:  # noqa: ANN401
    """The value in the state of the request, which has that of the lifespan, or of the application."""
    state = connection.scope.get("state") or {}
    return state[name] if name in state else getattr(connection.app.state, name, default)


class Tokens:
    """Signs and checks tokens with one secret, which all processes of the application share."""

    def __init__(self, secret: bytes) -> None:
        """Raises: Invalid (a secret of fewer than 32 bytes)."""
        if not isinstance(secret, bytes) or len(secret) < MIN_SECRET:
            raise Invalid("secret", f"must be at least {MIN_SECRET} random bytes")
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
