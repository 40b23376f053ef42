"""Functions that read followers, and logs by page, for tests that compare them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from hubbub import FeedEvent, Hub, LogEvent
from hubbub.events import LoggedEvent, Resync, room_channel
from hubbub.services.feed import Follower
from waiting import HANGS_AFTER_SECONDS, until


async def take(feed: Follower, count: int = 1) -> list[FeedEvent]:
    """The next events."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        return [await anext(feed) for _ in range(count)]


async def take_until(feed: Follower, is_last: Callable[[FeedEvent], bool]) -> list[FeedEvent]:
    """The next events, up to and including the last one."""
    events = []
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        async for event in feed:
            events.append(event)
            if is_last(event):
                break
    return events


def is_at(seq: int, room_id: UUID | None = None) -> Callable[[FeedEvent], bool]:
    return lambda event: isinstance(event, LoggedEvent) and event.seq == seq and room_id in (None, event.room_id)


def seqs(events: list[FeedEvent]) -> list[int]:
    """The seqs of events, all of which have to be entries of a log."""
    return [entry.seq for entry in entries(events)]


def entries(events: list[FeedEvent]) -> list[LogEvent]:
    found = [event for event in events if isinstance(event, LoggedEvent)]
    assert len(found) == len(events), events
    return found


def resync(event: FeedEvent) -> Resync:
    assert isinstance(event, Resync), event
    return event


async def log_of(hub: Hub, room_id: UUID, cursor: str | None = None, limit: int = 200) -> list[FeedEvent]:
    """The log after the cursor, page by page."""
    found: list[FeedEvent] = []
    while True:
        page = await hub.messages.since(room_id, cursor, limit=limit)
        found += page.items
        cursor = page.cursor
        if not page.has_more:
            return found


def open_in(hub: Hub) -> tuple[int, int]:
    """The numbers of followers and of followed rooms in the process."""
    feed = hub._feed
    return sum(len(followers) for followers in feed._followers._users.values()), len(feed._rooms._rooms)


async def until_live(hub: Hub) -> None:
    """Wait until each followed room is subscribed, and its head was compared after that."""
    rooms, subscriptions = hub._feed._rooms, hub._subscriptions
    names = [room_channel(room_id).encode() for room_id in rooms._rooms]
    await until(lambda: all(subscriptions.is_live(name) for name in names))
    await until(lambda: not rooms._to_check and not hub._feed._comparing._woken.is_set())
