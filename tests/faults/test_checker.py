"""The checker is only worth something if it finds what it looks for: each violation, made up, is found."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from faults import checker
from faults.checker import Entry, Stored
from faults.history import (
    Acknowledged,
    Began,
    Delivered,
    Failed,
    Follows,
    GaveUp,
    History,
    Looked,
    Record,
    Resynced,
    Tail,
    read,
)
from hubbub.positions import Position

ROOM, OTHER_ROOM = uuid4(), uuid4()
ONE, TWO, THREE = uuid4(), uuid4(), uuid4()

JOINED = Entry(1, "MemberJoined", None)
LOG = [JOINED, Entry(2, "MessageSent", ONE, "one"), Entry(3, "MessageSent", TWO, "two")]


def stored(*log: Entry, head: int | None = None) -> Stored:
    return Stored({ROOM: len(log) if head is None else head}, {ROOM: list(log)})


def send(at: int, call: int, message_id: UUID, content: str) -> Began:
    return Began(at, call, "send", ROOM, message_id, content)


def edit(at: int, call: int, message_id: UUID, content: str) -> Began:
    return Began(at, call, "edit", ROOM, message_id, content)


def cursor(seq: int, room_id: UUID = ROOM) -> str:
    return Position(seq, b"anything").encode(room_id)


def delivered(seq: int, kind: str, message_id: UUID | None) -> Delivered:
    return Delivered(0, ROOM, seq, kind, message_id, cursor(seq))


SENDING: list[Record] = [
    send(10, 1, ONE, "one"),
    Failed(11, 1, "no answer"),
    Acknowledged(12, 1, 2),
    send(20, 2, TWO, "two"),
    Acknowledged(22, 2, 3),
]
FOLLOWING: list[Record] = [
    Follows(0, {ROOM: None}),
    delivered(1, "MemberJoined", None),
    delivered(2, "MessageSent", ONE),
    delivered(3, "MessageSent", TWO),
]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert checker.violations([SENDING], [FOLLOWING], stored(*LOG)) == []


def test_nothing_is_found_in_a_send_that_was_begun_and_has_no_answer() -> None:
    unanswered = [*SENDING, send(30, 3, THREE, "three")]
    assert checker.violations([unanswered], [FOLLOWING], stored(*LOG)) == []
    with_it = stored(*LOG, Entry(4, "MessageSent", THREE, "three"))
    assert checker.violations([unanswered], [], with_it) == []


@pytest.mark.parametrize(
    "log",
    [
        [JOINED, LOG[1]],
        [JOINED, LOG[1], Entry(3, "MessageSent", THREE, "two")],
        [JOINED, Entry(2, "MessageSent", TWO, "two"), Entry(3, "MessageSent", ONE, "one")],
        [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "something else")],
        [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "")],
    ],
    ids=["gone", "under another id", "at other places", "with other content", "deleted by nobody"],
)
def test_an_acknowledged_message_is_missed(log: list[Entry]) -> None:
    assert list(checker.lost([SENDING], stored(*log)))


def test_an_acknowledged_message_in_another_room_is_missed() -> None:
    log = [JOINED, LOG[1], Entry(3, "RoomChanged", None)]
    elsewhere = Stored({ROOM: 3, OTHER_ROOM: 3}, {ROOM: log, OTHER_ROOM: [Entry(3, "MessageSent", TWO, "two")]})
    assert list(checker.lost([SENDING], elsewhere))


def test_two_answers_that_name_two_places_are_found() -> None:
    retry: list[Record] = [send(30, 1, TWO, "two"), Acknowledged(31, 1, 4)]
    assert list(checker.lost([SENDING, retry], stored(*LOG)))


def test_the_seq_that_a_retry_was_given_is_the_one_stored() -> None:
    retry: list[Record] = [send(30, 1, TWO, "two"), Acknowledged(31, 1, 3)]
    assert checker.violations([SENDING, retry], [], stored(*LOG)) == []


def test_a_lost_edit_is_missed() -> None:
    edited = [*SENDING, edit(30, 3, TWO, "two, edited"), Acknowledged(31, 3, 3)]
    event = Entry(4, "MessageEdited", TWO)
    after_it = [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "two, edited")]
    assert list(checker.lost([edited], stored(*after_it, event))) == []
    assert list(checker.lost([edited], stored(*LOG, event)))  # the old content
    assert list(checker.lost([edited], stored(*after_it)))  # no entry in the log


def test_an_edit_without_an_answer_may_have_been_made_or_not() -> None:
    tried = [*SENDING, edit(30, 3, TWO, "two, edited")]
    made = [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "two, edited"), Entry(4, "MessageEdited", TWO)]
    assert checker.violations([tried], [], stored(*LOG)) == []
    assert checker.violations([tried], [], stored(*made)) == []


def test_a_send_that_was_left_because_it_was_not_made_and_is_there_is_found() -> None:
    left: list[Record] = [*SENDING, send(30, 3, THREE, "three"), Failed(31, 3, "no connection"), GaveUp(32, 3)]
    assert checker.violations([left], [], stored(*LOG)) == []
    made = stored(*LOG, Entry(4, "MessageSent", THREE, "three"))
    assert checker.violations([left], [], made) == [*checker.made_after_all([left], made)] != []


def test_a_change_that_was_left_because_it_was_not_made_and_is_in_the_log_is_found() -> None:
    left: list[Record] = [*SENDING, edit(30, 3, TWO, "two, edited"), GaveUp(31, 3)]
    assert checker.violations([left], [], stored(*LOG)) == []
    edited = [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "two, edited"), Entry(4, "MessageEdited", TWO)]
    assert list(checker.made_after_all([left], stored(*edited)))
    assert list(checker.lost([left], stored(*edited)))
    deleted = [*left, Began(40, 4, "delete", ROOM, TWO, ""), Acknowledged(41, 4, 3)]
    tombstone = [JOINED, LOG[1], Entry(3, "MessageSent", TWO, "")]
    assert checker.violations([deleted], [], stored(*tombstone, Entry(4, "MessageDeleted", TWO))) == []
    both = [Entry(4, "MessageEdited", TWO), Entry(5, "MessageDeleted", TWO)]
    assert list(checker.made_after_all([deleted], stored(*tombstone, *both)))


def test_a_send_that_was_repeated_and_the_repetition_left_is_where_it_was() -> None:
    again: list[Record] = [*SENDING, send(30, 3, TWO, "two"), GaveUp(31, 3), Looked(32, 3, "two")]
    assert checker.violations([again], [], stored(*LOG)) == []


@pytest.mark.parametrize(
    ("end", "right", "wrong"),
    [
        ([Acknowledged(31, 3, 3)], "two, edited", "two"),
        ([Failed(31, 3, "no answer"), Acknowledged(32, 3, 3)], "two, edited", "two"),
        ([Acknowledged(31, 3, 3)], "two, edited", None),
        ([GaveUp(31, 3)], "two", "two, edited"),
    ],
    ids=["made", "made at the second try", "made and gone", "left"],
)
def test_a_message_that_is_not_as_its_author_was_told_is_found(
    end: list[Record], right: str, wrong: str | None
) -> None:
    changed: list[Record] = [*SENDING, edit(30, 3, TWO, "two, edited"), *end]
    assert list(checker.otherwise_than_told([[*changed, Looked(40, 3, right)]])) == []
    assert list(checker.otherwise_than_told([[*changed, Looked(40, 3, wrong)]]))


def test_a_message_that_was_not_sent_and_is_there_is_found() -> None:
    left: list[Record] = [send(10, 1, ONE, "one"), GaveUp(11, 1)]
    assert list(checker.otherwise_than_told([[*left, Looked(12, 1, None)]])) == []
    assert list(checker.otherwise_than_told([[*left, Looked(12, 1, "one")]]))


@pytest.mark.parametrize(
    "unsound",
    [
        stored(JOINED, LOG[2]),
        stored(JOINED, LOG[1], Entry(2, "MessageSent", TWO, "two")),
        stored(*LOG, head=4),
        stored(*LOG, head=2),
        Stored({ROOM: 1}, {}),
        stored(*LOG[1:]),
    ],
    ids=["a hole", "a seq twice", "a head beyond", "a head behind", "no log", "no beginning"],
)
def test_a_log_that_is_not_1_to_its_head_is_found(unsound: Stored) -> None:
    assert list(checker.holes(unsound))


def test_a_message_that_stands_there_twice_is_found() -> None:
    assert list(checker.duplicates(stored(*LOG, Entry(4, "MessageSent", TWO, "another"))))
    assert list(checker.duplicates(stored(*LOG, Entry(4, "MessageSent", THREE, "two"))))
    tombstones = [Entry(4, "MessageSent", THREE, ""), Entry(5, "MessageSent", uuid4(), "")]
    assert list(checker.duplicates(stored(*LOG, *tombstones))) == []


def test_a_message_that_overtook_one_acknowledged_before_is_found() -> None:
    swapped = stored(JOINED, Entry(2, "MessageSent", TWO, "two"), Entry(3, "MessageSent", ONE, "one"))
    assert list(checker.out_of_order([SENDING], swapped))
    other_process: list[Record] = [send(20, 1, TWO, "two"), Acknowledged(22, 1, 2)]
    assert list(checker.out_of_order([SENDING[:3], other_process], swapped))
    assert list(checker.out_of_order([SENDING[:3], other_process[:1]], swapped))  # also without an answer


def test_messages_whose_calls_overlap_may_have_any_order() -> None:
    swapped = stored(JOINED, Entry(2, "MessageSent", TWO, "two"), Entry(3, "MessageSent", ONE, "one"))
    overlapping: list[Record] = [
        send(10, 1, ONE, "one"),
        send(12, 2, TWO, "two"),
        Acknowledged(12, 1, 3),
        Acknowledged(13, 2, 2),
    ]
    assert checker.violations([overlapping], [], swapped) == []


@pytest.mark.parametrize(
    "order",
    [[1, 3], [1, 2, 2, 3], [1, 3, 2], [2, 3], [1, 2], [1, 2, 3, 1, 2, 3]],
    ids=["a gap", "a repeat", "out of order", "late", "not to the head", "all again"],
)
def test_a_follower_that_was_not_given_the_log_is_found(order: list[int]) -> None:
    events = dict(enumerate(FOLLOWING[1:], 1))
    assert list(checker.wrong_following([FOLLOWING[0], *(events[seq] for seq in order)], stored(*LOG)))


@pytest.mark.parametrize(
    "wrong",
    [delivered(3, "MessageSent", THREE), delivered(3, "MessageEdited", TWO), delivered(4, "MessageSent", TWO)],
)
def test_a_follower_that_was_told_something_else_is_found(wrong: Delivered) -> None:
    assert list(checker.wrong_following([*FOLLOWING[:3], wrong], stored(*LOG)))


def test_a_follower_goes_on_from_where_it_was() -> None:
    again = [*FOLLOWING[:3], Follows(1, {ROOM: cursor(2)}), FOLLOWING[3]]
    assert list(checker.wrong_following(again, stored(*LOG))) == []
    from_elsewhere = [*FOLLOWING[:3], Follows(1, {ROOM: cursor(1)}), FOLLOWING[3]]
    assert list(checker.wrong_following(from_elsewhere, stored(*LOG)))


def test_a_follower_that_has_been_told_to_load_anew_goes_on_after_that_cursor() -> None:
    resynced = [*FOLLOWING[:2], Resynced(1, ROOM, "rewound", cursor(2)), FOLLOWING[3]]
    assert list(checker.wrong_following(resynced, stored(*LOG))) == []
    too_far = [*FOLLOWING[:2], Resynced(1, ROOM, "rewound", cursor(1)), FOLLOWING[3]]
    assert list(checker.wrong_following(too_far, stored(*LOG)))


def test_a_follower_that_was_stopped_need_not_have_come_to_the_head() -> None:
    assert list(checker.wrong_following(FOLLOWING[:3], stored(*LOG), to_the_head=False)) == []


def test_a_torn_last_line_is_all_that_a_kill_costs(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with History(path) as history:
        history.write(SENDING[0])
        history.write(SENDING[1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert read(path) == SENDING[:1]
    with History(path) as history:
        history.write(SENDING[2])
    assert read(path) == [SENDING[0], SENDING[2]]


def test_a_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "history"
    tail = Tail(path)
    assert tail.new() == []
    with History(path) as history:
        history.write(SENDING[0])
        assert tail.new() == [SENDING[0]]
        assert tail.new() == []
        history.write(SENDING[1])
        history.write(SENDING[2])
        assert tail.new() == SENDING[1:3]
