"""Errors as answers: problems by RFC 9457, and the handlers that make them in Starlette, FastAPI and Litestar."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from hubbub.errors import (
    Conflict,
    Forbidden,
    HubbubError,
    Invalid,
    NotAMember,
    NotFound,
    RateLimited,
    Unavailable,
)
from hubbub.models import Value

if TYPE_CHECKING:
    import litestar
    from starlette.requests import HTTPConnection

logger = logging.getLogger("hubbub.web")

RETRY_AFTER_SECONDS: Final = 1
"""For a server that cannot be reached: about the pause between two attempts of hubbub's own."""

# The status and the title of each error, by its class or the nearest one above it.
_ANSWERS: Final[dict[type[HubbubError], tuple[int, str]]] = {
    Invalid: (422, "Invalid value"),
    NotFound: (404, "Not found"),
    NotAMember: (403, "Not a member"),
    Forbidden: (403, "Forbidden"),
    Conflict: (409, "Already in use"),
    RateLimited: (429, "Too many attempts"),
    Unavailable: (503, "Temporarily unavailable"),
    HubbubError: (500, "Server error"),
}


class Refused(HTTPException):
    """A request that is refused before a command runs, with its status: 401 without a valid session, for example.

    `detail` has the reason.
    """


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
        return SERVER_ERROR
    return _problem(status, title, str(error))


def _problem(status: int, title: str, detail: str, **details: Any) -> Problem:  # noqa: ANN401
    return Problem("urn:hubbub:" + title.lower().replace(" ", "-"), title, status, detail, **details)


SERVER_ERROR: Final = _problem(500, "Server error", "The log of the server has the cause.")


def answer(error: HubbubError | Refused | Problem) -> Response:
    """The answer to a request that failed with this error or problem."""
    found, headers = _with_headers(error)
    return Response(msgspec.json.encode(found), found.status, headers)


def _with_headers(error: HubbubError | Refused | Problem) -> tuple[Problem, dict[str, str]]:
    """The problem, and the headers of its answer."""
    found = error if isinstance(error, Problem) else problem(error)
    own = error.headers if isinstance(error, Refused) else None
    return found, {**(own or {}), **found.headers}


async def _answer(request: HTTPConnection, error: HubbubError | Refused) -> Response | None:
    if isinstance(request, WebSocket):
        can_answer = "websocket.http.response" in request.scope.get("extensions", {})
        if request.application_state is not WebSocketState.CONNECTING or not can_answer:
            found = problem(error)
            retry_later = 1013 if found.retry_after_seconds else 1011
            await request.close(retry_later if found.status >= 500 else 1008, found.title)
            return None
    return answer(error)


def _litestar_answer(_: litestar.Request[Any, Any, Any], error: HubbubError | Refused) -> litestar.Response[bytes]:
    import litestar  # noqa: PLC0415 - Litestar calls this, so it is loaded

    found, headers = _with_headers(error)
    media_type = headers.pop("Content-Type")
    return litestar.Response(
        msgspec.json.encode(found), status_code=found.status, headers=headers, media_type=media_type
    )


exception_handlers: Final[dict[Any, Any]] = {HubbubError: _answer, Refused: _answer}
"""For `FastAPI(exception_handlers=...)` and `Starlette(exception_handlers=...)`: errors become problems.

A WebSocket that was accepted is closed: with 1008 for an error of the client, 1011 of the server, and 1013 if the
client should try again later."""

litestar_exception_handlers: Final[dict[Any, Any]] = {HubbubError: _litestar_answer, Refused: _litestar_answer}
"""For `Litestar(exception_handlers=...)`."""
