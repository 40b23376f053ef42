"""A login at another provider by OpenID Connect, with a hubbub account for each of its users.

    pip install '.[embedded]' starlette uvicorn httpx        # in a clone of hubbub
    hubbub up                                                # or set DATABASE_URL and REDIS_URL
    OAUTH_ISSUER=https://accounts.example.org OAUTH_CLIENT_ID=... OAUTH_CLIENT_SECRET=... \\
        uvicorn --app-dir examples oauth:app

Register http://localhost:8000/callback at the provider, open http://localhost:8000/login in a browser, then /me.
"""

from __future__ import annotations

import hmac
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

import hubbub
from hubbub import Conflict, Hub, Invalid, User, web

LOGIN_COOKIE: Final = "__Host-login"
"""It ties the answer of the provider to the browser that asked, which thus accepts no login of another user."""

ISSUER: Final = os.environ["OAUTH_ISSUER"].rstrip("/")
CLIENT: Final = (os.environ["OAUTH_CLIENT_ID"], os.environ["OAUTH_CLIENT_SECRET"])


class Provider(msgspec.Struct):
    """The description that the provider publishes at `/.well-known/openid-configuration`."""

    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str


class Tokens(msgspec.Struct):
    access_token: str


class Claims(msgspec.Struct):
    """The provider's data of a user. Only `sub` always exists and never changes."""

    sub: str
    name: str | None = None
    preferred_username: str | None = None
    picture: str | None = None


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hubbub.open() as hub, httpx.AsyncClient(timeout=10) as http:
        app.state.hub, app.state.http = hub, http
        found = await http.get(f"{ISSUER}/.well-known/openid-configuration")
        app.state.provider = msgspec.json.decode(found.raise_for_status().content, type=Provider)
        yield


async def log_in(request: Request) -> Response:
    """Send the browser to the provider."""
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": CLIENT[0],
        "redirect_uri": str(request.url_for("callback")),
        "scope": "openid profile",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    answer = RedirectResponse(f"{request.app.state.provider.authorization_endpoint}?{urlencode(query)}", 303)
    answer.headers.append("Set-Cookie", login_cookie(f"{state}.{verifier}", max_age_seconds=600))
    return answer


async def callback(request: Request) -> Response:
    """The browser returns with a code, which only this program can exchange for the user."""
    state, _, verifier = request.cookies.get(LOGIN_COOKIE, "").partition(".")
    if not state or not hmac.compare_digest(request.query_params.get("state", "").encode(), state.encode()):
        raise HTTPException(403, "This login was not begun in this browser.")
    claims = await ask_provider(request, request.query_params.get("code", ""), verifier)
    user = await account(request.app.state.hub, claims)
    token = await request.app.state.hub.sessions.create_session(user.id)
    answer = RedirectResponse("/me", 303)
    answer.headers.append("Set-Cookie", web.session_cookie(token))
    answer.headers.append("Set-Cookie", login_cookie("", max_age_seconds=0))
    return answer


async def ask_provider(request: Request, code: str, verifier: str) -> Claims:
    http: httpx.AsyncClient = request.app.state.http
    provider: Provider = request.app.state.provider
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": str(request.url_for("callback")),
        "code_verifier": verifier,
    }
    try:
        answer = await http.post(provider.token_endpoint, data=form, auth=CLIENT)
        tokens = msgspec.json.decode(answer.raise_for_status().content, type=Tokens)
        bearer = {"Authorization": f"Bearer {tokens.access_token}"}
        answer = await http.get(provider.userinfo_endpoint, headers=bearer)
        return msgspec.json.decode(answer.raise_for_status().content, type=Claims)
    except httpx.HTTPStatusError as error:
        raise HTTPException(401, "The provider has refused the login.") from error
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        raise HTTPException(502, "The provider does not answer as it should.") from error


async def account(hub: Hub, claims: Claims) -> User:
    """The account of this user of the provider, created at the first login.

    The provider's email is not used, because an existing account with it may belong to another person.
    """
    external_id = f"{ISSUER}|{claims.sub}"
    wanted = claims.preferred_username or claims.name or "user"
    for username in (wanted, f"{wanted[:40]}-{secrets.token_hex(3)}", f"user-{secrets.token_hex(8)}"):
        try:
            return await hub.users.upsert(
                external_id=external_id, username=username, display_name=claims.name, avatar_url=claims.picture
            )
        except (Conflict, Invalid):  # the name is taken or not a valid username
            continue
    return await hub.users.upsert(external_id=external_id, username=f"user-{secrets.token_hex(8)}")


def login_cookie(value: str, *, max_age_seconds: int) -> str:
    return f"{LOGIN_COOKIE}={value}; Max-Age={max_age_seconds}; Path=/; Secure; HttpOnly; SameSite=Lax"


async def my_account(request: Request) -> Response:
    user = await web.current_user(request)
    return Response(msgspec.json.encode(user), media_type="application/json")


async def log_out(request: Request) -> Response:
    token = web.session_token(request)
    if token is not None:
        await request.app.state.hub.sessions.delete_session(token)
    return Response(status_code=204, headers={"Set-Cookie": web.session_cookie(None)})


app = Starlette(
    routes=[
        Route("/login", log_in),
        Route("/callback", callback),
        Route("/me", my_account),
        Route("/logout", log_out, methods=["POST"]),
    ],
    lifespan=lifespan,
    exception_handlers=web.exception_handlers,
)
