"""The feed of changes: the entries of the logs of all rooms, for programs rather than for clients.

    entry committed --every older transaction ended--> ready --read--> handed out --next one asked for--> done

Each entry has the id of its transaction. Transactions get ids in the order of their first writes, and end in any
order. So an entry is handed out once all transactions with smaller ids have ended: its id is below the `xmin` of
the snapshot that reads it. After that no entry can appear before it.

The rooms are divided into parts by the last four bits of their ids. The workers of a consumer lease one part at a
time, and its position is stored when the lease ends. A lease that is not renewed, because its worker was killed,
expires, and another worker goes on from the stored position. Where the clock of PostgreSQL was set back, a lease
that would last too long is shortened to its usual length. A worker that lives renews it.

    free --take--> leased --batch done--> free
                     |
                     +--not renewed in time--> free, from its last stored position
"""

from __future__ import annotations

import asyncio
import logging
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self
from uuid import UUID, uuid4

from hubbub import inputs
from hubbub.background import BackgroundTask, jittered, wait_at_most
from hubbub.commits import Commits, MembersJoined, MessagesSent, RoomTouched
from hubbub.errors import Invalid, Unavailable
from hubbub.events import CHANGES_CHANNEL, LogEvent
from hubbub.models import Message
from hubbub.postgres import NOT_SUPPORTED, Executor, Statement, not_supported
from hubbub.redis import CallbackSubscription, Connection, ReplyOrError, Subscriptions
from hubbub.repositories.messages import event_of
from hubbub.scheduling import EarliestTimer
from hubbub.sql import columns, not_deleted, readable, representable

logger = logging.getLogger("hubbub.changes")

PARTS: Final = 16
"""The most workers of a consumer that have work at a time. The indexes of the feed are made for this number."""
ENTRIES_PER_READ: Final = 100
"""A worker stores its position after this many entries, and repeats at most these after a crash."""
PART_LEASE_SECONDS: Final = 10.0
"""How long after the death of a worker another one takes over its part of the rooms."""
MAX_RENEWAL_SECONDS: Final = PART_LEASE_SECONDS / 4
"""Leases are renewed at least this often, however long they are. Another worker, which does not know their length,
may shorten them to `PART_LEASE_SECONDS`."""
FIRST_PAUSE_SECONDS: Final = 0.01
"""An entry that was announced is ready once older transactions have ended, usually within milliseconds. Each pause
is twice as long as the one before, up to a heartbeat."""
ANNOUNCED_EVERY_SECONDS: Final = 0.05
"""How often a process publishes at most that there are new entries: one command of Redis for hundreds of sends."""
IDLE_ANNOUNCE_SECONDS: Final = 1.0
"""The interval while no process subscribes. A new subscriber reads once when it starts."""
CLOCK_DIFFERENCE: Final = timedelta(minutes=1)
"""How far the clock of a server may be behind that of the server that took over from it, or was restored from."""

RESTORED: Final = "entries are from another server, with larger transaction ids: run `hubbub migrate restored`"

_NO_ROOM: Final = UUID(int=0)
_FORM: Final = struct.Struct(">B8sQ16sQQ")  # version, server, transaction, room, seq, microseconds
_VERSION: Final = 1
_ENCODED_LENGTH: Final = 68
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class FeedPosition(NamedTuple):
    """A position in the feed of changes: after the entry with these keys, as read from a server at a time."""

    transaction_id: int
    room_id: UUID
    seq: int
    server: bytes
    read_at: datetime

    def encode(self) -> str:
        """The position as text: 68 characters that are safe in a URL."""
        at = (self.read_at - _EPOCH) // timedelta(microseconds=1)
        packed = _FORM.pack(_VERSION, self.server, self.transaction_id, self.room_id.bytes, self.seq, at)
        return urlsafe_b64encode(packed).decode()

    @classmethod
    def decode(cls, text: object) -> FeedPosition:
        """Raises: Invalid."""
        if isinstance(text, str) and len(text) == _ENCODED_LENGTH:
            with suppress(ValueError, NotBase64, struct.error, OverflowError):
                version, server, transaction_id, room, seq, at = _FORM.unpack(urlsafe_b64decode(text))
                read_at = _EPOCH + timedelta(microseconds=at)
                if version == _VERSION and max(transaction_id, seq) < 2**63:
                    return cls(transaction_id, UUID(bytes=room), seq, server, read_at)
        raise Invalid("after", "is not a position of this feed")


class _Read(NamedTuple):
    """A row of a read: the horizon of the server, and an entry, if there is one; else the end of the feed."""

    horizon: int
    is_ready: bool
    is_foreign: bool
    key: FeedPosition
    event: LogEvent | None


def _read(*row: Any) -> _Read:  # noqa: ANN401 - each column has its type
    server, read_at, horizon, transaction_id, room_id, seq, is_ready, is_foreign, *entry = row
    if transaction_id is None:
        end = FeedPosition(horizon, _NO_ROOM, 0, server, read_at)
        return _Read(horizon, is_ready=False, is_foreign=False, key=end, event=None)
    key = FeedPosition(transaction_id, room_id, seq, server, read_at)
    return _Read(horizon, is_ready, is_foreign, key, event_of(room_id, seq, *entry))


def _keys(table: str, part: str, after: tuple[str, str, str], limit: int = ENTRIES_PER_READ) -> str:
    """The keys of the first entries of a part in a table, after a position. A part is as in the indexes."""
    key = f"{table}.transaction_id, {table}.room_id, {table}.seq"
    return f"""
                SELECT '{table}' AS kept_in, {key}
                FROM {table}
                WHERE (get_byte(uuid_send({table}.room_id), 15) & {PARTS - 1}) = {part}
                    AND {table}.transaction_id IS NOT NULL
                    AND {table}.transaction_id >= {after[0]}
                    AND ({key}) > ({", ".join(after)})
                ORDER BY {key}
                LIMIT {limit}
            """


# The server is a cluster and its timeline, which a failover or a restore changes. No transaction from `newest` on
# has committed.
_BOUNDS: Final = """
        SELECT
            substring(
                sha256(
                    convert_to(
                        system_identifier::text || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), 'UTF8'
                    )
                )
                FOR 8
            ) AS server,
            clock_timestamp() AS read_at,
            pg_snapshot_xmin(pg_current_snapshot())::text::bigint + transaction_id_offset AS horizon,
            pg_snapshot_xmax(pg_current_snapshot())::text::bigint + transaction_id_offset AS newest
        FROM hubbub_schema_version
        CROSS JOIN pg_control_system()
"""

# One statement, so that the entries and the horizon are of one snapshot. There is always a row, for the server.
_READ: Final = Statement(
    "changes.read",
    _read,
    f"""
    WITH bounds AS MATERIALIZED ({_BOUNDS}
    ), first_keys AS MATERIALIZED (
        SELECT
            entry.kept_in,
            entry.transaction_id,
            entry.room_id,
            entry.seq
        FROM unnest($1::integer[]) AS part (number)
        CROSS JOIN LATERAL (
            ({_keys("messages", "part.number", ("$2", "$3", "$4"))})
            UNION ALL
            ({_keys("room_events", "part.number", ("$2", "$3", "$4"))})
        ) AS entry
        ORDER BY
            entry.transaction_id,
            entry.room_id,
            entry.seq
        LIMIT {ENTRIES_PER_READ}
    )
    SELECT
        bounds.server,
        bounds.read_at,
        bounds.horizon,
        first_keys.transaction_id,
        first_keys.room_id,
        first_keys.seq,
        first_keys.transaction_id < bounds.horizon AS is_ready,
        first_keys.transaction_id >= bounds.newest AS is_foreign,
        CASE WHEN first_keys.kept_in = 'messages' THEN 'sent' ELSE room_events.kind END AS kind,
        room_events.message_id AS about,
        room_events.user_id AS by,
        room_events.payload,
        {representable("room_events.created_at")} AS at,
        {columns(Message, "message")}
    FROM bounds
    LEFT JOIN first_keys ON true
    LEFT JOIN room_events
        ON first_keys.kept_in = 'room_events'
        AND room_events.room_id = first_keys.room_id
        AND room_events.seq = first_keys.seq
        AND {not_deleted("room_events.room_id")}
    LEFT JOIN LATERAL (
        SELECT {readable(Message, "messages")}
        FROM messages
        WHERE first_keys.kept_in = 'messages'
            AND messages.room_id = first_keys.room_id
            AND messages.seq = first_keys.seq
            AND {not_deleted("messages.room_id")}
        UNION ALL
        SELECT {readable(Message, "messages")}
        FROM messages
        WHERE messages.id = room_events.message_id
            AND {not_deleted("messages.room_id")}
    ) AS message ON true
    ORDER BY
        first_keys.transaction_id,
        first_keys.room_id,
        first_keys.seq
    """,
    distributed=NOT_SUPPORTED,
)

# After a failover or a restore: the first transaction of the entries since a time, on this server.
_FIRST_SINCE: Final = Statement(
    "changes.first_since",
    lambda transaction_id: transaction_id,
    f"""
    WITH bounds AS MATERIALIZED ({_BOUNDS}
    )
    SELECT min(entry.transaction_id) AS transaction_id
    FROM (
        SELECT messages.transaction_id
        FROM messages
        WHERE messages.created_at >= $1
            AND messages.transaction_id < (SELECT newest FROM bounds)
        UNION ALL
        SELECT room_events.transaction_id
        FROM room_events
        WHERE room_events.created_at >= $1
            AND room_events.transaction_id < (SELECT newest FROM bounds)
    ) AS entry
    """,
    distributed=NOT_SUPPORTED,
)

_ADD_CONSUMER: Final = Statement(
    "changes.add_consumer",
    int,
    f"""
    INSERT INTO hubbub_consumers (name, part, transaction_id, room_id, seq, server, read_at)
    SELECT $1, part.number, $2, $3, $4, $5, $6
    FROM generate_series(0, {PARTS - 1}) AS part (number)
    ON CONFLICT DO NOTHING
    """,
    idempotent=True,
)

_FORGET: Final = Statement("changes.forget", int, "DELETE FROM hubbub_consumers WHERE name = $1", idempotent=True)


class PartLease(NamedTuple):
    """A part that a worker has, and its stored position."""

    part: int
    position: FeedPosition


_LONGEST: Final = f"GREATEST($3::double precision, {PART_LEASE_SECONDS}) * interval '1 second'"

_OF_CONSUMER: Final = ("consumer.transaction_id", "consumer.room_id", "consumer.seq")

# The part that has waited longest, of those with an entry that is ready, or with a position of another server. A
# free part that seems to end later than now has waited since before the clock was set back, and is the first.
_TAKE: Final = Statement(
    "changes.take",
    lambda part, transaction_id, room_id, seq, server, read_at: PartLease(
        part, FeedPosition(transaction_id, room_id, seq, server, read_at)
    ),
    f"""
    WITH bounds AS MATERIALIZED ({_BOUNDS}
    ), free AS (
        SELECT consumer.part
        FROM hubbub_consumers AS consumer
        WHERE consumer.name = $1
            AND (consumer.worker IS NULL OR consumer.leased_until <= clock_timestamp())
            AND (
                consumer.server <> (SELECT server FROM bounds)
                OR EXISTS (
                    SELECT 1
                    FROM (
                        ({_keys("messages", "consumer.part", _OF_CONSUMER, limit=1)})
                        UNION ALL
                        ({_keys("room_events", "consumer.part", _OF_CONSUMER, limit=1)})
                    ) AS entry
                    CROSS JOIN bounds
                    WHERE entry.transaction_id < bounds.horizon
                        OR entry.transaction_id >= bounds.newest
                )
            )
        ORDER BY consumer.leased_until > clock_timestamp() DESC, consumer.leased_until, consumer.part
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ), too_long AS (
        SELECT consumer.part
        FROM hubbub_consumers AS consumer
        WHERE consumer.name = $1
            AND consumer.worker IS NOT NULL
            AND consumer.leased_until > clock_timestamp() + {_LONGEST}
        FOR UPDATE SKIP LOCKED
    ), shortened AS (
        UPDATE hubbub_consumers
        SET leased_until = clock_timestamp() + {_LONGEST}
        FROM too_long
        WHERE hubbub_consumers.name = $1
            AND hubbub_consumers.part = too_long.part
    )
    UPDATE hubbub_consumers
    SET
        worker = $2,
        leased_until = clock_timestamp() + $3 * interval '1 second'
    FROM free
    WHERE hubbub_consumers.name = $1
        AND hubbub_consumers.part = free.part
    RETURNING
        hubbub_consumers.part,
        hubbub_consumers.transaction_id,
        hubbub_consumers.room_id,
        hubbub_consumers.seq,
        hubbub_consumers.server,
        hubbub_consumers.read_at
    """,
    distributed=NOT_SUPPORTED,
)

# With 0 seconds it ends the lease. That the part is free does not depend on the clock.
_STORE: Final = Statement(
    "changes.store",
    int,
    """
    UPDATE hubbub_consumers
    SET
        transaction_id = $4,
        room_id = $5,
        seq = $6,
        server = $7,
        read_at = $8,
        worker = CASE WHEN $9::double precision > 0 THEN worker END,
        leased_until = clock_timestamp() + $9 * interval '1 second'
    WHERE name = $1
        AND part = $2
        AND worker = $3
    RETURNING part
    """,
    idempotent=True,
)


def _in_order_of_rooms(
    after: FeedPosition, reads: Sequence[_Read]
) -> Iterator[tuple[LogEvent | None, FeedPosition]]:
    """The events, those of a room in the order of seq, each with the position to go on from after it.

    That is before the first one that was not handed out, in the order of transactions.
    """
    by_room = defaultdict[UUID, deque[_Read]](deque)
    for read in sorted(reads, key=lambda read: read.key.seq):
        by_room[read.key.room_id].append(read)
    handed_out: set[FeedPosition] = set()
    position, rest = after, deque(read.key for read in reads)
    for slot in reads:
        read = by_room[slot.key.room_id].popleft()
        handed_out.add(read.key)
        while rest and rest[0] in handed_out:
            position = rest.popleft()
        yield read.event, position


class Changes:
    """The feed of changes, of all rooms. `Hub.changes` describes it."""

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        subscriptions: Subscriptions,
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._executor = executor
        self._connection = connection
        self._subscriptions = subscriptions
        self._heartbeat_seconds = heartbeat_seconds
        self._feeds: set[ChangeFeed] = set()
        self._subscription: CallbackSubscription | None = None
        self._announce = EarliestTimer(self._publish)
        self._next_announcement = 0.0

    def _register(self, commits: Commits) -> None:
        """From now on, announce what this process commits."""
        commits.on(MessagesSent, self._committed)
        commits.on(RoomTouched, self._committed)
        commits.on(MembersJoined, self._committed)

    def _committed(self, _: object) -> None:
        self._wake()
        now = asyncio.get_running_loop().time()
        self._announce.request(max(now, self._next_announcement), now)

    def _publish(self, now: float) -> None:
        self._next_announcement = now + ANNOUNCED_EVERY_SECONDS
        published = self._connection.execute_many([("PUBLISH", CHANGES_CHANNEL, b"")], deadline_seconds=1.0)
        published.add_done_callback(self._published)

    def _published(self, published: asyncio.Future[list[ReplyOrError]]) -> None:
        # A node of a cluster counts its own subscribers only.
        no_subscriber = None if self._connection.is_cluster else [0]
        if published.cancelled() or published.exception() is not None or published.result() == no_subscriber:
            self._next_announcement = asyncio.get_running_loop().time() + IDLE_ANNOUNCE_SECONDS

    def _close(self) -> None:
        """End the feeds of this process. Idempotent."""
        self._announce.cancel()
        for feed in list(self._feeds):
            feed.close()

    def follow(
        self, *, consumer: str | None = None, after: str | None = None, lease_seconds: float = PART_LEASE_SECONDS
    ) -> ChangeFeed:
        """The entries of the logs of all rooms, for push notifications, bots, search indexes and webhooks.

            async with hub.changes.follow(consumer="search") as changes:
                async for event in changes:
                    await index(event)

        Events are those of `messages.since`. Each comes at least once, after its transaction was committed and all
        transactions that began to write before it have ended. Events of a room come in the order of their seq. The
        exception is a transaction that has written something before it changes the room: for a reader that is
        behind, its events may come before some that have a smaller seq.

        With a `consumer`, a name of up to 100 characters, its position is stored in PostgreSQL. Up to 16 workers,
        in any number of processes, then share the events, and each room has one worker at a time. An event is done
        once the next one is asked for. If a worker is killed, others repeat at most 100 events after
        `lease_seconds`. A handler may take longer than that, because the lease is renewed meanwhile.

        Without a `consumer` the program keeps `changes.position` itself. `after` is such a position, None the
        beginning of the feed. For a consumer it counts when the name is new. After a failover or a restore of the
        database the events of a minute before it may be repeated.

        While PostgreSQL is unavailable the iteration waits. Redis is not needed. With it, events come sooner than
        at the next heartbeat.

        Raises: Invalid.
        """
        self._check_not_distributed()
        name = None if consumer is None else inputs.text("consumer", consumer, longest=100)
        position = None if after is None else FeedPosition.decode(after)
        seconds = inputs.positive("lease_seconds", lease_seconds)
        return ChangeFeed(self, name, position, seconds)

    async def end(self) -> str:
        """The position of the end of the feed: what is committed from now on comes after it."""
        self._check_not_distributed()
        read = (await self._executor.fetch_all(_READ, [], 0, _NO_ROOM, 0))[0]
        return read.key.encode()

    async def forget(self, consumer: str) -> None:
        """Delete the positions of a consumer, if there are any.

        Its open feeds get no more events. The next feed that is entered begins at its `after`.
        """
        await self._executor.execute(_FORGET, inputs.text("consumer", consumer, longest=100))

    def _check_not_distributed(self) -> None:
        """Each node counts its transactions by itself. Raises: Unavailable."""
        if self._executor.is_distributed:
            raise not_supported("the feed of changes")

    def _add(self, feed: ChangeFeed) -> None:
        self._feeds.add(feed)
        if self._subscription is None:
            self._subscription = self._subscriptions.subscribe_soon_with(CHANGES_CHANNEL, lambda _: self._wake())

    def _remove(self, feed: ChangeFeed) -> None:
        self._feeds.discard(feed)
        if not self._feeds and self._subscription is not None:
            self._subscription.unsubscribe()
            self._subscription = None

    def _wake(self) -> None:
        for feed in self._feeds:
            feed._wake()


class ChangeFeed:
    """The events that one task reads from the feed of changes: those of `Changes.follow`."""

    def __init__(
        self, changes: Changes, consumer: str | None, after: FeedPosition | None, lease_seconds: float
    ) -> None:
        self._changes = changes
        self._executor = changes._executor
        self._consumer = consumer
        self._lease_seconds = lease_seconds
        self._worker = uuid4()
        self._position = after or FeedPosition(0, _NO_ROOM, 0, b"", _EPOCH)
        self._next: FeedPosition | None = None  # of the event that was handed out last
        self._read: deque[tuple[LogEvent | None, FeedPosition]] = deque()
        self._lease: PartLease | None = None
        self._lease_ends = 0.0
        self._storing = asyncio.Lock()
        self._renewing = BackgroundTask("renew the lease of a feed", self._renew)
        self._woken = asyncio.Event()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._has_entered = False
        self._is_over = True

    @property
    def position(self) -> str:
        """The position after the event that was handed out last, to go on from. Without a consumer.

        Raises: Invalid (a consumer has a position for each part of the rooms).
        """
        if self._consumer is not None:
            raise Invalid("consumer", "has its positions in PostgreSQL")
        return (self._next or self._position).encode()

    async def __aenter__(self) -> Self:
        if self._has_entered:
            raise RuntimeError("a feed of changes can be entered once")
        if self._consumer is not None:
            transaction_id, room_id, seq, server, read_at = self._position
            await self._executor.execute(
                _ADD_CONSUMER, self._consumer, transaction_id, room_id, seq, server, read_at
            )
            self._renewing.start()
        self._has_entered = True
        self._is_over = False
        self._changes._add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        self._changes._remove(self)
        await self._renewing.close()
        with suppress(Unavailable):  # the lease expires
            await self._store(0)

    def close(self) -> None:
        """End the iteration, for instance from another task. The event in progress is done then."""
        self._is_over = True
        self._woken.set()

    def _wake(self) -> None:
        """There may be new entries."""
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._woken.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEvent:
        while not self._is_over:
            self._complete()
            while self._read and not self._has_lost_lease():
                event, position = self._read.popleft()
                if event is not None:
                    self._next = position
                    return event
                self._position = position
            try:
                await self._read_on()
            except Unavailable as failure:
                if not failure.retryable and not self._is_over:
                    raise
                logger.info("reading the feed of changes again, after: %s", failure)
                self._pause_seconds = self._changes._heartbeat_seconds
                await self._pause()
        self._complete()
        raise StopAsyncIteration

    def _complete(self) -> None:
        """The event that was handed out is done."""
        if self._next is not None:
            self._position, self._next = self._next, None

    def _has_lost_lease(self) -> bool:
        if self._lease is None or asyncio.get_running_loop().time() < self._lease_ends:
            return False
        self._read.clear()
        self._lease = None
        return True

    async def _read_on(self) -> None:
        """Read the next entries, or wait until there may be some."""
        self._woken.clear()
        parts: Sequence[int] = range(PARTS)
        if self._consumer is not None:
            await self._store(0)
            lease = await self._take(self._consumer)
            if lease is None:
                await self._pause()
                return
            parts = [lease.part]
        after = self._position
        reads = await self._executor.fetch_all(_READ, parts, after.transaction_id, after.room_id, after.seq)
        server, read_at = reads[0].key.server, reads[0].key.read_at
        if after.server not in (b"", server):
            await self._go_back(reads[0])
            return
        ready = [read for read in reads if read.is_ready]
        if not ready and any(read.is_foreign for read in reads):
            raise Unavailable("hub", RESTORED, retryable=False)
        self._read.extend(_in_order_of_rooms(after, ready))
        if ready:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        else:
            self._position = after._replace(server=server, read_at=read_at)
            if self._consumer is None:
                await self._pause()

    async def _pause(self) -> None:
        heartbeat = self._changes._heartbeat_seconds
        seconds, self._pause_seconds = self._pause_seconds, min(self._pause_seconds * 2, heartbeat)
        await wait_at_most(self._woken, jittered(seconds))

    async def _go_back(self, read: _Read) -> None:
        """Another server has taken over. It has other entries in place of those that were not replicated to it."""
        since = self._position.read_at - CLOCK_DIFFERENCE
        first = await self._executor.fetch_one(_FIRST_SINCE, since)
        transaction_id = min(self._position.transaction_id, read.horizon, *([] if first is None else [first]))
        logger.warning("the feed of changes goes back to transaction %s of another server", transaction_id)
        self._position = FeedPosition(transaction_id, _NO_ROOM, 0, read.key.server, read.key.read_at)

    async def _take(self, consumer: str) -> PartLease | None:
        asked_at = asyncio.get_running_loop().time()
        lease = await self._executor.fetch_one(_TAKE, consumer, self._worker, self._lease_seconds)
        if lease is not None:
            self._lease, self._lease_ends = lease, asked_at + self._lease_seconds
            self._position = lease.position
        return lease

    async def _store(self, lease_seconds: float) -> None:
        """Store the position, and prolong the lease or end it."""
        async with self._storing:
            if self._lease is None or self._consumer is None:
                return
            lease, asked_at = self._lease, asyncio.get_running_loop().time()
            if not lease_seconds:
                self._lease = None
                self._read.clear()
            transaction_id, room_id, seq, server, read_at = self._position
            stored = await self._executor.fetch_one(
                _STORE,
                self._consumer,
                lease.part,
                self._worker,
                transaction_id,
                room_id,
                seq,
                server,
                read_at,
                lease_seconds,
            )
            if stored is None:
                self._lease_ends = asked_at  # it had expired, and another worker has the part
            elif lease_seconds:
                self._lease_ends = asked_at + lease_seconds

    async def _renew(self) -> float:
        if self._lease is not None:
            try:
                await self._store(self._lease_seconds)
            except Unavailable as failure:
                logger.info("renewing the lease of a feed again, after: %s", failure)
        return min(self._lease_seconds / 4, MAX_RENEWAL_SECONDS)
