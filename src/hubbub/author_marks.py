"""A member who sends a message has read what is before it: the read marks of authors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Final, TypeAlias
from uuid import UUID

from hubbub.background import BackgroundTask, ReportErrors
from hubbub.commits import Commits, MessagesSent, ReadMarkMoved
from hubbub.errors import NotAMember, Unavailable

MARK_AFTER_SECONDS: Final = 1.0
"""An author who sends ten messages in this time gets one mark. The other devices of the user see it this late."""
MOST_KNOWN: Final = 10_000
"""Memberships whose watermark is known: 4 MB. The next message of another one gets a mark, needed or not."""
LONGEST_WAIT_SECONDS: Final = 1.0
"""How long a read, or `close`, waits for marks. The membership may be locked, or the server gone."""

Key: TypeAlias = tuple[UUID, UUID]
"""The room and the user of a membership."""
MarkRead: TypeAlias = Callable[[UUID, UUID, int], Awaitable[object]]


class AuthorMarks:
    """Marks rooms as read for the authors of the messages that this process commits, up to their messages.

    A send does not wait for its mark, and does not write the membership itself: 200 senders in one room would get
    0.76 of their rate (docs/decisions.md). A message that follows the author's previous one, or the author's read
    mark, needs no mark. Marks that wait when the process is killed are lost.
    """

    def __init__(self, mark_read: MarkRead) -> None:
        """`mark_read` is called with the room, the user and the seq."""
        self._mark_read = mark_read
        self._known: dict[Key, int] = {}  # the seq up to which the user has read, the least recent one first
        self._waiting: dict[Key, int] = {}
        self._in_flight: dict[asyncio.Task[None], Key] = {}
        self._marking = BackgroundTask("marking rooms as read for authors", self._mark_all, finish=self.settle)

    def register(self, commits: Commits) -> None:
        """Mark for the messages that are committed from now on."""
        commits.on(MessagesSent, self._sent)
        commits.on(ReadMarkMoved, self._moved)

    def start(self) -> None:
        self._marking.start()

    async def close(self) -> None:
        """Make the marks that wait, if that takes no longer than a second."""
        await self._marking.close()
        for mark in list(self._in_flight):
            mark.cancel()

    async def settle(self, *, room_id: UUID | None = None, user_id: UUID | None = None) -> None:
        """Make the marks that wait in this process: those of the room, of the user, of both, or all.

        Returns after a second at the latest.
        """
        if not self._waiting and not self._in_flight:
            return

        def concerns(key: Key) -> bool:
            return (room_id is None or room_id == key[0]) and (user_id is None or user_id == key[1])

        for key in [key for key in self._waiting if concerns(key)]:
            self._begin(key)
        if marks := [mark for mark, key in self._in_flight.items() if concerns(key)]:
            await asyncio.wait(marks, timeout=LONGEST_WAIT_SECONDS)

    def forget(self, room_id: UUID, user_id: UUID) -> None:
        """The watermark moves back: the next message of the user is marked."""
        self._known.pop((room_id, user_id), None)

    def _sent(self, change: MessagesSent) -> None:
        if not self._marking.is_running:
            return
        for message in change.messages:
            if message.user_id is None:
                continue  # the account was deleted before a retry found the message
            key = message.room_id, message.user_id
            if key in self._waiting or message.seq - self._known.get(key, 0) not in {0, 1}:
                self._waiting[key] = max(message.seq, self._waiting.get(key, 0))
            self._know(key, message.seq)
        if self._waiting:
            self._marking.wake()

    def _moved(self, mark: ReadMarkMoved) -> None:
        key = mark.room_id, mark.user_id
        if mark.last_read_seq > self._known.get(key, 0):  # it may be older than the author's newest message
            self._know(key, mark.last_read_seq)
        if self._waiting.get(key, inf) <= mark.last_read_seq:
            del self._waiting[key]

    def _know(self, key: Key, seq: int) -> None:
        self._known.pop(key, None)
        self._known[key] = seq
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    async def _mark_all(self) -> float | None:
        if not self._waiting:
            return inf
        await asyncio.sleep(MARK_AFTER_SECONDS)
        await self.settle()
        return None

    def _begin(self, key: Key) -> None:
        mark = asyncio.create_task(self._mark(key, self._waiting.pop(key)), name="hubbub: mark a room as read")
        self._in_flight[mark] = key
        mark.add_done_callback(partial(self._in_flight.pop))

    async def _mark(self, key: Key, seq: int) -> None:
        with ReportErrors("marking a room as read for an author"):
            try:
                await self._mark_read(*key, seq)
            except NotAMember:
                pass  # it has left since
            except Unavailable:
                self._waiting.setdefault(key, seq)
                self._marking.wake()
