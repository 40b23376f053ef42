"""Users who send, read, edit, delete, join and leave, all at the same time, while others follow them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from random import Random
from time import perf_counter
from typing import Final
from uuid import UUID, uuid4

import msgspec
from uuid_utils.compat import uuid7

from hubbub.cli.demo.expected import LOG, Context, ExpectedRoom
from hubbub.cli.demo.report import Section
from hubbub.errors import Conflict, NotAMember
from hubbub.events import LoggedEvent, MessageSent, PresenceChanged, RoomGone, TypingChanged
from hubbub.hub import Hub
from hubbub.models import Message, MessagePage
from hubbub.redis import Gap
from hubbub.scheduling import gather_or_cancel, task_group
from hubbub.services.cache import PAGE_LENGTH
from hubbub.testing import LogEntry, delivery_errors

WAIT_SECONDS: Final = 30
"""For an event. Far more than any needs: one that has not come by then is lost."""

VISITS: Final = 12
"""Visits of each user to a room. With 40 users they take about 2 s on two cores."""

DEVICES: Final = ("phone", "laptop", "tablet")
USERS_PER_FOLLOWER: Final = 4
"""Followers are in this process too. With one per user the process would be what is measured."""

STAY: Final = range(10, 200)
"""Events after which a follower disconnects, and resumes from its cursors."""

PAGES_BACK: Final = (0, 0, 0, 0, 10)
"""The number of pages that a user reads back in a long log. The checks at the end read all of it."""

SENDS_OF_A_MESSAGE: Final = (*[(1,)] * 8, (2,), (1, 1))
"""How often a message is sent: mostly once, sometimes twice at once, or again as if the answer was lost."""

SENTENCES: Final = ("hello", "مرحبا", "any news?", "works here 👩🏽‍🚀", "naïve question: é or é?", "two\nlines")

PAGES: Final = "pages stay in order during writes"
REFUSALS: Final = "non-members and reused ids refused"
SESSIONS: Final = "a token is valid until its session ends"
PRESENCE: Final = "presence is known and published once"
TYPING: Final = "typing is known, published, and expires"


async def run(context: Context) -> Section:
    """The users talk in the busiest room of the log, in small ones and in direct ones."""
    hub, count = context.hub, context.user_count
    section = Section(f"Chat: {count} users at the same time, on {len(DEVICES)} devices each")
    context.show(f"{count} users log in, talk, type, come online and go")
    ids = await context.create_users("talker", count)
    busiest = max(context.rooms.values(), key=lambda room: len(room.imported))
    await hub.room_users.add_many(busiest.id, ids)
    busiest.join(*ids)
    talkers: list[Talker] = []
    for start in range(0, count, 8):
        group = ids[start : start + 8]
        rooms = [busiest, await context.create_room(f"talk from {start}", group)]
        # The choices of each user are the same in every run; only how they interleave is not.
        talkers += [Talker(context, section, ids, id, rooms, Random(start + n)) for n, id in enumerate(group)]

    # The followers have a hub of their own, as in another process.
    async with Hub(context.settings) as other_hub, task_group() as tasks:
        followers = [
            FollowingClient(other_hub, section, id, Random(n)) for n, id in enumerate(ids[::USERS_PER_FOLLOWER])
        ]
        following = [tasks.create_task(follower.follow()) for follower in followers]
        await gather_or_cancel(follower.is_following.wait() for follower in followers)
        watch = hub.presence.watch(), hub.realtime.publish_user_presence
        # Typing lasts seconds, and the talk is the whole load: only the end of the typing is beside it.
        async with expect_changes(section, PRESENCE, *watch, ids), type_in_a_room(context, section):
            begin = perf_counter()
            await gather_or_cancel(talker.talk() for talker in talkers)
            section.total("calls", section.calls, perf_counter() - begin)
            await log_in(context, section)
            await publish(context, section)
            await read_cached_pages(context, section)
        await until(lambda: all(follower.has_all(context.rooms) for follower in followers))
        for task in following:
            task.cancel()
    section.expect(PRESENCE, "users online", await hub.presence.is_online(ids), dict.fromkeys(ids, False))
    for room_id in context.rooms:
        log = await context.pool.fetch_all(LOG, room_id)
        for follower in followers:
            if received := follower.received.get(room_id):
                errors = delivery_errors(log, received, after=received[0].seq - 1, member_id=follower.user_id)
                section.expect("every event received once, in order", f"errors in {room_id}", list(errors), [])
    return section


@dataclass(slots=True)
class Talker:
    """Calls the hub as one user, times each call, and notes what was acknowledged."""

    context: Context
    section: Section
    all_ids: list[UUID]
    id: UUID
    rooms: list[ExpectedRoom]
    random: Random
    own: list[Message] = field(default_factory=list)

    async def talk(self) -> None:
        """The user comes online and logs in on each device, visits rooms, and logs out everywhere."""
        hub, time, expect = self.context.hub, self.section.time, self.section.expect
        async with AsyncExitStack() as connections:
            tokens = []
            async with hub.presence.online(self.id, "a connection that breaks"):
                for device in DEVICES:
                    connecting = connections.enter_async_context(hub.presence.online(self.id, device))
                    await time("devices that came online", connecting)
                    login = hub.sessions.create_session(self.id, {"device": device})
                    tokens.append(await time("sessions created", login))
            expect(PRESENCE, "a user online", await hub.presence.is_online([self.id]), {self.id: True})
            found = {device.name for device in await hub.presence.devices(self.id)}
            expect(PRESENCE, f"devices of {self.id}", found, set(DEVICES))
            for _ in range(VISITS):
                session = await time("session lookups", hub.sessions.get_session(self.random.choice(tokens)))
                expect(SESSIONS, "user of a token", session and session.user_id, self.id)
                await self._visit(self.random.choice(self.rooms))
            await self._log_out(*tokens)

    async def _log_out(self, first: str, second: str, third: str) -> None:
        """One device gets a new token, another is logged out, and then all of the user's are."""
        sessions, time, expect = self.context.hub.sessions, self.section.time, self.section.expect
        new = await time("tokens rotated", sessions.rotate(first)) or ""
        await time("sessions ended", sessions.delete_session(second))
        expect(SESSIONS, "sessions left", await time("sessions ended", sessions.revoke_all(self.id)), 2)
        for token in (first, second, third, new):
            expect(SESSIONS, "session that had ended", await sessions.get_session(token), None)

    async def _visit(self, room: ExpectedRoom) -> None:
        """Read, write a little, and now and then do something else."""
        await self._read(room.id)
        for _ in range(self.random.choice((0, 1, 2))):
            id, content, sent = uuid7(), self.random.choice(SENTENCES), list[Message]()
            for at_once in self.random.choice(SENDS_OF_A_MESSAGE):
                sent += await gather_or_cancel(self._send(room.id, self.id, content, id) for _ in range(at_once))
            if len(sent) > 1:
                self.section.expect("a retry returns the same message", "results", sent, sent[:1] * len(sent))
            self.own.append(sent[0])
        chance = self.random.random()
        if chance < 0.2 and self.own:
            await self._edit_or_delete()
        elif chance < 0.4:
            await self._leave_and_return(room)
        elif chance < 0.6:
            await self._write_directly(self.random.choice([id for id in self.all_ids if id != self.id]))

    async def _read(self, room_id: UUID) -> None:
        """The list of rooms, the newest page and some before it; then one around a message of the user's own."""
        hub, time, expect = self.context.hub, self.section.time, self.section.expect
        listed = await time("room lists read", hub.rooms.list_for(self.id, limit=1_000))
        missing = {room.id for room in self.rooms} - {summary.room.id for summary in listed.items}
        expect("room lists are complete", f"rooms that the list of {self.id} lacks", missing, set())
        page = await time("pages read", hub.messages.page(room_id))
        messages = page.items
        # The second one is that of another device, which reports an older position.
        for message in (messages[-1], messages[0]) if messages else ():
            mark = await time("rooms marked as read", hub.receipts.mark_read(room_id, self.id, up_to=message.seq))
            newest = messages[-1].seq
            expect("read positions never move back", f"mark {mark} is not before {newest}", mark >= newest)
        for _ in range(self.random.choice(PAGES_BACK)):
            if page.has_older:
                page = await time("pages read", hub.messages.page(room_id, before=messages[0]))
                messages = page.items + messages
        seqs = [message.seq for message in messages]
        expect(PAGES, f"seqs on the pages of room {room_id}", seqs, sorted(set(seqs)))
        for own in self.random.sample(self.own, min(1, len(self.own))):
            page = await time("pages read", hub.messages.page(own.room_id, around=own.id))
            expect(PAGES, f"{own.id} on the page around it", own.id in {message.id for message in page.items})

    async def _send(self, room_id: UUID, author: UUID, content: str, id: UUID) -> Message:
        sending = self.context.hub.messages.send(room_id, author, content, id=id)
        return self.context.expect_message(await self.section.time("messages sent", sending))

    async def _edit_or_delete(self) -> None:
        messages, time = self.context.hub.messages, self.section.time
        old = self.own.pop(self.random.randrange(len(self.own)))
        if self.random.random() < 0.4:
            self.context.expect_message(await time("messages deleted", messages.delete(old.id, by=self.id)))
        else:
            editing = messages.edit(old.id, self.random.choice(SENTENCES), by=self.id)
            self.own.append(self.context.expect_message(await time("messages edited", editing)))

    async def _leave_and_return(self, room: ExpectedRoom) -> None:
        """Refused are a message while the user is away, and one with the id of a message in another room."""
        hub, time, refuse = self.context.hub, self.section.time, self.section.expect_refusal
        await time("rooms joined or left", hub.room_users.remove(room.id, self.id, force=True))
        room.leave(self.id)
        await refuse(REFUSALS, hub.messages.send(room.id, self.id, "not to be stored"), NotAMember)
        await time("rooms joined or left", hub.room_users.add(room.id, self.id))
        room.join(self.id)
        for other in [message for message in self.own if message.room_id != room.id][:1]:
            await refuse(REFUSALS, hub.messages.send(room.id, self.id, "not to be stored", id=other.id), Conflict)

    async def _write_directly(self, partner: UUID) -> None:
        """Both open their room at the same moment; then each writes in it."""
        direct, time, pair = self.context.hub.rooms.direct, self.section.time, (self.id, partner)
        opened = await gather_or_cancel(time("direct rooms opened", direct(*one)) for one in (pair, pair[::-1]))
        rooms = {room.id for room in opened}
        id = self.context.direct_rooms.setdefault(frozenset(pair), min(rooms))
        self.section.expect("one direct room per pair of users", f"rooms of {pair}", rooms, {id})
        self.context.expect_room(id, *pair)
        for author in pair:
            await self._send(id, author, self.random.choice(SENTENCES), uuid7())


@dataclass(slots=True)
class FollowingClient:
    """Follows the rooms of one user, as a client that disconnects and resumes, and keeps what it received."""

    hub: Hub
    section: Section
    user_id: UUID
    random: Random
    is_following: asyncio.Event = field(default_factory=asyncio.Event)
    received: defaultdict[UUID, list[LogEntry]] = field(default_factory=lambda: defaultdict(list))

    async def follow(self) -> None:
        rooms = (await self.hub.rooms.list_for(self.user_id, limit=1_000)).items
        cursors = {one.room.id: one.last_message.cursor if one.last_message else None for one in rooms}
        while True:
            connected_at = datetime.now(UTC)
            async with self.hub.follow(self.user_id, after=cursors) as feed:
                self.is_following.set()
                for _ in range(self.random.choice(STAY)):
                    event = await anext(feed)
                    if isinstance(event, RoomGone):  # left while disconnected; the next joining starts it fresh
                        del cursors[event.room_id]
                        self.received.pop(event.room_id, None)
                    elif isinstance(event, LoggedEvent):
                        cursors[event.room_id] = event.cursor
                        self.received[event.room_id].append(LogEntry.of(event))
                        if isinstance(event, MessageSent) and event.at > connected_at:
                            seconds = (datetime.now(UTC) - event.at).total_seconds()
                            self.section.record("messages received by followers", seconds)

    def has_all(self, rooms: dict[UUID, ExpectedRoom]) -> bool:
        """Whether the newest entry of each of its rooms was received."""
        return all(log[-1].seq >= rooms[id].entries.total() for id, log in self.received.items())


@asynccontextmanager
async def expect_changes(
    section: Section,
    check: str,
    source: AsyncGenerator[PresenceChanged | TypingChanged | Gap, None],
    publish: Callable[[UUID, bool], Awaitable[None]],
    user_ids: Sequence[UUID],
) -> AsyncIterator[defaultdict[UUID | None, list[bool]]]:
    """In the block each of the users begins once and ends, or will end by itself. Each is published once."""
    # Of each user, in order: they came or started to type (True), or went or stopped. None has the gaps.
    changes = defaultdict[UUID | None, list[bool]](list)

    async def collect() -> None:
        async for change in source:
            began = getattr(change, "is_online", getattr(change, "is_typing", True))
            changes[getattr(change, "user_id", None)].append(began)

    async with task_group() as tasks:
        collecting = tasks.create_task(collect())
        await until(lambda: None in changes)  # Redis has confirmed: from here on nothing is missed
        yield changes
        await until(lambda: all(len(changes[id]) >= 2 for id in user_ids))
        # A second change of a user would have been published, and received, before this one.
        last = uuid4()
        await publish(last, False)
        await until(lambda: last in changes)
        collecting.cancel()
    for id in user_ids:
        section.expect(check, f"changes of {id}", changes[id], [True, False])
    section.expect(check, "gaps of the subscription", changes[None], [True])


@asynccontextmanager
async def type_in_a_room(context: Context, section: Section) -> AsyncIterator[None]:
    """One typist stops, one sends the message, one leaves the room. The typing of one expires during the block."""
    hub = context.hub
    typists = stops, sends, leaves, expires = await context.create_users("typist", 4)
    room = await context.create_room("typing", typists)
    publish = partial(hub.realtime.publish_typing_indicator, room.id)

    async def expect_typing(*wanted: UUID) -> None:
        section.expect(TYPING, "users who type", set(await hub.typing.typing_users(room.id)), set(wanted))

    async with expect_changes(section, TYPING, hub.typing.watch(room.id), publish, typists) as changes:
        for _ in range(2):  # the second report of a user extends the first, and is not published
            # `expires` first: a typist whom nothing stops then outlasts it, and is found.
            for group in ((expires,), (stops, sends, leaves)):
                await gather_or_cancel(
                    section.time("typing reports", hub.typing.start(room.id, id)) for id in group
                )
        await expect_typing(*typists)
        await hub.typing.stop(room.id, stops)
        context.expect_message(await hub.messages.send(room.id, sends, "so that is what I was typing"))
        await hub.room_users.remove(room.id, leaves, force=True)
        room.leave(leaves)
        await section.expect_refusal(TYPING, hub.typing.start(room.id, leaves), NotAMember)
        await until(lambda: all(len(changes[id]) >= 2 for id in (stops, sends, leaves)))
        await expect_typing(expires)
        yield
    await expect_typing()


async def log_in(context: Context, section: Section) -> None:
    """One after the other, so that the time is that of a login and not of a queue."""
    for number in range(3):
        name, password = f"guest-{uuid4().hex}", f"the password of guest {number}"
        registering = context.hub.register(f"{name}@example.com", name, password)
        user = await section.time("accounts with a password", registering)
        context.users.append(user.id)
        for login, guess, wanted in (
            (f"{name}@example.com", password, user),
            (name.upper(), password, user),
            (name, f"the password of guest {number + 1}", None),
            (f"not-{name}", password, None),
        ):
            found = await section.time("logins", context.hub.authenticate(login, guess))
            section.expect("only the right password logs in", f"user of {login} with {guess!r}", found, wanted)


async def publish(context: Context, section: Section) -> None:
    """Every subscriber gets every message once, in order."""
    realtime, channel = context.hub.realtime, f"demo:{uuid4()}"
    messages = [str(number) for number in range(500)]
    received: list[list[str]] = [[] for _ in range(20)]
    subscriptions = [await realtime.subscribe_to_channel(channel, one.append) for one in received]
    for message in messages:
        await section.time("messages published", realtime.publish(channel, message))
    await until(lambda: all(messages[-1] in one for one in received))
    for one, subscription in zip(received, subscriptions, strict=True):
        section.expect("subscribers get each message in order", "messages", one, messages)
        subscription.unsubscribe()


async def read_cached_pages(context: Context, section: Section) -> None:
    """In some rooms a member writes, then many read the newest page, which has the message."""
    cache, hits = context.hub.cache, context.hub.cache.counts.hits

    async def read(room: ExpectedRoom) -> set[bytes]:
        return {await section.time("newest pages read", cache.newest_page(room.id)) for _ in range(10)}

    rooms = [room for room in context.rooms.values() if room.members]
    for room in sorted(rooms, key=lambda room: -room.entries["sent"])[:5] * 4:
        context.expect_message(await context.hub.messages.send(room.id, min(room.members), "who reads this?"))
        pages = await gather_or_cancel(read(room) for _ in range(20))
        stored = await context.hub.messages.page(room.id, limit=PAGE_LENGTH)
        for page in set().union(*pages):
            cached = msgspec.json.decode(page, type=MessagePage)
            section.expect("cached pages equal stored pages", "the newest page", cached, stored)
    section.total("newest pages from the cache", cache.counts.hits - hits)


async def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds, or after WAIT_SECONDS: then a check fails for what is missing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():  # noqa: ASYNC110 - several tasks bring it about
                await asyncio.sleep(0.01)
