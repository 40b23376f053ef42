from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import get_type_hints
from uuid import UUID

import msgspec
import pytest

from hubbub import (
    Credentials,
    Message,
    MessageSent,
    MessageType,
    NewMessage,
    Page,
    Role,
    RoomUser,
    Session,
    User,
    models,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ONE, OTHER = UUID(int=1), UUID(int=2)
MESSAGE = Message(ONE, OTHER, 1, None, "hello", MessageType.IMAGE, False, NOW, NOW, None)
STRUCTS = [
    kind
    for _, kind in inspect.getmembers(models, inspect.isclass)
    if issubclass(kind, msgspec.Struct) and kind.__module__ == models.__name__
]


@pytest.mark.parametrize("kind", STRUCTS)
def test_models_are_immutable(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
    assert kind.__doc__


def test_row_becomes_a_message_with_a_type() -> None:
    message = Message.of_row(ONE, OTHER, 1, ONE, "hello", "file", False, NOW, NOW, None, None, None)
    assert message.message_type is MessageType.FILE
    with pytest.raises(AttributeError):
        message.content = "changed"  # type: ignore[misc]


def test_row_becomes_a_membership_with_a_role() -> None:
    member = RoomUser.of_row(ONE, OTHER, NOW, "moderator", None, 0, None)
    assert member.role is Role.MODERATOR


def test_row_with_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match="video"):
        Message.of_row(ONE, OTHER, 1, ONE, "hello", "video", False, NOW, NOW, None, None, None)
    with pytest.raises(ValueError, match="owner"):
        RoomUser.of_row(ONE, OTHER, NOW, "owner", None, 0, None)


def test_message_is_equal_after_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(MESSAGE), type=Message) == MESSAGE
    assert b'"message_type":"image"' in msgspec.json.encode(MESSAGE)


def test_equal_messages_have_equal_hashes() -> None:
    again = msgspec.structs.replace(MESSAGE)
    assert again == MESSAGE
    assert len({again, MESSAGE}) == 1
    assert msgspec.structs.replace(MESSAGE, content="other") != MESSAGE


def test_models_with_json_can_be_in_a_set() -> None:
    message = msgspec.structs.replace(MESSAGE, metadata={"pinned": True})
    again = msgspec.json.decode(msgspec.json.encode(message), type=Message)
    assert {message, again} == {message}
    sent = MessageSent(OTHER, 1, message.cursor, NOW, message)
    assert {sent, msgspec.structs.replace(sent, message=again)} == {sent}
    draft, plain = NewMessage("hello", metadata={"pinned": True}), NewMessage("hello")
    assert {draft, plain, msgspec.structs.replace(draft)} == {draft, plain}
    session = Session("0" * 64, ONE, {"device": "phone"}, NOW, NOW, NOW)
    assert {session, msgspec.structs.replace(session)} == {session}


@pytest.mark.parametrize("kind", [kind for kind in STRUCTS if "items" not in kind.__struct_fields__])
def test_every_model_except_pages_can_be_in_a_set(kind: type[msgspec.Struct]) -> None:
    fields = get_type_hints(kind)
    json = [name for name, annotation in fields.items() if "Mapping" in str(annotation)]
    assert not json or kind.__hash__.__qualname__ == f"{kind.__name__}.__hash__", json


def test_password_hash_is_neither_in_a_user_nor_shown() -> None:
    assert not [field for field in get_type_hints(User) if "password" in field]
    credentials = Credentials(ONE, "$2b$12$secret")
    assert "$2b$12$secret" not in repr(credentials) + str(credentials) + f"{credentials}"
    assert credentials.password_hash == "$2b$12$secret"


def test_page_has_more_when_another_follows() -> None:
    assert Page([MESSAGE], "cursor").has_more
    assert not Page([MESSAGE], None).has_more
