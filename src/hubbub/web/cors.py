"""Requests by pages of other origins that the gateway names. A browser asks the server about them (CORS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "7200",  # seconds: as long as Chromium keeps it at most
}


def preflight(scope: Scope) -> Response | None:
    """The answer to a browser that asks whether a page may send a request. None for any other request."""
    if scope["method"] != "OPTIONS" or "access-control-request-method" not in Headers(scope=scope):
        return None
    return Response(status_code=204, headers=PREFLIGHT)


def readable_by(origin: str, send: Send) -> Send:
    """Adds the headers with which pages of the origin may read an answer. A cookie counts, as on a WebSocket."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = "Retry-After"
            headers.add_vary_header("Origin")
        await send(message)

    return send_with_headers
