"""A chat under load: rooms and users in a database, and processes that send and follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID

from faults import checker, follower, sender
from faults.checker import sent_in, stored_in
from faults.figures import SCALE
from faults.fragile import FragileServers
from faults.history import Acknowledged, Delivered, Failed, Follows, GaveUp, Record, Resynced, read
from faults.worker import Worker
from hubbub import Hub, MessageSent, Settings
from hubbub.positions import Position
from waiting import HANGS_AFTER_SECONDS

PEOPLE = 4
PAUSE_SECONDS = 0.05
"""The pause between two calls of a sender during a fault."""

Fault = Callable[["Chat", FragileServers], AbstractAsyncContextManager[None]]


class Chat:
    """The rooms, the users and the processes. `settings` lead to the servers directly."""

    def __init__(self, settings: Settings, folder: Path, room_ids: list[UUID], user_ids: list[UUID]) -> None:
        self.settings = settings
        self.room_ids = room_ids
        self.user_ids = user_ids
        self.senders: list[Worker] = []
        self.followers: list[Worker] = []
        self._folder = folder
        self._acknowledged = 0

    async def sender(
        self,
        messages: int,
        *,
        seed: int,
        through: Settings | None = None,
        callers: int = 10,
        pause_seconds: float = 0,
        changes: float = 0.1,
        verifies: bool = False,
        left_behind: Worker | None = None,
    ) -> Worker:
        """Start a process that sends. `through` are other settings, such as those of a relay."""
        plan = sender.Plan(
            self._folder / f"sender-{len(self.senders)}",
            self.user_ids[seed % PEOPLE],
            self.room_ids,
            messages,
            seed,
            callers=callers,
            pause_seconds=pause_seconds,
            changes=changes,
            verifies=verifies,
            left_behind=[] if left_behind is None else [left_behind.history],
        )
        worker = await Worker.start("faults.sender", plan, plan.history, through or self.settings)
        self.senders.append(worker)
        return worker

    async def follower(
        self,
        *,
        through: Settings | None = None,
        stalls_after: int | None = None,
        buffer: int = 1_000,
        instead_of: Worker | None = None,
    ) -> Worker:
        """Start a process that follows all rooms from their beginnings. Returns once it follows.

        With `instead_of`, a killed process, it continues the history of that process from its last cursors.
        """
        if instead_of is not None:
            self.followers.remove(instead_of)
        path = self._folder / f"follower-{len(self.followers)}" if instead_of is None else instead_of.history
        begun = sum(isinstance(record, Follows) for record in read(path))
        plan = follower.Plan(path, self.user_ids[0], self.room_ids, stalls_after=stalls_after, buffer=buffer)
        worker = await Worker.start("faults.follower", plan, path, through or self.settings)
        self.followers.append(worker)
        await self.until(lambda: sum(isinstance(record, Follows) for record in read(path)) > begun)
        return worker

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that a process brings about. Fail at once if a process has failed."""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while not condition():
                for worker in [*self.senders, *self.followers]:
                    worker.check()
                await asyncio.sleep(0.02)

    async def acknowledged(self, more: int) -> None:
        """Wait until all senders together have this many more acknowledged calls than after the last wait.

        Each sender has started by then.
        """
        wanted = self._acknowledged + more

        def enough() -> bool:
            for worker in self.senders:
                self._acknowledged += sum(isinstance(record, Acknowledged) for record in worker.tail.new())
            return self._acknowledged >= wanted and all(worker.has_begun for worker in self.senders)

        await self.until(enough)

    async def all_is_sent(self) -> None:
        """Wait until all senders have finished."""
        for worker in self.senders:
            await worker.succeeds()

    async def converged(self, *followers: Worker) -> None:
        """Wait until these or all followers are at the heads of all rooms. No process may still be sending."""
        heads = (await stored_in(self.settings.postgres)).heads
        reached = {worker: dict.fromkeys(self.room_ids, 0) for worker in followers or self.followers}

        def at_the_heads() -> bool:
            for worker, seqs in reached.items():
                for record in worker.tail.new():
                    if isinstance(record, Delivered):
                        seqs[record.room_id] = record.seq
                    elif isinstance(record, Resynced):  # perhaps at the head, after which nothing comes
                        seqs[record.room_id] = Position.decode(record.room_id, record.cursor).seq
            return all(seqs == heads for seqs in reached.values())

        await self.until(at_the_heads)

    async def violations(self) -> list[str]:
        """The violations that the checker finds, after all processes have ended."""
        stored = await stored_in(self.settings.postgres)
        return checker.violations(self.sent, [read(worker.history) for worker in self.followers], stored)

    @property
    def sent(self) -> list[list[Record]]:
        return [read(worker.history) for worker in self.senders]

    @property
    def count(self) -> int:
        """The number of acknowledged calls."""
        return sum(isinstance(record, Acknowledged) for history in self.sent for record in history)

    @property
    def errors(self) -> int:
        """The number of attempts that raised."""
        return sum(isinstance(record, Failed) for history in self.sent for record in history)

    @property
    def given_up(self) -> int:
        """The number of abandoned calls: the error of each attempt showed that nothing was changed."""
        return sum(isinstance(record, GaveUp) for history in self.sent for record in history)

    def delays(self, since: int = 0) -> list[float]:
        """Seconds from the acknowledgement of each message to its delivery to each follower, sorted.

        Messages from before `since`, a time of the histories, do not count.
        """
        acknowledged = {message_id: sent.acknowledged for message_id, sent in sent_in(self.sent).items()}
        return sorted(
            (record.at - at) / 1e9
            for worker in self.followers
            for record in read(worker.history)
            if isinstance(record, Delivered) and record.kind == MessageSent.kind and record.message_id is not None
            if (at := acknowledged.get(record.message_id)) is not None and at >= since
        )

    async def under_load(self, fragile: FragileServers, fault: Fault, through: Settings | None = None) -> None:
        """Send and follow, with the fault in between. Returns once everything is delivered."""
        for _ in range(SCALE.followers):
            await self.follower(through=through)
        # Enough messages to outlast the fault, by the pauses of the callers alone.
        messages = round(10 * (1.5 * SCALE.fault_seconds + 0.5) / PAUSE_SECONDS)
        await self.sender(messages, seed=1, callers=10, pause_seconds=PAUSE_SECONDS)
        await self.acknowledged(50)
        async with fault(self, fragile):
            await asyncio.sleep(SCALE.fault_seconds)
        await self.all_is_sent()
        await self.converged()

    async def close(self) -> None:
        for worker in [*self.senders, *self.followers]:
            await worker.kill()


@asynccontextmanager
async def opened(settings: Settings, folder: Path, *, rooms: int) -> AsyncIterator[Chat]:
    """A chat whose users are members of all its rooms."""
    async with Hub(settings) as hub:
        people = [await hub.users.create(f"p{n}@example.org", f"p{n}", "not a hash") for n in range(PEOPLE)]
        user_ids = [one.id for one in people]
        room_ids = [(await hub.rooms.create(f"room {n}", created_by=user_ids[0])).id for n in range(rooms)]
        for room_id in room_ids:
            await hub.room_users.add_many(room_id, user_ids[1:])
    chat = Chat(settings, folder, room_ids, user_ids)
    try:
        yield chat
    finally:
        await chat.close()
