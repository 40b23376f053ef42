"""The parts of a chat that live in Redis: presence, typing, sessions, published messages, cached pages."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from random import Random
from time import perf_counter
from typing import Final
from uuid import UUID, uuid4

import msgspec

from hubbub.cli.demo.context import WAIT_SECONDS, Context, ExpectedRoom, gather
from hubbub.cli.demo.report import Section
from hubbub.errors import NotAMember
from hubbub.events import PresenceChanged, TypingChanged
from hubbub.models import Message, MessagePage
from hubbub.redis import Gap
from hubbub.services.cache import PAGE_LENGTH
from hubbub.services.realtime import Messages

DEVICES: Final = ("phone", "laptop", "tablet")
LOGINS: Final = 5
CALLERS: Final = 100
LOOKUPS: Final = 40
SUBSCRIBERS: Final = 20
PUBLISHED: Final = 500
ROUNDS: Final = 4
ROOMS: Final = 5
READERS: Final = 20
READS: Final = 10

CHECKS: Final = {
    "presence": "presence changes published once",
    "online": "online users and devices are known",
    "typing": "typing events are published and expire",
    "typists": "typing users are known",
    "logins": "only the right password logs in",
    "sessions": "a token gives the session of its user",
    "ended": "an ended session is never accepted",
    "delivery": "subscribers get each message in order",
    "cached": "cached pages equal stored pages",
}


async def run(context: Context) -> Section:
    """All of it side by side: an expiry takes seconds, in which there is enough else to do."""
    title = f"Presence, typing, sessions: {context.user_count} users on {len(DEVICES)} devices"
    section, user_ids = Section(title, CHECKS), context.users[-context.user_count :]
    context.show(f"{len(user_ids)} users log in, come online and go, and type")
    await gather(
        [
            come_and_go(context, section, user_ids),
            type_in_a_room(context, section),
            _one_after_the_other(context, section, user_ids),
        ]
    )
    return section


async def _one_after_the_other(context: Context, section: Section, user_ids: list[UUID]) -> None:
    """As these are timed."""
    await log_in(context, section)
    await use_sessions(context, section, user_ids)
    await publish(context, section)
    await read_cached_pages(context, section)


Source = AsyncGenerator[PresenceChanged | TypingChanged | Gap, None]
Changes = defaultdict[UUID | None, list[bool]]
"""Of each user, in order: whether they came or started to type (True), or went or stopped. None counts gaps."""


async def wait(changes: Source, received: Changes, user_ids: Iterable[UUID], count: int) -> None:
    """Until so many changes of each of these users have come. Those that do not come fail in `compare`."""
    with suppress(TimeoutError, StopAsyncIteration):  # a generator that timed out has ended
        async with asyncio.timeout(WAIT_SECONDS):
            while any(len(received[user_id]) < count for user_id in user_ids):
                match await anext(changes):
                    case PresenceChanged(user_id=user_id, is_online=began):
                        received[user_id].append(began)
                    case TypingChanged(user_id=user_id, is_typing=began):
                        received[user_id].append(began)
                    case _:
                        received[None].append(False)


def compare(section: Section, check: str, received: Changes, user_ids: Iterable[UUID]) -> None:
    """Each of these users came once and went once, and the subscription had no gap."""
    for user_id in user_ids:
        found = received[user_id]
        section.expect(check, found == [True, False], f"the changes of {user_id} were {found}")
    if gaps := len(received[None]):
        section.expect(check, False, f"the subscription had {gaps} gaps")


async def come_and_go(context: Context, section: Section, user_ids: list[UUID]) -> None:
    """Each user is online on three devices, and on a connection that breaks while they are; then all leave."""
    presence, received = context.hub.presence, Changes(list)

    async def connect(user_id: UUID) -> None:
        async with presence.online(user_id, "a connection that breaks"):
            for device in DEVICES:
                online = presence.online(user_id, device)
                await section.time("devices that came online", connections.enter_async_context(online))

    async with aclosing(presence.watch()) as changes:
        await anext(changes)  # Redis has confirmed: from here on nothing is missed
        async with AsyncExitStack() as connections:
            await gather(connect(user_id) for user_id in user_ids)
            online = await presence.is_online(user_ids)
            for user_id in user_ids:
                names = {device.name for device in await presence.devices(user_id)}
                section.expect("online", online[user_id] is True, f"{user_id} was reported as offline")
                section.expect("online", names == set(DEVICES), f"{user_id} was reported on {names}")
        # A user who is back within the grace time was never away, so nothing is published before it is over.
        await wait(changes, received, user_ids, 2)
        # A second change of a user would have been published, and received, before this one.
        last = uuid4()
        await context.hub.realtime.publish_user_presence(last, False)
        await wait(changes, received, [last], 1)
    compare(section, "presence", received, user_ids)
    online = await presence.is_online(user_ids)
    for user_id in user_ids:
        section.expect("online", online[user_id] is False, f"{user_id} left and was reported as online")


async def type_in_a_room(context: Context, section: Section) -> None:
    """One typist stops, one sends the message, one leaves the room, and the typing of one expires."""
    hub, received = context.hub, Changes(list)
    typists = stops, sends, leaves, expires = await context.create_users("typist", 4)
    room = await context.create_room("typing", typists)

    async def expect_typing(*wanted: UUID) -> None:
        found = set(await hub.typing.who_types(room.id))
        section.expect("typists", found == set(wanted), f"{len(wanted)} users type, {len(found)} were reported")

    async with aclosing(hub.typing.watch(room.id)) as changes:
        await anext(changes)  # Redis has confirmed: from here on nothing is missed
        for _ in range(2):  # the second report of a user extends the first, and is not published
            await gather(section.time("typing reports", hub.typing.start(room.id, id)) for id in typists)
        await expect_typing(*typists)
        await hub.typing.stop(room.id, stops)
        context.expect_message(await hub.messages.send(room.id, sends, "so that is what I was typing"))
        await hub.room_users.remove(room.id, leaves)
        room.leave(leaves)
        refused = False
        try:
            await hub.typing.start(room.id, leaves)
        except NotAMember:
            refused = True
        section.expect("typing", refused, "a user typed in a room that they had left")
        await wait(changes, received, [stops, sends, leaves], 2)
        await expect_typing(expires)
        await wait(changes, received, typists, 2)
        last = uuid4()
        await hub.realtime.publish_typing_indicator(room.id, last, False)
        await wait(changes, received, [last], 1)
    compare(section, "typing", received, typists)
    await expect_typing()


async def log_in(context: Context, section: Section) -> None:
    """One after the other, so that the time is that of a login and not of a queue."""
    for number in range(LOGINS):
        name, password = f"guest-{uuid4().hex}", f"the password of guest {number}"
        email = f"{name}@example.com"
        user = await section.time("accounts with a password", context.hub.register(email, name, password))
        context.users.append(user.id)
        login = name.upper() if number % 2 else email
        known = await section.time("logins", context.hub.authenticate(login, password))
        section.expect("logins", known == user, f"guest {number} was not let in")
        if not number % 2:
            wrong = await context.hub.authenticate(login, f"the password of guest {number + 1}")
            section.expect("logins", wrong is None, f"guest {number} was let in with a wrong password")
    unknown = await context.hub.authenticate(f"unknown-{uuid4().hex}", "the password of no guest")
    section.expect("logins", unknown is None, "a user without an account was let in")


async def use_sessions(context: Context, section: Section, user_ids: list[UUID]) -> None:
    """Many requests at the same time, while every other user logs out everywhere."""
    sessions, time = context.hub.sessions, section.time
    owners: dict[str, UUID] = {}
    ending, ended = set[str](), set[str]()

    async def log_in_on_all(user_id: UUID) -> None:
        for device in DEVICES:
            token = await time("sessions created", sessions.create_session(user_id, {"device": device}))
            owners[token] = user_id

    async def look_up(tokens: list[str]) -> None:
        """A session that ended before is not accepted. One that is being ended may be or not."""
        for token in tokens:
            had_ended = token in ended
            session = await time("session lookups", sessions.get_session(token))
            if had_ended:
                section.expect("ended", session is None, "a session that had ended was accepted")
            elif token not in ending:
                found = None if session is None else session.user_id
                section.expect("sessions", found == owners[token], f"{owners[token]} got the session of {found}")

    async def log_out(user_id: UUID) -> None:
        """One device gets a new token, another is logged out, and then all of the user's are."""
        first, second, *_ = own = [token for token, owner in owners.items() if owner == user_id]
        ending.update(own)
        rotated = await time("tokens rotated", sessions.rotate(first))
        ended.add(first)
        section.expect("sessions", rotated is not None, f"a session of {user_id} got no new token")
        await time("sessions ended", sessions.delete_session(second))
        ended.add(second)
        count = await time("sessions ended", sessions.revoke_all(user_id))
        ended.update(own)
        section.expect("ended", count == len(own) - 1, f"{count} of {len(own) - 1} sessions were ended")
        for token in own if rotated is None else [*own, rotated]:
            session = await sessions.get_session(token)
            section.expect("ended", session is None, f"{user_id} logged out and was accepted")

    await gather(log_in_on_all(user_id) for user_id in user_ids)
    begin = perf_counter()
    requests = [Random(n).choices(list(owners), k=LOOKUPS) for n in range(CALLERS)]
    await gather([*map(look_up, requests), *map(log_out, user_ids[::2])])
    section.total(f"session lookups, {CALLERS} at a time", CALLERS * LOOKUPS, perf_counter() - begin)


async def publish(context: Context, section: Section) -> None:
    """Every subscriber gets every message once, in order."""
    channel = f"demo:{uuid4()}"
    sent_at: list[float] = []

    async def send() -> None:  # one after the other, so that the time is that of a message and not of a queue
        for number in range(PUBLISHED):
            sent_at.append(perf_counter())
            await section.time("messages published", context.hub.realtime.publish(channel, str(number)))

    async def receive(messages: Messages) -> None:
        async with messages:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    for number in range(PUBLISHED):
                        received = await anext(messages)
                        if isinstance(received, str):
                            section.record("published messages received", perf_counter() - sent_at[int(received)])
                        is_due = received == str(number)
                        section.expect("delivery", is_due, f"message {number} was due, {received} came")
            except TimeoutError:
                section.expect("delivery", False, "a message did not arrive")

    subscribers = [await context.hub.realtime.listen(channel) for _ in range(SUBSCRIBERS)]
    await gather([send(), *map(receive, subscribers)])


async def read_cached_pages(context: Context, section: Section) -> None:
    """In some rooms a member writes, then many read the newest page, again and again."""
    cache, hits = context.hub.cache, context.hub.cache.counts.hits

    async def read(room: ExpectedRoom, newest: Message) -> None:
        """A page that is read after a message was acknowledged has it."""
        for _ in range(READS):
            page = await section.time("newest pages read", cache.newest_page(room.id))
            has_newest = f'"{newest.id}"'.encode() in page
            section.expect("cached", has_newest, f"the page of room {room.name!a} lacks the newest message")

    rooms = [room for room in context.rooms.values() if room.members]
    for number in range(ROUNDS):
        for room in sorted(rooms, key=lambda room: -room.entries["message"])[:ROOMS]:
            message = await context.hub.messages.send(room.id, min(room.members), f"round {number + 1}")
            context.expect_message(message)
            await gather(read(room, message) for _ in range(READERS))
            stored = await context.hub.messages.page(room.id, limit=PAGE_LENGTH)
            cached = msgspec.json.decode(await cache.newest_page(room.id), type=MessagePage)
            section.expect("cached", cached == stored, f"the page of room {room.name!a} is not the stored one")
    section.total("newest pages from the cache", cache.counts.hits - hits)
