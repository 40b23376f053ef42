"""Typing indicators: which users are typing in a room.

Rooms are divided into buckets, so that a room and the list of rooms that are due are in one hash slot.

    typing:{b7}:room:<id>   a ZSET of the users typing in the room, scored by when that expires, in ms
    typing:{b7}:due         a ZSET of the rooms with a user typing, scored by when the first of them expires
    typing:user:<id>        a SET of rooms where the user may be typing. A hint for `stop_everywhere`, which stops
                            only what goes on. It is not changed in one step with the rest

Each user in the ZSET of a room was published as typing, and not yet as having stopped:

    (absent) --start: published--> typing --stop, leave, send, disconnect, expiry: published--> (absent)
                                    |  ^
                                    +--+ start again: only the expiry moves
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from math import inf
from typing import ClassVar, Final, TypeVar
from uuid import UUID

from hubbub import inputs
from hubbub.background import BackgroundTask, ReportErrors, jittered
from hubbub.commits import Commits, MembershipEnded, MessagesSent
from hubbub.errors import Invalid, NotAMember, Unavailable
from hubbub.events import TypingChanged, typing_channel
from hubbub.redis import NOW, Connection, Gap, ReplyError, Script, Subscriptions
from hubbub.redis.commands import results
from hubbub.redis.expiring_sets import (
    BUCKETS,
    IDLE_SWEEP_SECONDS,
    Due,
    bucket_of,
    by_bucket,
    find_due,
    is_any_left,
    log_refusal,
)
from hubbub.redis.replies import as_bool, as_ids, as_int, as_list
from hubbub.renamed import Renamed
from hubbub.scheduling import take

logger = logging.getLogger("hubbub.typing")

T = TypeVar("T")

KEEP_MS: Final = 3600 * 1000
"""How long the keys last when no process is left to publish what has expired."""

ROOMS_PER_SCRIPT: Final = 100
"""Bounds one script of `Expiry`, during which Redis serves no other client."""

MAX_QUEUED: Final = 10_000
"""Bounds the stops in a `StopQueue`, and the users who stop everywhere. Further ones are dropped, and expire."""

STOPS_PER_BATCH: Final = 1_000
"""Bounds what one batch of a `StopQueue` writes to Redis at once."""

BATCH_PAUSE_SECONDS: Final = 0.02
"""The pause after a batch of stops, too short for a user to notice. Further stops join the next batch."""

Stop = tuple[UUID, UUID]
"""A room, and the user who stops typing in it."""


def due_key(bucket: int) -> str:
    return f"typing:{{b{bucket}}}:due"


def room_key(room_id: UUID) -> str:
    return _room_key(bucket_of(room_id), str(room_id))


def hint_key(user_id: UUID) -> str:
    return f"typing:user:{user_id}"


def _room_key(bucket: int, room: str) -> str:
    return f"typing:{{b{bucket}}}:room:{room}"


_PUBLISH_AND_SCHEDULE: Final = """
    local function publish(room_id, user, is_typing)
        local channel = redis_prefix .. 'typing:' .. room_id
        redis.call('PUBLISH', channel, '{"userId":"' .. user .. '","isTyping":' .. is_typing .. '}')
    end
    local function schedule(room, room_id)
        local first = redis.call('ZRANGE', room, 0, 0, 'WITHSCORES')[2]
        if first then
            redis.call('ZADD', due, first, room_id)
        else
            redis.call('ZREM', due, room_id)
        end
    end
"""

_START = Script(
    keys=("due", "room"),
    args=("room_id", "user", "ttl_ms", "keep_ms"),
    source=NOW
    + _PUBLISH_AND_SCHEDULE
    + """
    local is_new = redis.call('ZADD', room, now + ttl_ms, user) == 1
    if is_new then publish(room_id, user, 'true') end
    schedule(room, room_id)
    redis.call('PEXPIRE', room, keep_ms)
    redis.call('PEXPIRE', due, keep_ms)
    return is_new
    """,
    reply=as_bool,
)
"""Start or continue. True when the user was not typing before."""

_STOP = Script(
    keys=("due", "*rooms"),
    args=("*room_ids_and_users",),
    source=_PUBLISH_AND_SCHEDULE
    + """
    local stopped = 0
    for i = 2, #KEYS do
        local room = KEYS[i]
        local room_id, user = ARGV[2 * i - 3], ARGV[2 * i - 2]
        if redis.call('ZREM', room, user) == 1 then
            publish(room_id, user, 'false')
            schedule(room, room_id)
            stopped = stopped + 1
        end
    end
    return stopped
    """,
    reply=as_int,
)
"""Stop in some rooms: a key and two arguments per stop. Returns how many of the users were typing."""

_EXPIRE = Script(
    keys=("due", "*rooms"),
    args=("ttl_ms", "*room_ids"),
    source=NOW
    + _PUBLISH_AND_SCHEDULE
    + """
    for i = 2, #KEYS do
        local room, room_id = KEYS[i], ARGV[i]
        for _, over in ipairs({{'-inf', now}, {'(' .. (now + ttl_ms), '+inf'}}) do
            for _, user in ipairs(redis.call('ZRANGEBYSCORE', room, over[1], over[2])) do
                redis.call('ZREM', room, user)
                publish(room_id, user, 'false')
            end
        end
        schedule(room, room_id)
    end
    return #KEYS - 1
    """,
    reply=as_int,
)
"""Stop the users in these rooms whose time is over, or is longer than that of a start now: they started before the
clock of Redis went back."""

_TYPING_USERS = Script(
    keys=("room",),
    source=NOW + "return redis.call('ZRANGEBYSCORE', room, '(' .. now, '+inf')",
    reply=as_ids,
    writes=False,
)
"""The users who are typing in a room, without those whose time is over."""


class TypingIndicators(Renamed):
    """A member who starts typing in a room is typing until they stop, or until `start` was not repeated in time.

    Each start and each stop is published once, on the channel `typing:{room_id}`, in the step in which Redis
    stores it. A repeated start publishes nothing. When the time runs out, any process publishes the stop, up to a
    second late.
    """

    _FORMER_NAMES: ClassVar = {"who_types": "typing_users"}

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        is_member: Callable[[UUID, UUID], Awaitable[bool]],
        *,
        ttl_seconds: float = 6,
        expiry_seconds: float = 1,
    ) -> None:
        """`is_member(room_id, user_id)` decides who may type in a room. `expiry_seconds` is the time between two
        searches for expired typing."""
        if min(ttl_seconds, expiry_seconds) <= 0:
            raise Invalid("ttl_seconds, expiry_seconds", "must be above zero")
        self._connection = connection
        self._subscriptions = subscriptions
        self._is_member = is_member
        self._ttl_ms = round(ttl_seconds * 1000)
        self._expiry = Expiry(connection, ttl_ms=self._ttl_ms, every_seconds=expiry_seconds)
        self._stops = StopQueue(connection)

    def _register(self, commits: Commits) -> None:
        """From now on, stop the typing of the author of a message and of a member who left."""
        commits.on(MessagesSent, self._stop_authors)
        commits.on(MembershipEnded, lambda change: self.stop_soon(change.room_id, change.user_id))

    def _stop_authors(self, change: MessagesSent) -> None:
        for message in change.messages:
            if message.user_id is not None:
                self.stop_soon(message.room_id, message.user_id)

    def _start(self) -> None:
        """Begin to search for expired typing and to send queued stops. A second start does nothing."""
        self._expiry.task.start()
        self._stops.task.start()

    async def _close(self) -> None:
        """Send the queued stops and end the tasks. Other processes let typing expire that goes on. Idempotent."""
        await self._expiry.task.close()
        await self._stops.task.close()

    async def start(self, room_id: UUID, user_id: UUID) -> bool:
        """The user is typing: call it every few seconds while it goes on. True when a start was published.

        Raises: NotAMember.
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        if not await self._is_member(room_id, user_id):
            raise NotAMember(room_id, user_id)
        hint, keys = hint_key(user_id), (due_key(bucket_of(room_id)), room_key(room_id))
        args = (str(room_id), str(user_id), self._ttl_ms, KEEP_MS)
        _, is_new = await asyncio.gather(
            self._connection.execute_many([("SADD", hint, str(room_id)), ("PEXPIRE", hint, 2 * self._ttl_ms)]),
            _START(self._connection, keys=keys, args=args),
        )
        # Leaving stops typing. If the user left since the first check, that stop may have come before this start.
        if is_new and not await self._is_member(room_id, user_id):
            await self.stop(room_id, user_id)
            raise NotAMember(room_id, user_id)
        return is_new

    async def stop(self, room_id: UUID, user_id: UUID) -> bool:
        """The user is no longer typing in the room. True when a stop was published."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        return await _stop(self._connection, [(room_id, user_id)]) == 1

    def stop_soon(self, room_id: UUID, user_id: UUID) -> None:
        """Queue a `stop`, to be sent together with others. Use it after a message was sent or a member left.

        It neither waits nor raises `Unavailable`. While Redis is down, stops are dropped and typing expires.
        """
        self._stops.add(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))

    async def stop_everywhere(self, user_id: UUID) -> int:
        """The user is no longer typing in any room. Returns the number of rooms in which a stop was published."""
        rooms = await _rooms_of(self._connection, [inputs.uuid("user_id", user_id)])
        return await _stop(self._connection, rooms)

    def stop_everywhere_soon(self, user_id: UUID) -> None:
        """Queue a `stop_everywhere`, as `stop_soon` does. Use it after a user has disconnected."""
        self._stops.add_everywhere(inputs.uuid("user_id", user_id))

    async def typing_users(self, room_id: UUID) -> list[UUID]:
        """The users who are typing in the room now."""
        return await _TYPING_USERS(self._connection, keys=(room_key(inputs.uuid("room_id", room_id)),))

    async def watch(self, room_id: UUID, *, buffer: int = 1_000) -> AsyncGenerator[TypingChanged | Gap, None]:
        """Starts and stops in the room as they happen, for as long as the iteration lasts.

        The first item is a `Gap`, as soon as Redis has confirmed the subscription. Another `Gap` stands wherever
        events may be missing: call `typing_users` then. The caller decides who may watch.
        """
        room_id = inputs.uuid("room_id", room_id)
        buffer = inputs.limit(buffer, longest=100_000, field="buffer")
        async with self._subscriptions.subscribe_soon(typing_channel(room_id), buffer=buffer) as payloads:
            async for payload in payloads:
                change = payload if isinstance(payload, Gap) else TypingChanged.from_json(room_id, payload)
                if change is not None:
                    yield change


class Expiry:
    """Publishes one stop for each user whose time is over, no matter which process published the start.

    While no user is typing, it looks less often, but as often as typing that starts now may be over.
    """

    def __init__(self, connection: Connection, *, ttl_ms: int, every_seconds: float) -> None:
        self._connection = connection
        self._ttl_ms = ttl_ms
        self._every_seconds = every_seconds
        self.task = BackgroundTask("expiring typing", self._expire_all)

    async def _expire_all(self) -> float:
        keys = [due_key(bucket) for bucket in range(BUCKETS)]
        found = await find_due(self._connection, keys, at_most=ROOMS_PER_SCRIPT, longest_ms=self._ttl_ms)
        for bucket, due in enumerate(found):
            with ReportErrors("expiring typing"):
                await self._expire(bucket, due)
        if not is_any_left(found):
            return max(self._every_seconds, min(self._ttl_ms / 1000, IDLE_SWEEP_SECONDS))
        return jittered(self._every_seconds)

    async def _expire(self, bucket: int, found: Due | ReplyError | Unavailable) -> None:
        if isinstance(found, Exception):
            log_refusal(logger, found)
        elif found.members:
            rooms = found.members
            keys = (due_key(bucket), *[_room_key(bucket, room.decode(errors="replace")) for room in rooms])
            try:
                await _EXPIRE(self._connection, keys=keys, args=(self._ttl_ms, *rooms))
            except (Unavailable, ReplyError) as error:
                log_refusal(logger, error)  # the next round finds the same rooms


class StopQueue:
    """Sends stops to Redis in batches. A batch that fails is dropped, and that typing expires.

    There is a stop per message, and hardly ever a user who is typing. So each batch first asks Redis which of the
    rooms have a user typing: one argument per room, and one write for all.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stops: dict[Stop, None] = {}
        self._disconnected: dict[UUID, None] = {}
        self.task = BackgroundTask("stopping typing", self._send_and_pause, finish=self._send_all)

    def add(self, room_id: UUID, user_id: UUID) -> None:
        if len(self._stops) < MAX_QUEUED:
            self._stops[room_id, user_id] = None
            self.task.wake()

    def add_everywhere(self, user_id: UUID) -> None:
        if len(self._disconnected) < MAX_QUEUED:
            self._disconnected[user_id] = None
            self.task.wake()

    async def _send_and_pause(self) -> float:
        await self._send_all()
        await asyncio.sleep(BATCH_PAUSE_SECONDS)
        return inf

    async def _send_all(self) -> None:
        while (self._stops or self._disconnected) and self._connection.connected:
            with ReportErrors("stopping typing"):
                await self._send(take(self._stops, STOPS_PER_BATCH), take(self._disconnected, STOPS_PER_BATCH))
        self._stops.clear()
        self._disconnected.clear()

    async def _send(self, stops: list[Stop], disconnected: list[UUID]) -> None:
        try:
            stops += await _rooms_of(self._connection, disconnected)
            disconnected = []
            rooms = await self._rooms_with_typing({room_id for room_id, _ in stops})
            await _stop(self._connection, [stop for stop in stops if stop[0] in rooms])
        except asyncio.CancelledError:
            self._stops |= dict.fromkeys(stops)  # for the last batches, which `close` sends
            self._disconnected |= dict.fromkeys(disconnected)
            raise
        except (Unavailable, ReplyError) as error:
            log_refusal(logger, error)

    async def _rooms_with_typing(self, rooms: set[UUID]) -> set[UUID]:
        buckets = by_bucket(rooms, lambda room_id: room_id)
        queries = [("ZMSCORE", due_key(bucket), *map(str, asked)) for bucket, asked in buckets.items()]
        found = set()
        replies = results(await self._connection.execute_many(queries, writes=False))
        for asked, reply in zip(buckets.values(), replies, strict=True):
            scores = zip(asked, as_list(reply), strict=True)
            found |= {room_id for room_id, score in scores if score is not None}
        return found


async def _stop(connection: Connection, stops: list[Stop]) -> int:
    scripts = []
    for bucket, some in by_bucket(stops, lambda stop: stop[0]).items():
        keys = (due_key(bucket), *[room_key(room_id) for room_id, _ in some])
        scripts.append(_STOP(connection, keys=keys, args=[str(id) for stop in some for id in stop]))
    return sum(await asyncio.gather(*scripts))


async def _rooms_of(connection: Connection, users: list[UUID]) -> list[Stop]:
    """The rooms where these users may be typing."""
    queries = [("SMEMBERS", hint_key(user_id)) for user_id in users]
    replies = results(await connection.execute_many(queries, writes=False))
    return [(room, user_id) for user_id, reply in zip(users, replies, strict=True) for room in as_ids(reply)]
