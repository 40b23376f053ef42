"""Concurrent sends share statements and commits. `hubbub.batching` schedules them, and draws their states."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Final

from hubbub.background import ReportErrors
from hubbub.batching import (
    ANSWERS_PER_TURN,
    PUT_BACK,
    Batcher,
    KeyedQueue,
    Outcome,
    Slots,
    closed,
    too_many_waiting,
)
from hubbub.commits import MessagesSent, OnCommit
from hubbub.models import Message
from hubbub.postgres import Executor
from hubbub.repositories.messages.batches import Batches
from hubbub.repositories.messages.sending import Draft, send_one
from hubbub.repositories.messages.together import BATCH, send_all

WORKERS: Final = 2
"""Statements in flight while `LOAD` messages wait. One writes while the results of the other are handled."""
LOAD: Final = 25
"""With fewer messages that wait, two statements would share less than one, and each costs a commit."""
MOST_WAITING: Final = 10_000
"""Bounds the memory of messages that wait. Further senders wait for a slot until their deadline."""
MOST_CALLS: Final = 2
"""Calls of `send_many` in flight, beside the workers: each may hold its room and a connection for a second."""


class MessageWriter:
    """Appends messages for all senders in this process.

    A sender that finds no statement in flight runs one of its own. Messages that come meanwhile share the next
    statement and its commit. No room has two statements in flight, so the messages of a room are appended in the
    order in which they came. Each committed message is reported, also when its sender was cancelled.
    """

    def __init__(self, executor: Executor, on_commit: OnCommit, *, deadline_seconds: float) -> None:
        """`on_commit` is called with messages after their COMMIT; again when a retry finds them."""
        self._executor = executor
        self._on_commit = on_commit
        self._deadline_seconds = deadline_seconds
        self._batches = Batches(executor)
        self._batcher = Batcher[Draft, Message](
            "write messages",
            self._send_one,
            self._send_each,
            deadline_seconds=deadline_seconds,
            queue=KeyedQueue(),
            per_batch=BATCH,
            workers=WORKERS,
            load=LOAD,
            most_waiting=MOST_WAITING,
            writes=True,
            committed=self._committed,
        )
        self._calls: set[asyncio.Task[list[Message]]] = set()
        self._slots_for_calls = Slots(MOST_CALLS)
        self._is_closed = False

    async def send(self, draft: Draft) -> Message:
        """Append the message: committed when this returns.

        A sender that is cancelled while the draft waits has not sent it; once it is in flight, it may arrive.

        Raises: what `send_one` does, `Unavailable` (at the deadline, or after `drain`).
        """
        return await self._batcher.call(draft, draft.room_id, draft.id)

    async def send_many(self, drafts: Sequence[Draft]) -> list[Message]:
        """Append messages to one room, in their order and all or none: committed when this returns.

        Raises what `send_all` does. A sender who is cancelled may have sent them.
        """
        if self._is_closed:
            raise closed()
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

    async def drain(self) -> None:
        """Refuse what comes from now on, and wait for what came before: until its deadline at the latest."""
        self._is_closed = True
        with suppress(TimeoutError):  # the deadlines of all earlier calls have passed by then
            async with asyncio.timeout(self._deadline_seconds):
                await self._batcher.drain()
                while self._calls:
                    await asyncio.wait(self._calls)

    def _send_one(self, draft: Draft, deadline: float) -> Awaitable[Message]:
        return send_one(self._executor, draft, deadline=deadline)

    async def _send_each(self, drafts: list[Draft], deadline: float) -> list[Outcome[Message]]:
        outcomes = await self._batches.send(drafts, deadline=deadline)
        return [outcomes.get(draft.id, PUT_BACK) for draft in drafts]

    def _committed(self, messages: Sequence[Message]) -> None:
        self._on_commit(MessagesSent(messages))

    def _end_call(self, call: asyncio.Task[list[Message]]) -> None:
        self._calls.discard(call)
        self._slots_for_calls.give_back()

    async def _send_many(self, drafts: Sequence[Draft], deadline: float) -> list[Message]:
        messages = await send_all(self._executor, drafts, deadline=deadline)
        for first in range(0, len(messages), ANSWERS_PER_TURN):
            with ReportErrors("an action after a COMMIT"):
                self._committed(messages[first : first + ANSWERS_PER_TURN])
            await asyncio.sleep(0)
        return messages
