"""Positions and cursors, including forged ones."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import Invalid
from hubbub.positions import (
    ANY_ENTRY,
    HASH_BYTES,
    MAX_PAGES,
    NO_ENTRY,
    START,
    Position,
    event_hash,
    fingerprints,
    message_hash,
    number_of_pages,
    page_of,
)

SEQS = st.integers(0, 2**63 - 1)
HASHES = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds


@given(SEQS, HASHES, st.uuids())
def test_cursor_has_28_characters_and_is_decoded_to_its_position(seq: int, seen: bytes, room_id: UUID) -> None:
    position = Position(seq, seen)
    cursor = position.encode(room_id)
    assert len(cursor) == 28
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert Position.decode(room_id, cursor) == position


@given(SEQS, HASHES, st.uuids(), st.uuids())
def test_cursor_of_another_room_is_refused(seq: int, seen: bytes, room_id: UUID, other_id: UUID) -> None:
    cursor = Position(seq, seen).encode(room_id)
    if room_id != other_id:
        with pytest.raises(Invalid, match="another room"):
            Position.decode(other_id, cursor)


def decoded(room_id: UUID, cursor: object) -> Position | None:
    """The position, or None if the cursor is refused. Any other outcome is an error."""
    try:
        return Position.decode(room_id, cursor)
    except Invalid:
        return None


@given(st.uuids(), st.one_of(st.text(), st.text(min_size=28, max_size=28), st.integers(), st.binary(), st.none()))
def test_value_that_is_not_a_cursor_is_refused(room_id: UUID, cursor: object) -> None:
    assert decoded(room_id, cursor) is None


@given(st.data(), SEQS, HASHES, st.uuids())
def test_cursor_with_changed_characters_is_refused_or_another_position(
    data: st.DataObject, seq: int, seen: bytes, room_id: UUID
) -> None:
    cursor = list(Position(seq, seen).encode(room_id))
    for _ in range(data.draw(st.integers(1, 8))):
        cursor[data.draw(st.integers(0, 27))] = data.draw(st.sampled_from("!=\n \0é\ud800-_+/Aa0"))
    position = decoded(room_id, "".join(cursor))
    assert position is None or 0 <= position.seq < 2**63


@given(st.integers(2**63, 2**64 - 1), st.uuids(), HASHES)
def test_seq_beyond_a_bigint_is_refused(seq: int, room_id: UUID, seen: bytes) -> None:
    assert decoded(room_id, Position(seq, seen).encode(room_id)) is None


@given(st.binary(min_size=21, max_size=21), st.uuids())
def test_random_bytes_are_refused(random: bytes, room_id: UUID) -> None:
    assert decoded(room_id, urlsafe_b64encode(random).decode()) is None


@given(st.uuids(), MOMENTS, st.uuids(), MOMENTS)
def test_different_entries_have_different_hashes(one: UUID, at: datetime, other: UUID, then: datetime) -> None:
    assert (message_hash(one, at) == message_hash(other, then)) == ((one, at) == (other, then))
    assert len(message_hash(one, at)) == HASH_BYTES
    kinds = {event_hash(kind, one, other, at) for kind in ("joined", "left")}
    kinds |= {event_hash("left", None, other, at), event_hash("left", other, None, at), message_hash(one, at)}
    assert len(kinds) == 5


def test_hash_does_not_depend_on_the_time_zone() -> None:
    moment = datetime(2026, 5, 17, 12, tzinfo=UTC)
    elsewhere = moment.astimezone(tz=None)
    identity = UUID(int=7)
    assert message_hash(identity, moment) == message_hash(identity, elsewhere)
    assert message_hash(identity, moment) != message_hash(identity, moment + timedelta(microseconds=1))


def test_any_entry_matches_every_entry() -> None:
    position = Position(3, b"12345678")
    assert position.matches(Position(3, ANY_ENTRY))
    assert position.matches(position)
    assert not position.matches(Position(3, b"87654321"))
    assert not position.matches(Position(4, ANY_ENTRY))
    assert START.matches(Position(0, ANY_ENTRY))


def test_hash_of_a_missing_entry_matches_only_itself() -> None:
    purged, room_id = Position(3, NO_ENTRY), UUID(int=7)
    assert Position.decode(room_id, purged.encode(room_id)) == purged
    assert purged.matches(Position(3, ANY_ENTRY))
    assert purged.matches(purged)
    assert not purged.matches(Position(3, b"12345678"))
    assert not Position(3, b"12345678").matches(purged)


# Few rooms with few positions each, so that the maps often agree in some pages and differ in others.
CURSORS = st.builds(
    lambda seqs: {UUID(int=room): Position(seq, NO_ENTRY).encode(UUID(int=room)) for room, seq in seqs.items()},
    st.dictionaries(st.integers(0, 40), st.integers(1, 3)),
)


@given(CURSORS, CURSORS, st.integers(0, 5))
def test_pages_that_differ_and_those_that_do_not_make_the_map_of_the_client(
    client: dict[UUID, str], server: dict[UUID, str], power: int
) -> None:
    pages = 1 << power
    given, own = fingerprints(client, pages), fingerprints(server, pages)
    asked = {number for number in range(pages) if given[number] != own[number]}
    agreed = {id: cursor for id, cursor in server.items() if page_of(id, pages) not in asked}
    sent = {id: cursor for id, cursor in client.items() if page_of(id, pages) in asked}
    assert agreed | sent == client
    for number in asked:  # no page is asked for that is the same
        assert {id: one for id, one in client.items() if page_of(id, pages) == number} != {
            id: one for id, one in server.items() if page_of(id, pages) == number
        }


def test_fingerprints_of_ten_thousand_rooms_have_twelve_kilobytes() -> None:
    assert [number_of_pages(rooms) for rooms in (0, 1, 10, 11, 129, 2_000, 10_000, 10**6)] == [
        1, 1, 1, 2, 16, 256, MAX_PAGES, MAX_PAGES,
    ]  # fmt: skip
    assert sum(map(len, fingerprints({}, MAX_PAGES))) == 12 * 1_024


def test_fingerprints_are_those_of_the_client_in_javascript() -> None:
    """tests/javascript/client.test.js has the same digest."""
    cursors = {UUID(f"01970000-0000-7000-8000-{n:012x}"): f"cursor-{n}" for n in range(200)}
    pages = "".join(fingerprints(cursors, number_of_pages(200)))
    assert sha256(pages.encode()).hexdigest()[:16] == "c59362c8fe97399f"
