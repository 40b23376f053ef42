"""Announcements while one of several servers does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

from hubbub import new_id
from hubbub.events import MEMBERSHIPS_CHANNEL, room_channel
from hubbub.redis import ReplyOrError
from hubbub.services.feed.announcements import MAX_PUBLISHING, Announcements
from waiting import until


class Servers:
    """Stands in for the connection to a cluster. Primary A answers when the test allows it, and B at once."""

    is_cluster = True

    def __init__(self, of_a: Iterable[UUID]) -> None:
        self.published: list[list[str]] = []
        self.unanswered: list[asyncio.Future[list[ReplyOrError]]] = []
        self._of_a = set(map(room_channel, of_a))

    def server_of(self, channel: str) -> str:
        return "" if channel == MEMBERSHIPS_CHANNEL else "A" if channel in self._of_a else "B"

    def execute_many(
        self, commands: Sequence[tuple[str, str, bytes]], *, deadline_seconds: float
    ) -> asyncio.Future[list[ReplyOrError]]:
        channels = [channel for _, channel, _ in commands]
        self.published.append(channels)
        answer: asyncio.Future[list[ReplyOrError]] = asyncio.get_running_loop().create_future()
        if self._of_a & {*channels}:
            self.unanswered.append(answer)
        else:
            answer.set_result([0] * len(channels))
        return answer


async def test_server_that_does_not_answer_holds_up_no_room_of_another() -> None:
    hung, other, user_id = new_id(), new_id(), new_id()
    servers = Servers([hung])
    announcements = Announcements(cast("Any", servers))
    for number in range(1, MAX_PUBLISHING + 1):
        announcements.room_touched(hung)
        announcements.room_touched(other)
        await until(lambda number=number: len(servers.published) == 2 * number)  # type: ignore[misc]
    assert sorted(servers.published) == sorted([[room_channel(hung)], [room_channel(other)]] * MAX_PUBLISHING)
    servers.published.clear()
    for _ in range(2):  # commands for the hung server wait, and become one
        announcements.room_touched(hung)
        announcements.room_touched(other)
        announcements.users_joined([user_id])
        await until(lambda: len(servers.published) >= 2)
        assert servers.published == [[room_channel(other)], [MEMBERSHIPS_CHANNEL]]
        servers.published.clear()
    servers.unanswered.pop().set_result([0])
    await until(lambda: bool(servers.published))
    assert servers.published == [[room_channel(hung)]]
    assert len(servers.unanswered) == MAX_PUBLISHING
