"""The cache with a Redis that is killed, frozen, or restarted with old data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from hubbub import PostgresSettings, RedisSettings, Room, User
from hubbub.redis import Connection, Reply
from hubbub.services import cache
from hubbub.services.cache import Counts, Invalidations
from redis_server import Server
from redis_topologies import ask
from services.cached_chat import Chat, opened
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers


@pytest.fixture
def redis(own_server: Server) -> RedisSettings:
    return replace(own_server.settings, deadline_seconds=1)


@pytest.fixture
async def chat(postgres_settings: PostgresSettings, redis: RedisSettings) -> AsyncIterator[Chat]:
    async with opened(postgres_settings, redis, deadline_seconds=0.1) as chat:
        yield chat


@pytest.fixture
async def elsewhere(postgres_settings: PostgresSettings, redis: RedisSettings) -> AsyncIterator[Chat]:
    async with opened(postgres_settings, redis, deadline_seconds=0.1) as chat:
        yield chat


@pytest.fixture
async def ada(chat: Chat) -> User:
    return await chat.users.create("ada@example.org", "ada", "not a hash")


@pytest.fixture
async def room(chat: Chat, ada: User) -> Room:
    return await chat.rooms.create("engine-room", created_by=ada.id)


async def name_in(chat: Chat, user: User) -> str:
    return (await chat.cache.user(user.id)).username


async def is_kept(chat: Chat, user: User) -> bool:
    """Read the user, and return whether the entry was used."""
    before = chat.cache.counts.hits
    await chat.cache.user(user.id)
    return chat.cache.counts.hits > before


async def test_reads_and_changes_work_without_redis(chat: Chat, own_server: Server, ada: User, room: Room) -> None:
    async def live(number: int) -> None:
        for turn in range(20):
            if (number, turn) == (0, 5):
                own_server.kill()
            message = await chat.messages.send(room.id, ada.id, "hello")
            assert str(message.id).encode() in await chat.cache.newest_page(room.id)
            assert (await chat.cache.room(room.id)).last_seq >= message.seq
            assert await chat.cache.user(ada.id) == ada
            assert await chat.cache.is_member(room.id, ada.id)

    await until_it_answers(lambda: is_kept(chat, ada))
    await asyncio.gather(*(live(number) for number in range(2)))
    assert chat.cache.counts.bypasses > 0
    own_server.start()
    await until_it_answers(lambda: is_kept(chat, ada))


async def test_old_entries_of_a_restarted_redis_are_not_used_by_the_process_that_changed_them(
    chat: Chat, elsewhere: Chat, own_server: Server, ada: User
) -> None:
    await until_it_answers(lambda: is_kept(chat, ada))
    await ask(own_server, "SAVE")  # this may take longer than the deadline of `chat`
    own_server.kill()
    await until(lambda: not chat.redis.connected)
    await chat.users.update_profile(ada.id, username="countess")
    await until(lambda: chat.cache.counts.failed_invalidations > 0)
    own_server.start()

    async def kept_and_new() -> bool:
        kept = await is_kept(chat, ada)
        assert await name_in(chat, ada) == "countess"
        return kept

    await until_it_answers(kept_and_new)

    async def new_elsewhere() -> bool:
        return await name_in(elsewhere, ada) == "countess"

    await until_it_answers(new_elsewhere)


async def test_frozen_redis_delays_few_reads_and_makes_none_out_of_date(
    chat: Chat, elsewhere: Chat, own_server: Server, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until_it_answers(lambda: is_kept(chat, ada))
    own_server.freeze()
    asked = [0]

    def counting(execute: Callable[..., asyncio.Future[Reply]]) -> Callable[..., asyncio.Future[Reply]]:
        def counted(command: str, *args: str, **options: float) -> asyncio.Future[Reply]:
            asked[0] += command == "GET"
            return execute(command, *args, **options)

        return counted

    for process in (chat, elsewhere):
        monkeypatch.setattr(process.redis, "execute", counting(process.redis.execute))
    await chat.users.update_profile(ada.id, username="countess")
    for _ in range(100):
        assert await name_in(chat, ada) == await name_in(elsewhere, ada) == "countess"
    assert asked[0] < 100, "at most half of the 200 reads have waited for Redis"
    own_server.thaw()

    async def kept_and_new() -> bool:
        kept = await is_kept(chat, ada)
        assert await name_in(chat, ada) == "countess"
        return kept

    await until_it_answers(kept_and_new)

    async def new_elsewhere() -> bool:
        return await name_in(elsewhere, ada) == "countess"

    await until_it_answers(new_elsewhere)


async def test_value_stored_late_by_a_frozen_redis_is_deleted(chat: Chat, own_server: Server, ada: User) -> None:
    chat.watched.hold()
    reader = asyncio.create_task(name_in(chat, ada))
    await chat.watched.has_read.wait()
    own_server.freeze()
    chat.watched.may_go_on.set()
    assert await reader == "ada"
    await chat.users.update_profile(ada.id, username="countess")
    own_server.thaw()  # the value, and then the deletion, arrive late
    await until_it_answers(lambda: is_kept(chat, ada))
    assert await name_in(chat, ada) == "countess"


async def test_concurrent_reads_of_a_page_share_two_reads_without_redis(
    chat: Chat, own_server: Server, ada: User, room: Room
) -> None:
    own_server.kill()
    await until(lambda: not chat.redis.connected)
    pages = await asyncio.gather(*(chat.cache.newest_page(room.id) for _ in range(200)))
    assert len(set(pages)) == 1
    assert chat.cache.counts.bypasses == 200
    assert len({id(page) for page in pages}) <= 2


async def test_closing_without_redis_tries_once_more(
    postgres_settings: PostgresSettings, redis: RedisSettings, own_server: Server, ada: User
) -> None:
    async with opened(postgres_settings, redis) as brief:
        own_server.kill()
        await brief.users.update_profile(ada.id, username="countess")
        before = brief.cache.counts.failed_invalidations
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            await brief.cache._close()
            await brief.cache._close()
        assert brief.cache.counts.failed_invalidations <= before + 3, "the batch in flight, and one per call"


async def test_reads_work_after_the_connection_was_closed(chat: Chat, ada: User) -> None:
    await chat.cache.user(ada.id)
    await chat.redis.close()
    await chat.users.update_profile(ada.id, username="countess")
    assert await name_in(chat, ada) == "countess"


async def test_too_many_waiting_deletions_disable_all_entries_until_the_old_ones_have_ended(
    redis: RedisSettings, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_OUT_OF_DATE", 3)
    connection = Connection(redis)
    await connection.start()
    own_server.kill()
    await until(lambda: not connection.connected)
    known = Invalidations(connection, Counts(), max_life_seconds=1)
    for number in range(5):
        known.add(str(number))
        assert str(number) in known
    for number in range(6):
        assert str(number) in known, "and any other key"
    await until(lambda: "5" not in known)
    await known.close()
    await connection.close()
