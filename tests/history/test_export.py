from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest

from history.histories import check_logs, everything, exported, line, load, parsed, said
from hubbub import Hub, NotFound, PostgresSettings, Role, Room, Settings, User
from hubbub.history import History, export, source
from hubbub.postgres import Pool


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log has several batches and pages."""
    monkeypatch.setattr(source, "BATCH_LINES", 7)
    monkeypatch.setattr(export, "ROWS_PER_PIECE", 5)


@pytest.fixture
async def lively(hub: Hub, room: Room, ada: User, bob: User) -> Room:
    """A room in which everything has happened that can happen in a room."""
    carol = await hub.users.create("carol@example.org", "carol", "not a hash", "https://example.org/carol.png")
    dave = await hub.users.create("dave@example.org", "dave", "not a hash")
    await hub.room_users.add(room.id, bob.id)
    await hub.room_users.add_many(room.id, [carol.id, dave.id], Role.MODERATOR)
    first = await hub.messages.send(room.id, ada.id, "first")
    reply = await hub.messages.send(
        room.id, bob.id, "👍 \u202e", reply_to=first.id, metadata={"b": [1, {"c": None}], "a": 2**70}
    )
    picture = await hub.messages.send(room.id, carol.id, "cat.png", message_type="image")
    await hub.messages.edit(first.id, "first, and better", by=ada.id)
    await hub.messages.delete(picture.id, by=carol.id)
    await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    await hub.receipts.mark_read(room.id, bob.id, up_to=reply.seq)
    await hub.room_users.remove(room.id, carol.id)
    await hub.rooms.update(room.id, name="engine room", description="steam", is_private=True, by=ada.id)
    await hub.messages.send(room.id, dave.id, "left behind")
    await hub.users.delete(dave.id)
    await hub.room_users.add(room.id, carol.id)
    for number in range(12):
        await hub.messages.send(room.id, carol.id, f"message {number}")
    return room


SAME = ("rooms", "messages", "room_events", "room_users")


async def test_an_import_of_an_export_makes_the_same_room(
    postgres_settings: PostgresSettings, pool: Pool, lively: Room, elsewhere: PostgresSettings, other: Pool
) -> None:
    lines = await exported(pool, lively.id)
    imported = await load(other, lines)
    assert imported.refusals.first == []
    here, there = await everything(postgres_settings), await everything(elsewhere)
    assert {table: there[table] for table in SAME} == {table: here[table] for table in SAME}
    assert there["users"] == here["users"]
    assert await exported(other, lively.id) == lines
    await check_logs(elsewhere)


async def test_into_the_same_database_it_changes_nothing(
    postgres_settings: PostgresSettings, pool: Pool, lively: Room
) -> None:
    before = await everything(postgres_settings)
    imported = await load(pool, await exported(pool, lively.id))
    after = await everything(postgres_settings)
    assert {table: after[table] for table in (*SAME, "users")} == {
        table: before[table] for table in (*SAME, "users")
    }
    assert (imported.messages, imported.events, imported.refusals.first) == (0, 0, [])


async def test_a_later_export_brings_a_copy_up_to_date(
    hub: Hub,
    pool: Pool,
    lively: Room,
    ada: User,
    bob: User,
    postgres_settings: PostgresSettings,
    elsewhere: PostgresSettings,
    other: Pool,
) -> None:
    await load(other, await exported(pool, lively.id))
    page = await hub.messages.page(lively.id)
    await hub.messages.edit(page.items[0].id, "edited once more", by=ada.id)
    await hub.messages.delete(page.items[1].id, by=ada.id)
    await hub.room_users.remove(lively.id, bob.id)
    await hub.rooms.update(lively.id, name="boiler room", by=ada.id)
    await hub.messages.send(lively.id, ada.id, "later")
    lines = await exported(pool, lively.id)
    imported = await load(other, lines)
    assert (imported.messages, imported.events, imported.refusals.first) == (1, 4, [])
    assert await exported(other, lively.id) == lines
    here, there = await everything(postgres_settings), await everything(elsewhere)
    assert {table: there[table] for table in SAME} == {table: here[table] for table in SAME}


async def test_a_log_that_went_another_way_is_refused(
    hub: Hub, pool: Pool, room: Room, ada: User, other: Pool, elsewhere: PostgresSettings
) -> None:
    await load(other, await exported(pool, room.id))
    await load(other, said("only here", room_id=str(room.id)))
    await hub.messages.send(room.id, ada.id, "only there")
    imported = await load(other, await exported(pool, room.id))
    assert imported.messages == 0
    [refusal] = imported.refusals.first
    assert "something else is entry 2" in refusal.reason
    await check_logs(elsewhere)


async def test_a_direct_room_is_the_direct_room_of_the_two(
    hub: Hub, pool: Pool, ada: User, bob: User, settings: Settings, elsewhere: PostgresSettings, other: Pool
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(room.id, bob.id, "psst")
    lines = await exported(pool, room.id)
    imported = await load(other, lines)
    assert imported.refusals.first == []
    assert await exported(other, room.id) == lines
    async with Hub(replace(settings, postgres=elsewhere)) as there:
        assert (await there.rooms.direct(bob.id, ada.id)).id == room.id
        carol = line("join", room_id=str(room.id), user="carol") + said(
            "me too", room_id=str(room.id), user="carol"
        )
        assert [one.line for one in (await load(other, carol)).refusals.first] == [1, 2]


async def test_two_people_keep_the_direct_room_that_they_have(
    hub: Hub, pool: Pool, ada: User, bob: User, settings: Settings, elsewhere: PostgresSettings, other: Pool
) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(room.id, bob.id, "psst")
    async with Hub(replace(settings, postgres=elsewhere)) as there:
        people = [await there.users.create(user.email, user.username, "not a hash") for user in (ada, bob)]
        theirs = await there.rooms.direct(people[0].id, people[1].id)
        imported = await load(other, await exported(pool, room.id))
        assert (imported.messages, imported.events, imported.users) == (0, 0, 0)
        assert "another direct room" in imported.refusals.first[0].reason
        with pytest.raises(NotFound):
            await there.rooms.get(room.id)
        assert (await there.rooms.get(theirs.id)).last_seq == 2


async def test_people_are_known_by_their_email_and_keep_the_id_that_they_have(
    hub: Hub, pool: Pool, lively: Room, ada: User, settings: Settings, elsewhere: PostgresSettings, other: Pool
) -> None:
    async with Hub(replace(settings, postgres=elsewhere)) as there:
        known = await there.users.create("Ada@example.org", "countess", "not a hash")
        namesake = await there.users.create("other@example.org", "bob", "not a hash")
        imported = await load(other, await exported(pool, lively.id))
        assert imported.refusals.first == []
        assert [(one.nickname, one.reason) for one in imported.renamed] == [
            ("bob", "another user has this username, in this or another case")
        ]
        assert (await there.rooms.get(lively.id)).created_by == known.id
        assert await there.room_users.is_member(lively.id, known.id)
        assert not await there.room_users.is_member(lively.id, namesake.id)
        page = await there.messages.page(lively.id)
        assert page.items[0].user_id == known.id


async def test_an_export_shows_one_moment(hub: Hub, pool: Pool, lively: Room, ada: User) -> None:
    whole = await exported(pool, lively.id)
    pieces = History(pool).lines(lively.id)
    first = await anext(pieces)
    await hub.messages.send(lively.id, ada.id, "too late")
    page = await hub.messages.page(lively.id)
    await hub.messages.edit(page.items[-2].id, "too late as well", by=ada.id)
    assert first + b"".join([piece async for piece in pieces]) == whole


async def test_the_lines_can_be_read_as_the_plain_form(pool: Pool, lively: Room) -> None:
    for one in parsed(await exported(pool, lively.id)):
        if one["kind"] in ("message", "join", "leave"):
            assert {"room", "at"} <= set(one)
    assert not [one for one in parsed(await exported(pool, lively.id)) if "password" in str(one)]


async def test_a_room_that_is_not_there_is_said_so(pool: Pool) -> None:
    with pytest.raises(NotFound):
        await exported(pool, UUID(int=1))


async def test_an_account_that_was_deleted_since_is_made_again_without_a_password(
    hub: Hub, pool: Pool, lively: Room, ada: User
) -> None:
    lines = await exported(pool, lively.id)
    await hub.users.delete(ada.id)
    imported = await load(pool, lines)
    assert (imported.users, imported.messages, imported.refusals.first) == (1, 0, [])
    again = await hub.users.find_by_email(ada.email)
    assert again is not None
    assert again.id == ada.id


async def test_without_its_line_and_its_name_an_account_is_not_made(
    hub: Hub, pool: Pool, lively: Room, bob: User, elsewhere: PostgresSettings, other: Pool
) -> None:
    lines = parsed(await exported(pool, lively.id))
    kept = [one for one in lines if (one["kind"], one.get("id")) != ("user", str(bob.id))]
    for one in kept:
        if one.get("user_id") == str(bob.id):
            one.pop("user")
    imported = await load(other, b"".join(json.dumps(one).encode() + b"\n" for one in kept))
    assert imported.refusals.first == []
    there = await everything(elsewhere)
    assert bob.id not in {user[0] for user in there["users"]}
    assert len(there["messages"]) == sum(one["kind"] == "message" for one in lines)
    await check_logs(elsewhere)
