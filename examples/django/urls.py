"""The views of the site. They are synchronous, and use the blocking hub."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec
from chat import acting_user
from django.contrib.auth import authenticate, login
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_http_methods

JSON: Final = "application/json"


class Login(msgspec.Struct):
    username: str
    password: str


class Draft(msgspec.Struct):
    id: UUID
    """An id from the client, so that it can repeat the request without sending twice."""
    content: str


@ensure_csrf_cookie
@require_http_methods(["GET", "POST"])
def log_in(request: HttpRequest) -> HttpResponse:
    """A GET sets the token against forged requests as a cookie. Send it in the header `X-CSRFToken`."""
    if request.method == "POST":
        given = msgspec.json.decode(request.body, type=Login)
        user = authenticate(request, username=given.username, password=given.password)
        if user is None:
            return HttpResponse(status=401)
        login(request, user)
    return HttpResponse(status=204)


@require_http_methods(["GET", "POST"])
def messages(request: HttpRequest, room_id: UUID) -> HttpResponse:
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    me = acting_user(request)
    if request.method == "GET":
        return HttpResponse(me.messages.page_json(room_id), content_type=JSON)
    try:
        draft = msgspec.json.decode(request.body, type=Draft)
    except msgspec.MsgspecError:
        return HttpResponse(status=400)
    sent = me.messages.send(room_id, draft.content, id=draft.id)
    return HttpResponse(msgspec.json.encode(sent), status=201, content_type=JSON)


urlpatterns = [
    path("login", log_in),
    path("rooms/<uuid:room_id>/messages", messages),
]
