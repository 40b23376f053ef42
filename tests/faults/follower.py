"""A process that follows rooms, if needed from the position of a killed process.

python -m faults.follower PLAN      PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import Delivered, Follows, History, Resynced, now, read
from faults.worker import plan_of, run, settings_of_environment
from hubbub import Hub, Options
from hubbub.events import FeedEvent, LogEvent, Resync
from hubbub.testing import LogEntry


class Plan(msgspec.Struct, frozen=True):
    """The user and the rooms. With the `history` of an earlier process, it continues from those cursors."""

    history: Path
    user_id: UUID
    rooms: list[UUID]
    buffer: int = 1_000
    stalls_after: int | None = None
    """The number of events after which it reads no further until a line comes on standard input."""


def cursors(path: Path, rooms: list[UUID]) -> dict[UUID, str | None]:
    """The cursors of a client with this history. Without records they are before the beginnings of all rooms."""
    after: dict[UUID, str | None] = dict.fromkeys(rooms)
    for record in read(path):
        if isinstance(record, Delivered | Resynced):
            after[record.room_id] = record.cursor
    return after


def record_of(event: FeedEvent) -> Delivered | Resynced:
    """The record of an event."""
    if isinstance(event, Resync):
        return Resynced(now(), event.room_id, event.reason, event.cursor)
    assert isinstance(event, LogEvent)  # no room is deleted here
    seq, kind, message_id, member_id = LogEntry.of(event)
    return Delivered(now(), event.room_id, seq, kind, message_id, event.cursor, member_id)


async def follow(has_line: asyncio.Event) -> None:
    plan = plan_of(Plan)
    after = cursors(plan.history, plan.rooms)
    with History(plan.history) as history:
        async with (
            # Without a limit: other tests are about the `Resync` of a follower that is too far behind.
            Hub(settings_of_environment(), options=Options(follow_at_most_behind=1_000_000)) as hub,
            hub.follow(plan.user_id, after=after, buffer=plan.buffer) as feed,
        ):
            history.write(Follows(now(), after))
            count = 0
            async for event in feed:
                history.write(record_of(event))
                count += 1
                if count == plan.stalls_after:
                    await has_line.wait()


if __name__ == "__main__":
    run(follow)
