"""The cache during changes. A commit may happen between any two steps of a reader."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from hubbub import Settings, User
from hubbub.redis import Connection
from postgres.faults import Proxy
from services import cache_reader
from services.cached_chat import Chat, opened
from waiting import HANGS_AFTER_SECONDS


@pytest.fixture
async def chat(settings: Settings, connection: Connection) -> AsyncIterator[Chat]:
    async with opened(settings.postgres, settings.redis) as chat:
        yield chat


@pytest.fixture
async def elsewhere(settings: Settings, connection: Connection) -> AsyncIterator[Chat]:
    async with opened(settings.postgres, settings.redis) as chat:
        yield chat


@pytest.fixture
async def ada(chat: Chat) -> User:
    return await chat.users.create("ada@example.org", "ada", "not a hash")


async def name_in(chat: Chat, user: User) -> str:
    return (await chat.cache.user(user.id)).username


@asynccontextmanager
async def held_after_reading(chat: Chat, user: User) -> AsyncIterator[asyncio.Task[str]]:
    """A reader with its lease and the old value, which it has not stored yet."""
    chat.watched.hold()
    reader = asyncio.create_task(name_in(chat, user))
    await chat.watched.has_read.wait()
    try:
        yield reader
    finally:
        chat.watched.may_go_on.set()


async def test_value_read_before_a_change_is_not_stored_after_it(
    chat: Chat, elsewhere: Chat, ada: User, connection: Connection
) -> None:
    async with held_after_reading(chat, ada) as slow:
        await elsewhere.users.update_profile(ada.id, username="countess")
        await elsewhere.deletions_acknowledged()
        chat.watched.may_go_on.set()
        assert await slow == "ada", "it began before the change"
    assert await connection.execute("EXISTS", f"cache:5:user:{ada.id}") == 0
    assert chat.cache.counts.overtaken == 1
    assert await name_in(chat, ada) == "countess"


async def test_slow_reader_does_not_replace_the_value_of_a_later_one(
    chat: Chat, elsewhere: Chat, ada: User
) -> None:
    async with held_after_reading(chat, ada) as slow:
        await elsewhere.users.update_profile(ada.id, username="countess")
        await elsewhere.deletions_acknowledged()
        assert await name_in(elsewhere, ada) == "countess"
        chat.watched.may_go_on.set()
        await slow
    assert await name_in(elsewhere, ada) == await name_in(chat, ada) == "countess"
    assert chat.cache.counts.overtaken == 1
    assert elsewhere.watched.reads == 1


async def test_slow_reader_does_not_replace_the_lease_of_a_later_one(
    chat: Chat, elsewhere: Chat, ada: User
) -> None:
    async with held_after_reading(chat, ada) as slow:
        await elsewhere.users.update_profile(ada.id, username="countess")
        await elsewhere.deletions_acknowledged()
        async with held_after_reading(elsewhere, ada) as later:
            chat.watched.may_go_on.set()
            await slow
            elsewhere.watched.may_go_on.set()
            assert await later == "countess"
    assert (chat.cache.counts.overtaken, elsewhere.cache.counts.overtaken) == (1, 0)
    assert await name_in(chat, ada) == "countess"


async def test_read_after_a_change_does_not_share_a_read_from_before_it(
    chat: Chat, elsewhere: Chat, ada: User
) -> None:
    async with held_after_reading(chat, ada) as slow:
        sharing = asyncio.create_task(name_in(chat, ada))
        await chat.deletions_acknowledged()
        await elsewhere.users.update_profile(ada.id, username="countess")
        await elsewhere.deletions_acknowledged()
        assert await name_in(chat, ada) == "countess", "in the process of the slow reader"
        chat.watched.may_go_on.set()
        assert (await slow, await sharing) == ("ada", "ada")
    assert await name_in(chat, ada) == "countess"


async def test_own_change_is_seen_while_an_older_read_is_in_progress(chat: Chat, ada: User) -> None:
    async with held_after_reading(chat, ada) as slow:
        await chat.users.update_profile(ada.id, username="countess")
        assert await name_in(chat, ada) == "countess", "without a turn of the loop in between"
        chat.watched.may_go_on.set()
        await slow
    assert await name_in(chat, ada) == "countess"


@pytest.mark.parametrize("change", ["edit", "delete"])
async def test_change_whose_first_answer_was_lost_is_on_the_next_page(
    settings: Settings, connection: Connection, change: str
) -> None:
    """It is repeated, finds that it was made, and is still reported."""
    async with Proxy(settings.postgres) as proxy, opened(proxy.settings, settings.redis) as chat:
        ada = await chat.users.create("ada@example.org", "ada", "not a hash")
        room = await chat.rooms.create("news", created_by=ada.id)
        message = await chat.messages.send(room.id, ada.id, "a secret")
        await chat.deletions_acknowledged()
        assert b"a secret" in await chat.cache.newest_page(room.id)
        assert await connection.execute("EXISTS", f"cache:5:page:{room.id}") == 1
        proxy.lose_answer_to(message.id.bytes, cut=True)
        if change == "edit":
            await chat.messages.edit(message.id, "nothing", by=ada.id)
        else:
            await chat.messages.delete(message.id, by=ada.id)
        assert b"a secret" not in await chat.cache.newest_page(room.id)
        assert (await chat.rooms.get(room.id)).last_seq == 3  # joined, sent, and this once


async def test_lease_of_another_process_delays_no_reader(
    chat: Chat, elsewhere: Chat, ada: User, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.services.cache.ENTRY_LEASE_SECONDS", int(HANGS_AFTER_SECONDS))
    async with held_after_reading(chat, ada) as slow:
        assert await asyncio.gather(*(name_in(elsewhere, ada) for _ in range(20))) == ["ada"] * 20
        assert elsewhere.cache.counts.misses == 0
        chat.watched.may_go_on.set()
        await slow
    await connection.execute("SET", f"cache:5:user:{ada.id}", "?of a process that died", "PX", 3000)
    assert await name_in(chat, ada) == await name_in(elsewhere, ada) == "ada"


@pytest.mark.parametrize("seed", range(4))
async def test_no_read_is_older_than_an_announced_change(
    chat: Chat, elsewhere: Chat, ada: User, seed: int
) -> None:
    """Two processes, each with readers and a writer, use one user, whose picture is the number of the version.

    In the process that made the change this holds from its acknowledgement on, in the other process from the
    deletion in Redis.
    """
    dice = random.Random(seed)
    turn = asyncio.Lock()  # the versions have one order
    version = 0
    acknowledged = {chat: 0, elsewhere: 0}
    announced = 0
    await chat.users.update_profile(ada.id, avatar_url="0")
    chat.watched.delays = elsewhere.watched.delays = dice

    async def write(process: Chat) -> None:
        nonlocal version, announced
        for _ in range(60):
            async with turn:
                version += 1
                mine = version
                await process.users.update_profile(ada.id, avatar_url=str(mine))
            acknowledged[process] = mine
            await process.deletions_acknowledged()
            announced = max(announced, mine)
            await asyncio.sleep(dice.choice([0, 0.002, 0.01]))

    async def read(process: Chat) -> None:
        while not writing.done():
            least = max(announced, acknowledged[process])
            user = await process.cache.user(ada.id)
            assert int(user.avatar_url or 0) >= least
            await asyncio.sleep(dice.choice([0, 0.001]))

    writing = asyncio.gather(*(write(process) for process in acknowledged))
    await asyncio.gather(writing, *(read(process) for process in acknowledged for _ in range(6)))
    counts = [process.cache.counts for process in acknowledged]
    assert sum(one.overtaken for one in counts) > 0, "there was no race"
    assert sum(one.hits for one in counts) > 0
    assert await name_in(chat, ada) == await name_in(elsewhere, ada)


@asynccontextmanager
async def another_process(settings: Settings, user_id: UUID) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        cache_reader.__file__,
        str(user_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**settings.to_env(), "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_second_process_sees_each_change_after_the_deletion(
    settings: Settings, chat: Chat, ada: User
) -> None:
    async with another_process(settings, ada.id) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in range(100):
            await chat.users.update_profile(ada.id, username=f"ada-{number}")
            await chat.deletions_acknowledged()
            for _ in range(2):
                reader.stdin.write(b"\n")
                assert await reader.stdout.readline() == b"ada-%d\n" % number
