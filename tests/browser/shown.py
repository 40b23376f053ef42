"""Compares the entries that a client of the gateway received and shows with the log in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from faults.checker import Stored
from hubbub import events, testing
from hubbub.testing import LogEntry

KINDS = {event.__struct_config__.tag: kind for kind, event in events.KINDS.items()}


def entry_of(event: dict[str, Any]) -> LogEntry:
    """The entry in this event."""
    message_id = UUID(event["message"]["id"]) if "message" in event else None
    member_id = UUID(event["user_id"]) if "user_id" in event else None
    return LogEntry(event["seq"], KINDS[event["type"]], message_id, member_id)


def shown_errors(
    stored: Stored, room_id: UUID, entries: Sequence[LogEntry], shown: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Check that each entry was received once and in order, and that the messages on the screen are the same."""
    log = stored.logs[room_id]
    yield from testing.seq_errors(log, stored.heads[room_id])
    after = entries[0].seq - 1 if entries else stored.heads[room_id]
    yield from testing.delivery_errors(log, entries, after=after)
    sent = [str(entry.message_id) for entry in log if entry.kind == "sent"]
    if [message["id"] for message in shown] != sent[len(sent) - len(shown) :]:
        yield f"{len(shown)} messages are shown, which are not the newest of {len(sent)} in the log"
    for message in shown:
        if message["status"] != "sent" or message["content"] != stored.contents.get(UUID(message["id"])):
            yield f"message {message['id']} is {message['status']} with other words than in the log"
