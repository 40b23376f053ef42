"""The database is reset to an earlier state and receives other messages, as after a restore or a failover that
lost commits. Followers that have received a lost entry get a `Resync`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import pytest

from faults import checker
from faults.chat import Chat
from faults.checker import stored_in
from faults.figures import SCALE, Figures
from faults.follower import cursors
from faults.history import read
from hubbub import Hub, PostgresSettings, Unavailable
from hubbub.events import Resync
from hubbub.postgres import Pool, Statement, connect
from waiting import until_it_answers

KEPT = 20
"""Messages per room in the earlier state."""
GONE = 10
"""Messages per room after it."""


ANYTHING = Statement("test.anything", int, "SELECT 1")


class Backup:
    """An earlier state of a database, in another database on the same server."""

    def __init__(self, database: PostgresSettings) -> None:
        self._settings = database
        self._database = database.database
        self._maintenance = replace(database, database="chatapp")

    async def take(self) -> None:
        """Copy the database. No session may be connected, not even an idle one of a pooler."""
        await until_it_answers(self._is_unused)
        await self._run(f"CREATE DATABASE {self._database}_earlier TEMPLATE {self._database}")

    async def put_back(self) -> None:
        """Restore it while others are connected. They will reconnect."""
        await self._run(f"ALTER DATABASE {self._database} ALLOW_CONNECTIONS false")
        await until_it_answers(self._is_unused)
        await self._run(f"DROP DATABASE {self._database}")
        await self._run(f"ALTER DATABASE {self._database}_earlier RENAME TO {self._database}")
        await until_it_answers(self._is_there)

    async def _is_there(self) -> bool:
        """Whether the database can be reached. A refused pooler reconnects only after a while."""
        pool = Pool(self._settings)
        try:
            await pool.fetch_all(ANYTHING)
        except Unavailable:
            return False
        finally:
            await pool.close()
        return True

    async def _is_unused(self) -> bool:
        terminated = await self._run(
            f"""
            SELECT count(pg_terminate_backend(pid))
            FROM pg_stat_activity
            WHERE datname = '{self._database}'
                AND usename = current_user
            """
        )
        return terminated == 0

    async def _run(self, command: str) -> object:
        connection = await connect(self._maintenance)
        try:
            return await connection.fetchval(command)
        finally:
            await connection.close()


async def talk(chat: Chat, messages: int, content: str, rooms: int) -> None:
    """Send `count` messages to each of the first rooms."""
    async with Hub(chat.settings) as hub:
        for n in range(messages):
            for room_id in chat.room_ids[:rooms]:
                await hub.messages.send(room_id, chat.user_ids[1], f"{content} {n}")


@pytest.mark.parametrize(
    "on_top",
    [
        pytest.param(0, marks=pytest.mark.guarantee("G5", "an earlier state put back, nothing written on top")),
        pytest.param(5, marks=pytest.mark.guarantee("G5", "an earlier state put back, fewer written on top")),
        pytest.param(GONE, marks=pytest.mark.guarantee("G5", "an earlier state put back, as many written on top")),
        pytest.param(25, marks=pytest.mark.guarantee("G5", "an earlier state put back, more written on top")),
    ],
    ids=["nothing", "fewer", "as many", "more"],
)
async def test_followers_of_a_rewound_log_get_a_resync(chat: Chat, on_top: int, figures: Figures) -> None:
    """Two of three rooms lose entries. The third does not, and its followers get no `Resync`."""
    rewound, whole = chat.room_ids[:2], chat.room_ids[2]
    await talk(chat, KEPT, "kept", rooms=3)
    backup = Backup(chat.settings.postgres)
    await backup.take()
    await talk(chat, GONE, "gone", rooms=2)
    stopped = await chat.follower()
    for _ in range(SCALE.followers):
        await chat.follower()
    await chat.converged()
    await stopped.end()
    kept = cursors(stopped.history, rewound)

    await backup.put_back()
    await talk(chat, on_top, "other", rooms=2)
    await chat.follower(instead_of=stopped)

    def resynced() -> int:
        return sum(checker.resyncs(read(follower.history), rewound) for follower in chat.followers)

    expected = len(chat.followers) * len(rewound)
    with suppress(TimeoutError):
        await chat.until(lambda: resynced() >= expected)
    in_pages = await resyncs_in_pages(chat, kept)
    figures.found(f"{resynced() + in_pages} of {expected + len(rewound)} resynced")
    assert (resynced(), in_pages) == (expected, len(rewound))

    await talk(chat, 3, "later", rooms=3)
    await chat.converged()
    assert resynced() == expected
    stored = await stored_in(chat.settings.postgres)
    for follower in chat.followers:
        history = read(follower.history)
        assert not checker.resyncs(history, [whole])
        assert not list(checker.wrong_deliveries(checker.since_resync(history, rewound), stored))


async def resyncs_in_pages(chat: Chat, after: dict[UUID, str | None]) -> int:
    """The number of these cursors that are answered by a page with only a `Resync`."""
    async with Hub(chat.settings) as hub:
        pages = [await hub.messages.since(room_id, cursor) for room_id, cursor in after.items()]
    return sum(len(page.items) == 1 and isinstance(page.items[0], Resync) for page in pages)
