from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbub import Invalid
from hubbub.repository import MAX_CURSOR_LENGTH, Cursor

ONE, OTHER = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MEMBERS = Cursor("members", tuple[datetime, UUID])
SEQS = Cursor("seqs", int)


def forged(value: object) -> str:
    return urlsafe_b64encode(msgspec.json.encode(value)).decode()


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_cursor_is_decoded_to_its_key(when: datetime, member: UUID) -> None:
    assert MEMBERS.decode(ONE, MEMBERS.encode(ONE, (when, member))) == (when, member)


def test_cursor_without_a_scope_is_decoded() -> None:
    assert SEQS.decode(None, SEQS.encode(None, 7)) == 7


def test_longest_room_name_fits_in_a_cursor() -> None:
    rooms = Cursor("rooms.public", tuple[str, UUID])
    for character in ("x", '"', "\N{GRINNING FACE}", "\u2028"):
        key = (character * 50, OTHER)
        assert rooms.decode(None, rooms.encode(None, key)) == key


def test_cursor_is_safe_in_a_url() -> None:
    cursor = MEMBERS.encode(ONE, (NOW, OTHER))
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "cursor",
    [
        SEQS.encode(OTHER, 7),
        SEQS.encode(None, 7),
        Cursor("others", int).encode(ONE, 7),
        MEMBERS.encode(ONE, (NOW, OTHER)),
    ],
    ids=["another room", "no room", "another list", "a list with other keys"],
)
def test_cursor_of_another_list_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        SEQS.decode(ONE, cursor)
    assert caught.value.field == "after"


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "=",
        "nonsense",
        "not base64 at all!",
        "\0",
        "\ud800",
        "é",
        "x" * MAX_CURSOR_LENGTH,
        "x" * (MAX_CURSOR_LENGTH + 1),
        None,
        7,
        b"bytes",
        ["list"],
        forged(None),
        forged([]),
        forged(["seqs"]),
        forged(["seqs", str(ONE)]),
        forged(["seqs", str(ONE), "7"]),
        forged(["seqs", str(ONE), 7.5]),
        forged(["seqs", "no uuid", 7]),
        forged(["seqs", str(ONE), 7, 8]),
        forged({"seqs": 1}),
        urlsafe_b64encode(b'["seqs", ').decode(),
        urlsafe_b64encode(b"\xff\xfe").decode(),
        urlsafe_b64encode(b"[" * 200).decode(),
    ],
)
def test_forged_cursor_is_refused(cursor: object) -> None:
    with pytest.raises(Invalid) as caught:
        SEQS.decode(ONE, cursor)  # type: ignore[arg-type]
    assert caught.value.field == "after"
    assert caught.value.__cause__ is None


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        SEQS.decode(ONE, text)


@given(st.integers(min_value=0, max_value=2**63 - 1), st.data())
def test_cursor_with_a_changed_character_is_refused_or_a_key(seq: int, data: st.DataObject) -> None:
    cursor = SEQS.encode(ONE, seq)
    index = data.draw(st.integers(0, len(cursor) - 1))
    changed = cursor[:index] + data.draw(st.sampled_from("AZaz09-_")) + cursor[index + 1 :]
    with suppress(Invalid):
        assert isinstance(SEQS.decode(ONE, changed), int)


def test_page_ends_at_its_limit_with_a_cursor_of_its_last_item() -> None:
    assert SEQS.page(ONE, [1, 2], 2, key=int).items == [1, 2]
    assert SEQS.page(ONE, [1, 2], 2, key=int).next is None
    assert SEQS.page(ONE, [], 2, key=int).next is None
    page = SEQS.page(ONE, [1, 2, 3], 2, key=int)
    assert page.items == [1, 2]
    assert SEQS.decode(ONE, page.next or "") == 2


def test_cursor_is_readable() -> None:
    """A cursor has no secret, and access to a list does not depend on it."""
    cursor = SEQS.encode(ONE, 7)
    assert msgspec.json.decode(urlsafe_b64decode(cursor + "==")) == ["seqs", str(ONE), 7]
