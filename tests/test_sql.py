"""The SQL that several repositories share. `tests/sql` prepares every statement that is made with it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from hubbub import Credentials, NotFound, User
from hubbub.events import MemberJoined, MemberLeft, MessageEdited, RoomChanged
from hubbub.models import Room
from hubbub.sql import by_id, columns, entry, next_entry, not_deleted, quickly_readable, readable, require
from sql.package import statements


def words(sql: str) -> str:
    return " ".join(sql.split())


def test_columns_are_the_fields_in_their_order_with_the_table_if_it_is_given() -> None:
    assert words(columns(Credentials)) == "user_id, password_hash"
    assert words(columns(Credentials, "c")) == "c.user_id, c.password_hash"


def test_computed_field_is_selected_by_its_expression() -> None:
    selected = words(columns(Room, "rooms", {"is_direct": "rooms.direct_key IS NOT NULL"}))
    assert "rooms.is_private, rooms.direct_key IS NOT NULL AS is_direct, rooms.created_by" in selected


def test_rows_by_id_have_a_statement_for_one_and_one_for_many() -> None:
    lookup = by_id(User, "users")
    found = f"FROM users WHERE {not_deleted('users.id')} AND users.id"
    assert (lookup.name, lookup.sql) == ("users.get", f"SELECT {readable(User)} {found} = $1")
    assert lookup.many.sql == f"SELECT {quickly_readable(User)} {found} = ANY((SELECT $1::uuid[])::uuid[])"
    id = uuid4()
    assert lookup.key_of_args(id) == id.int


def test_missing_row_is_not_found() -> None:
    assert require("row", NotFound, "user", 1) == "row"
    with pytest.raises(NotFound) as caught:
        require(None, NotFound, "user", 1)
    assert (caught.value.kind, caught.value.key) == ("user", 1)


def test_entry_has_the_kind_of_its_event_and_its_payload_from_columns_or_expressions() -> None:
    assert "'joined', NULL::uuid, $2::uuid, jsonb_build_object('role', $3::text) FROM head" in words(
        entry(MemberJoined, "head", user_id="$2", payload={"role": "$3::text"})
    )
    assert "jsonb_build_object('name', name, 'description', description, " in words(entry(RoomChanged, "room"))
    assert "'edited', $1::uuid, NULL::uuid, jsonb_build_object() FROM head" in words(
        entry(MessageEdited, "head", message_id="$1")
    )


def test_next_entry_takes_one_seq_of_the_room_of_each_row() -> None:
    parts = words(next_entry(MemberLeft, "gone", room_id="$1", change="created_by = NULL", user_id="$2"))
    assert parts.startswith(
        "head AS ( UPDATE rooms SET last_seq = last_seq + 1, created_by = NULL FROM gone"
        " WHERE rooms.id = $1 RETURNING rooms.id, rooms.last_seq ), entry AS ( INSERT INTO room_events"
    )


def test_every_entry_of_a_repository_is_appended_by_one_form() -> None:
    form = words(entry(MemberLeft, "head")).partition("'left'")[0].partition("SELECT")[0]
    appending = {
        name: words(one.sql) for name, one in statements().items() if "INSERT INTO room_events" in one.sql
    }
    assert len(appending) > 7
    assert [name for name, sql in appending.items() if form not in sql] == []
