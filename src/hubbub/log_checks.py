"""Checks of logs and of the followers that read them: nothing lost, nothing twice, no gap, nothing out of order.

Pure functions over entries that were stored and received. The demo and the tests share them. A check yields one
sentence per violation, and nothing when its rule holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from hubbub import events


class LogEntry(NamedTuple):
    """One entry of a log, by what never changes about it. Later edits change the content, which is not in here."""

    seq: int
    kind: str
    """As in PostgreSQL: `sent`, or one of `room_events`, such as `joined`."""
    message_id: UUID | None = None
    member_id: UUID | None = None
    """The member that the entry is about, such as the user who joined or left."""

    @classmethod
    def of(cls, event: events.LogEvent) -> LogEntry:
        """The entry that this event was made from."""
        message = getattr(event, "message", None)
        member_id = getattr(event, "user_id", None)
        return cls(event.seq, event.kind, None if message is None else message.id, member_id)

    def __str__(self) -> str:
        about = self.message_id or self.member_id
        return f"{self.kind} at seq {self.seq}" if about is None else f"{self.kind} of {about} at seq {self.seq}"


def seq_errors(log: Sequence[LogEntry], head: int) -> Iterator[str]:
    """The seqs of a log are 1 to its head, each once and in order."""
    seqs = [entry.seq for entry in log]
    if seqs != list(range(1, head + 1)):
        yield f"{len(seqs)} entries with {len(set(seqs))} seqs, and the head is {head}"


def entries_for(log: Sequence[LogEntry], *, after: int = 0, member_id: UUID | None = None) -> list[LogEntry]:
    """The entries that a follower gets from the cursor `after` on: all of them, in order.

    With `member_id` the entries between that user's leaving and next joining are left out.
    """
    due: list[LogEntry] = []
    is_away = False
    for entry in log:
        is_own = member_id is not None and entry.member_id == member_id
        is_away = is_away and not (is_own and entry.kind == events.MemberJoined.kind)
        if entry.seq > after and not is_away:
            due.append(entry)
        is_away = is_away or (is_own and entry.kind == events.MemberLeft.kind)
    return due


def delivery_errors(
    log: Sequence[LogEntry],
    received: Iterable[LogEntry],
    *,
    after: int = 0,
    member_id: UUID | None = None,
    to_head: bool = True,
) -> Iterator[str]:
    """A follower received the log of one room from the cursor `after` on: each entry once, in order.

    `member_id` as in `entries_for`. Without `to_head` the follower may have stopped anywhere. After a `Resync` a
    follower starts fresh: check the entries after it on their own.
    """
    due = entries_for(log, after=after, member_id=member_id)
    index_of = {entry.seq: index for index, entry in enumerate(due)}
    following, last_seq = 0, after
    for entry in received:
        index = index_of.get(entry.seq)
        if index is None:
            yield f"{entry} was received, which is not an entry for this follower"
            continue
        if index != following:
            yield f"seq {entry.seq} was received after seq {last_seq}"
        if entry != due[index]:
            yield f"{entry} was received, and the log has {due[index]}"
        following, last_seq = index + 1, entry.seq
    if to_head and following < len(due):
        yield f"{len(due) - following} entries after seq {last_seq} were not received"
