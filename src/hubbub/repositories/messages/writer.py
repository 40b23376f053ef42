"""Concurrent sends travel together: what waits while a statement is in flight goes out in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

from hubbub.errors import Unavailable
from hubbub.models import Message
from hubbub.postgres import Executor
from hubbub.repositories.messages.sending import Draft, Sent, send_one, send_together

# The figures are those of docs/decisions.md: a larger batch wins nothing, a second lane only under load.
BATCH = 500
LANES = 2
LOAD = 100
WAITING = 10_000


class _Waiting:
    """A draft whose sender waits for it."""

    __slots__ = ("deadline", "draft", "future", "is_on_its_way")

    def __init__(self, draft: Draft, deadline: float) -> None:
        self.draft = draft
        self.deadline = deadline
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.is_on_its_way = False


class MessageWriter:
    """Appends messages for everybody in this process.

    Nobody waits for a timer: a sender who finds nothing in flight runs a statement of his own at once. Those who
    come meanwhile wait for it to end, and their messages share the next statement and its commit. A second
    statement is in flight only when many wait, and never for a room that has one in flight: so the messages of a
    room are appended in the order in which they came.
    """

    def __init__(self, executor: Executor, tell: Callable[[Message], None], *, deadline_seconds: float) -> None:
        """`tell` is called with each new message, after its COMMIT. It must neither wait nor raise."""
        self._executor = executor
        self._tell = tell
        self._deadline_seconds = deadline_seconds
        self._queues: dict[UUID, deque[_Waiting]] = {}  # what waits, by room, in the order in which it came
        self._ready: deque[UUID] = deque()  # rooms with something waiting and nothing in flight
        self._busy: set[UUID] = set()  # rooms with something in flight
        self._lanes: set[asyncio.Task[None]] = set()
        self._soloists = 0
        self._waiting = 0
        self._space = asyncio.Semaphore(WAITING)
        self._by_deadline: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, draft: Draft) -> Message:
        """Append the message: committed when this returns.

        Raises what `send_one` does; `Unavailable` at the deadline, which says whether the message was on its way.
        A sender who is cancelled while his draft waits has not sent it; once it is on its way, it may arrive.
        """
        if not self._lanes and not self._soloists:
            return await self._send_alone(draft)
        waiting = _Waiting(draft, asyncio.get_running_loop().time() + self._deadline_seconds)
        await self._take_space(waiting.deadline)
        try:
            self._enqueue(waiting)
            return await waiting.future
        except asyncio.CancelledError:
            self._forget(waiting)
            raise
        finally:
            self._space.release()

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def _send_alone(self, draft: Draft) -> Message:
        self._soloists += 1
        self._busy.add(draft.room_id)
        try:
            sent = await send_one(self._executor, draft)
        finally:
            self._soloists -= 1
            self._free((draft.room_id,))
            self._open_lanes()
        self._hand_on(sent)
        return sent.message

    async def _take_space(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._space.acquire()
        except TimeoutError as error:
            raise Unavailable("postgresql", f"{WAITING} messages wait to be written") from error

    def _enqueue(self, waiting: _Waiting) -> None:
        room_id = waiting.draft.room_id
        queue = self._queues.get(room_id)
        if queue is None:
            queue = self._queues[room_id] = deque()
            if room_id not in self._busy:
                self._ready.append(room_id)
        queue.append(waiting)
        self._waiting += 1
        while self._by_deadline and self._by_deadline[0].future.done():
            self._by_deadline.popleft()
        self._by_deadline.append(waiting)
        if self._timer is None:
            self._expire_at(waiting.deadline)
        self._open_lanes()

    def _open_lanes(self) -> None:
        """One lane as long as something waits that is not on its way, a second one while much does."""
        wanted = LANES if self._waiting >= LOAD else 1
        if self._ready and len(self._lanes) + self._soloists < wanted:
            self._lanes.add(asyncio.create_task(self._drive(), name="hubbub: write messages"))

    async def _drive(self) -> None:
        while batch := self._take():
            await self._write(batch)
            self._free({waiting.draft.room_id for waiting in batch})
            self._open_lanes()
            # Let those whose messages have just arrived send the next, so that it comes along.
            await asyncio.sleep(0)
        # In the same turn as the look at the queues, so that nobody waits for a lane that is gone.
        self._lanes = {lane for lane in self._lanes if lane is not asyncio.current_task()}

    def _take(self) -> list[_Waiting]:
        """What goes out together: from each free room what waits, up to a batch, an id only once."""
        batch: list[_Waiting] = []
        ids: set[UUID] = set()
        for _ in range(len(self._ready)):
            if len(batch) >= BATCH:
                break
            room_id = self._ready.popleft()
            queue = self._queues[room_id]
            taken = len(batch)
            while queue and len(batch) < BATCH and queue[0].draft.id not in ids:
                waiting = queue.popleft()
                waiting.is_on_its_way = True
                ids.add(waiting.draft.id)
                batch.append(waiting)
            if not queue:
                del self._queues[room_id]
            if len(batch) > taken:
                self._busy.add(room_id)
            else:
                self._ready.append(room_id)
        self._waiting -= len(batch)
        return batch

    def _free(self, rooms: set[UUID] | tuple[UUID, ...]) -> None:
        for room_id in rooms:
            self._busy.discard(room_id)
            if room_id in self._queues:
                self._ready.append(room_id)

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await send_together(self._executor, [waiting.draft for waiting in batch])
        except Unavailable as error:
            for waiting in batch:
                self._refuse(
                    waiting,
                    Unavailable(
                        error.service,
                        error.reason,
                        outcome_unknown=error.outcome_unknown,
                        retryable=error.retryable,
                    ),
                )
            return
        except Exception as error:  # noqa: BLE001 - a bug, and the senders are those who have to see it
            for waiting in batch:
                self._refuse(waiting, error)
            return
        for waiting in batch:
            outcome = outcomes[waiting.draft.id]
            if isinstance(outcome, Sent):
                self._hand_on(outcome)
                if not waiting.future.done():
                    waiting.future.set_result(outcome.message)
            else:
                self._refuse(waiting, outcome)

    def _hand_on(self, sent: Sent) -> None:
        if sent.is_new:
            self._tell(sent.message)

    @staticmethod
    def _refuse(waiting: _Waiting, error: Exception) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(error)

    def _forget(self, waiting: _Waiting) -> None:
        """Its sender is gone: leave the draft out if it still waits."""
        if not waiting.is_on_its_way:
            room_id = waiting.draft.room_id
            queue = self._queues[room_id]
            queue.remove(waiting)
            self._waiting -= 1
            if not queue:
                del self._queues[room_id]
                if room_id in self._ready:
                    self._ready.remove(room_id)
            waiting.is_on_its_way = True

    def _expire_at(self, deadline: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Fail what is late, and come back for what is next: all have the same time, so the oldest comes first."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._by_deadline:
            waiting = self._by_deadline[0]
            if not waiting.future.done():
                if waiting.deadline > now:
                    self._expire_at(waiting.deadline)
                    return
                reason = f"no answer within {self._deadline_seconds:g} s"
                error = Unavailable("postgresql", reason, outcome_unknown=waiting.is_on_its_way)
                self._forget(waiting)
                waiting.future.set_exception(error)
            self._by_deadline.popleft()
