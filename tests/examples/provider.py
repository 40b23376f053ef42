"""A provider of logins for the example of OpenID Connect. It logs in the user that the test chooses."""

from __future__ import annotations

import asyncio
from base64 import b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from secrets import token_urlsafe
from urllib.parse import parse_qs, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from waiting import until

CLIENT_ID = "chat"
CLIENT_SECRET = "of the chat at the provider"


class Provider:
    """A provider whose user is `claims`. A code works once, for its own client and verifier."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.claims: dict[str, object] = {}
        self._codes: dict[str, tuple[str, str]] = {}
        self._tokens: dict[str, dict[str, object]] = {}
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._describe),
                Route("/authorize", self._authorize),
                Route("/token", self._exchange, methods=["POST"]),
                Route("/userinfo", self._userinfo),
            ]
        )

    async def _describe(self, _: Request) -> Response:
        endpoints = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
        return JSONResponse({f"{name}_endpoint": f"{self.issuer}/{path}" for name, path in endpoints.items()})

    async def _authorize(self, request: Request) -> Response:
        query = request.query_params
        assert (query["client_id"], query["response_type"]) == (CLIENT_ID, "code")
        assert query["code_challenge_method"] == "S256"
        code = token_urlsafe()
        self._codes[code] = (query["code_challenge"], query["redirect_uri"])
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}")

    async def _exchange(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        client = b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
        challenge = urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        expected = self._codes.pop(form.get("code", ""), None)
        if client != f"{CLIENT_ID}:{CLIENT_SECRET}" or expected != (challenge, form["redirect_uri"]):
            return JSONResponse({"error": "invalid_grant"}, 400)
        token = token_urlsafe()
        self._tokens[token] = self.claims
        return JSONResponse({"access_token": token, "token_type": "Bearer"})

    async def _userinfo(self, request: Request) -> Response:
        return JSONResponse(self._tokens[request.headers["authorization"].removeprefix("Bearer ")])


@asynccontextmanager
async def serving_provider(port: int) -> AsyncIterator[Provider]:
    provider = Provider(port)
    server = uvicorn.Server(uvicorn.Config(provider.app, port=port, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server._serve())
    try:
        await until(lambda: server.started)
        yield provider
    finally:
        server.should_exit = True
        await task
