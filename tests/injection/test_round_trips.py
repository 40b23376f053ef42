"""Values that are accepted are returned unchanged, with any content."""

from __future__ import annotations

import asyncio
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from hubbub import Hub, Invalid, NewMessage, Room, User
from hubbub.passwords import MIN_COST, Passwords
from injection.hostile import HOSTILE, or_refused, texts

driven = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = strategies.one_of(texts, strategies.integers(), strategies.booleans(), strategies.none())
documents = strategies.dictionaries(
    texts,
    strategies.recursive(scalars, lambda inner: strategies.lists(inner, max_size=3), max_leaves=6),
    max_size=4,
)


@driven
@given(content=texts)
async def test_message_content_is_returned_unchanged(hub: Hub, ada: User, room: Room, content: str) -> None:
    sent = None
    with or_refused("content"):
        sent = await hub.messages.send(room.id, ada.id, content)
    if sent is None:
        return
    assert sent.content == content
    assert await hub.messages.get(sent.id) == sent
    assert (await hub.messages.page(room.id, limit=1)).items == [sent]
    assert (await hub.messages.edit(sent.id, content, by=ada.id)).content == content


@driven
@given(contents=strategies.lists(texts, min_size=1, max_size=5))
async def test_contents_of_concurrent_messages_are_returned_unchanged(
    hub: Hub, ada: User, room: Room, contents: list[str]
) -> None:
    sends = [hub.messages.send(room.id, ada.id, content) for content in contents]
    for content, sent in zip(contents, await asyncio.gather(*sends, return_exceptions=True), strict=True):
        if isinstance(sent, BaseException):
            assert isinstance(sent, Invalid)
        else:
            assert sent.content == content
    try:
        many = await hub.messages.send_many(room.id, ada.id, [NewMessage(content) for content in contents])
    except Invalid:
        return
    assert [sent.content for sent in many] == contents


@driven
@given(metadata=documents)
async def test_message_metadata_is_returned_unchanged(
    hub: Hub, ada: User, room: Room, metadata: dict[str, object]
) -> None:
    sent = None
    with or_refused("metadata"):
        sent = await hub.messages.send(room.id, ada.id, "see below", metadata=metadata)
    if sent is None:
        return
    assert sent.metadata == metadata
    assert (await hub.messages.get(sent.id)).metadata == metadata


@driven
@given(data=documents)
async def test_session_data_is_returned_unchanged(hub: Hub, ada: User, data: dict[str, object]) -> None:
    token = None
    with or_refused("session_data", "data"):
        token = await hub.sessions.create_session(ada.id, data)
    if token is None:
        return
    session = await hub.sessions.get_session(token)
    assert session is not None
    assert (session.user_id, session.data) == (ada.id, data)


@driven
@given(name=texts, description=texts)
async def test_room_name_and_description_are_returned_unchanged(
    hub: Hub, ada: User, name: str, description: str
) -> None:
    room = None
    with or_refused("name", "description"):
        room = await hub.rooms.create(name, created_by=ada.id, description=description)
    if room is None:
        return
    assert (room.name, room.description) == (name, description)
    assert await hub.rooms.get(room.id) == room


@driven
@given(username=texts, url=texts)
async def test_username_and_avatar_are_returned_unchanged(hub: Hub, ada: User, username: str, url: str) -> None:
    changed = None
    with or_refused("username", "avatar_url"):
        changed = await hub.users.update_profile(ada.id, username=username, avatar_url=url)
    if changed is None:
        return
    assert (changed.username, changed.avatar_url) == (normalize("NFC", username), url)
    assert await hub.users.find_by_username(username) == changed
    assert await hub.users.get(ada.id) == changed


@pytest.mark.parametrize("text", ["%", "_", "a%", "ad_", "\\", "*", "A\u0301da"])
async def test_login_has_no_wildcard_characters(hub: Hub, ada: User, text: str) -> None:
    assert await hub.users.find_by_username(text) is None
    assert await hub.users.find_credentials(text) is None


@driven
@given(password=texts)
async def test_password_is_hashed_and_not_stored(hub: Hub, ada: User, password: str) -> None:
    passwords, hashed = Passwords(cost=MIN_COST), None
    with or_refused("password"):
        hashed = await passwords.hash(password)
    await passwords.close()
    if hashed is None:
        return
    await hub.users.change_password_hash(ada.id, hashed)
    credentials = await hub.users.find_credentials("ada")
    assert credentials is not None
    assert password not in hashed or len(password) < 8


@pytest.mark.parametrize("text", [one for one in HOSTILE if len(one) < 100], ids=ascii)
async def test_device_name_is_returned_unchanged(hub: Hub, ada: User, text: str) -> None:
    with or_refused("device"):
        async with hub.presence.online(ada.id, device=text):
            assert [device.name for device in await hub.presence.devices(ada.id)] == [text]
