"""History: import from files, and export to them. docs/history.md has the form of the lines.

An import stores each batch of a file in one transaction, with a checkpoint as its last row:

    read batch -> find or create users -> lock or create rooms -> replay, store, checkpoint -> COMMIT -> next batch
                                                                                  last batch: count as read -> done

A batch whose transaction failed is taken again from the start, also when its outcome is unknown: if it was
committed, its checkpoint is found.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from hubbub import inputs
from hubbub.background import jittered
from hubbub.commits import OnCommit, RoomTouched, UserChanged, ignore
from hubbub.errors import Conflict, Invalid, NotFound, Unavailable
from hubbub.history.existing import Existing, OtherEntries, find_existing
from hubbub.history.export import export as export_room
from hubbub.history.lines import (
    AnyLine,
    JoinLine,
    LeaveLine,
    Line,
    MessageLine,
    RoomLine,
    UserLine,
    derive_room_id,
    derive_user_id,
    room_id_of,
)
from hubbub.history.replay import Replay, store
from hubbub.history.rooms import Members, RoomLog, lock_rooms
from hubbub.history.source import (
    CHECKPOINTS,
    SAVE_CHECKPOINT,
    STORED_BY,
    Batch,
    BatchReader,
    Checkpoint,
    Refusal,
    read_lines,
)
from hubbub.history.users import LineUser, LineUsers, Renamed
from hubbub.postgres import Executor, OpenTransaction, Pool, Replicas, Statement, not_supported
from hubbub.sql import folded, not_deleted

__all__ = [
    "AnyLine",
    "History",
    "Imported",
    "JoinLine",
    "LeaveLine",
    "MessageLine",
    "Refusal",
    "Refusals",
    "Renamed",
    "derive_room_id",
    "derive_user_id",
    "read_lines",
]

T = TypeVar("T")

RETRY_FOR_SECONDS: Final = 30.0
"""How long a batch is retried while PostgreSQL cannot be reached: longer than a restart or a failover takes."""

CONFLICT_ATTEMPTS: Final = 5
"""Attempts at a batch while other transactions create or delete what it needs."""

REPORTED: Final = 100
"""How many refused lines and renamed users a report lists; further ones are only counted."""

# Two are enough to show that a name means more than one room.
BY_NAME = Statement(
    "history.rooms_by_name",
    lambda id: id,
    f"""
    SELECT id
    FROM rooms
    WHERE {folded("name")} = $2
        AND name = $1
        AND NOT is_private
        AND {not_deleted("rooms.id")}
    ORDER BY id
    LIMIT 2
    """,
)


class History:
    """Imports of files into rooms, and exports of rooms. Each works on connections of the pool."""

    def __init__(self, pool: Pool, on_commit: OnCommit = ignore, replicas: Replicas | None = None) -> None:
        self._pool = pool
        self._on_commit = on_commit
        self._replicas = replicas

    async def load(
        self,
        file: BufferedIOBase,
        *,
        progress: Callable[[Imported], None] = lambda _: None,
        refused: Callable[[Refusal], None] | None = None,
    ) -> Imported:
        """Import the lines of a file open for reading bytes, plain or gzip: also a pipe or an `io.BytesIO`.

        Batches of at most 10,000 lines are committed, each with a record of how far the file is done. After any
        end, also a kill, the same call continues from there, and a file that has grown continues from where it
        ended. The entries of a room are in the order of the lines, with their times. docs/history.md has the form
        of the lines. `progress` is called after each batch, `refused` with each line that cannot be taken, both
        from the event loop. While PostgreSQL cannot be reached, a batch is retried for half a minute. Where rooms
        are distributed over several nodes, there is no import.

        Raises: Invalid (not a file of bytes, or not a function), Unavailable (PostgreSQL was away for longer),
        Conflict and NotFound (other programs go on taking ids of the file, or deleting its rooms or accounts).
        """
        if not hasattr(file, "read1") or getattr(file, "closed", False):
            raise Invalid("file", "must be a file opened for reading bytes: open(path, 'rb')")
        if self._pool.is_distributed:
            raise not_supported("the import of a history")
        progress = inputs.callback("progress", progress)
        running = Import(self._pool, self._on_commit)
        running.state.refusals.on_refusal = None if refused is None else inputs.callback("refused", refused)
        return await running.run(file, progress)

    def lines(self, room_id: UUID) -> AsyncGenerator[bytes, None]:
        """The room as lines that `load` takes, in pieces of some hundred lines. Close it if it is not read to its
        end, as `contextlib.aclosing` does.

        It shows the room as of one moment: a transaction is open until the last piece, and blocks no other. The
        import of it into another database creates the same room, with the same log; into the same one it changes
        nothing. Raises: NotFound.
        """
        return export_room(self._pool, inputs.uuid("room_id", room_id), self._replicas)

    async def find(self, name: str) -> UUID:
        """The id of the one public room of this name. Raises: NotFound, Invalid (several rooms have it)."""
        name = inputs.text("room", name, longest=inputs.ROOM_NAME_LENGTH)
        found = await self._pool.fetch_all(BY_NAME, name, inputs.folded(name))
        if not found:
            raise NotFound("public room", repr(name))
        if len(found) > 1:
            raise Invalid("room", f"several rooms have this name ({found[0]}, {found[1]}, ...): use an id")
        room_id: UUID = found[0]
        return room_id


@dataclass(slots=True)
class Refusals:
    """How many lines could not be used, and the first 100 of them. `on_refusal` is called with each."""

    count: int = 0
    first: list[Refusal] = field(default_factory=list)
    on_refusal: Callable[[Refusal], None] | None = None

    def add(self, line: int, reason: str) -> None:
        """Count a line, and report it."""
        self.count += 1
        refusal = Refusal(line, reason)
        if len(self.first) < REPORTED:
            self.first.append(refusal)
        if self.on_refusal is not None:
            self.on_refusal(refusal)


@dataclass(slots=True)
class Imported:
    """The progress of an import and the counts of its lines.

    Each of the `lines` became a message or another entry of a log (`events`), is about a user, a room or a member
    (`described`), was imported before or changed nothing (`known`), or was refused: these numbers add up. A file
    that ends damaged has one more refusal, which is not of a line: `damage`.

    `users` were created. `unlisted` entries are on no line: an author's joining before the history begins.
    `continued_from` is the line that an earlier run of the same file had reached, 0 if there was none: of these
    lines, refusals are counted only if they show without the database. `renamed` has the first 100 of the
    `renamed_count` users whose nickname was not available.
    """

    lines: int = 0
    messages: int = 0
    events: int = 0
    described: int = 0
    known: int = 0
    users: int = 0
    unlisted: int = 0
    damage: Refusal | None = None
    continued_from: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    renamed: list[Renamed] = field(default_factory=list)
    renamed_count: int = 0


class Stored(NamedTuple):
    """A batch that is stored: the checkpoint in it that an earlier run had stored, and the users that it created.

    Only the run that stored the last of its lines has the replay, `existing` and the id of the transaction.
    """

    before: Checkpoint | None
    created: list[LineUser]
    replay: Replay | None = None
    existing: Existing | None = None
    transaction_id: str | None = None


class _ConcurrentImport(Exception):
    """Another import of the same lines has committed some of them."""


class Import:
    """Imports one file. It remembers which users and rooms the lines mean, so each file needs its own."""

    def __init__(self, pool: Pool, on_commit: OnCommit) -> None:
        self.state = Imported()
        self._pool = pool
        self._on_commit = on_commit
        self._users = LineUsers()
        self._members = Members()
        self._other_entries = OtherEntries()
        self._imported_heads = ImportedHeads()
        self._rejected_rooms: set[UUID] = set()
        self._find_without_ids = False  # after a conflict, until a batch has no known lines
        self._unanswered: Stored | None = None  # the attempt at this batch whose outcome is unknown

    async def run(self, file: BufferedIOBase, on_progress: Callable[[Imported], None]) -> Imported:
        """Import all of it. A thread reads and parses a batch while PostgreSQL is busy with the one before."""
        async with aclosing(BatchReader(file)) as reader:
            while (batch := await reader.next()) is not None:
                await self._take(batch, reader.prefetch)
                on_progress(self.state)
        return self.state

    async def _take(self, batch: Batch, while_stored: Callable[[], object]) -> None:
        if not batch.checkpoint.lines:  # the file is damaged before its first line: there is nothing to store
            self._count(batch, Stored(None, []))
            return
        stored = await self._retry(partial(self._store, batch, while_stored))
        rooms = () if stored.replay is None else stored.replay.rooms.values()
        self._imported_heads.advance(batch, stored.before, rooms)
        if batch.is_last:
            await self._retry(partial(self._imported_heads.store, self._pool, batch.checkpoint))
        self._count(batch, stored)

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """An attempt may be repeated even if the one before was committed: its rows are found."""
        loop = asyncio.get_running_loop()
        give_up_at, attempts = math.inf, 0  # from the first failure on: an attempt may take minutes
        while True:
            attempts += 1
            try:
                return await attempt()
            except _ConcurrentImport:
                pass
            except (Conflict, NotFound):
                # An id is in use that only this line can have; or an account or a room was deleted meanwhile.
                if attempts >= CONFLICT_ATTEMPTS:
                    raise
                self._find_without_ids = True
            except Unavailable as error:
                give_up_at = min(give_up_at, loop.time() + RETRY_FOR_SECONDS)
                if not error.retryable or loop.time() > give_up_at:
                    raise
                await asyncio.sleep(jittered(0.5, at_least=0.2))
            self._users.forget()
            self._members.forget()

    async def _store(self, batch: Batch, while_stored: Callable[[], object]) -> Stored:
        """Store a batch, report its changes, and remember what later batches need.

        If the answer to the COMMIT was lost, the next attempt does the latter two once it finds the batch stored.
        """
        stored = None
        try:
            async with self._pool.transaction() as transaction:
                stored = await self._store_in(transaction, batch, while_stored)
        except Unavailable as error:
            if error.outcome_unknown and stored is not None and stored.replay is not None:
                self._unanswered = stored
            raise
        if stored.replay is None and self._unanswered is not None:
            stored = self._unanswered._replace(created=self._unanswered.created + stored.created)
        self._unanswered = None
        if stored.replay is not None and stored.existing is not None:
            self._after_commit(stored.created, stored.replay, stored.existing)
        return stored

    def _after_commit(self, created: list[LineUser], replay: Replay, existing: Existing) -> None:
        for user in created:
            self._pool.after_commit(partial(self._on_commit, UserChanged(user.account.id)))
        for room in replay.rooms.values():
            self._pool.after_commit(partial(self._on_commit, RoomTouched(room.id)))
        self._find_without_ids = self._find_without_ids and replay.known > 0
        self._other_entries.stored(existing)
        for room in replay.rooms.values():
            self._members.stored(room.id, room.start_seq, room.last_seq, room.roles_before)

    async def _store_in(
        self, transaction: OpenTransaction, batch: Batch, while_stored: Callable[[], object]
    ) -> Stored:
        lines = [line for _, line, _ in batch.taken]
        before = await self._reached(transaction, batch)
        if before == batch.checkpoint:  # later lines may refer to its users and rooms
            if self._unanswered is not None:
                stored_by = await transaction.fetch_one(STORED_BY, batch.checkpoint.digest)
                if stored_by != self._unanswered.transaction_id:  # by another import of the same lines
                    self._unanswered = None
            lines = [line for line in lines if isinstance(line, UserLine | RoomLine)]
            if not lines:
                return Stored(before, [])
        created = await self._users.find_or_create(transaction, lines)
        rooms = await lock_rooms(transaction, lines, self._users, self._rejected_rooms)
        if before == batch.checkpoint:
            return Stored(before, created)
        if await self._reached(transaction, batch) != before:  # until the rooms were locked
            raise _ConcurrentImport
        todo = batch.taken if before is None else [one for one in batch.taken if one[0] > before.lines]
        members = self._members
        snapshots = await members.look_up(transaction, rooms, (line for _, line, _ in todo), self._users)
        others = {room.id: spans for room in rooms if (spans := members.others(room.id, room.last_seq))}
        existing = await find_existing(transaction, todo, without_ids=self._find_without_ids)
        existing.is_continued = self.state.continued_from > 0 or before is not None
        if others:
            await self._other_entries.locate(transaction, existing, todo, self._users, snapshots, others=others)
        logs = [RoomLog(room, snapshots[room.id], members.roles_before.get(room.id, {})) for room in rooms]
        replay = Replay(logs, self._users, existing)
        await store(transaction, replay, todo, while_stored)
        await transaction.execute(SAVE_CHECKPOINT, batch.checkpoint.digest, batch.checkpoint.lines)
        transaction_id = await transaction.fetch_one(STORED_BY, batch.checkpoint.digest)
        return Stored(before, created, replay, existing, transaction_id)

    @staticmethod
    async def _reached(executor: Executor, batch: Batch) -> Checkpoint | None:
        known = await executor.fetch_all(CHECKPOINTS, batch.before, batch.checkpoint.lines)
        return await asyncio.to_thread(batch.reached, known) if known else None

    def _count(self, batch: Batch, stored: Stored) -> None:
        state, replay = self.state, stored.replay
        state.lines = batch.checkpoint.lines
        if stored.before is not None:
            state.continued_from = stored.before.lines
        refused = list(batch.refused)
        used = 0
        if replay is not None:
            used = replay.messages + replay.events + replay.described
            state.messages += replay.messages
            state.events += replay.events
            state.described += replay.described
            state.unlisted += replay.unlisted
            refused += replay.refused
        state.known += state.lines - batch.before - used - len(refused)
        if batch.damage is not None:
            state.damage = batch.damage
            refused.append(batch.damage)
        for refusal in sorted(refused):
            state.refusals.add(*refusal)
        state.users += len(stored.created)
        renamed = [user.renamed for user in stored.created if user.renamed is not None]
        state.renamed_count += len(renamed)
        state.renamed += renamed[: REPORTED - len(state.renamed)]


# Imported entries count as read, for the members who have read nothing in the room and had nothing unread there.

ROOMS_PER_STEP: Final = 100
MEMBERS_PER_STEP: Final = 1_000
"""Of each room. A step is a transaction, and keeps them locked: with 300,000 members in a room for 14 ms."""

HEADS = Statement(
    "history.heads",
    lambda id, last_seq: (id, last_seq),
    "SELECT id, last_seq FROM rooms WHERE id = ANY($1::uuid[])",
)

NEWEST_MESSAGES = Statement(
    "history.newest_messages",
    lambda room_id, seq: (room_id, seq),
    """
    SELECT head.room_id, newest.seq
    FROM unnest($1::uuid[], $2::bigint[]) AS head (room_id, seq)
    CROSS JOIN LATERAL (
        SELECT messages.seq
        FROM messages
        WHERE messages.room_id = head.room_id
            AND messages.seq <= head.seq
        ORDER BY messages.seq DESC
        LIMIT 1
    ) AS newest
    """,
)

# A table that was just filled has no statistics, and in a room that seems small each step would sort all members:
# with 300,000 of them that takes 137 ms per step instead of 14, and more with more.
DISABLE_SORT = Statement("history.disable_sort", str, "SELECT set_config('enable_sort', 'off', true)")

# Members who have read something in the room are left alone, and those whose read mark is before `least`. So
# messages that they marked as unread since stay unread. They are locked in one order, since two imports may end at
# the same time.
COUNT_AS_READ = Statement(
    "history.count_as_read",
    lambda room_id, user_id: (room_id, user_id),
    """
    WITH page AS MATERIALIZED (
        SELECT head.room_id, head.seq, head.least, member.user_id
        FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $5::bigint[]) AS head (room_id, seq, after, least)
        CROSS JOIN LATERAL (
            SELECT user_id
            FROM room_users
            WHERE room_users.room_id = head.room_id
                AND room_users.user_id > head.after
            ORDER BY user_id
            LIMIT $4
            FOR NO KEY UPDATE
        ) AS member
    ), counted AS (
        UPDATE room_users
        SET last_read_seq = page.seq
        FROM page
        WHERE room_users.room_id = page.room_id
            AND room_users.user_id = page.user_id
            AND room_users.last_read_message_id IS NULL
            AND room_users.last_read_seq < page.seq
            AND room_users.last_read_seq >= page.least
    )
    SELECT DISTINCT ON (room_id) room_id, user_id
    FROM page
    ORDER BY room_id, user_id DESC
    """,
)


async def count_as_read(pool: Pool, heads: Mapping[UUID, int], least: Mapping[UUID, int]) -> None:
    """All entries up to these seqs count as read, by room, for members who have read up to the `least` seq.

    Each step is a transaction, which locks few members. All of it may be repeated if it was interrupted.
    """
    ordered = sorted(heads.items())
    for start in range(0, len(ordered), ROOMS_PER_STEP):
        seqs = dict(ordered[start : start + ROOMS_PER_STEP])
        after = dict.fromkeys(seqs, UUID(int=0))
        while after:
            wanted = [seqs[room_id] for room_id in after]
            read = [least.get(room_id, 0) for room_id in after]
            async with pool.transaction() as step:
                await step.fetch_one(DISABLE_SORT)
                last = await step.fetch_all(
                    COUNT_AS_READ, list(after), wanted, list(after.values()), MEMBERS_PER_STEP, read
                )
            after = dict(last)


class ImportedHeads:
    """How far a file went in each room that it names: up to there the room counts as read once all is stored.

    Rooms given by id are left out, as their members have read what their own lines say.
    """

    def __init__(self) -> None:
        self._named: set[UUID] = set()
        self._heads: dict[UUID, int] = {}
        self._starts: dict[UUID, int] = {}  # the heads before this run
        self._before: Checkpoint | None = None

    def advance(self, batch: Batch, before: Checkpoint | None, rooms: Iterable[RoomLog]) -> None:
        """Note how far a stored batch brought its rooms. An earlier run had stored the file up to `before`."""
        self._named |= {
            room_id_of(line) for _, line, _ in batch.taken if isinstance(line, Line) and line.room_id is None
        }
        if before is not None:
            self._before = before
        for room in rooms:
            if room.has_grown:
                self._starts.setdefault(room.id, room.start_seq)
                if room.id in self._named:
                    self._heads[room.id] = room.last_seq

    async def store(self, pool: Pool, end: Checkpoint) -> None:
        """Have everything in the file count as read, once for each end that the file had."""
        is_stopped_run = self._before is not None and not await self._is_done(pool, self._before)
        if is_stopped_run:
            unknown = self._named - self._heads.keys()  # a stopped run did not record how far it brought these
            self._heads |= dict(await pool.fetch_all(HEADS, unknown))
        if not await self._is_done(pool, end):
            # The members whom a stopped run has added may have unread messages of that run.
            starts = {} if is_stopped_run else {room_id: self._starts[room_id] for room_id in self._heads}
            newest = await pool.fetch_all(NEWEST_MESSAGES, list(starts), list(starts.values()))
            await count_as_read(pool, self._heads, dict(newest))
            done = end.counted_as_read()
            await pool.execute(SAVE_CHECKPOINT, done.digest, done.lines)

    @staticmethod
    async def _is_done(pool: Pool, checkpoint: Checkpoint) -> bool:
        known = await pool.fetch_all(CHECKPOINTS, checkpoint.lines - 1, checkpoint.lines)
        return checkpoint.counted_as_read() in known
