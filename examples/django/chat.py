"""The chat of a Django site: a hub per process, an account per user of Django, and errors as answers."""

from __future__ import annotations

import atexit
import functools
import threading
from typing import Any, TypedDict

import msgspec
from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest, HttpResponse

import hubbub.sync
from hubbub import HubbubError, web

opening = threading.Lock()


@functools.cache
def opened() -> hubbub.sync.Hub:
    hub = hubbub.sync.Hub().start()
    atexit.register(hub.close)
    return hub


def hub() -> hubbub.sync.Hub:
    """The hub of this process, shared by its threads. The first use opens it, after the fork of a worker."""
    with opening:
        return opened()


class Account(TypedDict):
    external_id: int
    username: str
    display_name: str | None


def account_of(user: AbstractUser) -> Account:
    """The arguments of `users.upsert`. A username of Django may have an @, and more characters than in a chat."""
    return {
        "external_id": user.pk,
        "username": f"django-{user.pk}",
        "display_name": user.get_full_name()[:100] or user.username[:100],
    }


def acting_user(request: HttpRequest) -> Any:
    """The operations of the user who is logged in to Django. Each checks the permissions of this user."""
    return hub().as_user(hub().users.upsert(**account_of(request.user)).id)


class Problems:
    """A middleware that turns errors of hubbub into responses by RFC 9457."""

    def __init__(self, get_response: Any) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, HubbubError):
            return None
        problem = web.problem(error)
        return HttpResponse(msgspec.json.encode(problem), status=problem.status, headers=problem.headers)
