"""Drafts that wait to be written: a queue for each room, and which rooms may be written to now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from uuid import UUID

from hubbub.models import Message
from hubbub.repositories.messages.sending import Draft


class Waiting:
    """A draft whose sender waits for it, until the deadline, in the time of the event loop."""

    __slots__ = ("answer", "deadline", "draft", "is_on_its_way")

    def __init__(self, draft: Draft, answer: asyncio.Future[Message], deadline: float) -> None:
        self.draft = draft
        self.answer = answer
        self.deadline = deadline
        self.is_on_its_way = False


class Queues:
    """What waits, by room, in the order in which it came.

    A room of which something is on its way is passed over until that has arrived: so nothing overtakes it.
    """

    def __init__(self) -> None:
        self._queues: dict[UUID, deque[Waiting]] = {}
        self._ready: deque[UUID] = deque()  # rooms with something waiting and nothing on its way
        self._busy: set[UUID] = set()  # rooms with something on its way
        self._locked: set[UUID] = set()  # rooms that were left out because they were locked
        self._length = 0

    def __len__(self) -> int:
        """Drafts that wait and are not on their way."""
        return self._length

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take."""
        return bool(self._ready)

    def add(self, waiting: Waiting) -> None:
        room_id = waiting.draft.room_id
        queue = self._queues.get(room_id)
        if queue is None:
            queue = self._queues[room_id] = deque()
            if room_id not in self._busy:
                self._ready.append(room_id)
        queue.append(waiting)
        self._length += 1

    def occupy(self, room_id: UUID) -> None:
        """Something is on its way to the room that has not waited here."""
        self._busy.add(room_id)

    def take(self, most: int) -> list[Waiting]:
        """What goes out together: from each free room what waits, up to `most`, an id only once.

        A room that was left out of a batch, because it was locked, goes alone.
        """
        batch: list[Waiting] = []
        ids: set[UUID] = set()
        for _ in range(len(self._ready)):
            if len(batch) >= most:
                break
            room_id = self._ready.popleft()
            goes_alone = room_id in self._locked
            if (goes_alone and batch) or not self._take_from(room_id, batch, ids, most):
                self._ready.append(room_id)
            elif goes_alone:
                break
        self._length -= len(batch)
        return batch

    def _take_from(self, room_id: UUID, batch: list[Waiting], ids: set[UUID], most: int) -> bool:
        queue = self._queues[room_id]
        before = len(batch)
        while queue and len(batch) < most and queue[0].draft.id not in ids:
            waiting = queue.popleft()
            waiting.is_on_its_way = True
            ids.add(waiting.draft.id)
            batch.append(waiting)
        if not queue:
            del self._queues[room_id]
        if len(batch) == before:
            return False
        self._busy.add(room_id)
        return True

    def arrived(self, batch: Sequence[Waiting], locked: Sequence[Waiting]) -> None:
        """The batch is over. What could not be sent, because its room was locked, is the first to go next time."""
        for waiting in reversed(locked):
            self.put_back(waiting)
        still_locked = {waiting.draft.room_id for waiting in locked}
        for room_id in {waiting.draft.room_id for waiting in batch}:
            self.free(room_id)
            if room_id in still_locked and room_id in self._queues:
                self._locked.add(room_id)

    def put_back(self, waiting: Waiting) -> None:
        """It goes first when its room is free, also if its sender was cancelled: it has been on its way.

        Not when it was answered, because its time was over.
        """
        if waiting.answer.done() and not waiting.answer.cancelled():
            return
        waiting.is_on_its_way = False
        self._queues.setdefault(waiting.draft.room_id, deque()).appendleft(waiting)
        self._length += 1

    def free(self, room_id: UUID) -> None:
        """What was on its way to the room has arrived."""
        self._busy.remove(room_id)
        self._locked.discard(room_id)
        if room_id in self._queues:
            self._ready.append(room_id)

    def remove(self, waiting: Waiting) -> None:
        """Nobody waits for it any more: it is left out, unless it is on its way."""
        if waiting.is_on_its_way:
            return
        room_id = waiting.draft.room_id
        queue = self._queues[room_id]
        queue.remove(waiting)
        self._length -= 1
        if not queue:
            del self._queues[room_id]
            self._locked.discard(room_id)
            if room_id not in self._busy:
                self._ready.remove(room_id)
        waiting.is_on_its_way = True
