"""Users who write, read, change their minds, join and leave, all at the same time, while others follow them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from hubbub.cli.demo.context import WAIT_SECONDS, Context, ExpectedRoom, gather, task_group
from hubbub.cli.demo.report import Section
from hubbub.errors import Conflict, HubbubError, NotAMember
from hubbub.events import Logged, MessageSent, Resync, RoomGone
from hubbub.hub import Hub
from hubbub.log_checks import LogEntry, delivery_errors
from hubbub.models import Message, MessagePage

VISITS: Final = 12
"""Visits of each user to a room. With 40 users they take about 2 s on two cores."""

SMALL_ROOM: Final = 8
USERS_PER_FOLLOWER: Final = 4
"""Followers are in this process too. With one per user the process would be what is measured."""

STAY: Final = range(10, 200)
"""Events after which a follower disconnects, and resumes from its cursors."""

PAGE: Final = 50
PAGES_BACK: Final = (0, 0, 0, 0, 10)
"""Of a long log a user turns only so many pages back; the checks at the end read all of it."""

ALL: Final = 1_000
"""Rooms of a user, and entries of a log per page."""


CHECKS: Final = {
    "retries": "a retry returns the same message",
    "refusals": "non-members and reused ids refused",
    "pages": "pages stay in order during writes",
    "marks": "read positions never move back",
    "lists": "room lists are complete",
    "direct_rooms": "one direct room per pair of users",
    "followers": "every event received once, in order",
}


async def run(context: Context) -> Section:
    """The users talk in the busiest room of the log, in small ones and in direct ones."""
    section = Section(f"Chat: {context.user_count} users at the same time", CHECKS)
    ids = await context.create_users("talker", context.user_count)
    busiest = max(context.rooms.values(), key=lambda room: len(room.imported))
    await context.hub.room_users.add_many(busiest.id, ids)
    busiest.join(*ids)
    talkers: list[Talker] = []
    for start in range(0, len(ids), SMALL_ROOM):
        group = ids[start : start + SMALL_ROOM]
        rooms = [busiest, await context.create_room(f"talk from {start}", group)]
        # The choices of each user are the same in every run; only how they interleave is not.
        talkers += [Talker(context, section, id, ids, rooms, Random(start + n)) for n, id in enumerate(group)]
    context.show(f"{len(talkers)} users talk at the same time")
    # The followers have a hub of their own, as in another process.
    async with Hub(context.settings) as hub, task_group() as tasks:
        followers = [Follower(hub, section, id, Random(n)) for n, id in enumerate(ids[::USERS_PER_FOLLOWER])]
        following = [tasks.create_task(follower.follow()) for follower in followers]
        await gather(follower.is_following.wait() for follower in followers)
        await gather(talker.talk() for talker in talkers)
        logs: dict[UUID, list[LogEntry]] = {}
        for follower in followers:
            await follower.compare(logs)
        for task in following:
            task.cancel()
    section.total_calls()
    return section


@dataclass(slots=True)
class Talker:
    """Calls the hub as one user, times each call, and notes what was acknowledged."""

    context: Context
    section: Section
    id: UUID
    all_ids: list[UUID]
    rooms: list[ExpectedRoom]
    random: Random
    own: list[Message] = field(default_factory=list)
    read_up_to: dict[UUID, int] = field(default_factory=dict)

    async def talk(self) -> None:
        for _ in range(VISITS):
            await self._visit(self.random.choice(self.rooms))

    async def _visit(self, room: ExpectedRoom) -> None:
        """Read, write a little, and now and then do something else."""
        lists = self.context.hub.rooms.list_for(self.id, limit=200)
        page = await self.section.time("room lists read", lists)
        missing = {room.id for room in self.rooms} - {summary.room.id for summary in page.items}
        self.section.expect("lists", page.has_more or not missing, f"{self.id} lacks {len(missing)} rooms")
        await self._read_pages(room)
        for _ in range(self.random.choice((0, 1, 2))):
            await self._write(room)
        chance = self.random.random()
        if chance < 0.2 and self.own:
            await self._edit_or_delete()
        elif chance < 0.4:
            await self._be_refused(room)
        elif chance < 0.6:
            await self._write_directly(self.random.choice([id for id in self.all_ids if id != self.id]))

    async def _read_pages(self, room: ExpectedRoom) -> None:
        """The newest page and some before it; then one around a message of the user's own."""
        page = newest = await self._read(room.id)
        for _ in range(self.random.choice(PAGES_BACK)):
            if page.has_older:
                after, page = page.items[0], await self._read(room.id, before=page.items[0])
                self.section.expect("pages", page.items[-1].seq < after.seq, f"seq {after.seq} is on two pages")
        if self.own:
            own = self.random.choice(self.own)
            page = await self._read(own.room_id, around=own.id)
            found = own.id in {message.id for message in page.items}
            self.section.expect("pages", found, f"the page around {own.id} lacks it")
        # The second one is that of another device, which reports an older position.
        for message in (newest.items[-1], newest.items[0]) if newest.items else ():
            marking = self.context.hub.receipts.mark_read(room.id, self.id, up_to=message.seq)
            mark = await self.section.time("rooms marked as read", marking)
            expected = self.read_up_to[room.id] = max(self.read_up_to.get(room.id, 0), message.seq)
            self.section.expect("marks", mark >= expected, f"{self.id} had read {expected}, now {mark}")

    async def _read(
        self, room_id: UUID, *, before: Message | None = None, around: UUID | None = None
    ) -> MessagePage:
        reading = self.context.hub.messages.page(room_id, before=before, around=around, limit=PAGE)
        page = await self.section.time("pages read", reading)
        seqs = [message.seq for message in page.items]
        self.section.expect("pages", seqs == sorted(set(seqs)), f"a page of room {room_id} is out of order")
        return page

    async def _write(self, room: ExpectedRoom) -> None:
        """Sometimes the same message is sent twice at once, or again as if the answer was lost."""
        id, content, chance = uuid7(), self._sentence(), self.random.random()
        if chance < 0.1:
            first, again = await gather([self._send(room, content, id), self._send(room, content, id)])
        else:
            first = again = await self._send(room, content, id)
            if chance < 0.2:
                again = await self._send(room, content, id, "messages sent again")
        if chance < 0.2:
            self.section.expect("retries", first == again, f"message {id} has seq {first.seq} and {again.seq}")
        self.own.append(first)

    async def _send(self, room: ExpectedRoom, content: str, id: UUID, what: str = "messages sent") -> Message:
        sending = self.context.hub.messages.send(room.id, self.id, content, id=id)
        message = await self.section.time(what, sending)
        self.context.expect_message(message)
        return message

    def _sentence(self) -> str:
        return self.random.choice(self.context.sentences)

    async def _edit_or_delete(self) -> None:
        message = self.own.pop(self.random.randrange(len(self.own)))
        messages = self.context.hub.messages
        is_delete = self.random.random() < 0.4
        change = (
            messages.delete(message.id, by=self.id)
            if is_delete
            else messages.edit(message.id, self._sentence(), by=self.id)
        )
        changed = await self.section.time("messages edited or deleted", change)
        self.context.expect_message(changed)
        if not is_delete:
            self.own.append(changed)

    async def _be_refused(self, room: ExpectedRoom) -> None:
        """In a room that the user has left, and with the id of a message in another room, which is no retry."""
        members = self.context.hub.room_users
        await self.section.time("rooms joined or left", members.remove(room.id, self.id))
        room.leave(self.id)
        await self._expect_refusal(room, uuid7(), NotAMember)
        await self.section.time("rooms joined or left", members.add(room.id, self.id))
        room.join(self.id)
        for message in [message for message in self.own if message.room_id != room.id][:1]:
            await self._expect_refusal(room, message.id, Conflict)

    async def _expect_refusal(self, room: ExpectedRoom, id: UUID, error: type[HubbubError]) -> None:
        refused = False
        try:
            await self.context.hub.messages.send(room.id, self.id, "not to be stored", id=id)
        except error:
            refused = True
        self.section.expect("refusals", refused, f"message {id} of {self.id} was stored in room {room.id}")

    async def _write_directly(self, partner: UUID) -> None:
        """Both open their room at the same moment; then each writes in it."""
        rooms, pair = self.context.hub.rooms, (self.id, partner)
        opening = [self.section.time("direct rooms opened", rooms.direct(*one)) for one in (pair, pair[::-1])]
        mine, theirs = await gather(opening)
        known = self.context.direct_rooms.setdefault(frozenset(pair), mine.id)
        is_one = mine.id == theirs.id == known
        self.section.expect("direct_rooms", is_one, f"{self.id} and {partner} have two rooms")
        room = self.context.expect_room(known, mine.name, *pair)
        await self._send(room, self._sentence(), uuid7())
        reply = self.context.hub.messages.send(room.id, partner, self._sentence())
        self.context.expect_message(await self.section.time("messages sent", reply))


@dataclass(slots=True)
class Follower:
    """Follows the rooms of one user as a client does that disconnects and resumes, and keeps what it received."""

    hub: Hub
    section: Section
    user_id: UUID
    random: Random
    is_following: asyncio.Event = field(default_factory=asyncio.Event)
    received: defaultdict[UUID, list[LogEntry]] = field(default_factory=lambda: defaultdict(list))

    async def follow(self) -> None:
        """Until cancelled."""
        rooms = (await self.hub.rooms.list_for(self.user_id, limit=ALL)).items
        cursors = {one.room.id: one.last_message.cursor if one.last_message else None for one in rooms}
        while True:
            connected_at = datetime.now(UTC)
            async with self.hub.follow(self.user_id, after=cursors) as feed:
                self.is_following.set()
                for _ in range(self.random.choice(STAY)):
                    event = await anext(feed)
                    if isinstance(event, RoomGone):  # left while disconnected; the next joining starts it anew
                        del cursors[event.room_id]
                        self.received.pop(event.room_id, None)
                    elif isinstance(event, Logged):
                        cursors[event.room_id] = event.cursor
                        self.received[event.room_id].append(LogEntry.of(event))
                        if isinstance(event, MessageSent) and event.at > connected_at:
                            seconds = (datetime.now(UTC) - event.at).total_seconds()
                            self.section.record("messages received by followers", seconds)

    async def compare(self, logs: dict[UUID, list[LogEntry]]) -> None:
        """Once no call is in flight any more: waits for the newest entries. `logs` keeps what was read."""
        rooms = (await self.hub.rooms.list_for(self.user_id, limit=ALL)).items
        heads = {summary.room.id: summary.room.last_seq for summary in rooms}
        with suppress(TimeoutError):  # missing entries are errors below
            async with asyncio.timeout(WAIT_SECONDS):
                while any(log[-1].seq < heads.get(id, 0) for id, log in self.received.items() if log):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for room_id, received in self.received.items():
            log = logs.get(room_id) or logs.setdefault(room_id, await _log(self.hub, room_id))
            errors = list(delivery_errors(log, received, after=received[0].seq - 1, member_id=self.user_id))
            self.section.expect("followers", not errors, f"room {room_id}: {'; '.join(errors[:3])}")


async def _log(hub: Hub, room_id: UUID) -> list[LogEntry]:
    entries: list[LogEntry] = []
    cursor, has_more = None, True
    while has_more:
        page = await hub.messages.since(room_id, cursor, limit=ALL)
        entries += [LogEntry.of(event) for event in page.items if not isinstance(event, Resync)]
        cursor, has_more = page.cursor, page.has_more
    return entries
