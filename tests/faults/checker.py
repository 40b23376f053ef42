"""Compares what processes did and saw with what the database holds. Each check gives the violations it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from faults.history import Acknowledged, Began, Delivered, Follows, Looked, Record, Resynced
from faults.sent import Histories, sent_in
from hubbub.positions import Position

KINDS = {"send": "MessageSent", "edit": "MessageEdited", "delete": "MessageDeleted"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log of a room. `content` is that of a message, and "" of a tombstone and of an event."""

    seq: int
    kind: str
    message_id: UUID | None
    content: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds at the end: of each room its head and, by seq, its log."""

    heads: dict[UUID, int]
    logs: dict[UUID, list[Entry]]


def lost(histories: Histories, stored: Stored) -> Iterator[str]:
    """What was acknowledged and is not there, or stands elsewhere, or says something else."""
    places = {
        entry.message_id: (room_id, entry)
        for room_id, log in stored.logs.items()
        for entry in log
        if entry.kind == "MessageSent"
    }
    edits = Counter(e.message_id for log in stored.logs.values() for e in log if e.kind == "MessageEdited")
    for message_id, sent in sent_in(histories).items():
        if not sent.seqs:
            continue
        room_id, entry = places.get(message_id, (None, None))
        if entry is None:
            yield f"message {message_id} was acknowledged and is lost"
            continue
        if room_id != sent.room_id or sent.seqs != {entry.seq}:
            yield f"message {message_id} was acknowledged as {sorted(sent.seqs)} and has seq {entry.seq}"
        if entry.content not in sent.possible:
            yield f"message {message_id} has content that an acknowledged change had replaced"
        if edits[message_id] < sent.acknowledged_edits:
            yield f"{sent.acknowledged_edits - edits[message_id]} acknowledged edits of {message_id} are lost"


def made_after_all(histories: Histories, stored: Stored) -> Iterator[str]:
    """Calls that were made although each of their tries had said that it was not."""
    entries = Counter((entry.kind, entry.message_id) for log in stored.logs.values() for entry in log)
    for message_id, sent in sent_in(histories).items():
        for what, tried in sent.tried.items():
            made = entries[KINDS[what], message_id]
            if made > tried:
                yield f"{what} of message {message_id} was made {made} times, and may have been {tried} times"


def otherwise_than_told(histories: Histories) -> Iterator[str]:
    """What authors found in the place of what they had been told of their own messages."""
    for history in histories:
        calls: dict[int, Began] = {}
        told: dict[UUID, str] = {}
        for record in history:
            if isinstance(record, Began):
                calls[record.call] = record
            elif isinstance(record, Acknowledged):
                told[calls[record.call].message_id] = calls[record.call].content
            elif isinstance(record, Looked):
                call = calls[record.call]
                if record.content != told.get(call.message_id):
                    yield f"message {call.message_id} is not as its author was told by {call.what}"


def holes(stored: Stored) -> Iterator[str]:
    """Rooms whose seqs are not 1..head, over messages and events together."""
    for room_id, head in stored.heads.items():
        seqs = [entry.seq for entry in stored.logs.get(room_id, [])]
        if seqs != list(range(1, head + 1)):
            yield f"room {room_id} has {len(seqs)} entries with {len(set(seqs))} seqs, and its head is {head}"


def duplicates(stored: Stored) -> Iterator[str]:
    """Messages that stand in the logs twice: by their id, or by content, which no two senders ever share."""
    entries = [entry for log in stored.logs.values() for entry in log if entry.kind == "MessageSent"]
    for message_id, count in Counter(entry.message_id for entry in entries).items():
        if count > 1:
            yield f"message {message_id} stands in the logs {count} times"
    for content, count in Counter(entry.content for entry in entries if entry.content).items():
        if count > 1:
            yield f"{count} messages say {content[:40]!r}, which was sent once"


def out_of_order(histories: Histories, stored: Stored) -> Iterator[str]:
    """Messages with a smaller seq than one that was acknowledged before they were begun, in the same room.

    Unacknowledged ones too: they have no end, but they do have a beginning.
    """
    seqs = {e.message_id: e.seq for log in stored.logs.values() for e in log if e.kind == "MessageSent"}
    rooms: dict[UUID, list[tuple[int, bool, int]]] = defaultdict(list)
    for message_id, sent in sent_in(histories).items():
        if message_id not in seqs:
            continue  # not acknowledged, or lost, which another check says
        rooms[sent.room_id].append((sent.began, False, seqs[message_id]))
        if sent.acknowledged is not None:
            rooms[sent.room_id].append((sent.acknowledged, True, seqs[message_id]))
    for room_id, moments in rooms.items():
        highest = 0
        # At one and the same time the beginning comes first: the two calls count as overlapping.
        for _, is_end, seq in sorted(moments):
            if is_end:
                highest = max(highest, seq)
            elif seq < highest:
                yield f"seq {seq} of room {room_id} was begun after seq {highest} had been acknowledged"


def wrong_following(history: Iterable[Record], stored: Stored, *, to_the_head: bool = True) -> Iterator[str]:
    """Where a follower's history is not the log, once each and in order, from its cursors on.

    A `Resync` starts the room anew after its cursor. A follower that starts again has to go on from where it was.
    With `to_the_head` it has to have come to the head of each room.
    """
    reached: dict[UUID, int] = {}
    for record in history:
        if isinstance(record, Follows):
            for room_id, cursor in record.after.items():
                seq = _seq(room_id, cursor)
                if reached.setdefault(room_id, seq) != seq:
                    yield f"room {room_id}: the follower was at {reached[room_id]} and goes on from {seq}"
        elif isinstance(record, Resynced):
            reached[record.room_id] = _seq(record.room_id, record.cursor)
        elif isinstance(record, Delivered):
            if record.seq != reached[record.room_id] + 1:
                yield f"room {record.room_id}: after seq {reached[record.room_id]} came {record.seq}"
            yield from _wrong_entry(record, stored)
            reached[record.room_id] = record.seq
    if to_the_head:
        for room_id, seq in reached.items():
            if seq != stored.heads[room_id]:
                yield f"room {room_id}: the follower has come to {seq} of {stored.heads[room_id]}"


def _seq(room_id: UUID, cursor: str | None) -> int:
    return 0 if cursor is None else Position.decode(room_id, cursor).seq


def _wrong_entry(record: Delivered, stored: Stored) -> Iterator[str]:
    log = stored.logs[record.room_id]
    entry = log[record.seq - 1] if 0 < record.seq <= len(log) else None
    if entry is None or (entry.kind, entry.message_id) != (record.kind, record.message_id):
        there = "nothing" if entry is None else f"{entry.kind} of {entry.message_id}"
        yield (
            f"room {record.room_id}: seq {record.seq} was delivered as {record.kind} of {record.message_id}, "
            f"and is {there}"
        )


def violations(senders: Histories, followers: Histories, stored: Stored) -> list[str]:
    """All of it."""
    found = [*lost(senders, stored), *holes(stored), *duplicates(stored), *out_of_order(senders, stored)]
    found += [*made_after_all(senders, stored), *otherwise_than_told(senders)]
    for history in followers:
        found += wrong_following(history, stored)
    return found
