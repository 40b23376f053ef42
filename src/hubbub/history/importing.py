"""An import: a file, batch after batch, each in one transaction with the note that it is done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from hubbub.commits import OnCommit, RoomTouched, UserChanged
from hubbub.errors import Conflict, NotFound, Unavailable
from hubbub.history.batches import Batch
from hubbub.history.checkpoints import CHECK, CHECKPOINTS, Checkpoint
from hubbub.history.ends import Ends
from hubbub.history.forms import RoomLine, UserLine
from hubbub.history.members import Members
from hubbub.history.nicknames import Renamed
from hubbub.history.people import People, Person
from hubbub.history.present import look_up
from hubbub.history.reading import Reading
from hubbub.history.refusals import REMEMBERED, Refusals
from hubbub.history.replay import Replay
from hubbub.history.room_log import RoomLog
from hubbub.history.rooms import hold, people_of
from hubbub.history.storing import store
from hubbub.postgres import Executor, OpenTransaction, Pool

T = TypeVar("T")

# How long a batch is tried again while PostgreSQL cannot be reached, and how often when somebody was in its way.
PATIENCE_SECONDS: Final = 30.0
ATTEMPTS: Final = 5


@dataclass(slots=True)
class Imported:
    """How far an import has come, and what came of its lines.

    `known` lines were here before, or changed nothing. `continued_from` is the line up to which an earlier run of
    the same file had come, 0 for none: what was refused of these lines is counted only where it shows without the
    database. `users` is how many were made; of those `renamed` there are the first, and `renamed_count`.
    """

    lines: int = 0
    messages: int = 0
    events: int = 0
    known: int = 0
    users: int = 0
    continued_from: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    renamed: list[Renamed] = field(default_factory=list)
    renamed_count: int = 0


class _Written(NamedTuple):
    """What one batch came to, to be counted once it is committed. `before` is how far it was here already."""

    before: Checkpoint | None
    made: list[Person]
    replay: Replay | None


class _Overtaken(Exception):
    """Another import of the same lines has committed some of them."""


class Import:
    """Takes the batches of one file. Not to be used for two files: it remembers whom and what the lines mean."""

    def __init__(self, pool: Pool, on_commit: OnCommit) -> None:
        self.state = Imported()
        self._pool = pool
        self._on_commit = on_commit
        self._people = People()
        self._members = Members()
        self._ends = Ends()
        self._barred: set[UUID] = set()
        self._careful = False

    async def run(self, file: BufferedIOBase, tell: Callable[[Imported], None]) -> Imported:
        """All of it. A thread reads and checks a batch while PostgreSQL is busy with the one before."""
        async with Reading(file) as reading:
            while (batch := await reading.next()) is not None:
                await self._take(batch, reading)
                tell(self.state)
        return self.state

    async def _take(self, batch: Batch, reading: Reading) -> None:
        if not batch.checkpoint.lines:  # a file that is damaged before its first line: there is nothing to store
            self._count(batch, _Written(None, [], None))
            return
        self._ends.expect(batch)
        written = await self._patiently(partial(self._write, batch, reading.ahead))
        self._ends.reach(written.before, () if written.replay is None else written.replay.rooms.values())
        if batch.is_last:
            await self._patiently(partial(self._ends.count_as_read, self._pool, batch.checkpoint))
        self._count(batch, written)

    async def _patiently(self, write: Callable[[], Awaitable[T]]) -> T:
        """It is safe to try again however a try has ended: what was committed is found."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_SECONDS
        attempt = 0
        while True:
            attempt += 1
            try:
                return await write()
            except _Overtaken:
                pass
            except (Conflict, NotFound):
                # An id is taken that only this line can have made; or an account or a room has gone meanwhile.
                if attempt >= ATTEMPTS:
                    raise
                self._careful = True
            except Unavailable as error:
                if not error.retryable or loop.time() > give_up:
                    raise
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, not a secret
            self._people.forget()
            self._members.forget()

    async def _write(self, batch: Batch, while_it_is_stored: Callable[[], None]) -> _Written:
        lines = [line for _, line in batch.taken]
        async with self._pool.transaction() as transaction:
            before = await self._reached(transaction, batch)
            if before == batch.checkpoint:
                lines = [line for line in lines if isinstance(line, UserLine | RoomLine)]
                if not lines:
                    return _Written(before, [], None)
            made = await self._people.meet(transaction, lines, people_of(lines))
            held = await hold(transaction, lines, self._people, self._barred)
            if before == batch.checkpoint:
                return _Written(before, made, None)
            if await self._reached(transaction, batch) != before:
                raise _Overtaken
            todo = batch.taken if before is None else [one for one in batch.taken if one[0] > before.lines]
            crowds = await self._members.look_up(transaction, held, (line for _, line in todo), self._people)
            present = await look_up(transaction, todo, careful=self._careful)
            replay = Replay([RoomLog(room, crowds[room.id]) for room in held], self._people, present)
            await store(transaction, replay, todo, while_it_is_stored)
            await transaction.execute(CHECK, batch.checkpoint.digest, batch.checkpoint.lines)
            self._tell(transaction, replay, made)
        self._careful = self._careful and replay.known > 0
        for room in replay.rooms.values():
            room.crowd.last_seq = room.last_seq
        return _Written(before, made, replay)

    @staticmethod
    async def _reached(executor: Executor, batch: Batch) -> Checkpoint | None:
        return batch.reached(await executor.fetch_all(CHECKPOINTS, batch.before, batch.checkpoint.lines))

    def _tell(self, transaction: OpenTransaction, replay: Replay, made: list[Person]) -> None:
        for person in made:
            transaction.after_commit(lambda id=person.id: self._on_commit(UserChanged(id)))  # type: ignore[misc]
        for room in replay.rooms.values():
            transaction.after_commit(lambda id=room.id: self._on_commit(RoomTouched(id)))  # type: ignore[misc]

    def _count(self, batch: Batch, written: _Written) -> None:
        state = self.state
        state.lines = batch.checkpoint.lines
        if written.before is not None:
            state.continued_from = written.before.lines
        refused = list(batch.refused)
        if written.replay is not None:
            state.messages += written.replay.said
            state.events += written.replay.entered
            state.known += written.replay.known
            refused += written.replay.refused
        for refusal in sorted(refused):
            state.refusals.add(*refusal)
        state.users += len(written.made)
        renamed = [person.renamed for person in written.made if person.renamed is not None]
        state.renamed_count += len(renamed)
        state.renamed += renamed[: REMEMBERED - len(state.renamed)]
