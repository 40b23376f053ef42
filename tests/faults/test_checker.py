"""The checker finds each kind of violation in histories that are made up for it.

`tests/test_log_checks.py` has the violations of logs and of followers.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from faults import checker
from faults.checker import AcknowledgedMessage, Logs, Stored, lost_messages, repeated_messages
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
from hubbub.testing import LogEntry

ROOM, OTHER_ROOM = uuid4(), uuid4()
ONE, TWO, THREE = uuid4(), uuid4(), uuid4()

JOINED = LogEntry(1, "joined")
LOG = [JOINED, LogEntry(2, "sent", ONE), LogEntry(3, "sent", TWO)]
CONTENTS = {ONE: "one", TWO: "two"}
ANSWERS = [AcknowledgedMessage(ONE, ROOM, 2), AcknowledgedMessage(TWO, ROOM, 3)]


def stored(*log: LogEntry, head: int | None = None, contents: dict[UUID, str] | None = None) -> Stored:
    """A database with one room. Messages have their usual content, except those in `contents`."""
    ids = [entry.message_id for entry in log if entry.kind == "sent" and entry.message_id is not None]
    usual = {message_id: CONTENTS.get(message_id, "three") for message_id in ids}
    return Stored({ROOM: len(log) if head is None else head}, {ROOM: list(log)}, usual | (contents or {}))


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
    delivered(1, "joined", None),
    delivered(2, "sent", ONE),
    delivered(3, "sent", TWO),
]


def test_sound_histories_yield_no_violation() -> None:
    assert checker.violations([SENDING], [FOLLOWING], stored(*LOG)) == []


def test_send_without_answer_may_be_stored_or_not() -> None:
    unanswered = [*SENDING, send(30, 3, THREE, "three")]
    assert checker.violations([unanswered], [FOLLOWING], stored(*LOG)) == []
    assert checker.violations([unanswered], [], stored(*LOG, LogEntry(4, "sent", THREE))) == []


@pytest.mark.parametrize(
    "database",
    [
        stored(JOINED, LOG[1]),
        stored(JOINED, LogEntry(2, "sent", TWO), LogEntry(3, "sent", ONE)),
        stored(*LOG, contents={TWO: "something else"}),
        stored(*LOG, contents={TWO: ""}),
    ],
    ids=["gone", "at another seq", "with other content", "deleted without a call"],
)
def test_loss_of_acknowledged_message_is_found(database: Stored) -> None:
    assert list(checker.lost([SENDING], database))


def test_retry_answered_with_another_seq_is_found() -> None:
    retry: list[Record] = [send(30, 1, TWO, "two"), Acknowledged(31, 1, 4)]
    assert list(checker.lost([SENDING, retry], stored(*LOG)))


def test_retry_answered_with_the_stored_seq_is_sound() -> None:
    retry: list[Record] = [send(30, 1, TWO, "two"), Acknowledged(31, 1, 3)]
    assert checker.violations([SENDING, retry], [], stored(*LOG)) == []


def test_loss_of_acknowledged_edit_is_found() -> None:
    edited = [*SENDING, edit(30, 3, TWO, "two, edited"), Acknowledged(31, 3, 3)]
    event, content = LogEntry(4, "edited", TWO), {TWO: "two, edited"}
    assert list(checker.lost([edited], stored(*LOG, event, contents=content))) == []
    assert list(checker.lost([edited], stored(*LOG, event)))  # with the old content
    assert list(checker.lost([edited], stored(*LOG, contents=content)))  # without an entry in the log


def test_edit_without_answer_may_be_made_or_not() -> None:
    tried = [*SENDING, edit(30, 3, TWO, "two, edited")]
    made = stored(*LOG, LogEntry(4, "edited", TWO), contents={TWO: "two, edited"})
    assert checker.violations([tried], [], stored(*LOG)) == []
    assert checker.violations([tried], [], made) == []


def test_refused_send_that_was_made_is_found() -> None:
    refused: list[Record] = [
        *SENDING,
        send(30, 3, THREE, "three"),
        Failed(31, 3, "no connection"),
        GaveUp(32, 3),
    ]
    assert checker.violations([refused], [], stored(*LOG)) == []
    made = stored(*LOG, LogEntry(4, "sent", THREE))
    assert checker.violations([refused], [], made) == [*checker.made_although_refused([refused], made)] != []


def test_refused_edit_that_was_made_is_found() -> None:
    refused: list[Record] = [*SENDING, edit(30, 3, TWO, "two, edited"), GaveUp(31, 3)]
    assert checker.violations([refused], [], stored(*LOG)) == []
    edited = stored(*LOG, LogEntry(4, "edited", TWO), contents={TWO: "two, edited"})
    assert list(checker.made_although_refused([refused], edited))
    assert list(checker.lost([refused], edited))
    deleted = [*refused, Began(40, 4, "delete", ROOM, TWO, ""), Acknowledged(41, 4, 3)]
    tombstone = {TWO: ""}
    once = stored(*LOG, LogEntry(4, "deleted", TWO), contents=tombstone)
    assert checker.violations([deleted], [], once) == []
    both = stored(*LOG, LogEntry(4, "edited", TWO), LogEntry(5, "deleted", TWO), contents=tombstone)
    assert list(checker.made_although_refused([deleted], both))


def test_refused_repetition_of_a_stored_send_is_sound() -> None:
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
    ids=["made", "made at the second try", "made and gone", "refused"],
)
def test_message_that_differs_from_the_last_answer_is_found(
    end: list[Record], right: str, wrong: str | None
) -> None:
    changed: list[Record] = [*SENDING, edit(30, 3, TWO, "two, edited"), *end]
    assert list(checker.unlike_the_answer([[*changed, Looked(40, 3, right)]])) == []
    assert list(checker.unlike_the_answer([[*changed, Looked(40, 3, wrong)]]))


def test_message_of_refused_send_that_its_author_finds_is_found() -> None:
    refused: list[Record] = [send(10, 1, ONE, "one"), GaveUp(11, 1)]
    assert list(checker.unlike_the_answer([[*refused, Looked(12, 1, None)]])) == []
    assert list(checker.unlike_the_answer([[*refused, Looked(12, 1, "one")]]))


@pytest.mark.parametrize(
    "database",
    [stored(JOINED, LOG[2]), stored(*LOG, head=4), Stored({ROOM: 1}, {}, {})],
    ids=["a hole", "a head beyond", "no log"],
)
def test_hole_in_a_log_is_found(database: Stored) -> None:
    assert list(checker.holes(database))


def test_duplicate_message_is_found_by_id_and_by_content() -> None:
    assert list(checker.duplicates(stored(*LOG, LogEntry(4, "sent", TWO))))
    assert list(checker.duplicates(stored(*LOG, LogEntry(4, "sent", THREE), contents={THREE: "two"})))
    four = uuid4()
    tombstones = stored(
        *LOG, LogEntry(4, "sent", THREE), LogEntry(5, "sent", four), contents={THREE: "", four: ""}
    )
    assert list(checker.duplicates(tombstones)) == []


def test_message_that_overtook_an_acknowledged_one_is_found() -> None:
    swapped = stored(JOINED, LogEntry(2, "sent", TWO), LogEntry(3, "sent", ONE))
    assert list(checker.out_of_order([SENDING], swapped))
    other_process: list[Record] = [send(20, 1, TWO, "two"), Acknowledged(22, 1, 2)]
    assert list(checker.out_of_order([SENDING[:3], other_process], swapped))
    assert list(checker.out_of_order([SENDING[:3], other_process[:1]], swapped))  # even without an answer


def test_messages_of_overlapping_calls_may_have_any_order() -> None:
    swapped = stored(JOINED, LogEntry(2, "sent", TWO), LogEntry(3, "sent", ONE))
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
def test_follower_that_received_another_log_is_found(order: list[int]) -> None:
    records = dict(enumerate(FOLLOWING[1:], 1))
    history = [FOLLOWING[0], *(records[seq] for seq in order)]
    assert list(checker.wrong_deliveries(history, stored(*LOG)))
    assert checker.violations([SENDING], [history], stored(*LOG))


@pytest.mark.parametrize(
    "wrong", [delivered(3, "sent", THREE), delivered(3, "edited", TWO), delivered(4, "sent", TWO)]
)
def test_follower_that_received_another_entry_is_found(wrong: Delivered) -> None:
    assert list(checker.wrong_deliveries([*FOLLOWING[:3], wrong], stored(*LOG)))


def test_follower_that_starts_again_goes_on_from_where_it_was() -> None:
    again = [*FOLLOWING[:3], Follows(1, {ROOM: cursor(2)}), FOLLOWING[3]]
    assert list(checker.wrong_deliveries(again, stored(*LOG))) == []
    from_elsewhere = [*FOLLOWING[:3], Follows(1, {ROOM: cursor(1)}), FOLLOWING[3]]
    assert list(checker.wrong_deliveries(from_elsewhere, stored(*LOG)))


def test_follower_with_a_resync_goes_on_after_its_cursor() -> None:
    resynced = [*FOLLOWING[:2], Resynced(1, ROOM, "rewound", cursor(2)), FOLLOWING[3]]
    assert list(checker.wrong_deliveries(resynced, stored(*LOG))) == []
    too_far = [*FOLLOWING[:2], Resynced(1, ROOM, "rewound", cursor(1)), FOLLOWING[3]]
    assert list(checker.wrong_deliveries(too_far, stored(*LOG)))


def test_follower_that_was_stopped_need_not_have_reached_the_head() -> None:
    assert list(checker.wrong_deliveries(FOLLOWING[:3], stored(*LOG), to_head=False)) == []


def test_kill_costs_a_history_its_torn_last_line_alone(tmp_path: Path) -> None:
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


def test_history_is_read_while_it_is_written(tmp_path: Path) -> None:
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


def test_logs_with_each_message_once_at_its_seq_yield_nothing() -> None:
    assert not list(repeated_messages({ROOM: LOG}))
    assert not list(lost_messages({ROOM: LOG}, [*ANSWERS, ANSWERS[0]]))


@pytest.mark.parametrize(
    "logs",
    [{ROOM: [*LOG, LogEntry(4, "sent", TWO)]}, {ROOM: LOG, OTHER_ROOM: [LogEntry(1, "sent", TWO)]}],
    ids=["in one log", "in two logs"],
)
def test_message_stored_twice_is_found(logs: Logs) -> None:
    assert list(repeated_messages(logs))


def test_entries_about_one_message_are_no_repetition() -> None:
    log = [*LOG, LogEntry(4, "edited", TWO), LogEntry(5, "edited", TWO)]
    assert not list(repeated_messages({ROOM: log}))


@pytest.mark.parametrize(
    "log",
    [
        LOG[:2],
        [JOINED, LOG[1], LogEntry(3, "sent", THREE)],
        [JOINED, LOG[1], LogEntry(3, "edited", TWO)],
        [JOINED, LogEntry(2, "sent", TWO), LogEntry(3, "sent", ONE)],
    ],
    ids=["gone", "under another id", "only an edit of it", "at other seqs"],
)
def test_acknowledged_message_that_is_not_at_its_seq_is_found(log: list[LogEntry]) -> None:
    assert list(lost_messages({ROOM: log}, ANSWERS))


def test_acknowledged_message_in_another_room_is_found() -> None:
    logs = {ROOM: LOG[:2], OTHER_ROOM: [LogEntry(3, "sent", TWO)]}
    assert list(lost_messages(logs, ANSWERS))


def test_two_answers_that_name_two_seqs_are_found() -> None:
    assert list(lost_messages({ROOM: LOG}, [*ANSWERS, AcknowledgedMessage(TWO, ROOM, 4)]))
