"""Stops that nobody waits for, told to Redis together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Final, TypeVar
from uuid import UUID

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError
from hubbub.redis.replies import Part, Reply, as_ids, as_list
from hubbub.services.typing_indicators.scripts import (
    STOP,
    bucket_of,
    due_key,
    hint_key,
    log_refusal,
    room_key,
)

T = TypeVar("T")

LONGEST_WAIT: Final = 10_000
"""Stops that may wait, and users who stop everywhere. Beyond that they are let go: what is not stopped fades."""
STOPS_AT_ONCE: Final = 1_000
PAUSE_SECONDS: Final = 0.02
"""After Redis was told, before it is told again: what nobody can see is left for others to come along."""

Stop = tuple[UUID, UUID]
"""The room, and who stops typing in it."""


class Stopping:
    """Takes stops at once and tells Redis of them together. What fails is let go.

    There is a stop for each message, and hardly ever somebody who types: so Redis is asked first in which of the
    rooms anybody does, a word for a room and one write for all.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[Stop, None] = {}
        self._departed: dict[UUID, None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, room_id: UUID, user_id: UUID) -> None:
        """The user is to stop typing in the room, soon."""
        if len(self._waiting) < LONGEST_WAIT:
            self._waiting[room_id, user_id] = None
            self._wake.set()

    def add_everywhere(self, user_id: UUID) -> None:
        """The user is to stop typing in all rooms, soon."""
        if len(self._departed) < LONGEST_WAIT:
            self._departed[user_id] = None
            self._wake.set()

    def start(self) -> None:
        """Begin to tell Redis. A second start does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_stopping(), name="hubbub-typing-stops")

    async def close(self) -> None:
        """Tell Redis what waits, and end. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            await self._stop_all()

    async def _keep_stopping(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._stop_all()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _stop_all(self) -> None:
        while (self._waiting or self._departed) and self._connection.connected:
            with ReportErrors("stopping typing"):
                await self._tell(_first_of(self._waiting), _first_of(self._departed))
        self._waiting.clear()
        self._departed.clear()

    async def _tell(self, stops: list[Stop], departed: list[UUID]) -> None:
        try:
            stops += await rooms_of(self._connection, departed)
            departed = []
            rooms = await self._rooms_with_typists({room_id for room_id, _ in stops})
            await stop_now(self._connection, [stop for stop in stops if stop[0] in rooms])
        except asyncio.CancelledError:
            self._waiting |= dict.fromkeys(stops)  # for `close`
            self._departed |= dict.fromkeys(departed)
            raise
        except Unavailable:
            pass  # the connection has logged the outage; what is not stopped fades
        except ReplyError as error:
            log_refusal(error)

    async def _rooms_with_typists(self, rooms: set[UUID]) -> set[UUID]:
        """Those in which somebody typed a moment ago. Raises `Unavailable`, `ReplyError`."""
        buckets = _by_bucket(rooms)
        questions = [("ZMSCORE", due_key(bucket), *map(str, asked)) for bucket, asked in buckets.items()]
        found = set()
        for asked, reply in zip(buckets.values(), await _ask(self._connection, questions), strict=True):
            due = zip(asked, as_list(reply), strict=True)
            found |= {room_id for room_id, score in due if score is not None}
        return found


async def rooms_of(connection: Connection, users: list[UUID]) -> list[Stop]:
    """Where these users may be typing. Raises `Unavailable`, `ReplyError`."""
    replies = await _ask(connection, [("SMEMBERS", hint_key(user_id)) for user_id in users])
    return [(room_id, user_id) for user_id, reply in zip(users, replies, strict=True) for room_id in as_ids(reply)]


async def stop_now(connection: Connection, stops: list[Stop]) -> int:
    """Stop in these rooms; how many of the users did type. Raises `Unavailable`, `ReplyError`."""
    by_bucket: dict[int, list[Stop]] = {}
    for stop in stops:
        by_bucket.setdefault(bucket_of(stop[0]), []).append(stop)
    stopped = await asyncio.gather(*[_stop_in(connection, bucket, some) for bucket, some in by_bucket.items()])
    return sum(stopped)


async def _stop_in(connection: Connection, bucket: int, stops: list[Stop]) -> int:
    return await STOP(
        connection,
        keys=(due_key(bucket), *[room_key(room_id) for room_id, _ in stops]),
        args=[str(one) for stop in stops for one in stop],
    )


async def _ask(connection: Connection, questions: Sequence[tuple[Part, ...]]) -> list[Reply]:
    replies: list[Reply] = []
    for outcome in await connection.execute_many(questions, writes=False):
        if isinstance(outcome, Exception):
            raise outcome
        replies.append(outcome)
    return replies


def _first_of(waiting: dict[T, None]) -> list[T]:
    """Take those out that have waited longest."""
    first = list(islice(waiting, STOPS_AT_ONCE))
    for one in first:
        del waiting[one]
    return first


def _by_bucket(rooms: set[UUID]) -> dict[int, list[UUID]]:
    buckets: dict[int, list[UUID]] = {}
    for room_id in rooms:
        buckets.setdefault(bucket_of(room_id), []).append(room_id)
    return buckets
