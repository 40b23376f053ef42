"""Every public operation of a hub, and a valid argument for each of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from hubbub import ActingUser, Hub, Message, NewMessage, Room, User

PARTS = (
    *("users", "rooms", "room_users", "messages", "receipts"),
    *("sessions", "realtime", "presence", "typing", "cache", "limits", "changes"),
)

ACTING_PARTS = tuple(
    name
    for name, part in inspect.getmembers(ActingUser, lambda part: isinstance(part, property))
    if name != "user_id"
)

ADA = UUID("0193f2c8-7f4a-7c3e-9d7b-5f6a1c2e3d4f")

NOT_DRIVEN = {
    "start": "takes nothing",
    "close": "takes nothing",
    "transaction": "takes nothing; it yields the repositories",
    "changes.end": "takes nothing",
    "on": "takes a connection of the application's, and its tests refuse others",
}

NOT_PARTS = {
    "settings": "values",
    "history": "reads a file, and has hostile files among its own tests",
}


class Operation(NamedTuple):
    """A public method. `name` is the part after `hub.`."""

    name: str
    of: Callable[[Hub], Callable[..., Any]]
    parameters: tuple[str, ...]


@dataclass
class World:
    """A chat with two people, a room and a message, and a valid argument for each parameter."""

    hub: Hub
    ada: User
    bob: User
    room: Room
    message: Message
    token: str
    good: dict[str, object] = field(init=False)

    def __post_init__(self) -> None:
        self.good = {
            "user_id": self.ada.id,
            "partner_id": self.bob.id,
            "other_user_id": self.bob.id,
            "as_user": self.ada.id,
            "created_by": self.ada.id,
            "by": self.ada.id,
            "user_ids": [self.ada.id],
            "changes": {self.ada.id: True},
            "is_online": True,
            "is_typing": True,
            "room_id": self.room.id,
            "room_ids": [self.room.id],
            "is_private": False,
            "force": False,
            "keeps_receipts": True,
            "message_id": self.message.id,
            "message_ids": [self.message.id],
            "drafts": [NewMessage("hi")],
            "email": "grace@example.org",
            "username": "grace",
            "external_id": "google-oauth2|1",
            "display_name": "Grace Hopper",
            "kind": "person",
            "prefix": "gra",
            "login": "ada",
            "password": "correct horse",
            "password_hash": "not a hash",
            "instead_of": "not a hash",
            "address": "192.0.2.1",
            "avatar_url": "/a.png",
            "name": "news",
            "description": "a room",
            "content": "hello",
            "role": "admin",
            "message_type": "text",
            "metadata": {},
            "reply_to": None,
            "id": None,
            "token": self.token,
            "keep_token": self.token,
            "except_token": self.token,
            "session_id": "0" * 64,
            "session_data": {},
            "data": {},
            "channel": "news",
            "message": "hello",
            "callback": print,
            "on_gap": print,
            "device": "phone",
            "key": "ada",
            "capacity": 5,
            "refill_per_second": 1.0,
            "cost": 1,
            "fail_open": False,
            "consumer": "push",
            "lease_seconds": 1.0,
            "limit": 10,
            "buffer": 10,
            "cap": 10,
            "unread_cap": 10,
            "up_to": 1,
            "deadline_seconds": 1.0,
            "from_seq": 1,
            "cursor": None,
            "before": None,
            "after": None,
            "around": None,
            "rooms": None,
            "typing": False,
            "presence": False,
            "read_marks": False,
            "profiles": False,
            "complete": False,
        }


# Callbacks. A text is not a hostile value for them.
NOT_TEXT = {"callback", "on_gap"}


def operations(hub: Hub) -> Iterator[Operation]:
    """Every public method of the hub and of its parts, except `NOT_DRIVEN`."""
    for part in (None, *PARTS):
        owner = hub if part is None else getattr(hub, part)
        for name, _ in inspect.getmembers(type(owner), callable):
            full = name if part is None else f"{part}.{name}"
            if not name.startswith("_") and full not in NOT_DRIVEN:
                parameters = tuple(inspect.signature(getattr(owner, name)).parameters)
                yield Operation(full, _finder(part, name), parameters)


def acting_operations(hub: Hub) -> Iterator[Operation]:
    """Every public method with arguments of `hub.as_user` and of its parts."""
    for part in (None, *ACTING_PARTS):
        owner = hub.as_user(ADA) if part is None else getattr(hub.as_user(ADA), part)
        for name, _ in inspect.getmembers(type(owner), callable):
            if name.startswith("_"):
                continue
            full = f"as_user.{name}" if part is None else f"as_user.{part}.{name}"
            parameters = tuple(inspect.signature(getattr(owner, name)).parameters)
            if parameters:
                yield Operation(full, _acting_finder(part, name), parameters)


def _acting_finder(part: str | None, name: str) -> Callable[[Hub], Callable[..., Any]]:
    def find(hub: Hub) -> Callable[..., Any]:
        me = hub.as_user(ADA)
        found: Callable[..., Any] = getattr(me if part is None else getattr(me, part), name)
        return found

    return find


def _finder(part: str | None, name: str) -> Callable[[Hub], Callable[..., Any]]:
    return lambda hub: getattr(hub if part is None else getattr(hub, part), name)


async def use(result: object) -> object:
    """Await, iterate or enter the result of an operation until it has done its work."""
    if isinstance(result, Awaitable):
        result = await result
    if inspect.isasyncgen(result):
        watching: object = await anext(result)
        await result.aclose()
        return watching
    if isinstance(result, AbstractAsyncContextManager):
        async with result:
            return None
    return result
