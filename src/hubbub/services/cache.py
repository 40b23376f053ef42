"""The cache: frequent reads, stored in Redis until a change invalidates them.

    cache:5:user:<id>   the JSON of a user, or the lease of a process that is reading it from PostgreSQL
    cache:5:page:<id>   the JSON of the newest messages of a room, or such a lease

The states of an entry. Each step is one script or command of Redis:

    (absent) --a reader finds nothing--> lease --the reader has read PostgreSQL--> value
        ^                                  |                                         |
        +----------------------------------+--- a change, or its time to live ends --+

A reader replaces only its own lease. A change deletes the entry after its COMMIT. So a value that was read before
a change is never stored after it, because its lease is gone, or another reader has taken one since the change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final, Generic, TypeVar
from uuid import UUID, uuid4

import msgspec

from hubbub import inputs
from hubbub.background import jittered
from hubbub.commits import Commits, MessagesSent, RoomRewound, RoomTouched, UserChanged
from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.models import Room, RoomUser, User
from hubbub.redis import Connection, ReplyError, ReplyOrError, Script
from hubbub.redis.replies import as_bool, as_optional_bytes
from hubbub.repositories import Messages, Rooms, RoomUsers, Users
from hubbub.scheduling import EarliestTimer, OncePerTurn, take

T = TypeVar("T")

LAYOUT: Final = 5
"""Of the values in Redis. A change of `User`, `Message` or `MessagePage` takes the next number, so that no release
reads what another release wrote."""

TTL_SECONDS: Final = 60.0
"""Bounds the age of an entry whose deletion was lost."""

JITTER: Final = 0.2
"""Spreads the ends of entries that were stored together over 20 % of the time to live, either way."""

ENTRY_LEASE_SECONDS: Final = 3.0
"""Bounds how long an entry is not cached after the death of the process that was reading it."""

PAGE_LENGTH: Final = 50
"""The default `limit` of `messages.page`. Pages of other lengths are read from PostgreSQL."""

CACHE_DEADLINE_SECONDS: Final = 0.1
"""How long a read waits for Redis before it goes to PostgreSQL. A reply takes a hundredth of it."""

BACKOFF_SECONDS: Final = 1.0
"""How long Redis is not asked after it failed or was too slow. Else each read would wait for the deadline."""

DELETION_DEADLINE_SECONDS: Final = 1.0
"""How long a batch of deletions waits for Redis."""

DELETION_RETRY_SECONDS: Final = 0.25
"""The pause after a deletion that failed, so that a Redis that is down costs four attempts a second."""

DELETIONS_PER_BATCH: Final = 1_000
"""Bounds the step in which their replies are read: some milliseconds."""

MAX_OUT_OF_DATE: Final = 50_000
"""Bounds the keys that wait until Redis is back: about 10 MB."""

LEASE_MARK: Final = b"?"
"""The first byte of a lease. Values are JSON objects and begin otherwise."""


@dataclass(slots=True)
class Counts:
    """Since this process started.

    `hits`: read from Redis. `misses`: read from PostgreSQL and stored in Redis, unless a change came in between.
    Those are also counted as `overtaken`. `bypasses`: read from PostgreSQL without asking Redis or storing.
    `failed_invalidations`: batches of deletions that failed and are repeated.
    """

    hits: int = 0
    misses: int = 0
    overtaken: int = 0
    bypasses: int = 0
    failed_invalidations: int = 0


class Cache:
    """Frequent reads: users and newest pages from Redis, rooms and memberships from PostgreSQL.

    **Permissions are never out of date.** Membership, role and privacy of a room are read from PostgreSQL each
    time, together with all other calls of that moment. So leaving a room takes effect in every process with the
    next call, also while Redis is down. The row of a room is not cached either, because it changes with each
    message (`last_seq`).

    **The age of an entry is bounded.** In the process that made a change, a call that starts after the change was
    acknowledged returns the new value. In any other process, so does a call that starts after Redis has deleted
    the entry, which is one round trip after the COMMIT. If the deletion is lost for good, the entry ends with its
    time to live: after `ttl_seconds` plus 20 %, 72 s by default, and the 3 s of the lease of a read in progress.
    That happens when the process dies between COMMIT and DEL, or never learns that the COMMIT was done; when Redis
    loses an acknowledged write, as in a failover; and between releases with different layouts that run side by
    side.

    **A restore of PostgreSQL**, or a failover that lost commits, is a change that no process announces. The first
    `Resync` of a room deletes the page of that room, so that a client that then reloads the room gets what is
    there. Other entries stay until their time to live ends.

    **Without Redis** everything is read from PostgreSQL, and no call raises because of it. Deletions that Redis
    has not acknowledged are repeated until it has. Until then this process does not use those entries. Others may,
    for as long as an entry lives. After Redis was slower than `deadline_seconds`, it is not asked
    for a second.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        users: Users,
        rooms: Rooms,
        messages: Messages,
        room_users: RoomUsers,
        ttl_seconds: float = TTL_SECONDS,
        deadline_seconds: float = CACHE_DEADLINE_SECONDS,
    ) -> None:
        """The repositories are those of the hub, on the pool."""
        if not 0.1 <= ttl_seconds <= 86_400:
            raise Invalid("ttl_seconds", "must be from 0.1 to 86400")
        self._connection = connection
        self._rooms = rooms
        self._room_users = room_users
        self._max_ttl_seconds = ttl_seconds * (1 + JITTER)
        self._deadline_seconds = deadline_seconds
        self._users = Kind(f"cache:{LAYOUT}:user:", users.get, msgspec.json.encode, _decode_user)
        load_page = partial(messages.page_json, limit=PAGE_LENGTH)
        self._pages = Kind(f"cache:{LAYOUT}:page:", load_page, bytes, _check_page)
        self.counts = Counts()
        self._invalidations = Invalidations(
            connection, self.counts, max_life_seconds=ENTRY_LEASE_SECONDS + self._max_ttl_seconds
        )
        self._unusable_until = 0.0
        # A fill can be shared by its key until it has its lease, which is before it reads. Then by its lease.
        self._without_lease: dict[str, asyncio.Task[Any]] = {}
        self._by_lease: dict[bytes, asyncio.Task[Any]] = {}
        self._fills: set[asyncio.Task[Any]] = set()

    async def user(self, user_id: UUID) -> User:
        """The user.

        Raises: NotFound.
        """
        return await self._get(self._users, inputs.uuid("user_id", user_id))

    async def newest_page(self, room_id: UUID) -> bytes:
        """The newest 50 messages as `messages.page_json` returns them, ready to be sent.

        Membership is not checked: call `room_users.is_member` first. After the deletion of an account its id may
        stand as the author on pages of rooms that it had left before, for as long as an entry lives.

        Raises: NotFound.
        """
        return await self._get(self._pages, inputs.uuid("room_id", room_id))

    async def room(self, room_id: UUID) -> Room:
        """The room as it is now, from PostgreSQL.

        Raises: NotFound.
        """
        return await self._rooms.get(room_id)

    async def membership(self, room_id: UUID, user_id: UUID) -> RoomUser:
        """The membership as it is now, from PostgreSQL.

        Raises: NotAMember (also when there is no such room).
        """
        return await self._room_users.get(room_id, user_id)

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        """Whether the user is in the room now, from PostgreSQL."""
        return await self._room_users.is_member(room_id, user_id)

    def _register(self, commits: Commits) -> None:
        """From now on, delete what a commit made out of date."""
        add, page_key = self._invalidations.add, self._pages.key
        commits.on(UserChanged, lambda change: add(self._users.key(change.user_id)))
        commits.on(RoomTouched, lambda change: add(page_key(change.room_id)))
        commits.on(RoomRewound, lambda change: add(page_key(change.room_id)))
        commits.on(MessagesSent, self._invalidate_pages)

    def _invalidate_pages(self, change: MessagesSent) -> None:
        for room_id in {message.room_id for message in change.messages}:
            self._invalidations.add(self._pages.key(room_id))

    async def _close(self) -> None:
        """Wait for the reads in progress, and for Redis to acknowledge deletions. Idempotent.

        The first 1,000 deletions that take longer than a second end the wait.

        The connection and the pool have to be closed after it.
        """
        await self._invalidations.close()
        await asyncio.gather(*self._fills, return_exceptions=True)

    async def _get(self, kind: Kind[T], id: UUID) -> T:
        """The value. Raises what reading PostgreSQL raises, and nothing because of Redis.

        A reader that finds a lease of this process shares that read. Nothing was invalidated since before the read
        began, because the lease is still there. A reader that finds the lease of another process reads PostgreSQL
        without storing. It does not wait, so the death of a process that holds a lease delays no reader.
        """
        key = kind.key(id)
        # A change is reported here before its caller is answered. So a read after that answer finds the key here,
        # unless Redis has deleted the entry.
        if key in self._invalidations or not self._is_usable():
            return await self._load(kind, id)
        try:
            found = as_optional_bytes(
                await self._connection.execute("GET", key, deadline_seconds=self._deadline_seconds, writes=False)
            )
        except Unavailable:
            self._back_off()
            return await self._load(kind, id)
        except ReplyError:  # another program's key: it is not a string
            found = b""
        if found is None:
            return await self._fill(kind, id, key)
        return await self._use(kind, id, key, found)

    def _is_usable(self) -> bool:
        return self._connection.connected and asyncio.get_running_loop().time() >= self._unusable_until

    def _back_off(self) -> None:
        self._unusable_until = asyncio.get_running_loop().time() + BACKOFF_SECONDS

    async def _use(self, kind: Kind[T], id: UUID, key: str, found: bytes) -> T:
        if found.startswith(LEASE_MARK):
            fill = self._by_lease.get(found)
            return await (asyncio.shield(fill) if fill is not None else self._load(kind, id))
        value = kind.decode(id, found)
        if value is None:
            self._invalidations.add(key)
            return await self._load(kind, id)
        self.counts.hits += 1
        return value

    async def _load(self, kind: Kind[T], id: UUID) -> T:
        self.counts.bypasses += 1
        return await kind.load(id)

    async def _fill(self, kind: Kind[T], id: UUID, key: str) -> T:
        fill = self._without_lease.get(key)
        if fill is None:
            lease = LEASE_MARK + uuid4().hex.encode()
            fill = asyncio.create_task(self._lease_and_load(kind, id, key, lease), name="hubbub: fill the cache")
            self._without_lease[key] = fill
            self._fills.add(fill)
            fill.add_done_callback(self._fills.discard)
            fill.add_done_callback(lambda _: self._by_lease.pop(lease, None))
        # Shielded: when one of its callers is cancelled, the others still get their answer.
        return await asyncio.shield(fill)

    # Returns the value or the lease that is there. None: the lease of the caller is there now.
    _LEASE = Script(
        keys=("entry",),
        args=("lease", "milliseconds"),
        source="""
local found = redis.call('GET', entry)
if found then return found end
redis.call('SET', entry, lease, 'PX', milliseconds)
return false
""",
        reply=as_optional_bytes,
    )

    async def _lease_and_load(self, kind: Kind[T], id: UUID, key: str, lease: bytes) -> T:
        found: bytes | None = LEASE_MARK  # without a reply there may be a lease: that of this call
        try:
            if self._is_usable():
                found = await self._LEASE(
                    self._connection,
                    keys=(key,),
                    args=(lease, round(ENTRY_LEASE_SECONDS * 1000)),
                    deadline_seconds=self._deadline_seconds,
                )
        except Unavailable:
            self._back_off()
        finally:
            fill = self._without_lease.pop(key)
        if found is not None:
            return await self._use(kind, id, key, found)
        self._by_lease[lease] = fill
        self.counts.misses += 1
        try:
            value = await kind.load(id)
        except HubbubError:
            await self._replace(key, lease, b"")
            raise
        await self._replace(key, lease, kind.encode(value))
        return value

    # Returns false when the lease is gone. Without a value the lease ends.
    _REPLACE = Script(
        keys=("entry",),
        args=("lease", "value", "milliseconds"),
        source="""
if redis.call('GET', entry) ~= lease then return false end
if value == '' then
    redis.call('DEL', entry)
else
    redis.call('SET', entry, value, 'PX', milliseconds)
end
return true
""",
        reply=as_bool,
    )

    async def _replace(self, key: str, lease: bytes, value: bytes) -> None:
        if not self._is_usable():
            return  # the lease ends by itself, as after an error
        ttl_seconds = jittered(self._max_ttl_seconds, at_least=(1 - JITTER) / (1 + JITTER))
        args = (lease, value, round(ttl_seconds * 1000))
        try:
            if not await self._REPLACE(
                self._connection, keys=(key,), args=args, deadline_seconds=self._deadline_seconds
            ):
                self.counts.overtaken += 1
        except Unavailable:
            self._back_off()


_decode = msgspec.json.Decoder(User).decode


def _decode_user(user_id: UUID, data: bytes) -> User | None:
    try:
        user = _decode(data)
    except (ValueError, RecursionError):  # ValueError: also of bytes that are not UTF-8
        return None
    return user if user.id == user_id else None


def _check_page(room_id: UUID, data: bytes) -> bytes | None:
    """It only has to begin with the room's id and end as JSON does, because parsing costs more than the read."""
    return data if data.startswith(b'{"room_id":"%s",' % str(room_id).encode()) and data.endswith(b"}") else None


class Kind(msgspec.Struct, Generic[T], frozen=True):
    """How one kind of entry is read and stored. `decode` returns None for bytes that are not its value."""

    prefix: str
    load: Callable[[UUID], Awaitable[T]]
    encode: Callable[[T], bytes]
    decode: Callable[[UUID, bytes], T | None]

    def key(self, id: UUID) -> str:
        return self.prefix + str(id)


class Invalidations:
    """The keys of entries that are out of date, each until Redis has acknowledged its deletion.

    This process does not use an entry whose key is in here. The keys of one turn of the event loop are sent
    together. One batch is in flight at a time, and the next one takes all keys that came meanwhile. So a busy room
    costs one key per round trip, not one per message. A batch that failed is repeated four times a second, for as
    long as it takes. When too many keys wait, no entry at all is used for `max_life_seconds`. After that time
    Redis holds no entry from before.
    """

    def __init__(self, connection: Connection, counts: Counts, *, max_life_seconds: float) -> None:
        self._connection = connection
        self._counts = counts
        self._max_life_seconds = max_life_seconds
        self._waiting: dict[str, None] = {}
        self._sent: dict[str, None] = {}
        self._deleting: asyncio.Future[list[ReplyOrError]] | None = None
        self._next_batch = OncePerTurn(self._send)
        self._retry = EarliestTimer(lambda _: self._send())
        self._all_until = 0.0
        self._closed = False

    def __contains__(self, key: str) -> bool:
        if key in self._waiting or key in self._sent:
            return True
        return self._all_until > 0 and asyncio.get_running_loop().time() < self._all_until

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def add(self, key: str) -> None:
        """Neither waits nor raises. The key is in from now on, and will be sent."""
        if len(self._waiting) >= MAX_OUT_OF_DATE:
            self._all_until = asyncio.get_running_loop().time() + self._max_life_seconds
            self._waiting.clear()
        self._waiting[key] = None
        if self._deleting is None and self._retry.at == inf:
            self._next_batch.request()

    async def close(self) -> None:
        """Send the remaining keys, and wait for each batch up to a second. The first that fails is the last.

        An entry without acknowledgement ends by itself.
        """
        self._closed = True
        self._retry.cancel()
        self._send()
        while self._deleting is not None:
            await asyncio.wait([self._deleting])

    def _send(self) -> None:
        if self._deleting is not None or self._retry.at < inf or not self._waiting:
            return
        self._sent = dict.fromkeys(take(self._waiting, DELETIONS_PER_BATCH))
        # One DEL per key, because the keys of one DEL have to be in one slot of a cluster.
        self._deleting = self._connection.execute_many(
            [("DEL", key) for key in self._sent], deadline_seconds=DELETION_DEADLINE_SECONDS
        )
        self._deleting.add_done_callback(self._answered)

    def _answered(self, deleting: asyncio.Future[list[ReplyOrError]]) -> None:
        sent, self._sent, self._deleting = self._sent, {}, None
        failed: Iterable[str] = sent
        if deleting.exception() is None:
            outcomes = zip(sent, deleting.result(), strict=True)
            failed = [key for key, outcome in outcomes if isinstance(outcome, Exception)]
        if not failed:
            self._send()
            return
        self._counts.failed_invalidations += 1
        self._waiting |= dict.fromkeys(failed)
        if not self._closed:
            now = asyncio.get_running_loop().time()
            self._retry.request(now + DELETION_RETRY_SECONDS, now)
