"""The site with live events: the views of Django, and the gateway of hubbub below /chat.

    pip install '.[embedded,web]' django uvicorn websockets  # in a clone of hubbub
    hubbub up                                                # or set DATABASE_URL and REDIS_URL
    export DJANGO_SECRET_KEY=... DJANGO_SETTINGS_MODULE=settings PYTHONPATH=examples/django
    python -m django migrate && python -m django createsuperuser
    uvicorn asgi:application

The gateway runs on the event loop of the server, and so has its own hub. The views run in threads.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any
from uuid import UUID

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

from django.core.asgi import get_asgi_application

site = get_asgi_application()  # before the models of Django can be imported

from chat import account_of
from django.conf import settings
from django.contrib.auth import aget_user
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

import hubbub
from hubbub import web


async def authenticate(scope: Any) -> UUID | None:
    """The account of the user who is logged in to Django, by the cookie of Django's session."""
    cookies = SimpleCookie(HTTPConnection(scope).headers.get("cookie", ""))
    if settings.SESSION_COOKIE_NAME not in cookies:
        return None
    request = HttpRequest()
    request.session = SessionStore(cookies[settings.SESSION_COOKIE_NAME].value)
    user = await aget_user(request)
    if not user.is_authenticated:
        return None
    account = await chat.state.hub.users.upsert(**account_of(user))
    return account.id


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hubbub.open() as app.state.hub:
        yield


gateway = web.Gateway(lambda: chat.state.hub, authenticate=authenticate)
chat = Starlette(routes=[Mount("/chat", gateway)], lifespan=lifespan)


async def application(scope: Any, receive: Any, send: Any) -> None:
    is_of_site = scope["type"] == "http" and not scope["path"].startswith("/chat/")
    await (site if is_of_site else chat)(scope, receive, send)
