"""Concurrent sends travel together: what waits while a statement is in flight goes out in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from hubbub.errors import Unavailable
from hubbub.models import Message
from hubbub.postgres import Executor
from hubbub.repositories.messages.sending import Draft, send_one, send_together

# Messages in a statement; a larger batch wins nothing (docs/decisions.md).
BATCH = 500
# Statements in flight at a time: a second one only while so many messages wait.
LANES = 2
LOAD = 100
# How long a statement that is not answered holds the next one back: one locked room must not stop all. And how
# many may be in flight then, so that stuck ones cannot take the whole pool.
PATIENCE_SECONDS = 0.05
MOST_LANES = 4
# Messages that wait. Who comes then waits for a place, and is refused at the deadline.
WAITING = 10_000


class _Waiting:
    """A draft whose sender waits for it."""

    __slots__ = ("draft", "future", "is_on_its_way")

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.is_on_its_way = False


class MessageWriter:
    """Appends messages for everybody in this process.

    Nobody waits for a timer: a sender who finds nothing in flight runs a statement of his own at once. Those who
    come meanwhile wait for it to end, and their messages share the next statement and its commit. A second
    statement is in flight only when many wait or the first is not answered soon, and never for a room that has one
    in flight: so the messages of a room are appended in the order in which they came.
    """

    def __init__(self, executor: Executor, tell: Callable[[Message], None], *, deadline_seconds: float) -> None:
        """`tell` is called with each message, after its COMMIT; again when a retry finds it. It must not wait."""
        self._executor = executor
        self._tell = tell
        self._deadline_seconds = deadline_seconds
        self._queues: dict[UUID, deque[_Waiting]] = {}  # what waits, by room, in the order in which it came
        self._ready: deque[UUID] = deque()  # rooms with something waiting and nothing in flight
        self._busy: set[UUID] = set()  # rooms with something in flight
        self._lanes: set[asyncio.Task[None]] = set()
        self._soloists = 0
        self._late = 0  # statements in flight that are not answered soon
        self._waiting = 0
        self._space = asyncio.Semaphore(WAITING)
        self._is_closed = False
        self._is_idle = asyncio.Event()

    async def send(self, draft: Draft) -> Message:
        """Append the message: committed when this returns.

        Raises what `send_one` does; `Unavailable` at the deadline, which says whether the message was on its way,
        and after `drain`. A sender who is cancelled while his draft waits has not sent it; once it is on its way,
        it may arrive.
        """
        if self._is_closed:
            raise _closed()
        if not self._in_flight:
            return await self._send_alone(draft)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_seconds
        await self._take_space(deadline)
        waiting = _Waiting(draft)
        timer = loop.call_at(deadline, self._expire, waiting)
        try:
            self._enqueue(waiting)
            return await waiting.future
        except asyncio.CancelledError:
            self._forget(waiting)
            raise
        finally:
            timer.cancel()
            self._space.release()

    async def drain(self) -> None:
        """Refuse what comes from now on, and wait for what came before: until its deadline at the latest."""
        self._is_closed = True
        self._note_idle()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._is_idle.wait()
        except TimeoutError:
            pass  # whoever came before is late himself by now

    @property
    def _in_flight(self) -> int:
        return len(self._lanes) + self._soloists

    def _note_idle(self) -> None:
        if self._is_closed and not self._in_flight:
            self._is_idle.set()

    async def _send_alone(self, draft: Draft) -> Message:
        self._soloists += 1
        self._busy.add(draft.room_id)
        try:
            with self._patience():
                message = await send_one(self._executor, draft)
        finally:
            self._soloists -= 1
            self._free((draft.room_id,))
            self._open_lane()
            self._note_idle()
        self._hand_on(message)
        return message

    async def _take_space(self, deadline: float) -> None:
        if not self._space.locked():
            await self._space.acquire()
            return
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
        self._open_lane()

    @property
    def _wanted(self) -> int:
        """One lane as long as something waits that is not on its way, a second while much does, one for each that
        is stuck."""
        return min((LANES if self._waiting >= LOAD else 1) + self._late, MOST_LANES)

    def _open_lane(self) -> None:
        if self._ready and self._in_flight < self._wanted:
            lane = asyncio.create_task(self._drive(), name="hubbub: write messages")
            self._lanes.add(lane)
            lane.add_done_callback(self._close_lane)

    def _close_lane(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._open_lane()  # for what came after the lane had looked
        self._note_idle()

    async def _drive(self) -> None:
        while self._in_flight <= self._wanted and (batch := self._take()):
            try:
                with self._patience():
                    await self._write(batch)
            finally:
                self._free({waiting.draft.room_id for waiting in batch})
            self._open_lane()
            # Let those whose messages have just arrived send the next, so that it comes along.
            await asyncio.sleep(0)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Around a statement: when it is not answered soon, another one may start beside it."""
        is_late = False

        def lose_patience() -> None:
            nonlocal is_late
            is_late = True
            self._late += 1
            self._open_lane()

        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, lose_patience)
        try:
            yield
        finally:
            timer.cancel()
            self._late -= is_late

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

    def _free(self, rooms: Iterable[UUID]) -> None:
        for room_id in rooms:
            self._busy.discard(room_id)
            if room_id in self._queues:
                self._ready.append(room_id)

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            outcomes = await send_together(self._executor, [waiting.draft for waiting in batch])
        except asyncio.CancelledError:  # by whoever ends every task of the loop, for no sender can
            for waiting in batch:
                _answer(waiting, Unavailable("hub", "the statement was cancelled", outcome_unknown=True))
            raise
        for waiting in batch:
            outcome = outcomes[waiting.draft.id]
            if isinstance(outcome, Message):
                self._hand_on(outcome)
            _answer(waiting, outcome)

    def _hand_on(self, message: Message) -> None:
        self._executor.after_commit(partial(self._tell, message))

    def _forget(self, waiting: _Waiting) -> None:
        """Nobody waits for it any more: leave the draft out if it is not on its way."""
        if not waiting.is_on_its_way:
            room_id = waiting.draft.room_id
            queue = self._queues[room_id]
            queue.remove(waiting)
            self._waiting -= 1
            if not queue:
                del self._queues[room_id]
                if room_id not in self._busy:
                    self._ready.remove(room_id)
            waiting.is_on_its_way = True

    def _expire(self, waiting: _Waiting) -> None:
        reason = f"no answer within {self._deadline_seconds:g} s"
        error = Unavailable("postgresql", reason, outcome_unknown=waiting.is_on_its_way)
        self._forget(waiting)
        _answer(waiting, error)


def _answer(waiting: _Waiting, outcome: Message | Exception) -> None:
    if waiting.future.done():
        return
    if isinstance(outcome, Exception):
        waiting.future.set_exception(outcome)
    else:
        waiting.future.set_result(outcome)


def _closed() -> Unavailable:
    return Unavailable("hub", "it is closed", retryable=False)
