"""The checks find each kind of violation in logs and events that are made up for them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from hubbub import Message, MessageType, Role, events
from hubbub.testing import LogEntry, delivery_errors, entries_for, seq_errors

ROOM = uuid4()
ADA, BOB = uuid4(), uuid4()
ONE, TWO, THREE = uuid4(), uuid4(), uuid4()

JOINED = LogEntry(1, "joined", member_id=ADA)
LOG = [JOINED, LogEntry(2, "sent", ONE), LogEntry(3, "sent", TWO)]


def test_log_that_holds_yields_nothing() -> None:
    assert not list(seq_errors(LOG, 3))
    assert not list(delivery_errors(LOG, LOG))
    assert not list(seq_errors([], 0))


@pytest.mark.parametrize(
    ("log", "head"),
    [
        ([JOINED, LOG[2]], 2),
        ([JOINED, LOG[1], LogEntry(2, "sent", TWO)], 3),
        ([JOINED, LOG[2], LOG[1]], 3),
        (LOG, 4),
        (LOG, 2),
        ([], 1),
        (LOG[1:], 3),
    ],
    ids=["a hole", "a seq twice", "out of order", "a head beyond", "a head behind", "no log", "no beginning"],
)
def test_log_that_is_not_1_to_its_head_is_found(log: list[LogEntry], head: int) -> None:
    assert list(seq_errors(log, head))


@pytest.mark.parametrize(
    "order",
    [[1, 3], [1, 2, 2, 3], [1, 3, 2], [2, 3], [1, 2], [1, 2, 3, 1, 2, 3], []],
    ids=["a gap", "a repeat", "out of order", "late", "not to the head", "all again", "nothing"],
)
def test_follower_that_received_another_log_is_found(order: list[int]) -> None:
    assert list(delivery_errors(LOG, [LOG[seq - 1] for seq in order]))


@pytest.mark.parametrize(
    "wrong",
    [
        LogEntry(3, "sent", THREE),
        LogEntry(3, "edited", TWO),
        LogEntry(4, "sent", TWO),
        LogEntry(0, "sent", TWO),
    ],
    ids=["another message", "another kind", "beyond the head", "before the beginning"],
)
def test_follower_that_received_another_entry_is_found(wrong: LogEntry) -> None:
    assert list(delivery_errors(LOG, [*LOG[:2], wrong], to_head=False))
    assert list(delivery_errors(LOG, [*LOG, wrong]))


def test_follower_with_a_cursor_receives_what_comes_after_it() -> None:
    assert not list(delivery_errors(LOG, LOG[2:], after=2))
    assert not list(delivery_errors(LOG, [], after=3))
    assert list(delivery_errors(LOG, LOG[1:], after=2))
    assert list(delivery_errors(LOG, LOG[2:], after=1))


def test_follower_that_stopped_need_not_have_reached_the_head() -> None:
    assert not list(delivery_errors(LOG, LOG[:2], to_head=False))
    assert list(delivery_errors(LOG, LOG[:2]))


def test_member_receives_nothing_between_leaving_and_joining_again() -> None:
    log = [
        JOINED,
        LogEntry(2, "joined", member_id=BOB),
        LogEntry(3, "left", member_id=BOB),
        LogEntry(4, "sent", ONE),
        LogEntry(5, "left", member_id=ADA),
        LogEntry(6, "joined", member_id=BOB),
        LogEntry(7, "sent", TWO),
    ]
    assert [entry.seq for entry in entries_for(log, member_id=BOB)] == [1, 2, 3, 6, 7]
    assert [entry.seq for entry in entries_for(log, after=3, member_id=BOB)] == [6, 7]
    assert [entry.seq for entry in entries_for(log, member_id=ADA)] == [1, 2, 3, 4, 5]
    assert entries_for(log) == log
    assert not list(delivery_errors(log, entries_for(log, after=2, member_id=BOB), after=2, member_id=BOB))
    assert list(delivery_errors(log, log, member_id=BOB))


def test_entry_keeps_of_an_event_what_never_changes() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    message = Message(ONE, ROOM, 2, ADA, "hello", MessageType.TEXT, False, at, at, None)
    place = (ROOM, 2, "cursor", at)
    assert LogEntry.of(events.MessageSent(*place, message)) == LogEntry(2, "sent", ONE)
    assert LogEntry.of(events.MessageEdited(*place, BOB, message)) == LogEntry(2, "edited", ONE)
    assert LogEntry.of(events.MessageDeleted(*place, BOB, message)) == LogEntry(2, "deleted", ONE)
    assert LogEntry.of(events.MemberLeft(*place, BOB)) == LogEntry(2, "left", None, BOB)
    assert LogEntry.of(events.MemberJoined(*place, BOB, Role.MEMBER)) == LogEntry(2, "joined", None, BOB)
    assert LogEntry.of(events.RoleChanged(*place, BOB, Role.ADMIN)) == LogEntry(2, "role_changed", None, BOB)
    changed = events.RoomChanged(*place, ADA, "bridge", None, is_private=False)
    assert LogEntry.of(changed) == LogEntry(2, "room_changed")


def test_violation_names_the_entry() -> None:
    [error] = delivery_errors(LOG, [LOG[0], LOG[2]])
    assert error == "seq 3 was received after seq 1"
    [error] = delivery_errors(LOG, [*LOG, LogEntry(4, "left", member_id=ADA)])
    assert error == f"left of {ADA} at seq 4 was received, which is not an entry for this follower"
