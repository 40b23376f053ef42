"""What the histories of senders say of each message, by all of its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from faults.history import Acknowledged, Began, GaveUp, Record, What

Histories = Sequence[Sequence[Record]]


@dataclass(slots=True)
class Sent:
    """All that the histories say of one message. A process that was killed leaves it to another to retry."""

    room_id: UUID
    began: int
    content: str
    acknowledged: int | None = None
    seqs: set[int] = field(default_factory=set)
    # Contents that it may have by the calls made since the last acknowledged one, that one's own included.
    possible: list[str] = field(default_factory=list)
    acknowledged_edits: int = 0
    # Calls that may have been made, by what they do.
    tried: Counter[What] = field(default_factory=Counter)


def sent_in(histories: Histories) -> dict[UUID, Sent]:
    """The messages of all senders, each changed by its own sender alone, one call at a time."""
    messages: dict[UUID, Sent] = {}
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


def _begin(messages: dict[UUID, Sent], call: Began) -> None:
    if call.what == "send":
        sent = messages.setdefault(call.message_id, Sent(call.room_id, call.at, call.content))
        sent.began = min(sent.began, call.at)
        sent.possible = sent.possible or [call.content]
    else:
        sent = messages[call.message_id]
        sent.possible.append(call.content)
    sent.tried[call.what] += 1


def _acknowledge(sent: Sent, call: Began, acknowledged: Acknowledged) -> None:
    sent.seqs.add(acknowledged.seq)
    if call.what == "send":
        sent.acknowledged = min(sent.acknowledged or acknowledged.at, acknowledged.at)
    else:
        sent.possible = [call.content]
        sent.acknowledged_edits += call.what == "edit"


def _give_up(sent: Sent, call: Began) -> None:
    sent.tried[call.what] -= 1
    if call.what != "send":
        sent.possible.remove(call.content)
