"""The console alone: on uvicorn, behind a token that the address has at first and a cookie from then on."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from hubbub.hub import Hub
from hubbub.web.console_app.console import Console, with_headers
from hubbub.web.problems import Refused, answer
from hubbub.web.serving import run

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

TOKEN_BYTES: Final = 32


class TokenLogin:
    """Accepts a browser with the token, and gives it a cookie, whose value is another secret.

    The answer redirects the browser to the address without the token, so that it is not shown or stored.
    """

    def __init__(self, hub: Hub, port: int, *, allow_changes: bool) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._key = secrets.token_urlsafe(TOKEN_BYTES)
        self._cookie = f"hubbub-console-{port}"  # cookies of a host are shared by its ports
        self._console = Console(hub, authorize=self._has_cookie, allow_changes=allow_changes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["query_string"]:
            await self._log_in(scope["query_string"])(scope, receive, with_headers(send))
        else:
            await self._console(scope, receive, send)

    def _log_in(self, query: bytes) -> Response:
        token = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        if not _equal(token, self.token):
            return answer(
                Refused(403, "The token is wrong. `hubbub console` prints the address with the right one.")
            )
        cookie = f"{self._cookie}={self._key}; Path=/; HttpOnly; SameSite=Lax"
        return Response(status_code=303, headers={"Location": "/", "Set-Cookie": cookie})

    def _has_cookie(self, request: Request) -> bool:
        return _equal(request.cookies.get(self._cookie, ""), self._key)


def _equal(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(errors="surrogateescape"), secret.encode())


async def serve(
    hub: Hub, listening: socket.socket, *, allow_changes: bool, on_start: Callable[[str], None]
) -> None:
    """Serve the console until a signal ends the process. `on_start` gets the path to open, which has the token."""
    login = TokenLogin(hub, listening.getsockname()[1], allow_changes=allow_changes)
    # The access log would have the token.
    await run(login, listening, lambda: on_start(f"/?token={login.token}"), ws="none", access_log=False)
