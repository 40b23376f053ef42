"""A process that sends, edits and deletes, and repeats each call until it is acknowledged.

python -m faults.sender PLAN        PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import Acknowledged, Began, Failed, GaveUp, History, Looked, now, read
from faults.worker import plan_of, run, settings_of_environment
from hubbub import Hub, Message, NotFound, Settings, Unavailable, new_id


class Plan(msgspec.Struct, frozen=True):
    """The author, the rooms, and the number of messages."""

    history: Path
    user_id: UUID
    rooms: list[UUID]
    messages: int
    seed: int
    callers: int = 10
    pause_seconds: float = 0
    """The pause after each call of a caller, so that the load lasts as long as the fault."""
    changes: float = 0.1
    """The share of messages that are edited. Half of these are deleted too."""
    repeats: float = 0.05
    """The share of acknowledged messages that are sent again."""
    verifies: bool = False
    """Whether it reads its message after each call, and abandons a call whose error shows that it was not made."""
    left_behind: list[Path] = []
    """Histories of killed senders. Their unanswered sends are repeated with the same ids."""


class Sender:
    """The calls of one hub, each recorded before and after."""

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
            if not await self._send(room_id, message_id, content):
                continue
            if self._random.random() < self._plan.repeats:
                await self._send(room_id, message_id, content)
            if self._random.random() < self._plan.changes:
                await self._change(room_id, message_id, number)
            await asyncio.sleep(self._plan.pause_seconds)

    async def _send(self, room_id: UUID, message_id: UUID, content: str) -> bool:
        user_id = self._plan.user_id
        return await self._repeat(
            Began(now(), next(self._calls), "send", room_id, message_id, content),
            lambda: self._hub.messages.send(room_id, user_id, content, id=message_id),
        )

    async def _change(self, room_id: UUID, message_id: UUID, number: int) -> None:
        user_id, content = self._plan.user_id, f"{self._plan.seed}/{number} edited"
        await self._repeat(
            Began(now(), next(self._calls), "edit", room_id, message_id, content),
            lambda: self._hub.messages.edit(message_id, content, by=user_id),
        )
        if self._random.random() < 0.5:
            await self._repeat(
                Began(now(), next(self._calls), "delete", room_id, message_id, ""),
                lambda: self._hub.messages.delete(message_id, by=user_id),
            )

    async def _repeat(self, began: Began, call: Callable[[], Awaitable[Message]]) -> bool:
        """Repeat the call until it is acknowledged or abandoned. Returns whether it was acknowledged."""
        self._history.write(began)
        is_made = await self._is_made(began.call, call)
        if self._plan.verifies:
            self._history.write(Looked(now(), began.call, await self._content_of(began.message_id)))
        return is_made

    async def _is_made(self, number: int, call: Callable[[], Awaitable[Message]]) -> bool:
        may_be_made = False
        while True:
            try:
                message = await call()
            except Unavailable as error:
                self._history.write(Failed(now(), number, str(error)))
                may_be_made = may_be_made or error.outcome_unknown
                if self._plan.verifies and not may_be_made:
                    self._history.write(GaveUp(now(), number))
                    return False
                await self._pause()
            else:
                self._history.write(Acknowledged(now(), number, message.seq))
                return True

    async def _content_of(self, message_id: UUID) -> str | None:
        while True:
            try:
                return (await self._hub.messages.get(message_id)).content
            except NotFound:
                return None
            except Unavailable:
                await self._pause()

    async def _pause(self) -> None:
        """Wait, as a client does before it tries again."""
        await asyncio.sleep(self._random.uniform(0.01, 0.1))


def unanswered(histories: list[Path]) -> list[Began]:
    """The sends that began and have no recorded answer."""
    found = []
    for path in histories:
        records = read(path)
        answered = {record.call for record in records if isinstance(record, Acknowledged)}
        found += [
            record
            for record in records
            if isinstance(record, Began) and record.change == "send" and record.call not in answered
        ]
    return found


async def started(settings: Settings) -> Hub:
    """Open a hub, and repeat that until it succeeds, as a supervisor of services does."""
    while True:
        try:
            return await Hub(settings).start()
        except Unavailable:
            await asyncio.sleep(0.05)


async def send(_: asyncio.Event) -> None:
    plan = plan_of(Plan)
    with History(plan.history) as history:
        hub = await started(settings_of_environment())
        try:
            await Sender(hub, plan, history).send_all()
        finally:
            await hub.close()


if __name__ == "__main__":
    run(send)
