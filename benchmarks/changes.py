"""Other changes that share statements: edits, joins and read marks, beside one statement for each."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from uuid import UUID

from benchmarks.contenders import Window, duel, hubbub, python
from benchmarks.context import COPY_ROOMS, PEOPLE, ROOMS, USERS, Context, run
from benchmarks.measuring import ASYNCIO, Comparison, Pace, aims, closed_loop
from benchmarks.peers.node import CONTENT, STRICT, node, skipped
from hubbub import Hub
from hubbub.repositories import ReadReceipts, RoomUsers
from hubbub.repositories.messages.edit import EDIT

CALLERS = 200
FIRST_PAIRS = (0, 500_000, 750_000)
"""Each contender starts at another of the million pairs of a user and an empty room. A pair can join once."""

Step = Callable[[Hub, int], Awaitable[object]]

_numbers = count()


@asynccontextmanager
async def changes(context: Context, step: Any, **options: Any) -> AsyncIterator[Window]:  # noqa: ANN401
    """Callers of a hub. `step` gets the number of the caller, and `options`."""
    async with Hub(context.settings) as hub:
        yield lambda seconds: closed_loop(lambda number: step(hub, number, **options), CALLERS, seconds)


def edit(hub: Hub, number: int, messages: Sequence[UUID]) -> Awaitable[object]:
    return hub.messages.edit(messages[number % PEOPLE], _other_content(), by=USERS[number % PEOPLE])


def _other_content() -> str:
    """A content that no contender has sent, because repeating the same content changes nothing."""
    return f"{CONTENT} {os.getpid()} {next(_numbers)}"


def join(hub: Hub, _: int, first: int) -> Awaitable[object]:
    return hub.room_users.add(*_pair(first))


def _pair(first: int) -> tuple[UUID, UUID]:
    pair = first + next(_numbers)
    return COPY_ROOMS[pair % PEOPLE], USERS[pair // PEOPLE % PEOPLE]


def mark_read(hub: Hub, number: int, room_id: UUID) -> Awaitable[object]:
    return hub.receipts.mark_read(room_id, USERS[number % CALLERS], up_to=_microseconds())


def _microseconds() -> int:
    """A seq that no contender has used, because all seqs grow with the time."""
    return time.time_ns() // 1_000


async def edits(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """200 callers that each edit messages in a thousand rooms."""
    async with Hub(context.settings) as hub:
        sent = await asyncio.gather(*(hub.messages.send(*ids, CONTENT) for ids in zip(ROOMS, USERS, strict=True)))
    messages = [message.id for message in sent]
    yield await duel(
        context,
        pace,
        "edits",
        f"edits, {CALLERS} callers in 1,000 rooms",
        {
            **hubbub(changes, step=edit, messages=messages),
            STRICT: node("edit", CALLERS, sql=EDIT.sql, messages=[str(id) for id in messages]),
        },
        targets=aims(("rate", 5.0, STRICT)),
        skipped=skipped(STRICT),
    )


async def joins(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """200 callers that each add users to a thousand rooms."""
    uvloop, asyncio_, original = FIRST_PAIRS
    rooms = [str(room_id) for room_id in COPY_ROOMS]
    ours = hubbub(changes, step=join, first=uvloop) | {
        ASYNCIO: python(changes, step=join, first=asyncio_),
        STRICT: node("join", CALLERS, sql=RoomUsers._ADD.sql, join_rooms=rooms, first=original),
    }
    yield await duel(
        context,
        pace,
        "joins",
        f"joins, {CALLERS} callers in 1,000 rooms",
        ours,
        targets=aims(("rate", 5.0, STRICT)),
        skipped=skipped(STRICT),
    )


async def marks(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """The 200 members of a room whose log grows all mark it as read at the same time."""
    async with Hub(context.settings) as hub:
        room = await hub.rooms.create("read by all", created_by=USERS[0])
        await hub.room_users.add_many(room.id, USERS[1:CALLERS])
        await hub.messages.send(room.id, USERS[0], CONTENT)
    await run(context.settings.postgres, f"UPDATE rooms SET last_seq = 10 ^ 17 WHERE id = '{room.id}'")
    yield await duel(
        context,
        pace.seldom,
        "marks",
        f"mark_read, {CALLERS} members of one room at once",
        {
            **hubbub(changes, step=mark_read, room_id=room.id),
            STRICT: node(
                "mark read", CALLERS, sql=ReadReceipts._MARK_READ.sql, mark_room=str(room.id), members=CALLERS
            ),
        },
        targets=[],
        skipped=skipped(STRICT),
    )
