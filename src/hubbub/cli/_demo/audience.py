"""Those who listen to the talk, on a hub of their own, as another process of the chat would; they come and go."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Final
from uuid import UUID

from hubbub.cli._demo.figures import Check, Claim, Stopwatch
from hubbub.cli._demo.together import together
from hubbub.cli._demo.transitions import PATIENCE_SECONDS
from hubbub.events import Logged, MemberJoined, MemberLeft, MessageSent, RoomGone
from hubbub.hub import Hub
from hubbub.settings import Settings

# After so many events a listener hangs up, and comes back with the cursors of what was heard.
STAY: Final = range(10, 200)
ROOMS: Final = 1_000

# What was heard of a log: the seqs, and what stood there.
Heard = list[tuple[int, str]]


class Listener:
    """Follows the rooms of one user, and keeps of each what was heard, in that order."""

    def __init__(self, hub: Hub, watch: Stopwatch, user_id: UUID, chance: Random) -> None:
        self.user_id = user_id
        self.heard: defaultdict[UUID, Heard] = defaultdict(list)
        self._hub = hub
        self._watch = watch
        self._chance = chance
        self._cursors: dict[UUID, str | None] = {}
        self._seqs: dict[UUID, int] = {}
        self._is_there = asyncio.Event()
        self._wanted: Mapping[UUID, int] = {}
        self._has_all = asyncio.Event()

    async def begin(self) -> None:
        """Returns once nothing that happens from now on is missed."""
        await self._is_there.wait()

    async def listen(self) -> None:
        """Until cancelled."""
        for summary in (await self._hub.rooms.list_for(self.user_id, limit=ROOMS)).items:
            newest = summary.last_message
            self._cursors[summary.room.id] = newest.cursor if newest is not None else None
            self._seqs[summary.room.id] = newest.seq if newest is not None else 0
        while True:
            await self._stay(self._chance.choice(STAY))

    async def _stay(self, events: int) -> None:
        began = datetime.now(UTC)
        async with self._hub.follow(self.user_id, after=self._cursors) as feed:
            self._is_there.set()
            for _ in range(events):
                event = await anext(feed)
                if isinstance(event, Logged):
                    self._note(event)
                elif isinstance(event, RoomGone):  # left while nobody listened: it begins anew with the next join
                    del self._cursors[event.room_id]
                    self.heard.pop(event.room_id, None)
                if isinstance(event, MessageSent) and event.at > began:
                    self._watch.note("hear of a message", (datetime.now(UTC) - event.at).total_seconds())

    def _note(self, event: Logged) -> None:
        self.heard[event.room_id].append((event.seq, entry(event)))
        self._cursors[event.room_id] = event.cursor
        self._seqs[event.room_id] = event.seq
        self._look()

    def _look(self) -> None:
        if all(self._seqs.get(room_id, 0) >= seq for room_id, seq in self._wanted.items()):
            self._has_all.set()

    async def until(self, heads: Mapping[UUID, int]) -> None:
        """Returns once these seqs were heard of, or when patience is at its end: then they are missing."""
        self._wanted = heads
        self._look()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._has_all.wait()
        except TimeoutError:
            return  # what is missing is seen in `compare`


class Audience:
    """All who listen, and what they should have heard."""

    def __init__(self, hub: Hub, listeners: Sequence[Listener]) -> None:
        self._hub = hub
        self._listeners = listeners
        self._claim = Claim("a follower hears all, once, in order")

    async def compare(self) -> Check:
        """Once everybody has stopped talking."""
        heads = [await self._heads(listener.user_id) for listener in self._listeners]
        await together(listener.until(wanted) for listener, wanted in zip(self._listeners, heads, strict=True))
        logs = {room_id: await self._log(room_id) for wanted in heads for room_id in wanted}
        for listener, wanted in zip(self._listeners, heads, strict=True):
            for room_id in wanted:
                heard = listener.heard[room_id]
                due = _due(logs[room_id], heard[0][0] if heard else wanted[room_id] + 1, listener.user_id)
                self._claim.holds(heard == due, f"{len(heard)} of {len(due)} entries of room {room_id} were heard")
        return self._claim.check()

    async def _heads(self, user_id: UUID) -> dict[UUID, int]:
        rooms = await self._hub.rooms.list_for(user_id, limit=ROOMS)
        return {summary.room.id: summary.room.last_seq for summary in rooms.items}

    async def _log(self, room_id: UUID) -> list[Logged]:
        entries: list[Logged] = []
        page = await self._hub.messages.since(room_id, None, limit=1_000)
        entries += [item for item in page.items if isinstance(item, Logged)]
        while page.has_more:
            page = await self._hub.messages.since(room_id, page.cursor, limit=1_000)
            entries += [item for item in page.items if isinstance(item, Logged)]
        return entries


def entry(event: Logged) -> str:
    """What stands in a log, whatever has become of the message since."""
    return f"{type(event).__name__} {event.at}"


def _due(log: list[Logged], first: int, user_id: UUID) -> Heard:
    """What is to be heard of a log from its `first` seq on: nothing while the user is away from the room."""
    due: Heard = []
    is_away = False
    for event in log[first - 1 :]:
        if isinstance(event, MemberJoined) and event.user_id == user_id:
            is_away = False
        if not is_away:
            due.append((event.seq, entry(event)))
        if isinstance(event, MemberLeft) and event.user_id == user_id:
            is_away = True
    return due


@asynccontextmanager
async def audience(settings: Settings, watch: Stopwatch, user_ids: Sequence[UUID]) -> AsyncIterator[Audience]:
    """Somebody listens for each of the users as long as the block runs."""
    async with Hub(settings) as hub:
        # Each one's patience is the same in every run.
        listeners = [Listener(hub, watch, one, Random(n)) for n, one in enumerate(user_ids)]  # noqa: S311 - no secret
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(listener.listen()) for listener in listeners]
                await together(listener.begin() for listener in listeners)
                yield Audience(hub, listeners)
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as failures:  # as `together` does
            raise failures.exceptions[0] from failures
