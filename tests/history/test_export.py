from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest

from history.histories import check_logs, exported, line, load, message_lines, parsed, stored_rows
from hubbub import Hub, NewMessage, NotFound, Options, PostgresSettings, Role, Room, Settings, User
from hubbub.history import History, export, source
from hubbub.postgres import Pool


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches and pieces, so that a short log has several."""
    monkeypatch.setattr(source, "BATCH_LINES", 7)
    monkeypatch.setattr(export, "ROWS_PER_PIECE", 5)


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    """Read marks of authors would come while an export is read, or after it."""
    async with Hub(settings, options=Options(mark_read_on_send=False)) as hub:
        yield hub


@pytest.fixture
async def lively(hub: Hub, room: Room, ada: User, bob: User) -> Room:
    """A room whose log has every kind of entry."""
    carol = await hub.users.create("carol@example.org", "carol", "not a hash", "https://example.org/carol.png")
    dave = await hub.users.create("dave@example.org", "dave", "not a hash")
    bot = await hub.users.upsert(
        external_id="bots|1", username="bot", kind="bot", display_name="Bot", metadata={"a": 1}
    )
    await hub.room_users.add(room.id, bot.id)
    await hub.room_users.add(room.id, bob.id)
    await hub.room_users.add_many(room.id, [carol.id, dave.id], Role.MODERATOR)
    first = await hub.messages.send(room.id, ada.id, "first")
    reply = await hub.messages.send(
        room.id, bob.id, "👍 \u202e", reply_to=first.id, metadata={"b": [1, {"c": None}], "a": 2**70}
    )
    picture = await hub.messages.send(room.id, carol.id, "cat.png", message_type="image")
    await hub.messages.send(room.id, bob.id, "", message_type="image")
    await hub.messages.send(room.id, bob.id, "", metadata={"url": "cat.png"})
    await hub.messages.edit(first.id, "first, and better", by=ada.id)
    await hub.messages.delete(picture.id, by=carol.id)
    await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    await hub.receipts.mark_read(room.id, bob.id, up_to=reply.seq)
    await hub.room_users.update(room.id, bob.id, metadata={"nickname": "bobby"})
    await hub.room_users.update(room.id, carol.id, metadata={"nickname": "caz"})
    await hub.room_users.update(room.id, carol.id, metadata=None)
    await hub.room_users.remove(room.id, carol.id)
    await hub.rooms.update(room.id, name="engine room", description="steam", is_private=True, by=ada.id)
    await hub.rooms.update(room.id, metadata={"topic": ["steam", None]})
    await hub.messages.send(room.id, dave.id, "left behind")
    await hub.users.delete(dave.id)
    await hub.room_users.add(room.id, carol.id)
    for number in range(12):
        await hub.messages.send(room.id, carol.id, f"message {number}")
    return room


SAME = ("rooms", "messages", "room_events", "room_users")


async def test_import_of_an_export_into_another_database_creates_the_same_room(
    postgres_settings: PostgresSettings,
    pool: Pool,
    lively: Room,
    other_settings: PostgresSettings,
    other_pool: Pool,
) -> None:
    lines = await exported(pool, lively.id)
    imported = await load(other_pool, lines)
    assert imported.refusals.first == []
    here, there = await stored_rows(postgres_settings), await stored_rows(other_settings)
    assert {table: there[table] for table in SAME} == {table: here[table] for table in SAME}
    assert there["users"] == here["users"]
    assert await exported(other_pool, lively.id) == lines
    await check_logs(other_settings)


async def test_import_of_an_export_into_the_same_database_changes_nothing(
    postgres_settings: PostgresSettings, pool: Pool, lively: Room
) -> None:
    before = await stored_rows(postgres_settings)
    imported = await load(pool, await exported(pool, lively.id))
    after = await stored_rows(postgres_settings)
    assert {table: after[table] for table in (*SAME, "users")} == {
        table: before[table] for table in (*SAME, "users")
    }
    assert (imported.messages, imported.events, imported.refusals.first) == (0, 0, [])


async def test_import_of_a_later_export_updates_a_copy(
    hub: Hub,
    pool: Pool,
    lively: Room,
    ada: User,
    bob: User,
    postgres_settings: PostgresSettings,
    other_settings: PostgresSettings,
    other_pool: Pool,
) -> None:
    await load(other_pool, await exported(pool, lively.id))
    page = await hub.messages.page(lively.id)
    await hub.messages.edit(page.items[0].id, "edited once more", by=ada.id)
    await hub.messages.delete(page.items[1].id, by=ada.id)
    await hub.room_users.remove(lively.id, bob.id)
    await hub.rooms.update(lively.id, name="boiler room", by=ada.id)
    await hub.messages.send(lively.id, ada.id, "later")
    lines = await exported(pool, lively.id)
    imported = await load(other_pool, lines)
    assert (imported.messages, imported.events, imported.refusals.first) == (1, 4, [])
    assert await exported(other_pool, lively.id) == lines
    here, there = await stored_rows(postgres_settings), await stored_rows(other_settings)
    assert {table: there[table] for table in SAME} == {table: here[table] for table in SAME}


async def test_import_into_a_diverged_log_is_refused(
    hub: Hub, pool: Pool, room: Room, ada: User, other_pool: Pool, other_settings: PostgresSettings
) -> None:
    await load(other_pool, await exported(pool, room.id))
    await load(other_pool, message_lines("only here", room_id=str(room.id)))
    await hub.messages.send(room.id, ada.id, "only there")
    imported = await load(other_pool, await exported(pool, room.id))
    assert imported.messages == 0
    [refusal] = imported.refusals.first
    assert "something else is entry 2" in refusal.reason
    await check_logs(other_settings)


async def test_imported_direct_room_is_the_direct_room_of_its_two_members(
    hub: Hub,
    pool: Pool,
    ada: User,
    bob: User,
    settings: Settings,
    other_settings: PostgresSettings,
    other_pool: Pool,
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(room.id, bob.id, "psst")
    lines = await exported(pool, room.id)
    imported = await load(other_pool, lines)
    assert imported.refusals.first == []
    assert await exported(other_pool, room.id) == lines
    async with Hub(replace(settings, postgres=other_settings)) as there:
        assert (await there.rooms.direct(bob.id, ada.id)).id == room.id
        carol = line("join", room_id=str(room.id), user="carol") + message_lines(
            "me too", room_id=str(room.id), user="carol"
        )
        assert [one.line for one in (await load(other_pool, carol)).refusals.first] == [1, 2]


async def test_export_of_a_direct_room_whose_member_was_deleted_is_imported(
    hub: Hub, pool: Pool, ada: User, bob: User, other_settings: PostgresSettings, other_pool: Pool
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(room.id, bob.id, "psst")
    await hub.users.delete(bob.id)
    await hub.messages.send(room.id, ada.id, "are you there?")
    lines = await exported(pool, room.id)
    imported = await load(other_pool, lines)
    assert imported.refusals.first == []
    assert await exported(other_pool, room.id) == lines
    await check_logs(other_settings)


async def test_line_that_would_make_a_direct_room_public_is_refused_alone(
    hub: Hub, pool: Pool, ada: User, bob: User
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    change = line("change", room_id=str(room.id), name="ours", description="", is_private=False)
    said = message_lines("hello", room_id=str(room.id), user="ada")
    imported = await load(pool, said + change + message_lines("there", room_id=str(room.id), user="ada"))
    assert [(one.line, one.reason) for one in imported.refusals.first] == [
        (2, "is_private: must be true in a direct room")
    ]
    assert imported.messages == 2


async def test_import_of_a_second_direct_room_of_two_users_is_refused(
    hub: Hub,
    pool: Pool,
    ada: User,
    bob: User,
    settings: Settings,
    other_settings: PostgresSettings,
    other_pool: Pool,
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(room.id, bob.id, "psst")
    async with Hub(replace(settings, postgres=other_settings)) as there:
        people = [await there.users.create(user.email, user.username, "not a hash") for user in (ada, bob)]
        theirs = await there.rooms.direct(people[0].id, people[1].id)
        imported = await load(other_pool, await exported(pool, room.id))
        assert (imported.messages, imported.events, imported.users) == (0, 0, 0)
        assert "another direct room" in imported.refusals.first[0].reason
        with pytest.raises(NotFound):
            await there.rooms.get(room.id)
        assert (await there.rooms.get(theirs.id)).last_seq == 2


async def test_imported_users_with_a_known_email_keep_their_id(
    hub: Hub,
    pool: Pool,
    lively: Room,
    ada: User,
    settings: Settings,
    other_settings: PostgresSettings,
    other_pool: Pool,
) -> None:
    async with Hub(replace(settings, postgres=other_settings)) as there:
        known = await there.users.create("Ada@example.org", "countess", "not a hash")
        namesake = await there.users.create("other@example.org", "bob", "not a hash")
        imported = await load(other_pool, await exported(pool, lively.id))
        assert imported.refusals.first == []
        assert [(one.nickname, one.reason) for one in imported.renamed] == [
            ("bob", "another user has this username, in this or another spelling")
        ]
        assert (await there.rooms.get(lively.id)).created_by == known.id
        assert await there.room_users.is_member(lively.id, known.id)
        assert not await there.room_users.is_member(lively.id, namesake.id)
        page = await there.messages.page(lively.id)
        assert page.items[0].user_id == known.id


async def test_export_shows_the_room_at_one_moment(hub: Hub, pool: Pool, lively: Room, ada: User) -> None:
    whole = await exported(pool, lively.id)
    pieces = History(pool).lines(lively.id)
    first = await anext(pieces)
    await hub.messages.send(lively.id, ada.id, "too late")
    page = await hub.messages.page(lively.id)
    await hub.messages.edit(page.items[-2].id, "too late as well", by=ada.id)
    assert first + b"".join([piece async for piece in pieces]) == whole


async def test_exported_lines_have_the_keys_of_the_plain_form_and_no_passwords(pool: Pool, lively: Room) -> None:
    for one in parsed(await exported(pool, lively.id)):
        if one["kind"] in ("message", "join", "leave"):
            assert {"room", "at"} <= set(one)
    assert not [one for one in parsed(await exported(pool, lively.id)) if "password" in str(one)]


async def test_export_of_an_unknown_room_raises_not_found(pool: Pool) -> None:
    with pytest.raises(NotFound):
        await exported(pool, UUID(int=1))


async def test_import_recreates_account_deleted_since_the_export(
    hub: Hub, pool: Pool, lively: Room, ada: User
) -> None:
    lines = await exported(pool, lively.id)
    await hub.users.delete(ada.id)
    imported = await load(pool, lines)
    assert (imported.users, imported.messages, imported.refusals.first) == (1, 0, [])
    again = await hub.users.find_by_email("ada@example.org")
    assert again is not None
    assert again.id == ada.id


async def test_import_without_the_line_and_name_of_an_account_does_not_create_it(
    hub: Hub, pool: Pool, lively: Room, bob: User, other_settings: PostgresSettings, other_pool: Pool
) -> None:
    lines = parsed(await exported(pool, lively.id))
    kept = [one for one in lines if (one["kind"], one.get("id")) != ("user", str(bob.id))]
    for one in kept:
        if one.get("user_id") == str(bob.id):
            one.pop("user")
    imported = await load(other_pool, b"".join(json.dumps(one).encode() + b"\n" for one in kept))
    assert imported.refusals.first == []
    there = await stored_rows(other_settings)
    assert bob.id not in {user[0] for user in there["users"]}
    assert len(there["messages"]) == sum(one["kind"] == "message" for one in lines)
    await check_logs(other_settings)


async def test_pieces_of_an_export_are_bounded_in_bytes(
    hub: Hub, pool: Pool, lively: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = (await hub.rooms.get(lively.id)).created_by
    assert author is not None
    news = [NewMessage("x" * 10_000, metadata={"n": number}) for number in range(20)]
    await hub.messages.send_many(lively.id, author, news)
    whole = await exported(pool, lively.id)
    monkeypatch.setattr(export, "ROWS_PER_PIECE", 1_000)
    monkeypatch.setattr(export, "BYTES_PER_PIECE", 25_000)
    pieces = [piece async for piece in History(pool).lines(lively.id)]
    assert sorted(b"".join(pieces).splitlines()) == sorted(whole.splitlines())
    assert max(map(len, pieces)) < 60_000
