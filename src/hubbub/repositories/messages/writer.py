"""Concurrent sends share statements and commits. `hubbub.batching` schedules them, and draws their states.

A batch, which usually is one statement, and several if its messages are large:

    append all --> sent
      |-- a room is locked -----------> append those of free rooms; the others are put back
      |-- an id is taken, or a
      |   check failed ---------------> set the drafts with an outcome of their own aside; append the others
      +-- none of these explains it --> each half by itself
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from hubbub.background import ReportErrors
from hubbub.batching import (
    ANSWERS_PER_TURN,
    DISTRIBUTED_WORKERS,
    LOAD,
    MAX_WAITING,
    PUT_BACK,
    WORKERS,
    Batcher,
    BatchOutcome,
    KeyedQueue,
    Slots,
    closed,
    too_many_waiting,
)
from hubbub.commits import MessagesSent, OnCommit
from hubbub.errors import Conflict, Unavailable
from hubbub.instrumentation import LatencyHistogram
from hubbub.models import Message
from hubbub.postgres import Executor, LockNotAvailable
from hubbub.repositories.messages.send import (
    CHARACTERS_PER_STATEMENT,
    MESSAGES_PER_STATEMENT,
    Draft,
    SendOutcomes,
    append,
    find_earlier_sends,
    send_all,
    send_one,
    size_of,
    why_not_sent,
)
from hubbub.repository import ROOMS_NOT_LOCKED

MAX_CALLS: Final = 2
"""Calls of `send_many` in flight, beside the workers: each may hold its room and a connection for a second."""
CHECK_IDS_FIRST_SECONDS: Final = 1.0
"""A client, or a whole process, resends all unanswered messages. A batch with a resent message fails and is sent
again. So for this long after one, batches look up their ids first."""


class MessageWriter:
    """Appends messages for all senders in this process.

    A sender that finds no statement in flight runs one of its own. Messages that come meanwhile share the next
    statement and its commit. No room has two statements of `send` in flight, so these messages are appended in the
    order in which they came. Calls of `send_many` have statements of their own.

    Each committed message is reported, also when its sender was cancelled. In a hub, `Commits` passes it to
    `FollowedRooms` for followers in this process, and to `Announcements` for those in other processes.
    """

    def __init__(self, executor: Executor, on_commit: OnCommit, *, deadline_seconds: float) -> None:
        """`on_commit` is called with messages after their COMMIT; again when a retry finds them."""
        self._executor = executor
        self._on_commit = on_commit
        self._deadline_seconds = deadline_seconds
        self._independent_sends = IndependentSends(executor)
        self._batcher = Batcher[Draft, Message](
            "write messages",
            partial(send_one, executor),
            self._send_batch,
            deadline_seconds=deadline_seconds,
            queue=KeyedQueue(),
            per_batch=MESSAGES_PER_STATEMENT,
            workers=WORKERS,
            load=LOAD,
            most_waiting=MAX_WAITING,
            writes=True,
            committed=self._committed,
        )
        self._calls: set[asyncio.Task[list[Message]]] = set()
        self._slots_for_calls = Slots(MAX_CALLS)
        self._is_closed = False
        self.durations = LatencyHistogram()
        """Of calls of `send` that ended in a message."""

    def distribute(self) -> None:
        """Where rooms are distributed, a batch is of one room. Those of other rooms are in flight beside it."""
        self._batcher.one_key_per_batch(MESSAGES_PER_STATEMENT, DISTRIBUTED_WORKERS)

    async def send(self, draft: Draft) -> Message:
        """Append the message: committed when this returns.

        A sender that is cancelled while the draft waits has not sent it. Once it is in flight, it may be sent.

        Raises: as `send_one`, Unavailable (at the deadline, or after `drain`).
        """
        if self._executor.locked_by_caller():
            await self._executor.check_not_locked_by_caller(draft.room_id)
        began = time.perf_counter()
        sent = await self._batcher.call(draft, draft.room_id, None if draft.has_new_id else draft.id)
        self.durations.add(time.perf_counter() - began)
        return sent

    async def _send_batch(self, drafts: list[Draft], deadline: float) -> list[BatchOutcome[Message]]:
        """Append the messages in one statement. A draft whose room is locked is put back."""
        sent = await self._independent_sends.send(drafts, deadline=deadline)
        return [*sent] if isinstance(sent, list) else [sent.get(draft.id, PUT_BACK) for draft in drafts]

    def _committed(self, messages: Sequence[Message]) -> None:
        """Called by the batcher after the COMMIT, before the senders get their messages."""
        self._on_commit(MessagesSent(messages))

    async def send_many(self, drafts: Sequence[Draft]) -> list[Message]:
        """Append messages to one room, in their order and all or none: committed when this returns.

        A sender that is cancelled may have sent them.

        Raises: as `send_all`, Unavailable (at the deadline, or after `drain`).
        """
        if self._is_closed:
            raise closed()
        if self._executor.locked_by_caller():
            await self._executor.check_not_locked_by_caller(drafts[0].room_id)
        deadline = asyncio.get_running_loop().time() + self._deadline_seconds
        if not self._slots_for_calls.take():
            try:
                await self._slots_for_calls.wait(deadline)
            except TimeoutError as error:
                raise too_many_waiting("write many messages", self._deadline_seconds) from error
        call = asyncio.create_task(self._send_many(drafts, deadline), name="hubbub: write many messages")
        self._calls.add(call)
        call.add_done_callback(self._end_call)
        return await asyncio.shield(call)

    async def _send_many(self, drafts: Sequence[Draft], deadline: float) -> list[Message]:
        messages = await send_all(self._executor, drafts, deadline=deadline)
        for first in range(0, len(messages), ANSWERS_PER_TURN):
            with ReportErrors("an action after a COMMIT"):
                self._committed(messages[first : first + ANSWERS_PER_TURN])
            await asyncio.sleep(0)
        return messages

    def _end_call(self, call: asyncio.Task[list[Message]]) -> None:
        self._calls.discard(call)
        self._slots_for_calls.give_back()

    async def drain(self) -> None:
        """Refuse new messages, and wait for those that came before: until their deadlines at the latest."""
        self._is_closed = True
        with suppress(TimeoutError):  # the deadlines of all earlier calls have passed by then
            async with asyncio.timeout(self._deadline_seconds):
                await self._batcher.drain()
                while self._calls:
                    await asyncio.wait(self._calls)


class IndependentSends:
    """Sends the messages of many senders, each with its own outcome, whatever is wrong with another."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._check_ids_first_until = 0.0

    async def send(self, drafts: Sequence[Draft], *, deadline: float) -> list[Message] | SendOutcomes:
        """Append messages, in their order, in as few statements as their faults allow: usually one.

        Returns all messages, in the order of the drafts, or the outcomes by id. If the drafts are for several
        rooms, those of a room that stays locked have no outcome. Raises nothing: a failure is the outcome of the
        drafts that it concerns, because others may have been committed by then.
        """
        check_ids_first = len(drafts) > 1 and time.monotonic() < self._check_ids_first_until
        return await self._try(drafts, deadline, check_ids_first=check_ids_first)

    async def _send(self, drafts: Sequence[Draft], deadline: float) -> SendOutcomes:
        sent = await self._try(drafts, deadline)
        return {message.id: message for message in sent} if isinstance(sent, list) else sent

    async def _try(
        self, drafts: Sequence[Draft], deadline: float, *, check_ids_first: bool = False
    ) -> list[Message] | SendOutcomes:
        if not drafts:
            return []
        try:
            if len(drafts) > 1 and sum(map(size_of, drafts)) > CHARACTERS_PER_STATEMENT:
                return await self._by_halves(drafts, deadline)
            if check_ids_first:
                return await self._without(await self._find_earlier(drafts, deadline), drafts, deadline)
            return await self._send_unchecked(drafts, deadline)
        except Unavailable as error:
            return {draft.id: error.for_another() for draft in drafts}
        except Exception as error:  # noqa: BLE001 - whatever it is, the senders get it
            return {draft.id: error for draft in drafts}

    async def _send_unchecked(self, drafts: Sequence[Draft], deadline: float) -> list[Message] | SendOutcomes:
        if len(drafts) == 1:
            return {drafts[0].id: await send_one(self._executor, drafts[0], deadline)}
        try:
            messages = await append(self._executor, drafts, deadline=deadline)
        except Unavailable as error:
            rooms = {draft.room_id for draft in drafts}
            if not isinstance(error, LockNotAvailable) or len(rooms) == 1:
                raise
            free = set(await self._executor.fetch_all(ROOMS_NOT_LOCKED, rooms, deadline=deadline))
            return await self._send([draft for draft in drafts if draft.room_id in free], deadline)
        except Conflict:
            aside = await self._find_earlier(drafts, deadline)
        except Exception:  # noqa: BLE001 - one of them cannot be stored, perhaps for a rule of the application's
            return await self._by_halves(drafts, deadline)
        else:
            if messages:
                return messages
            aside = await why_not_sent(self._executor, drafts, deadline=deadline)
        if not aside:
            return await self._by_halves(drafts, deadline)  # the reason is gone by now
        return await self._without(aside, drafts, deadline)

    async def _find_earlier(self, drafts: Sequence[Draft], deadline: float) -> SendOutcomes:
        earlier = await find_earlier_sends(self._executor, drafts, deadline=deadline)
        if earlier:
            self._check_ids_first_until = time.monotonic() + CHECK_IDS_FIRST_SECONDS
        return earlier

    async def _without(self, aside: SendOutcomes, drafts: Sequence[Draft], deadline: float) -> SendOutcomes:
        return aside | await self._send([draft for draft in drafts if draft.id not in aside], deadline)

    async def _by_halves(self, drafts: Sequence[Draft], deadline: float) -> SendOutcomes:
        middle = len(drafts) // 2
        first = await self._send(drafts[:middle], deadline)
        # Messages that follow one in a locked room must not overtake it.
        locked = {draft.room_id for draft in drafts[:middle] if draft.id not in first}
        return first | await self._send(
            [draft for draft in drafts[middle:] if draft.room_id not in locked], deadline
        )
