"""A member who sends a message has read what is before it: the read marks of authors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.background import BackgroundTask, ReportErrors
from hubbub.commits import Commits, MessagesSent, ReadMarkMoved, RoomRewound
from hubbub.errors import NotAMember, Unavailable
from hubbub.scheduling import in_slices

MARK_AFTER_SECONDS: Final = 1.0
"""An author who sends ten messages in this time gets one mark. The other devices of the user see it this late."""
MAX_KNOWN: Final = 10_000
"""Memberships whose read mark is known: 4 MB. In a membership that is not known, the next message gets a mark."""
MARKS_PER_TURN: Final = 100
"""Marks that begin in one turn of the event loop, each as a task: about 3 ms."""
MAX_WAIT_SECONDS: Final = 1.0
"""How long a read, or the end of a hub, waits for marks. The membership may be locked, or the server gone."""
MARK_WAIT_DIVISOR: Final = 8
"""A read waits no longer than an eighth of the time until its deadline, so that it still has time for itself."""

Key: TypeAlias = tuple[UUID, UUID]
"""The room and the user of a membership."""
MarkRead: TypeAlias = Callable[[UUID, UUID, int], Awaitable[object]]


class AuthorMarks:
    """Marks rooms as read for the authors of the messages that this process commits, up to their messages.

    A send does not wait for its mark, and does not write the membership itself: 200 senders in one room would get
    0.76 of their rate (docs/decisions.md). A message that directly follows the author's previous one, or the
    author's read mark, needs no mark. A mark that fails, or waits when the process is killed, is not repeated: the
    next message of the author, or its client, marks more.
    """

    def __init__(self, mark_read: MarkRead) -> None:
        """`mark_read` is called with the room, the user and the seq."""
        self._mark_read = mark_read
        self._known: dict[Key, int] = {}  # the seq up to which the user has read, the least recent one first
        self._waiting: dict[Key, int] = {}
        self._in_flight: dict[Key, asyncio.Task[None]] = {}  # the newest of each, which ends last
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: dict[UUID, set[Key]] = {}  # those that wait or are in flight, by room and by user
        self._marking = BackgroundTask("marking rooms as read for authors", self._mark_all, finish=self._finish)
        self._loop: asyncio.AbstractEventLoop | None = None

    def register(self, commits: Commits) -> None:
        """Mark for the messages that are committed from now on, once it is started."""
        commits.on(MessagesSent, self._sent)
        commits.on(ReadMarkMoved, self._moved)
        commits.on(RoomRewound, self._rewound)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._marking.start()

    async def close(self) -> None:
        """Make the marks that wait, if that takes no longer than a second."""
        await self._marking.close()
        for task in list(self._tasks):
            task.cancel()

    def has_pending(self) -> bool:
        """Whether a mark waits or is in flight, in the event loop that this runs in."""
        return bool(self._pending) and self._loop is asyncio.get_running_loop() and self._marking.is_running

    async def settle(self, *, room_id: UUID | None = None, user_id: UUID | None = None, deadline: float) -> None:
        """Make the marks of a room, of a user, or of a membership, that wait in this process.

        Returns after a second at the latest, and after an eighth of the time until the deadline.
        """
        if not self.has_pending():
            return
        keys = set.intersection(*(self._pending.get(id, set()) for id in (room_id, user_id) if id is not None))
        await in_slices([*keys], self._begin, MARKS_PER_TURN)
        if tasks := [self._in_flight[key] for key in keys if key in self._in_flight]:
            left = (deadline - asyncio.get_running_loop().time()) / MARK_WAIT_DIVISOR
            await asyncio.wait(tasks, timeout=min(left, MAX_WAIT_SECONDS))

    def _sent(self, change: MessagesSent) -> None:
        if not self._marking.is_running:
            return
        for message in change.messages:
            if message.user_id is None:
                continue  # the account was deleted before a retry found the message
            key = message.room_id, message.user_id
            if key in self._waiting or message.seq - self._known.get(key, 0) not in {0, 1}:
                self._wait(key, message.seq)
            self._know(key, message.seq)
        if self._waiting:
            self._marking.wake()

    def _moved(self, mark: ReadMarkMoved) -> None:
        key = mark.room_id, mark.user_id
        if mark.is_back:
            self._known.pop(key, None)
        elif mark.last_read_seq > self._known.get(key, 0):  # it may be older than the author's newest message
            self._know(key, mark.last_read_seq)
        if mark.is_back or self._waiting.get(key, inf) <= mark.last_read_seq:
            self._waiting.pop(key, None)
            self._settled(key)

    def _rewound(self, _: RoomRewound) -> None:
        self._known.clear()  # after a failover this comes for many rooms

    def _know(self, key: Key, seq: int) -> None:
        self._known.pop(key, None)
        self._known[key] = seq
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    async def _mark_all(self) -> float | None:
        if not self._waiting:
            return inf
        await asyncio.sleep(MARK_AFTER_SECONDS)
        await in_slices([*self._waiting], self._begin, MARKS_PER_TURN)
        return None

    async def _finish(self) -> None:
        await in_slices([*self._waiting], self._begin, MARKS_PER_TURN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=MAX_WAIT_SECONDS)

    def _wait(self, key: Key, seq: int) -> None:
        self._waiting[key] = max(seq, self._waiting.get(key, 0))
        for id in key:
            self._pending.setdefault(id, set()).add(key)

    def _begin(self, key: Key) -> None:
        seq = self._waiting.pop(key, None)
        if seq is not None:
            task = asyncio.create_task(self._mark(key, seq), name="hubbub: mark a room as read")
            self._in_flight[key] = task
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, key))

    async def _mark(self, key: Key, seq: int) -> None:
        with ReportErrors("marking a room as read for an author"), suppress(NotAMember, Unavailable):
            await self._mark_read(*key, seq)
            return
        self._known.pop(key, None)  # it failed, so that the next message needs a mark in any case

    def _ended(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._in_flight.get(key) is task:
            del self._in_flight[key]
        self._settled(key)

    def _settled(self, key: Key) -> None:
        if key in self._waiting or key in self._in_flight:
            return
        for id in key:
            keys = self._pending.get(id, set())
            keys.discard(key)
            if not keys:
                self._pending.pop(id, None)
