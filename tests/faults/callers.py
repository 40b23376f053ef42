"""Callers in this process that read and write during a fault of the servers, and the errors that they get."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

from faults.chat import Chat
from hubbub import Hub, Unavailable
from waiting import HANGS_AFTER_SECONDS

POOL_SIZE = 5
PAUSE_SECONDS = 0.01


class Callers(NamedTuple):
    """The hub that all callers share, the number of answers to each call, and the number of errors by reason."""

    hub: Hub
    answered: Counter[str]
    refused: Counter[tuple[str, str]]

    async def are_answered(self) -> None:
        """Wait until each kind of call has been answered once more."""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            for name, count in list(self.answered.items()):
                while self.answered[name] == count:  # noqa: ASYNC110 - a server does not notify
                    await asyncio.sleep(PAUSE_SECONDS)

    def figure(self, chat: Chat, violations: Sized) -> str:
        """The calls of all processes, for the table of `make faults`."""
        refused = self.refused.total()
        return (
            f"{len(violations)} violations in {chat.count:,} calls, {chat.errors:,} tries failed; of "
            f"{self.answered.total() + refused:,} other calls {refused:,} were refused"
        )


def calls_of(hub: Hub, chat: Chat) -> dict[str, Callable[[], Awaitable[object]]]:
    """Reads of every table, and changes without log entries, because followers have to reach the end."""
    [room_id, *_], [user_id, *others] = chat.room_ids, chat.user_ids

    async def several() -> None:
        async with hub.transaction() as tx:
            user = await tx.users.get(user_id)
            assert user is not None
            await tx.users.update_profile(user_id, avatar_url=user.avatar_url)
            await tx.room_users.get(room_id, user_id)

    return {
        "messages.page": lambda: hub.messages.page(room_id),
        "messages.page_json": lambda: hub.messages.page_json(room_id),
        "messages.since": lambda: hub.messages.since(room_id, None),
        "messages.by_author": lambda: hub.messages.by_author(user_id),
        "rooms.get": lambda: hub.rooms.get(room_id),
        "rooms.list_for": lambda: hub.rooms.list_for(user_id),
        "room_users.members": lambda: hub.room_users.members(room_id),
        "users.get": lambda: hub.users.get(user_id),
        "users.find_by_username": lambda: hub.users.find_by_username("p0"),
        "users.update_profile": lambda: hub.users.update_profile(others[0], avatar_url="/a.png"),
        "receipts.unread_counts": lambda: hub.receipts.unread_counts(user_id),
        "receipts.mark_read": lambda: hub.receipts.mark_read(room_id, user_id, up_to=1),
        "transaction": several,
    }


@asynccontextmanager
async def calling(chat: Chat) -> AsyncIterator[Callers]:
    """Run one caller of each kind during the block. An error other than `Unavailable` fails the test."""
    few = replace(chat.settings.postgres, pool_size=POOL_SIZE)
    async with Hub(replace(chat.settings, postgres=few)) as hub, asyncio.TaskGroup() as group:
        found = Callers(hub, Counter(), Counter())

        async def repeat(name: str, call: Callable[[], Awaitable[object]]) -> None:
            while True:
                try:
                    await call()
                except Unavailable as error:
                    found.refused[name, error.reason] += 1
                else:
                    found.answered[name] += 1
                await asyncio.sleep(PAUSE_SECONDS)

        tasks = [group.create_task(repeat(name, call)) for name, call in calls_of(hub, chat).items()]
        while len(found.answered) < len(tasks):  # noqa: ASYNC110 - until each was answered once
            await asyncio.sleep(PAUSE_SECONDS)
        yield found
        for task in tasks:
            task.cancel()
