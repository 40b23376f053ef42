from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from uuid import uuid4

import msgspec
import pytest

from hubbub import Invalid, Message, MessagePage, NotAMember, NotFound, Room, Settings, Unavailable, User
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes_list, as_int
from hubbub.repositories import Users
from hubbub.services.cache import LAYOUT, Cache
from services.cached_chat import Chat, opened
from waiting import until_it_answers


@pytest.fixture
async def chat(settings: Settings, connection: Connection) -> AsyncIterator[Chat]:
    async with opened(settings.postgres, settings.redis) as chat:
        yield chat


@pytest.fixture
async def elsewhere(settings: Settings, connection: Connection) -> AsyncIterator[Chat]:
    """A second process, with connections and a cache of its own."""
    async with opened(settings.postgres, settings.redis) as chat:
        yield chat


@pytest.fixture
async def ada(chat: Chat) -> User:
    return await chat.users.create("ada@example.org", "ada", "not a hash")


@pytest.fixture
async def room(chat: Chat, ada: User) -> Room:
    return await chat.rooms.create("engine-room", created_by=ada.id)


def page_of(data: bytes) -> MessagePage:
    return msgspec.json.decode(data, type=MessagePage)


async def test_user_is_read_once_and_then_served_from_redis(chat: Chat, elsewhere: Chat, ada: User) -> None:
    for reader in (chat, chat, elsewhere):
        assert await reader.cache.user(ada.id) == ada
    assert (chat.watched.reads, elsewhere.watched.reads) == (1, 0)
    assert (chat.cache.counts.misses, chat.cache.counts.hits, elsewhere.cache.counts.hits) == (1, 1, 1)


async def test_newest_page_is_the_json_of_the_page(chat: Chat, elsewhere: Chat, ada: User, room: Room) -> None:
    for number in range(60):
        await chat.messages.send(room.id, ada.id, f"message {number}")
    await chat.deletions_acknowledged()
    first = await chat.cache.newest_page(room.id)
    assert page_of(first) == await chat.messages.page(room.id, limit=50)
    assert await elsewhere.cache.newest_page(room.id) == first
    assert elsewhere.cache.counts.hits == 1


async def test_missing_rows_are_not_cached(chat: Chat, connection: Connection) -> None:
    user_id = uuid4()
    for _ in range(2):
        with pytest.raises(NotFound):
            await chat.cache.user(user_id)
        with pytest.raises(NotFound):
            await chat.cache.newest_page(user_id)
    assert await connection.execute("DBSIZE") == 0
    await chat.users.create("late@example.org", "late", "not a hash", id=user_id)
    assert (await chat.cache.user(user_id)).username == "late"


async def test_malformed_id_is_invalid(chat: Chat) -> None:
    with pytest.raises(Invalid):
        await chat.cache.user("cache:5:*")  # type: ignore[arg-type]  # as from a socket
    with pytest.raises(Invalid):
        await chat.cache.newest_page("")  # type: ignore[arg-type]  # as above


async def test_keys_contain_the_layout_and_live_for_about_a_minute(
    chat: Chat, connection: Connection, ada: User, room: Room
) -> None:
    people = [await chat.users.create(f"{n}@example.org", f"n{n}", "not a hash") for n in range(20)]
    await asyncio.gather(*(chat.cache.user(user.id) for user in people))
    await chat.cache.newest_page(room.id)
    await chat.cache.room(room.id)
    await chat.cache.is_member(room.id, ada.id)
    keys = as_bytes_list(await connection.execute("KEYS", "*"))
    wanted = [f"cache:5:user:{user.id}" for user in people] + [f"cache:5:page:{room.id}"]
    assert sorted(key.decode() for key in keys) == sorted(wanted)
    lives = [as_int(await connection.execute("PTTL", key)) for key in keys]
    assert 30_000 < min(lives) < max(lives) <= 72_000
    assert max(lives) - min(lives) > 1_000, "they would all end together"


def test_changed_models_take_a_new_layout() -> None:
    """A change of one of these models needs a change of LAYOUT and of this test."""
    assert LAYOUT == 5
    assert User.__struct_fields__ == (
        *("id", "email", "username", "avatar_url", "is_online", "last_seen", "created_at", "updated_at"),
        *("display_name", "metadata", "kind", "external_id"),
    )
    assert Message.__struct_fields__ == (
        *("id", "room_id", "seq", "user_id", "content", "message_type", "is_edited"),
        *("created_at", "updated_at", "deleted_at", "reply_to", "metadata"),
    )
    assert MessagePage.__struct_fields__ == ("room_id", "items", "has_older", "has_newer", "cursor")


async def test_own_change_is_seen_by_the_next_read(chat: Chat, ada: User) -> None:
    for number in range(100):
        await chat.deletions_acknowledged()
        for _ in range(2):
            await chat.cache.user(ada.id)
        if number % 2:
            await chat.users.update_profile(ada.id, username=f"ada-{number}")
        else:
            async with chat.pool.transaction() as tx:
                await Users(tx, chat.commits).update_profile(ada.id, username=f"ada-{number}")
        assert (await chat.cache.user(ada.id)).username == f"ada-{number}"
    assert chat.cache.counts.hits >= 100


async def test_change_is_seen_by_other_processes_after_the_deletion(
    chat: Chat, elsewhere: Chat, ada: User
) -> None:
    for number in range(100):
        await elsewhere.cache.user(ada.id)
        await chat.users.update_profile(ada.id, username=f"ada-{number}")
        await chat.deletions_acknowledged()
        assert (await elsewhere.cache.user(ada.id)).username == f"ada-{number}"


async def test_messages_edits_and_deletions_are_on_the_next_page(chat: Chat, ada: User, room: Room) -> None:
    async def is_last_of_a_page_that_was_kept(changing: Awaitable[Message]) -> Message:
        await chat.deletions_acknowledged()
        for _ in range(2):
            await chat.cache.newest_page(room.id)
        message = await changing
        assert page_of(await chat.cache.newest_page(room.id)).items[-1] == message
        return message

    for number in range(20):
        message = await is_last_of_a_page_that_was_kept(chat.messages.send(room.id, ada.id, f"message {number}"))
        await is_last_of_a_page_that_was_kept(chat.messages.edit(message.id, "edited", by=ada.id))
        await is_last_of_a_page_that_was_kept(chat.messages.delete(message.id, by=ada.id))
    assert chat.cache.counts.hits >= 60
    await chat.rooms.delete(room.id)
    with pytest.raises(NotFound):
        await chat.cache.newest_page(room.id)


async def test_room_is_up_to_date_in_every_process(chat: Chat, elsewhere: Chat, ada: User, room: Room) -> None:
    for _ in range(20):
        message = await chat.messages.send(room.id, ada.id, "hello")
        assert (await elsewhere.cache.room(room.id)).last_seq == message.seq
    await chat.rooms.update(room.id, is_private=True)
    assert (await elsewhere.cache.room(room.id)).is_private


async def test_leaving_takes_effect_at_once_in_every_process(chat: Chat, elsewhere: Chat, room: Room) -> None:
    bob = await chat.users.create("bob@example.org", "bob", "not a hash")
    for _ in range(20):
        await chat.room_users.add(room.id, bob.id)
        assert await elsewhere.cache.is_member(room.id, bob.id)
        assert (await elsewhere.cache.membership(room.id, bob.id)).role == "member"
        await chat.room_users.set_role(room.id, bob.id, "moderator")
        assert (await elsewhere.cache.membership(room.id, bob.id)).role == "moderator"
        await chat.room_users.remove(room.id, bob.id)
        assert not await elsewhere.cache.is_member(room.id, bob.id)
        with pytest.raises(NotAMember):
            await elsewhere.cache.membership(room.id, bob.id)


async def test_concurrent_reads_of_memberships_each_get_their_own(chat: Chat, ada: User, room: Room) -> None:
    others = [await chat.rooms.create(f"room {n}", created_by=ada.id) for n in range(5)]
    asked = [room, *others] * 5
    found = await asyncio.gather(*(chat.cache.membership(one.id, ada.id) for one in asked))
    assert [(member.room_id, member.user_id) for member in found] == [(one.id, ada.id) for one in asked]
    strangers = await asyncio.gather(*(chat.cache.is_member(one.id, uuid4()) for one in asked))
    assert not any(strangers)


async def test_concurrent_misses_of_an_entry_share_one_read(chat: Chat, ada: User) -> None:
    found = await asyncio.gather(*(chat.cache.user(ada.id) for _ in range(200)))
    assert found == [ada] * 200
    assert chat.watched.reads == 1


async def test_misses_during_a_read_share_that_read(chat: Chat, ada: User) -> None:
    chat.watched.hold()
    first = asyncio.create_task(chat.cache.user(ada.id))
    await chat.watched.has_read.wait()
    rest = [asyncio.create_task(chat.cache.user(ada.id)) for _ in range(50)]
    await chat.deletions_acknowledged()
    first.cancel()
    rest[0].cancel()
    chat.watched.may_go_on.set()
    assert await asyncio.gather(*rest[1:]) == [ada] * 49
    assert chat.watched.reads == 1
    assert await chat.cache.user(ada.id) == ada
    assert chat.cache.counts.hits == 1, "the read goes on when its first caller is cancelled"


@pytest.mark.parametrize(
    "rubbish", [b"", b"{", b"\xff\xfe", b'{"id":1}', b'{"room_id":"0"}', b"null", b"[]", b"{}", b'"text"']
)
async def test_value_that_cannot_be_decoded_is_replaced(
    chat: Chat, connection: Connection, ada: User, room: Room, rubbish: bytes
) -> None:
    for key in (f"cache:5:user:{ada.id}", f"cache:5:page:{room.id}"):
        await connection.execute("SET", key, rubbish, "PX", 60_000)
    for _ in range(3):
        assert await chat.cache.user(ada.id) == ada
        assert page_of(await chat.cache.newest_page(room.id)).room_id == room.id
        await chat.deletions_acknowledged()
    assert chat.cache.counts.hits == 2


async def test_entry_of_another_user_or_another_type_is_replaced(
    chat: Chat, connection: Connection, ada: User
) -> None:
    bob = await chat.users.create("bob@example.org", "bob", "not a hash")
    key = f"cache:5:user:{ada.id}"
    await connection.execute("SET", key, msgspec.json.encode(bob), "PX", 60_000)
    assert await chat.cache.user(ada.id) == ada
    await chat.deletions_acknowledged()
    await connection.execute("DEL", key)
    await connection.execute("RPUSH", key, "a list")
    await connection.execute("PEXPIRE", key, 60_000)
    assert await chat.cache.user(ada.id) == ada
    await chat.deletions_acknowledged()
    assert await chat.cache.user(ada.id) == ada
    assert await connection.execute("TYPE", key) == b"string"


async def test_last_change_before_closing_deletes_the_entry(
    settings: Settings, connection: Connection, chat: Chat, ada: User
) -> None:
    await chat.cache.user(ada.id)
    async with opened(settings.postgres, settings.redis) as brief:
        await brief.users.update_profile(ada.id, username="countess")
    assert await connection.execute("EXISTS", f"cache:5:user:{ada.id}") == 0
    assert (await chat.cache.user(ada.id)).username == "countess"


async def test_entry_ends_with_its_time_to_live(settings: Settings, chat: Chat, ada: User) -> None:
    async with opened(settings.postgres, settings.redis, ttl_seconds=0.1) as brief:
        await brief.cache.user(ada.id)
        await chat.pool.execute(chat.users._UPDATE_ONLINE_STATUS, ada.id, True)  # a change without an announcement

        async def online() -> bool:
            return (await brief.cache.user(ada.id)).is_online

        await until_it_answers(online)


@pytest.mark.parametrize("ttl_seconds", [0, -1, 0.01, 86_401, float("nan"), float("inf")])
async def test_impossible_time_to_live_is_invalid(chat: Chat, ttl_seconds: float) -> None:
    with pytest.raises(Invalid, match="ttl_seconds"):
        Cache(
            chat.redis,
            users=chat.users,
            rooms=chat.rooms,
            messages=chat.messages,
            room_users=chat.room_users,
            ttl_seconds=ttl_seconds,
        )


async def test_failed_read_raises_for_all_its_callers_and_leaves_no_lease(
    chat: Chat, connection: Connection, ada: User
) -> None:
    bob = await chat.users.create("bob@example.org", "bob", "not a hash")
    await chat.cache.user(ada.id)
    await chat.pool.close()
    failures = await asyncio.gather(*(chat.cache.user(bob.id) for _ in range(5)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 5
    assert await connection.execute("EXISTS", f"cache:5:user:{bob.id}") == 0
    assert await chat.cache.user(ada.id) == ada, "entries in Redis are still served"
