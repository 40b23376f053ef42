"""Compares the calls and events of processes with the content of the database. Each check yields violations.

`hubbub.testing` has the rules for logs and for followers. This module has the rules for changes that were
acknowledged, refused or overtaken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from faults.history import Acknowledged, Began, Change, Delivered, Follows, GaveUp, Looked, Record, Resynced
from hubbub import PostgresSettings, events, testing
from hubbub.positions import Position
from hubbub.postgres import connect
from hubbub.testing import LogEntry

KINDS = {"send": events.MessageSent.kind, "edit": events.MessageEdited.kind, "delete": events.MessageDeleted.kind}

LOGS = """
    SELECT room_id, seq, 'sent', id, NULL, content
    FROM messages
    UNION ALL
    SELECT room_id, seq, kind, message_id, user_id, ''
    FROM room_events
    ORDER BY room_id, seq
"""

Histories = Sequence[Sequence[Record]]

Logs = Mapping[UUID, Sequence[LogEntry]]
"""The log of each room in the order of seq."""


class AcknowledgedMessage(NamedTuple):
    """The answer to a send. Retries of one send have the same answer."""

    message_id: UUID
    room_id: UUID
    seq: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of the database at the end: the head and the log of each room, and the content of each message.

    The content of a tombstone is "".
    """

    heads: dict[UUID, int]
    logs: dict[UUID, list[LogEntry]]
    contents: dict[UUID, str]


async def stored_in(settings: PostgresSettings) -> Stored:
    """Read the database on a separate connection, in one snapshot."""
    connection = await connect(settings)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            heads = await connection.fetch("SELECT id, last_seq FROM rooms")
            rows = await connection.fetch(LOGS)
    finally:
        await connection.close()
    logs: dict[UUID, list[LogEntry]] = defaultdict(list)
    contents: dict[UUID, str] = {}
    for room_id, seq, kind, message_id, user_id, content in rows:
        is_of_member = "user_id" in events.KINDS[kind].__struct_fields__
        entry = LogEntry(seq, kind, _uuid(message_id), _uuid(user_id) if is_of_member else None)
        logs[UUID(str(room_id))].append(entry)
        if kind == events.MessageSent.kind:
            contents[UUID(str(message_id))] = content
    return Stored({UUID(str(room_id)): head for room_id, head in heads}, dict(logs), contents)


def _uuid(value: object) -> UUID | None:
    return None if value is None else UUID(str(value))


@dataclass(slots=True)
class SentMessage:
    """The records of one message in all histories. Another process retries the calls of a killed one."""

    room_id: UUID
    began: int
    acknowledged: int | None = None
    seqs: set[int] = field(default_factory=set)
    # The possible contents, by the last acknowledged call and the calls after it.
    possible: list[str] = field(default_factory=list)
    acknowledged_edits: int = 0
    # Calls that may have been made, by kind of change.
    tried: Counter[Change] = field(default_factory=Counter)


def sent_in(histories: Histories) -> dict[UUID, SentMessage]:
    """The messages of all senders. Only its own sender changes a message, with one call at a time."""
    messages: dict[UUID, SentMessage] = {}
    for history in histories:
        calls: dict[int, Began] = {}
        for record in history:
            if isinstance(record, Began):
                calls[record.call] = record
                _begin(messages, record)
            elif isinstance(record, Acknowledged):
                _acknowledge(messages[calls[record.call].message_id], calls[record.call], record)
            elif isinstance(record, GaveUp):
                _give_up(messages[calls[record.call].message_id], calls[record.call])
    return messages


def _begin(messages: dict[UUID, SentMessage], call: Began) -> None:
    if call.change == "send":
        sent = messages.setdefault(call.message_id, SentMessage(call.room_id, call.at))
        sent.began = min(sent.began, call.at)
        sent.possible = sent.possible or [call.content]
    else:
        sent = messages[call.message_id]
        sent.possible.append(call.content)
    sent.tried[call.change] += 1


def _acknowledge(sent: SentMessage, call: Began, acknowledged: Acknowledged) -> None:
    sent.seqs.add(acknowledged.seq)
    if call.change == "send":
        sent.acknowledged = min(sent.acknowledged or acknowledged.at, acknowledged.at)
    else:
        sent.possible = [call.content]
        sent.acknowledged_edits += call.change == "edit"


def _give_up(sent: SentMessage, call: Began) -> None:
    sent.tried[call.change] -= 1
    if call.change != "send":
        sent.possible.remove(call.content)


def repeated_messages(logs: Logs) -> Iterator[str]:
    """Messages with two entries of the kind `sent`, in one log or in two."""
    sent = Counter(entry.message_id for log in logs.values() for entry in log if entry.kind == KINDS["send"])
    for message_id, count in sent.items():
        if count > 1:
            yield f"message {message_id} is in the logs {count} times"


def lost_messages(logs: Logs, acknowledged: Iterable[AcknowledgedMessage]) -> Iterator[str]:
    """Acknowledged messages that are not in the log of their room at the seq of the answer."""
    stored = {
        entry.message_id: (room_id, entry.seq)
        for room_id, log in logs.items()
        for entry in log
        if entry.kind == KINDS["send"]
    }
    for message_id, room_id, seq in acknowledged:
        if message_id not in stored:
            yield f"message {message_id} was acknowledged and is lost"
        elif stored[message_id] != (room_id, seq):
            found_room, found_seq = stored[message_id]
            answer = f"seq {seq} of room {room_id}"
            yield f"message {message_id} was acknowledged as {answer}, and is seq {found_seq} of room {found_room}"


def lost(histories: Histories, stored: Stored) -> Iterator[str]:
    """Acknowledged messages that are missing, have another seq, or lack an acknowledged change of content."""
    sent = sent_in(histories)
    answers = [AcknowledgedMessage(id_, one.room_id, seq) for id_, one in sent.items() for seq in one.seqs]
    yield from lost_messages(stored.logs, answers)
    edits = Counter(
        entry.message_id for log in stored.logs.values() for entry in log if entry.kind == KINDS["edit"]
    )
    for message_id, one in sent.items():
        if not one.seqs or message_id not in stored.contents:
            continue
        if stored.contents[message_id] not in one.possible:
            yield f"message {message_id} has content that an acknowledged change had replaced"
        if edits[message_id] < one.acknowledged_edits:
            yield f"{one.acknowledged_edits - edits[message_id]} acknowledged edits of {message_id} are lost"


def made_although_refused(histories: Histories, stored: Stored) -> Iterator[str]:
    """Calls that took effect, although the error of each attempt excluded it."""
    entries = Counter((entry.kind, entry.message_id) for log in stored.logs.values() for entry in log)
    for message_id, sent in sent_in(histories).items():
        for change, tried in sent.tried.items():
            made = entries[KINDS[change], message_id]
            if made > tried:
                yield f"{change} of message {message_id} was made {made} times, and may have been {tried} times"


def unlike_the_answer(histories: Histories) -> Iterator[str]:
    """Messages whose authors read another state than that of the last answer."""
    for history in histories:
        calls: dict[int, Began] = {}
        answered: dict[UUID, str] = {}
        for record in history:
            if isinstance(record, Began):
                calls[record.call] = record
            elif isinstance(record, Acknowledged):
                answered[calls[record.call].message_id] = calls[record.call].content
            elif isinstance(record, Looked):
                call = calls[record.call]
                if record.content != answered.get(call.message_id):
                    yield f"message {call.message_id} is not as the answer to its {call.change} said"


def holes(stored: Stored) -> Iterator[str]:
    """Rooms whose messages and events together do not have the seqs from 1 to the head."""
    for room_id, head in stored.heads.items():
        for error in testing.seq_errors(stored.logs.get(room_id, []), head):
            yield f"room {room_id}: {error}"


def duplicates(stored: Stored) -> Iterator[str]:
    """Messages that are stored twice, with the same id or the same content. Each send has its own content."""
    yield from repeated_messages(stored.logs)
    for content, count in Counter(content for content in stored.contents.values() if content).items():
        if count > 1:
            yield f"{count} messages have the content {content[:40]!r}, which was sent once"


def out_of_order(histories: Histories, stored: Stored) -> Iterator[str]:
    """Messages with a smaller seq than one of the same room that was acknowledged before their send began.

    Unacknowledged messages count as well, because the beginning of their send is known.
    """
    seqs = {e.message_id: e.seq for log in stored.logs.values() for e in log if e.kind == KINDS["send"]}
    rooms: dict[UUID, list[tuple[int, bool, int]]] = defaultdict(list)
    for message_id, sent in sent_in(histories).items():
        if message_id not in seqs:
            continue  # not acknowledged, or lost: another check finds that
        rooms[sent.room_id].append((sent.began, False, seqs[message_id]))
        if sent.acknowledged is not None:
            rooms[sent.room_id].append((sent.acknowledged, True, seqs[message_id]))
    for room_id, moments in rooms.items():
        highest = 0
        # At equal times the beginning comes first, so that the two calls count as overlapping.
        for _, is_end, seq in sorted(moments):
            if is_end:
                highest = max(highest, seq)
            elif seq < highest:
                yield f"seq {seq} of room {room_id} was begun after seq {highest} had been acknowledged"


def wrong_deliveries(history: Iterable[Record], stored: Stored, *, to_head: bool = True) -> Iterator[str]:
    """Differences between a follower's history and the log after its cursors, each entry once and in order.

    A `Resync` restarts the room after its cursor. A follower that starts again has to continue from its position.
    With `to_head` it has to have reached the head of each room.
    """
    rooms: dict[UUID, tuple[int, list[LogEntry]]] = {}  # the seq it started after, and the entries since
    for record in history:
        if isinstance(record, Follows):
            for room_id, cursor in record.after.items():
                seq = _seq(room_id, cursor)
                after, received = rooms.setdefault(room_id, (seq, []))
                reached = received[-1].seq if received else after
                if reached != seq:
                    yield f"room {room_id}: the follower was at {reached} and goes on from {seq}"
        elif isinstance(record, Resynced):
            yield from _delivery_errors(record.room_id, *rooms[record.room_id], stored, to_head=False)
            rooms[record.room_id] = _seq(record.room_id, record.cursor), []
        elif isinstance(record, Delivered):
            rooms[record.room_id][1].append(record.entry)
    for room_id, (after, received) in rooms.items():
        yield from _delivery_errors(room_id, after, received, stored, to_head=to_head)


def _delivery_errors(
    room_id: UUID, after: int, received: list[LogEntry], stored: Stored, *, to_head: bool
) -> Iterator[str]:
    log = stored.logs.get(room_id, [])
    for error in testing.delivery_errors(log, received, after=after, to_head=to_head):
        yield f"room {room_id}: {error}"


def _seq(room_id: UUID, cursor: str | None) -> int:
    return 0 if cursor is None else Position.decode(room_id, cursor).seq


def resyncs(history: Iterable[Record], room_ids: Collection[UUID]) -> int:
    """The number of `Resync` events that a follower has received because one of the rooms was rewound."""
    return sum(
        isinstance(record, Resynced) and record.reason == "rewound" and record.room_id in room_ids
        for record in history
    )


def since_resync(history: Iterable[Record], rewound: Collection[UUID]) -> list[Record]:
    """The records of a follower, except those of rewound rooms from before the `Resync`."""
    kept: list[Record] = []
    resynced: set[UUID] = set()
    for record in history:
        if isinstance(record, Resynced):
            resynced.add(record.room_id)
        if not isinstance(record, Delivered) or record.room_id in resynced or record.room_id not in rewound:
            kept.append(record)
    return [record for record in kept if not isinstance(record, Follows) or None in record.after.values()]


def violations(senders: Histories, followers: Histories, stored: Stored) -> list[str]:
    """The violations of all checks."""
    found = [*lost(senders, stored), *holes(stored), *duplicates(stored), *out_of_order(senders, stored)]
    found += [*made_although_refused(senders, stored), *unlike_the_answer(senders)]
    for history in followers:
        found += wrong_deliveries(history, stored)
    return found
