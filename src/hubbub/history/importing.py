"""An import: the batches of a file, each stored in one transaction with a checkpoint as its last row.

    read batch -> find or create users -> lock or create rooms -> replay, store, checkpoint -> COMMIT -> next batch
                                                                                  last batch: count as read -> done

A batch whose transaction failed is taken again from the start, also when its outcome is unknown: if it was
committed, its checkpoint is found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from typing import Final, TypeVar
from uuid import UUID

from hubbub.background import jittered
from hubbub.commits import OnCommit, RoomTouched, UserChanged
from hubbub.errors import Conflict, NotFound, Unavailable
from hubbub.history.lines import RoomLine, UserLine
from hubbub.history.locked_rooms import Members, lock_rooms
from hubbub.history.people import People, Person, Renamed
from hubbub.history.replay import Replay, find_existing, store
from hubbub.history.room_log import RoomLog
from hubbub.history.source import CHECKPOINTS, SAVE_CHECKPOINT, Batch, BatchReader, Checkpoint, Refusal
from hubbub.history.watermarks import Watermarks
from hubbub.postgres import Executor, Pool

T = TypeVar("T")

RETRY_FOR_SECONDS: Final = 30.0
"""How long a batch is retried while PostgreSQL cannot be reached: longer than a restart or a failover takes."""

CONFLICT_ATTEMPTS: Final = 5
"""Attempts at a batch while other transactions create or delete what it needs."""

REPORTED: Final = 100
"""How many refused lines and renamed users a report lists; further ones are only counted."""


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


class _ConcurrentImport(Exception):
    """Another import of the same lines has committed some of them."""


class Import:
    """Imports one file. Not to be used for two: it remembers which users and rooms the lines mean."""

    def __init__(self, pool: Pool, on_commit: OnCommit) -> None:
        self.state = Imported()
        self._pool = pool
        self._on_commit = on_commit
        self._people = People()
        self._members = Members()
        self._watermarks = Watermarks()
        self._rejected_rooms: set[UUID] = set()
        self._matched: set[tuple[UUID, int]] = set()  # the entries of lines in the batch before
        self._find_without_ids = False  # after a conflict, until a batch has no known lines

    async def run(self, file: BufferedIOBase, on_progress: Callable[[Imported], None]) -> Imported:
        """Import all of it. A thread reads and parses a batch while PostgreSQL is busy with the one before."""
        async with aclosing(BatchReader(file)) as reader:
            while (batch := await reader.next()) is not None:
                await self._take(batch, reader.prefetch)
                on_progress(self.state)
        return self.state

    async def _take(self, batch: Batch, while_stored: Callable[[], object]) -> None:
        if not batch.checkpoint.lines:  # the file is damaged before its first line: there is nothing to store
            self._count(batch, None, [], None)
            return
        before, created, replay = await self._retry(partial(self._store, batch, while_stored))
        self._watermarks.advance(batch, before, () if replay is None else replay.rooms.values())
        if batch.is_last:
            await self._retry(partial(self._watermarks.store, self._pool, batch.checkpoint))
        self._count(batch, before, created, replay)

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """An attempt may be repeated even if the one before was committed: its rows are found."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + RETRY_FOR_SECONDS
        attempts = 0
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
                if not error.retryable or loop.time() > give_up_at:
                    raise
                await asyncio.sleep(jittered(0.5, at_least=0.2))
            self._people.forget()
            self._members.forget()

    async def _store(
        self, batch: Batch, while_stored: Callable[[], object]
    ) -> tuple[Checkpoint | None, list[Person], Replay | None]:
        """The checkpoint in the batch that an earlier run had stored, the users that were created, the replay."""
        lines = [line for _, line, _ in batch.taken]
        async with self._pool.transaction() as transaction:
            before = await self._reached(transaction, batch)
            if before == batch.checkpoint:  # later lines may refer to its users and rooms
                lines = [line for line in lines if isinstance(line, UserLine | RoomLine)]
                if not lines:
                    return before, [], None
            created = await self._people.find_or_create(transaction, lines)
            rooms = await lock_rooms(transaction, lines, self._people, self._rejected_rooms)
            if before == batch.checkpoint:
                return before, created, None
            if await self._reached(transaction, batch) != before:  # until the rooms were locked
                raise _ConcurrentImport
            todo = batch.taken if before is None else [one for one in batch.taken if one[0] > before.lines]
            members = self._members
            snapshots = await members.look_up(transaction, rooms, (line for _, line, _ in todo), self._people)
            old = {room.id: snapshots[room.id] for room in rooms if not members.is_new(room)}
            others = {room.id: members.others(room.id, room.last_seq) for room in rooms}
            existing = await find_existing(
                transaction,
                todo,
                old,
                self._people,
                self._matched,
                others=others,
                without_ids=self._find_without_ids,
            )
            existing.is_continued = self.state.continued_from > 0 or before is not None
            logs = [RoomLog(room, snapshots[room.id], members.reached(room)) for room in rooms]
            replay = Replay(logs, self._people, existing)
            await store(transaction, replay, todo, while_stored)
            await transaction.execute(SAVE_CHECKPOINT, batch.checkpoint.digest, batch.checkpoint.lines)
            for person in created:
                transaction.after_commit(partial(self._on_commit, UserChanged(person.id)))
            for room in replay.rooms.values():
                transaction.after_commit(partial(self._on_commit, RoomTouched(room.id)))
        self._find_without_ids = self._find_without_ids and replay.known > 0
        self._matched = existing.matched
        for room in replay.rooms.values():
            self._members.stored(room.id, room.start_seq, room.last_seq, room.reached)
        return before, created, replay

    @staticmethod
    async def _reached(executor: Executor, batch: Batch) -> Checkpoint | None:
        return batch.reached(await executor.fetch_all(CHECKPOINTS, batch.before, batch.checkpoint.lines))

    def _count(
        self, batch: Batch, before: Checkpoint | None, created: list[Person], replay: Replay | None
    ) -> None:
        state = self.state
        state.lines = batch.checkpoint.lines
        if before is not None:
            state.continued_from = before.lines
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
        state.users += len(created)
        renamed = [person.renamed for person in created if person.renamed is not None]
        state.renamed_count += len(renamed)
        state.renamed += renamed[: REPORTED - len(state.renamed)]
