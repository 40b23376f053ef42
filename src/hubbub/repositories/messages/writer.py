"""Concurrent sends travel together: what waits while a statement is in flight goes out in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hubbub.errors import Unavailable
from hubbub.models import Message
from hubbub.postgres import Executor
from hubbub.repositories.messages.batches import Batches
from hubbub.repositories.messages.places import Deadlines, Places
from hubbub.repositories.messages.queues import Queues, Waiting
from hubbub.repositories.messages.sending import Draft, Outcomes, send_one
from hubbub.repositories.messages.together import BATCH, send_all

# Statements in flight at a time: a second one only while so many messages wait.
LANES = 2
LOAD = 25
# How long a statement that is not answered holds the next one back: one locked room must not stop all. And how
# many may be in flight then, so that stuck ones cannot take the whole pool.
PATIENCE_SECONDS = 0.05
MOST_LANES = 4
# Messages that wait. Who comes then waits for a place, and is refused at the deadline.
WAITING = 10_000
# Calls with many messages that are in flight at a time, beside the lanes.
MOST_CALLS = 2
# Messages told of before the rest of the process has its turn: some milliseconds, where many follow the room.
A_TURN = 50
# At the deadline a statement knows best whether its messages may have arrived: it has so long to say so.
GRACE_SECONDS = 0.1


class MessageWriter:
    """Appends messages for everybody in this process.

    Nobody waits for a timer: a sender who finds nothing in flight runs a statement of his own at once. Those who
    come meanwhile wait for it to end, and their messages share the next statement and its commit. A second
    statement is in flight only when many wait or the first is not answered soon, and never for a room that has one
    in flight: so the messages of a room are appended in the order in which they came.

    A sender who is cancelled takes nothing from the others, and what is on its way goes on without him: a message
    that was committed is told of, whoever waits for it.
    """

    def __init__(
        self, executor: Executor, tell: Callable[[Sequence[Message]], None], *, deadline_seconds: float
    ) -> None:
        """`tell` is called with messages after their COMMIT; again when a retry finds them. It must not wait."""
        self._executor = executor
        self._batches = Batches(executor)
        self._tell = tell
        self._deadline_seconds = deadline_seconds
        self._queues = Queues()
        self._lanes: set[asyncio.Task[None]] = set()
        self._soloists = 0
        self._late = 0  # statements in flight that are not answered soon
        self._places = Places(WAITING)
        self._deadlines = Deadlines(self._expire, grace_seconds=GRACE_SECONDS)
        self._calls: set[asyncio.Task[list[Message]]] = set()
        self._places_for_many = Places(MOST_CALLS)
        self._is_closed = False
        self._is_idle = asyncio.Event()

    async def send(self, draft: Draft) -> Message:
        """Append the message: committed when this returns.

        Raises what `send_one` does; `Unavailable` at the deadline, which says whether the message was on its way,
        and after `drain`. A sender who is cancelled while his draft waits has not sent it; once it is on its way,
        it may arrive.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_seconds
        if not self._in_flight:
            return await self._send_alone(draft, deadline)
        if not self._places.take():
            await self._wait_for(self._places, deadline)
        waiting = Waiting(draft, loop.create_future(), deadline)
        try:
            self._queues.add(waiting)
            self._deadlines.add(waiting)
            self._open_lane()
            return await waiting.answer
        except asyncio.CancelledError:
            self._queues.remove(waiting)
            raise
        finally:
            self._places.give_back()

    async def send_many(self, drafts: Sequence[Draft]) -> list[Message]:
        """Append messages to one room, in their order and all or none: committed when this returns.

        Raises what `send_all` does. A sender who is cancelled may have sent them.
        """
        self._check_open()
        deadline = asyncio.get_running_loop().time() + self._deadline_seconds
        if not self._places_for_many.take():
            await self._wait_for(self._places_for_many, deadline)
        call = asyncio.create_task(self._send_many(drafts, deadline), name="hubbub: write many messages")
        self._calls.add(call)
        call.add_done_callback(self._close_call)
        return await asyncio.shield(call)

    async def drain(self) -> None:
        """Refuse what comes from now on, and wait for what came before: until its deadline at the latest."""
        self._is_closed = True
        self._note_idle()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._is_idle.wait()
        except TimeoutError:
            pass  # whoever came before is late himself by now

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable("hub", "it is closed", retryable=False)

    def _note_idle(self) -> None:
        if self._is_closed and not self._in_flight and not self._calls:
            self._is_idle.set()

    async def _wait_for(self, places: Places, deadline: float) -> None:
        try:
            await places.wait(deadline)
        except TimeoutError as error:
            reason = f"too many messages wait to be written for {self._deadline_seconds:g} s"
            raise Unavailable("postgresql", reason) from error

    async def _send_alone(self, draft: Draft, deadline: float) -> Message:
        """In the task of the sender: one of the writer's costs a tenth of a millisecond where it was measured."""
        self._soloists += 1
        self._queues.occupy(draft.room_id)
        try:
            with self._patience():
                message = await send_one(self._executor, draft, deadline=deadline)
        except asyncio.CancelledError:
            self._go_on_without_sender(draft, deadline)
            raise
        finally:
            self._soloists -= 1
            self._queues.free(draft.room_id)
            self._open_lane()
            self._note_idle()
        self._hand_on([message])
        return message

    def _go_on_without_sender(self, draft: Draft, deadline: float) -> None:
        """The statement may have been committed when it was cancelled, and then nobody has been told. Sent again,
        the message arrives, now or as the one that it was, before whatever else waits for the room."""
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        answer.cancel()
        self._queues.put_back(Waiting(draft, answer, deadline))

    @property
    def _in_flight(self) -> int:
        return len(self._lanes) + self._soloists

    @property
    def _wanted(self) -> int:
        """One lane as long as something waits that is not on its way, a second while much does, one for each that
        is stuck."""
        return min((LANES if len(self._queues) >= LOAD else 1) + self._late, MOST_LANES)

    def _open_lane(self) -> None:
        if self._queues.is_ready and self._in_flight < self._wanted:
            lane = asyncio.create_task(self._drive(), name="hubbub: write messages")
            self._lanes.add(lane)
            lane.add_done_callback(self._close_lane)

    def _close_lane(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._open_lane()  # for what came after the lane had looked
        self._note_idle()

    def _close_call(self, call: asyncio.Task[list[Message]]) -> None:
        self._calls.discard(call)
        self._places_for_many.give_back()
        self._note_idle()

    async def _drive(self) -> None:
        while self._in_flight <= self._wanted and (batch := self._queues.take(BATCH)):
            locked: list[Waiting] = []
            try:
                with self._patience():
                    locked = await self._write(batch)
            finally:
                self._queues.arrived(batch, locked)
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

    async def _write(self, batch: list[Waiting]) -> list[Waiting]:
        """Send the drafts and answer those who wait for them. Gives those whose rooms were locked."""
        drafts = [waiting.draft for waiting in batch]
        try:
            outcomes = await self._batches.send(drafts, deadline=max(waiting.deadline for waiting in batch))
            await self._hand_out(batch, outcomes)
        except asyncio.CancelledError:  # by whoever ends every task of the loop, for no sender can
            for waiting in batch:
                _answer(waiting, Unavailable("hub", "the statement was cancelled", outcome_unknown=True))
            raise
        return [waiting for waiting in batch if waiting.draft.id not in outcomes]

    async def _hand_out(self, batch: Sequence[Waiting], outcomes: Outcomes) -> None:
        for first in range(0, len(batch), A_TURN):
            answered = [
                (waiting, outcome)
                for waiting in batch[first : first + A_TURN]
                if (outcome := outcomes.get(waiting.draft.id)) is not None
            ]
            self._hand_on([outcome for _, outcome in answered if isinstance(outcome, Message)])
            for waiting, outcome in answered:
                _answer(waiting, outcome)
            if first + A_TURN < len(batch):
                await asyncio.sleep(0)

    async def _send_many(self, drafts: Sequence[Draft], deadline: float) -> list[Message]:
        messages = await send_all(self._executor, drafts, deadline=deadline)
        for first in range(0, len(messages), A_TURN):
            self._hand_on(messages[first : first + A_TURN])
            await asyncio.sleep(0)
        return messages

    def _hand_on(self, messages: Sequence[Message]) -> None:
        if messages:
            self._executor.after_commit(lambda: self._tell(messages))

    def _expire(self, waiting: Waiting) -> None:
        reason = f"no answer within {self._deadline_seconds:g} s"
        error = Unavailable("postgresql", reason, outcome_unknown=waiting.is_on_its_way)
        self._queues.remove(waiting)
        _answer(waiting, error)


def _answer(waiting: Waiting, outcome: Message | Exception) -> None:
    if waiting.answer.done():
        return
    if isinstance(outcome, Exception):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
