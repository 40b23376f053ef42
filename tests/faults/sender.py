"""A process that sends, edits and deletes, and insists on each call until it is acknowledged.

python -m faults.sender PLAN        PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from faults.history import Acknowledged, Began, Failed, History, now, read
from faults.process import plan_of, run, settings_of_environment
from hubbub import Hub, Message, Unavailable, new_id


class Plan(msgspec.Struct, frozen=True):
    """Whose messages go where, and how many."""

    history: Path
    user_id: UUID
    rooms: list[UUID]
    messages: int
    seed: int
    callers: int = 10
    pause_seconds: float = 0
    """After each call of a caller, so that a load lasts as long as a fault."""
    changes: float = 0.1
    """The share of messages that are edited, and of those half are deleted too."""
    repeats: float = 0.05
    """The share of messages that are sent again after they were acknowledged."""
    left_behind: list[Path] = []
    """Histories of senders that were killed: what they had no answer to is sent again, under the same id."""


What = Literal["send", "edit", "delete"]


class Sender:
    """One hub and what it does, written down before and after."""

    def __init__(self, hub: Hub, plan: Plan, history: History) -> None:
        self._hub = hub
        self._plan = plan
        self._history = history
        self._calls = count(1)
        self._random = random.Random(plan.seed)
        self._numbers = iter(range(plan.messages))

    async def send_all(self) -> None:
        for began in unanswered(self._plan.left_behind):
            await self._send(began.room_id, began.message_id, began.content)
        await asyncio.gather(*(self._call() for _ in range(self._plan.callers)))

    async def _call(self) -> None:
        for number in self._numbers:
            padding = "." * self._random.randrange(100)
            room_id, message_id = self._random.choice(self._plan.rooms), new_id()
            content = f"{self._plan.seed}/{number} {padding}"
            await self._send(room_id, message_id, content)
            if self._random.random() < self._plan.repeats:
                await self._send(room_id, message_id, content)
            if self._random.random() < self._plan.changes:
                await self._change(room_id, message_id, number)
            await asyncio.sleep(self._plan.pause_seconds)

    async def _send(self, room_id: UUID, message_id: UUID, content: str) -> None:
        user_id = self._plan.user_id
        await self._insist(
            Began(now(), next(self._calls), "send", room_id, message_id, content),
            lambda: self._hub.messages.send(room_id, user_id, content, id=message_id),
        )

    async def _change(self, room_id: UUID, message_id: UUID, number: int) -> None:
        user_id, content = self._plan.user_id, f"{self._plan.seed}/{number} edited"
        await self._insist(
            Began(now(), next(self._calls), "edit", room_id, message_id, content),
            lambda: self._hub.messages.edit(message_id, content, by=user_id),
        )
        if self._random.random() < 0.5:
            await self._insist(
                Began(now(), next(self._calls), "delete", room_id, message_id, ""),
                lambda: self._hub.messages.delete(message_id, by=user_id),
            )

    async def _insist(self, began: Began, call: Callable[[], Awaitable[Message]]) -> None:
        self._history.write(began)
        while True:
            try:
                message = await call()
            except Unavailable as error:
                self._history.write(Failed(now(), began.call, str(error)))
                await asyncio.sleep(self._random.uniform(0.01, 0.1))  # as a client that tries again
            else:
                self._history.write(Acknowledged(now(), began.call, message.seq))
                return


def unanswered(histories: list[Path]) -> list[Began]:
    """The sends that were begun and of which no answer was noted."""
    found = []
    for path in histories:
        records = read(path)
        answered = {record.call for record in records if isinstance(record, Acknowledged)}
        found += [
            record
            for record in records
            if isinstance(record, Began) and record.what == "send" and record.call not in answered
        ]
    return found


async def send(_: asyncio.Event) -> None:
    plan = plan_of(Plan)
    with History(plan.history) as history:
        async with Hub(settings_of_environment()) as hub:
            await Sender(hub, plan, history).send_all()


if __name__ == "__main__":
    run(send)
