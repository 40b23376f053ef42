"""Emails and external ids are in `User`, for the application and the account's owner, and nowhere else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import get_type_hints

import msgspec
import pytest

from hubbub import Hub, Role, acting_user, events, models
from hubbub.acting_user import ActingUser
from hubbub.models import Credentials, User, Value

PRIVATE = {"email", "external_id", "password_hash"}

# Calls that return a `User`, to the application or to the owner of the account.
OF_ACCOUNTS = {
    *("Hub.register", "Hub.authenticate", "Cache.user"),
    *("Users.create", "Users.create_anonymous", "Users.upsert", "Users.update_profile"),
    *("Users.get", "Users.get_many", "Users.find_by_email", "Users.find_by_username", "Users.find_by_external_id"),
    *("UserDirectory.me", "UserDirectory.update"),
}


def values() -> Iterator[type[Value]]:
    """All types of values that are sent to clients."""
    for module in (models, events):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Value) and kind.__module__ == module.__name__:
                yield kind


@pytest.mark.parametrize("kind", set(values()) - {User}, ids=lambda kind: kind.__name__)
def test_no_other_value_has_a_private_field_or_a_user(kind: type[Value]) -> None:
    assert not PRIVATE & set(kind.__struct_fields__)
    for hint in get_type_hints(kind).values():
        assert not re.search(r"\b(User|Credentials)\b", str(hint).replace("hubbub.models.", "")), hint


def test_only_calls_about_accounts_return_a_user() -> None:
    parts = [getattr(Hub, name).fget for name, _ in inspect.getmembers(Hub, lambda one: isinstance(one, property))]
    owners = {Hub, ActingUser, *(get_type_hints(part)["return"] for part in parts)}
    owners |= {
        kind for _, kind in inspect.getmembers(acting_user, inspect.isclass) if kind.__name__.startswith("User")
    }
    found = {
        f"{owner.__name__}.{name}"
        for owner in owners
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_") and re.search(r"\bUser\b", str(inspect.signature(method).return_annotation))
    }
    assert found == OF_ACCOUNTS


async def test_nothing_that_goes_to_a_client_has_an_email(hub: Hub) -> None:
    ada, bob = [
        await hub.users.upsert(external_id=f"idp|{name}", username=name, email=f"{name}@private.example")
        for name in ("ada", "bob")
    ]
    room = await hub.rooms.create("room", created_by=ada.id)
    me = hub.as_user(ada.id)
    written: list[object] = []
    async with me.follow(typing=True, presence=True, read_marks=True, profiles=True) as feed:
        await hub.room_users.add(room.id, bob.id)
        async with hub.presence.online(bob.id):
            await hub.typing.start(room.id, bob.id)
            sent = await hub.messages.send(room.id, bob.id, "hello")
            await hub.messages.edit(sent.id, "hello!", by=bob.id)
            await hub.receipts.mark_read(room.id, bob.id, up_to=sent.seq)
            await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR)
            await hub.rooms.update(room.id, metadata={"a": 1}, by=bob.id)
            await hub.users.update_profile(bob.id, display_name="Bob")
            await hub.users.update_profile(bob.id, email="bob2@private.example")
            last = await hub.messages.send(room.id, bob.id, "the end")
            async for event in feed:
                written.append(event)
                if isinstance(event, events.MessageSent) and event.message.id == last.id:
                    break
    direct = await me.rooms.direct(bob.id)
    written += [
        direct,
        await me.rooms.list(),
        await me.rooms.list_public(),
        await me.rooms.summary(room.id),
        await me.room_users.members(room.id),
        await me.messages.page(room.id),
        await me.messages.since(room.id, None),
        await me.receipts.readers(sent.id),
        await me.users.search("bo"),
        await me.users.get(bob.id),
        await hub.presence.devices(bob.id),
        await me.sessions.list(),
    ]
    texts = [msgspec.json.encode(value).decode() for value in written]
    texts += [(await me.messages.page_json(room.id)).decode(), (await me.rooms.list_json()).decode()]
    assert sum(str(bob.id) in text for text in texts) > 10
    assert not [text for text in texts if "private.example" in text or "idp|" in text]


def test_credentials_are_no_value_that_travels() -> None:
    assert not issubclass(Credentials, Value)
