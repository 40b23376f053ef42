from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import events
from hubbub.errors import Invalid
from hubbub.history.lines import (
    EVENT_LINES,
    FIRST_TIME,
    LAST_TIME,
    MAX_LINE_BYTES,
    PAYLOAD_FIELDS,
    JoinLine,
    MessageLine,
    derive_user_id,
    message_id_of,
    parse_line,
)

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"


def line(**changes: object) -> bytes:
    event = {"kind": "message", "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z", "content": "hello"}
    return json.dumps({name: value for name, value in {**event, **changes}.items() if value is not None}).encode()


def room(**changes: object) -> bytes:
    return line(**{"kind": "room", "user": None, "content": None, "id": ID, **changes})


def user(**changes: object) -> bytes:
    return line(**{"kind": "user", "room": None, "content": None, "id": ID, "email": "ada@example.org", **changes})


def test_plain_form_is_parsed_without_ids() -> None:
    said = parse_line(line())
    assert isinstance(said, MessageLine)
    assert (said.room, said.user, said.content, said.id) == ("#chat", "ada", "hello", None)
    assert isinstance(parse_line(line(kind="join", content=None)), JoinLine)


LOCAL_TIMES = st.one_of(
    st.datetimes(),
    st.datetimes(max_value=FIRST_TIME.replace(tzinfo=None, day=3)),
    st.datetimes(min_value=LAST_TIME.replace(tzinfo=None, day=29)),
)


@given(local=LOCAL_TIMES, offset_minutes=st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_time_of_a_line_is_its_moment_in_utc_within_what_can_be_stored_or_is_refused(
    local: datetime, offset_minutes: int
) -> None:
    offset = timedelta(minutes=offset_minutes)
    raw = line(at=local.replace(tzinfo=timezone(offset)).isoformat())
    try:
        moment = (local - offset).replace(tzinfo=UTC)
    except OverflowError:
        with pytest.raises(Invalid, match="at: is outside"):
            parse_line(raw)
    else:
        said = parse_line(raw)
        assert isinstance(said, MessageLine)
        assert said.at == min(max(moment, FIRST_TIME), LAST_TIME)


# Metadata are decoded after the rest of a line.
BAD_METADATA = [
    (b'"\xff"', "metadata: is not JSON in UTF-8, or has a number"),
    (b"1e999", "metadata: is not JSON in UTF-8, or has a number"),
    (b"1" * 5_000, "metadata: is not JSON in UTF-8, or has a number"),
    (b'"\\ud800"', "not JSON"),
    (b"-", "not JSON"),
    (b"[" * 40 + b"]" * 40, "metadata: must be at most 32 levels"),
]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
        (b"[]", "object"),
        (line(user="\xff").replace(b"\\u00ff", b"\xff"), "not UTF-8"),
        (line(kind="topic"), "'topic'"),
        (line(kind=None), "kind"),
        (line(room=None), "room: is required"),
        (line(user=7), "user"),
        (line(user=None), "user: is required"),
        (line(at=None), "at"),
        (line(at="yesterday"), "at"),
        (line(at="2004-11-15T12:18:00"), "timezone"),
        (line(at="0001-01-01T00:00:00+05:00"), "at: is outside"),
        (line(at="9999-12-31T23:59:59-05:00"), "at: is outside"),
        (line(content=None), "content: must not be blank"),
        (line(content=" "), "content: must not be blank"),
        (line(content="a\0b"), "content: must not contain a NUL"),
        (line(content="\ud800"), "not JSON"),
        (line(content="x" * 65_537), "content: must have at most"),
        (line(content="", metadata=None), "content: must not be blank"),
        (line(room="r" * 101), "room: must have at most"),
        (line(room="a\0b"), "room: must not contain a NUL"),
        (line(user="  "), "user: must not be blank"),
        (b" " * (MAX_LINE_BYTES + 1), "longer than"),
        (line(id="1"), "id"),
        (line(seq=0), "seq"),
        (line(seq=2**63), "seq"),
        (line(message_type="video"), "video"),
        (line(id=ID, reply_to=ID), "reply_to: must be another"),
        (line(metadata=[]), "metadata: must be a mapping"),
        (line(metadata={"a": "\0"}), "metadata: must not contain a NUL"),
        (line(metadata={"a": "x" * 8_192}), "metadata: must have at most"),
        *((line(metadata={}).replace(b"{}", b'{"a": %b}' % value), reason) for value, reason in BAD_METADATA),
        (user(metadata={}).replace(b"{}", b'{"a": 1e999}'), "metadata: is not JSON in UTF-8, or has a number"),
        (room(metadata={}).replace(b"{}", b'{"a": "\xff"}'), "metadata: is not JSON in UTF-8, or has a number"),
        (line(deleted_at="2004-11-15T12:18:00Z"), "content: must be empty"),
        (line(kind="edit"), "message_id"),
        (line(kind="role"), "role"),
        (line(kind="role", role="owner"), "owner"),
        (line(kind="change", name=" ", description="", is_private=True), "name: must not be blank"),
        (line(kind="change", name="a", description="x" * 4_001, is_private=True), "description"),
        (line(kind="member"), "member: needs seq"),
        (
            line(kind="member", room_id=ID, user_id=ID, seq=3, last_read_seq=4),
            "member: has a joined_seq or last_read_seq",
        ),
        (user(email="ada"), "email: must be an email"),
        (user(email="@ada"), "email: must be an email"),
        (user(avatar_url="javascript:alert(1)"), "avatar_url"),
        (user(display_name=" "), "display_name: must not be blank"),
        (user(metadata=[]), "metadata: must be a mapping"),
        (user(user_kind="robot"), "robot"),
        (user(external_id="x" * 256), "external_id: must have at most"),
        (room(metadata={"a": "x" * 8_192}), "metadata: must have at most"),
        (line(kind="member_change", metadata=[]), "metadata"),
        (line(kind="member_change", metadata={"a": "\0"}), "metadata: must not contain a NUL"),
        (line(kind="change", name="a", description="", is_private=True, metadata={"a": "\0"}), "metadata"),
        (user(id=None), "id"),
        (room(room=" "), "room: must not be blank"),
        (room(direct=[ID, ID], is_private=True), "direct: must be two"),
        (room(direct=[ID, OTHER]), "direct: must be two"),
    ],
)
def test_unusable_line_is_refused_with_the_reason(bad: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        parse_line(bad)


def test_every_kind_of_event_has_a_line_with_the_same_payload() -> None:
    assert set(EVENT_LINES) == set(events.KINDS) - {MessageLine.event.kind}
    for kind, form in EVENT_LINES.items():
        fields = events.KINDS[kind].__struct_fields__
        stored = [field for field in fields if field in events.Payload.__struct_fields__]
        assert [field.name for field in PAYLOAD_FIELDS[form]] == stored
        assert ("message_id" in form.__struct_fields__) == ("message" in fields)


NIL = "00000000-0000-0000-0000-000000000000"
ID_FIELDS = {
    "message": ["id", "room_id", "user_id", "reply_to"],
    "join": ["room_id", "user_id"],
    "edit": ["message_id"],
    "member": ["user_id", "last_read_message_id"],
    "user": ["id"],
    "room": ["id", "created_by"],
}


@pytest.mark.parametrize("written", [NIL, NIL.replace("-", ""), NIL.replace("0", "\\u0030")])
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in ID_FIELDS for field in ID_FIELDS[kind]])
def test_nil_uuid_is_refused_in_every_id_of_a_line(kind: str, field: str, written: str) -> None:
    ids = {"id": ID, "room_id": ID, "user_id": ID, "message_id": ID, "seq": 3, "email": "ada@example.org"}
    raw = line(**{**ids, "kind": kind, "content": None if kind == "room" else "hello", field: NIL})
    with pytest.raises(Invalid, match=f"{field}: must not be the nil UUID"):
        parse_line(raw.replace(NIL.encode(), written.encode()))


def test_nil_uuid_is_refused_in_the_members_of_a_direct_room_and_accepted_in_content() -> None:
    with pytest.raises(Invalid, match="direct: must not be the nil UUID"):
        parse_line(room(is_private=True, direct=[ID, NIL]))
    said = parse_line(line(content=NIL, user=NIL, id=ID))
    assert isinstance(said, MessageLine)
    assert said.content == NIL


def test_message_with_a_seq_is_parsed_without_an_author() -> None:
    assert parse_line(line(user=None, seq=4)).at.year == 2004


def test_long_nickname_is_not_kept() -> None:
    parsed = parse_line(line(user="long" * 5_000))
    assert isinstance(parsed, MessageLine)
    assert parsed.user is not None
    message_id_of(parsed, 0)
    derive_user_id(parsed.user)
    other = msgspec.structs.replace(parsed, user="y" * len(parsed.user))
    assert sys.getrefcount(parsed.user) == sys.getrefcount(other.user)
