"""Positions and cursors, including forged ones."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import Invalid
from hubbub.positions import MARK_BYTES, NOT_SEEN, NOTHING, START, Position, event_mark, mark

SEQS = st.integers(0, 2**63 - 1)
MARKS = st.binary(min_size=MARK_BYTES, max_size=MARK_BYTES)
MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - bounds


@given(SEQS, MARKS, st.uuids())
def test_cursor_has_28_characters_and_is_decoded_to_its_position(seq: int, seen: bytes, room_id: UUID) -> None:
    position = Position(seq, seen)
    cursor = position.encode(room_id)
    assert len(cursor) == 28
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert Position.decode(room_id, cursor) == position


@given(SEQS, MARKS, st.uuids(), st.uuids())
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


@given(st.data(), SEQS, MARKS, st.uuids())
def test_cursor_with_changed_characters_is_refused_or_another_position(
    data: st.DataObject, seq: int, seen: bytes, room_id: UUID
) -> None:
    cursor = list(Position(seq, seen).encode(room_id))
    for _ in range(data.draw(st.integers(1, 8))):
        cursor[data.draw(st.integers(0, 27))] = data.draw(st.sampled_from("!=\n \0é\ud800-_+/Aa0"))
    position = decoded(room_id, "".join(cursor))
    assert position is None or 0 <= position.seq < 2**63


@given(st.integers(2**63, 2**64 - 1), st.uuids(), MARKS)
def test_seq_beyond_a_bigint_is_refused(seq: int, room_id: UUID, seen: bytes) -> None:
    assert decoded(room_id, Position(seq, seen).encode(room_id)) is None


@given(st.binary(min_size=21, max_size=21), st.uuids())
def test_random_bytes_are_refused(random: bytes, room_id: UUID) -> None:
    assert decoded(room_id, urlsafe_b64encode(random).decode()) is None


@given(st.uuids(), MOMENTS, st.uuids(), MOMENTS)
def test_different_entries_have_different_marks(one: UUID, at: datetime, other: UUID, then: datetime) -> None:
    assert (mark(one, at) == mark(other, then)) == ((one, at) == (other, then))
    assert len(mark(one, at)) == MARK_BYTES
    kinds = {event_mark(kind, one, other, at) for kind in ("joined", "left")}
    kinds |= {event_mark("left", None, other, at), event_mark("left", other, None, at), mark(one, at)}
    assert len(kinds) == 5


def test_mark_does_not_depend_on_the_time_zone() -> None:
    moment = datetime(2026, 5, 17, 12, tzinfo=UTC)
    elsewhere = moment.astimezone(tz=None)
    identity = UUID(int=7)
    assert mark(identity, moment) == mark(identity, elsewhere)
    assert mark(identity, moment) != mark(identity, moment + timedelta(microseconds=1))


def test_unseen_mark_matches_every_entry() -> None:
    position = Position(3, b"12345678")
    assert position.matches(Position(3, NOT_SEEN))
    assert position.matches(position)
    assert not position.matches(Position(3, b"87654321"))
    assert not position.matches(Position(4, NOT_SEEN))
    assert START.matches(Position(0, NOT_SEEN))


def test_mark_of_a_missing_entry_matches_only_itself() -> None:
    purged, room_id = Position(3, NOTHING), UUID(int=7)
    assert Position.decode(room_id, purged.encode(room_id)) == purged
    assert purged.matches(Position(3, NOT_SEEN))
    assert purged.matches(purged)
    assert not purged.matches(Position(3, b"12345678"))
    assert not Position(3, b"12345678").matches(purged)
