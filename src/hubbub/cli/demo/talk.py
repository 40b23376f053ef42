"""Users who write, read, change their minds, join and leave, all at the same time, while others follow them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Final, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from hubbub.cli.demo.context import WAIT_SECONDS, Context, ExpectedRoom, gather, task_group
from hubbub.cli.demo.report import Check, Section
from hubbub.errors import Conflict, HubbubError, NotAMember
from hubbub.events import Logged, MessageSent, Resync, RoomGone
from hubbub.hub import Hub
from hubbub.log_checks import LogEntry, delivery_errors
from hubbub.models import Message, MessagePage, Room

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
ALL_ROOMS: Final = 1_000
LOG_PAGE: Final = 1_000


class Checks(NamedTuple):
    """The guarantees that are checked at every visit of every user."""

    retries: Check
    refusals: Check
    pages: Check
    marks: Check
    lists: Check
    direct_rooms: Check
    followers: Check


async def run(context: Context) -> Section:
    """The users talk in the busiest room of the log, in one for all, in small ones and in direct ones."""
    section = Section(
        f"Chat: {context.user_count} users at the same time",
        "a retry returns the same message",
        "non-members and reused ids refused",
        "pages stay in order during writes",
        "read positions never move back",
        "room lists are complete",
        "one direct room per pair of users",
        "every event received once, in order",
    )
    checks = Checks(*section.checks)
    talkers = await _enter_rooms(context, section, checks)
    context.show(f"{len(talkers)} users talk at the same time")
    # The followers have a hub of their own, as in another process.
    async with Hub(context.settings) as hub, task_group() as group:
        followed = talkers[::USERS_PER_FOLLOWER]
        followers = [Follower(hub, section, talker.id, Random(n)) for n, talker in enumerate(followed)]  # noqa: S311 - no secret
        tasks = [group.create_task(follower.follow()) for follower in followers]
        await gather(follower.is_following.wait() for follower in followers)
        await gather(talker.talk() for talker in talkers)
        logs: dict[UUID, list[LogEntry]] = {}
        for follower in followers:
            await follower.compare(checks.followers, logs)
        for task in tasks:
            task.cancel()
    section.total_calls()
    return section


async def _enter_rooms(context: Context, section: Section, checks: Checks) -> list[Talker]:
    ids = await context.create_users("talker", context.user_count)
    # The choices of each user are the same in every run; only how they interleave is not.
    talkers = [Talker(context, section, checks, id, Random(n)) for n, id in enumerate(ids)]  # noqa: S311 - no secret
    busiest = max(context.rooms.values(), key=lambda room: len(room.imported))
    await context.hub.room_users.add_many(busiest.id, ids)
    busiest.join(*ids)
    groups = [talkers, *(talkers[start : start + SMALL_ROOM] for start in range(0, len(talkers), SMALL_ROOM))]
    rooms = [busiest]
    for number, group in enumerate(groups, 1):
        rooms.append(await context.create_room(f"talk {number}", [talker.id for talker in group]))
    for room, group in zip(rooms, [talkers, *groups], strict=True):
        for talker in group:
            talker.rooms.append(room)
            talker.partners += [other.id for other in group if other is not talker]
    return talkers


class Talker:
    """Calls the hub as one user, times each call, and notes what was acknowledged."""

    def __init__(self, context: Context, section: Section, checks: Checks, id: UUID, random: Random) -> None:
        self.id = id
        self.rooms: list[ExpectedRoom] = []
        self.partners: list[UUID] = []
        self._context = context
        self._hub = context.hub
        self._time = section.time
        self._checks = checks
        self._random = random
        self._own: list[Message] = []
        self._read_up_to: dict[UUID, int] = {}

    async def talk(self) -> None:
        for _ in range(VISITS):
            await self._visit(self._random.choice(self.rooms))

    async def _visit(self, room: ExpectedRoom) -> None:
        """Read, write a little, and now and then do something else."""
        await self._list_rooms()
        await self._read_pages(room)
        for _ in range(self._random.choice((0, 1, 2))):
            await self._write(room)
        chance = self._random.random()
        if chance < 0.2 and self._own:
            await self._edit_or_delete()
        elif chance < 0.3:
            await self._leave_and_join(room)
        elif chance < 0.4 and self._own:
            await self._reuse_id()
        elif chance < 0.6:
            await self._write_directly(self._random.choice(self.partners))

    def _sentence(self) -> str:
        return self._random.choice(self._context.sentences)

    async def _list_rooms(self) -> None:
        page = await self._time("room lists read", self._hub.rooms.list_for(self.id, limit=200))
        missing = {room.id for room in self.rooms} - {summary.room.id for summary in page.items}
        self._checks.lists.expect(page.has_more or not missing, f"{len(missing)} rooms of {self.id} are missing")

    async def _read_pages(self, room: ExpectedRoom) -> None:
        """The newest page and some before it; then one around a message of the user's own."""
        page = newest = await self._read(room.id)
        for _ in range(self._random.choice(PAGES_BACK)):
            if page.has_older:
                after, page = page.items[0], await self._read(room.id, before=page.items[0])
                self._checks.pages.expect(page.items[-1].seq < after.seq, f"seq {after.seq} is on two pages")
        if self._own:
            own = self._random.choice(self._own)
            page = await self._read(own.room_id, around=own.id)
            self._checks.pages.expect(
                own.id in {one.id for one in page.items}, f"the page around {own.id} lacks it"
            )
        if newest.items:
            await self._mark_read(newest.items[-1])
            await self._mark_read(newest.items[0])  # as a second device that reports an older position

    async def _read(
        self, room_id: UUID, *, before: Message | None = None, around: UUID | None = None
    ) -> MessagePage:
        reading = self._hub.messages.page(room_id, before=before, around=around, limit=PAGE)
        page = await self._time("pages read", reading)
        seqs = [message.seq for message in page.items]
        self._checks.pages.expect(seqs == sorted(set(seqs)), f"a page of room {room_id} is out of order")
        return page

    async def _mark_read(self, message: Message) -> None:
        marking = self._hub.receipts.mark_read(message.room_id, self.id, up_to=message.seq)
        mark = await self._time("rooms marked as read", marking)
        expected = max(self._read_up_to.get(message.room_id, 0), message.seq)
        self._read_up_to[message.room_id] = expected
        self._checks.marks.expect(mark >= expected, f"{self.id} had read up to {expected}, now up to {mark}")

    async def _write(self, room: ExpectedRoom) -> None:
        """Sometimes the same message is sent twice at once, or again as if the answer was lost."""
        id, content, chance = uuid7(), self._sentence(), self._random.random()
        if chance < 0.1:
            first, again = await gather([self._send(room, id, content), self._send(room, id, content)])
        else:
            first = again = await self._send(room, id, content)
            if chance < 0.2:
                again = await self._send(room, id, content, "messages sent again")
        if chance < 0.2:
            self._checks.retries.expect(first == again, f"message {id} has seq {first.seq} and {again.seq}")
        self._own.append(first)

    async def _send(self, room: ExpectedRoom, id: UUID, content: str, what: str = "messages sent") -> Message:
        message = await self._time(what, self._hub.messages.send(room.id, self.id, content, id=id))
        self._context.expect_message(message)
        return message

    async def _edit_or_delete(self) -> None:
        message = self._own.pop(self._random.randrange(len(self._own)))
        if self._random.random() < 0.4:
            change = self._hub.messages.delete(message.id, by=self.id)
        else:
            change = self._hub.messages.edit(message.id, self._sentence(), by=self.id)
        message = await self._time("messages edited or deleted", change)
        self._context.expect_message(message)
        if message.deleted_at is None:
            self._own.append(message)

    async def _leave_and_join(self, room: ExpectedRoom) -> None:
        await self._time("rooms joined or left", self._hub.room_users.remove(room.id, self.id))
        room.leave(self.id)
        await self._expect_refusal(room, uuid7(), NotAMember)
        await self._time("rooms joined or left", self._hub.room_users.add(room.id, self.id))
        room.join(self.id)

    async def _reuse_id(self) -> None:
        """In another room, where it is no retry."""
        message = self._random.choice(self._own)
        room = self._random.choice([room for room in self.rooms if room.id != message.room_id])
        await self._expect_refusal(room, message.id, Conflict)

    async def _expect_refusal(self, room: ExpectedRoom, id: UUID, error: type[HubbubError]) -> None:
        refused = False
        try:
            await self._hub.messages.send(room.id, self.id, "not to be stored", id=id)
        except error:
            refused = True
        self._checks.refusals.expect(refused, f"message {id} of {self.id} was stored in room {room.id}")

    async def _write_directly(self, partner: UUID) -> None:
        """Both open their room at the same moment; then each writes in it."""
        mine, theirs = await gather([self._open_direct(self.id, partner), self._open_direct(partner, self.id)])
        pair = frozenset((self.id, partner))
        known = self._context.direct_rooms.setdefault(pair, mine.id)
        self._checks.direct_rooms.expect(mine.id == theirs.id == known, f"{self.id} and {partner} have two rooms")
        room = self._context.expect_room(known, mine.name, *pair)
        await self._send(room, uuid7(), self._sentence())
        reply = self._hub.messages.send(room.id, partner, self._sentence())
        self._context.expect_message(await self._time("messages sent", reply))

    async def _open_direct(self, user_id: UUID, partner_id: UUID) -> Room:
        return await self._time("direct rooms opened", self._hub.rooms.direct(user_id, partner_id))


class Follower:
    """Follows the rooms of one user as a client does that disconnects and resumes, and keeps what it received."""

    def __init__(self, hub: Hub, section: Section, user_id: UUID, random: Random) -> None:
        self.is_following = asyncio.Event()
        self._hub = hub
        self._section = section
        self._user_id = user_id
        self._random = random
        self._cursors: dict[UUID, str | None] = {}
        self._after: dict[UUID, int] = {}
        self._received: defaultdict[UUID, list[LogEntry]] = defaultdict(list)

    async def follow(self) -> None:
        """Until cancelled."""
        for summary in (await self._hub.rooms.list_for(self._user_id, limit=ALL_ROOMS)).items:
            newest = summary.last_message
            self._cursors[summary.room.id] = None if newest is None else newest.cursor
            self._after[summary.room.id] = 0 if newest is None else newest.seq
        while True:
            connected_at = datetime.now(UTC)
            async with self._hub.follow(self._user_id, after=self._cursors) as feed:
                self.is_following.set()
                for _ in range(self._random.choice(STAY)):
                    event = await anext(feed)
                    if isinstance(event, RoomGone):  # left while disconnected; the next joining starts it anew
                        for known in (self._cursors, self._after, self._received):
                            known.pop(event.room_id, None)
                    elif isinstance(event, Logged):
                        self._cursors[event.room_id] = event.cursor
                        self._received[event.room_id].append(LogEntry.of(event))
                        if isinstance(event, MessageSent) and event.at > connected_at:
                            seconds = (datetime.now(UTC) - event.at).total_seconds()
                            self._section.record("messages received by followers", seconds)

    async def compare(self, check: Check, logs: dict[UUID, list[LogEntry]]) -> None:
        """Once no call is in flight any more: waits for the newest entries. `logs` keeps what was read."""
        rooms = (await self._hub.rooms.list_for(self._user_id, limit=ALL_ROOMS)).items
        heads = {summary.room.id: summary.room.last_seq for summary in rooms}
        with suppress(TimeoutError):  # missing entries are errors below
            async with asyncio.timeout(WAIT_SECONDS):
                while any(self._seq(room_id) < head for room_id, head in heads.items()):  # noqa: ASYNC110 - simplest
                    await asyncio.sleep(0.01)
        for room_id, head in heads.items():
            log = logs.get(room_id) or logs.setdefault(room_id, await _log(self._hub, room_id))
            received = self._received[room_id]
            after = self._after.get(room_id, received[0].seq - 1 if received else head)
            errors = list(delivery_errors(log, received, after=after, member_id=self._user_id))
            check.expect(not errors, f"room {room_id}: {'; '.join(errors[:3])}")

    def _seq(self, room_id: UUID) -> int:
        received = self._received[room_id]
        return received[-1].seq if received else self._after.get(room_id, 0)


async def _log(hub: Hub, room_id: UUID) -> list[LogEntry]:
    entries: list[LogEntry] = []
    cursor, has_more = None, True
    while has_more:
        page = await hub.messages.since(room_id, cursor, limit=LOG_PAGE)
        entries += [LogEntry.of(event) for event in page.items if not isinstance(event, Resync)]
        cursor, has_more = page.cursor, page.has_more
    return entries
