from __future__ import annotations

import asyncio
import gzip
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from history.histories import (
    REAL,
    check_logs,
    contents,
    everything,
    line,
    load,
    made_up,
    opened,
    parsed,
    real,
    said,
)
from hubbub import Hub, Invalid, PostgresSettings, User
from hubbub.commits import Change, RoomTouched
from hubbub.history import History, Imported, Refusal, derive_room_id, derive_user_id, source
from hubbub.postgres import Pool
from log import log_of


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines each, so that a short file has many."""
    monkeypatch.setattr(source, "BATCH_LINES", 10)


async def test_messages_keep_the_order_of_their_lines_and_their_times(hub: Hub, pool: Pool) -> None:
    imported = await load(pool, said("one", "two") + line(at="1999-01-01T00:00:00.123456Z", content="older"))
    assert (imported.lines, imported.messages, imported.refusals.count) == (3, 3, 0)
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [(message.seq, message.content) for message in page.items] == [(2, "one"), (3, "two"), (4, "older")]
    assert page.items[0].created_at == datetime(2004, 11, 15, 12, 18, tzinfo=UTC)
    assert page.items[2].updated_at == datetime(1999, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)


async def test_who_speaks_without_having_joined_came_in_before(hub: Hub, pool: Pool) -> None:
    await load(pool, said("hello") + line("join") + line("join", user="bob") + line("leave") + line("leave"))
    room = await hub.rooms.get(derive_room_id("#chat"))
    assert await log_of(pool, room.id) == ["joined", "sent", "joined", "left"]
    [member] = (await hub.room_users.members(room.id)).items
    bob = await hub.users.find_by_username("BOB")
    assert bob is not None
    assert (member.user_id, member.role, member.joined_at.year) == (bob.id, "member", 2004)
    assert (room.created_by, room.name, room.created_at.year) == (None, "#chat", 2004)


async def test_all_that_was_imported_counts_as_read(hub: Hub, pool: Pool, small_batches: None, ada: User) -> None:
    await load(pool, line("join", user="bob") + said(*map(str, range(50))))
    bob = await hub.users.find_by_username("bob")
    assert bob is not None
    for user in (ada, bob):
        [summary] = (await hub.rooms.list_for(user.id)).items
        assert summary.unread == 0
    # What comes later does not.
    await hub.messages.send(derive_room_id("#chat"), bob.id, "live")
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert summary.unread == 1


async def test_an_account_that_has_the_nickname_is_who_is_meant(hub: Hub, pool: Pool, ada: User) -> None:
    imported = await load(pool, said("hello", user="ADA"))
    assert imported.users == 0
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [message.user_id for message in page.items] == [ada.id]


async def test_nobody_can_log_in_as_somebody_who_was_imported(hub: Hub, pool: Pool) -> None:
    await load(pool, said("hello"))
    for password in ("!", "ada", ""):
        assert await hub.authenticate("ada", password) is None
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    await hub.change_password(ada.id, "correct horse")
    assert await hub.authenticate("ada", "correct horse") == await hub.users.get(ada.id)


async def test_nicknames_that_are_no_usernames_get_another_one_each(hub: Hub, pool: Pool) -> None:
    nicknames = ["[a] ", "[a]", "a@b", "a_b", "x" * 60, "x" * 61, "\u200b", "e\u0301" * 50]
    imported = await load(pool, b"".join(said("hello", user=nickname) for nickname in nicknames))
    assert (imported.users, imported.refusals.count) == (8, 0)
    assert imported.renamed_count == 6
    page = await hub.messages.page(derive_room_id("#chat"))
    assert len({message.user_id for message in page.items}) == 8


async def test_each_refused_line_is_told_with_its_number(pool: Pool) -> None:
    told: list[Refusal] = []
    bad = [
        b"oops\n",
        line(content=" "),
        line("member"),
        line(seq=9),
        line(reply_to="00000000-0000-7000-8000-000000000000"),
    ]
    file = said("one") + b"\n".join([*bad, b"", said("two")])
    imported = await History(pool).load(opened(file), refused=told.append)
    assert imported.messages == 2
    assert imported.refusals.count == len(told) == len(bad)
    lines = [number for number, one in enumerate(file.split(b"\n"), 1) if one and one + b"\n" in bad]
    assert [refusal.line for refusal in told] == lines


async def test_a_second_import_of_a_file_changes_nothing(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    first = await load(pool, made_up(95))
    before = await everything(postgres_settings)
    second = await load(pool, made_up(95))
    assert await everything(postgres_settings) == before
    assert (first.continued_from, second.continued_from) == (0, 95)
    assert (second.messages, second.events, second.users) == (0, 0, 0)
    await check_logs(postgres_settings)


async def test_also_without_the_note_of_the_first_one(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, small_batches: None
) -> None:
    await load(pool, made_up(95))
    before = await everything(postgres_settings)
    # Another line in front changes the digest of all that follows. Line numbers stay: it stands for an empty one.
    await load(pool, b"oops\n" + made_up(95)[len(made_up(1)) :])
    after = await everything(postgres_settings)
    assert [after[table] for table in ("users", "rooms", "messages", "room_events", "room_users")] == [
        before[table] for table in ("users", "rooms", "messages", "room_events", "room_users")
    ]


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_a_file_that_has_grown_goes_on_where_it_ended(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None, ending: bytes
) -> None:
    start = made_up(33).rstrip() + ending
    await load(pool, start)
    again = await load(pool, made_up(77))
    assert again.continued_from == 33
    assert again.messages + again.events > 0
    grown = await everything(postgres_settings)
    assert contents(grown["messages"]).count("message 32") == 1
    assert len(grown["messages"]) == made_up(77).count(b'"content"')
    await check_logs(postgres_settings)


async def test_two_imports_of_a_file_at_the_same_time_are_one(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, small_batches: None
) -> None:
    file = made_up(300)
    both = await asyncio.gather(load(pool, file), load(pool, file))
    both_hold = await everything(postgres_settings)
    assert sum(one.messages for one in both) == len(both_hold["messages"]) == file.count(b'"content"')
    await check_logs(postgres_settings)


async def test_a_file_and_what_it_has_grown_to_may_be_imported_at_the_same_time(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    await asyncio.gather(load(pool, made_up(205)), load(pool, made_up(217)))
    held = await everything(postgres_settings)
    assert len(held["messages"]) == made_up(217).count(b'"content"')
    await check_logs(postgres_settings)


async def test_a_room_in_use_takes_live_messages_between_batches(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, ada: User, small_batches: None
) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id)
    file = b"".join(said(str(n), room_id=str(room.id), user=f"user{n % 5}") for n in range(300))
    sending = asyncio.gather(*(hub.messages.send(room.id, ada.id, f"live {n}") for n in range(100)))
    imported = await load(pool, file)
    await sending
    assert imported.messages == 300
    assert (await log_of(pool, room.id)).count("sent") == 400
    stored = contents((await everything(postgres_settings))["messages"])
    assert [content for content in stored if "live" not in content] == [str(n) for n in range(300)]
    # Whoever was in the room before keeps what is unread.
    assert (await hub.room_users.get(room.id, ada.id)).last_read_seq == 1


async def test_followers_hear_of_every_room_that_has_grown(pool: Pool) -> None:
    heard: list[Change] = []
    await History(pool, heard.append).load(opened(made_up(30)))
    rooms = {change.room_id for change in heard if isinstance(change, RoomTouched)}
    assert rooms == {derive_room_id(f"room {n}") for n in range(3)}


async def test_an_id_makes_a_message_the_same_one(hub: Hub, pool: Pool, ada: User) -> None:
    id = "01890a5d-ac96-774b-bcce-b302099a8057"
    first = await load(pool, said("hello", id=id))
    again = await load(pool, said("before") + said("hello", id=id))
    assert (first.messages, again.messages, again.known) == (1, 1, 1)
    other = await load(pool, said("x") + said("other", id=id) + said("hello", id=id, room="b"))
    assert [refusal.line for refusal in other.refusals.first] == [2, 3]


async def test_an_account_that_goes_meanwhile_is_made_again(
    pool: Pool, hub: Hub, ada: User, small_batches: None
) -> None:
    deleting: list[asyncio.Task[None]] = []

    def progress(_: Imported) -> None:
        if not deleting:
            deleting.append(asyncio.create_task(hub.users.delete(ada.id)))

    imported = await History(pool).load(opened(said(*map(str, range(100)))), progress=progress)
    await asyncio.gather(*deleting)
    assert imported.messages == 100


async def test_hostile_text_comes_back_as_it_was(pool: Pool, hub: Hub) -> None:
    texts = [
        "'; DROP TABLE users; --",
        "\\N",
        "\\.",
        "a\tb\nc\rd",
        "\u202e",
        "👩‍👩‍👧‍👦",
        "{}",
        '"',
        "%s $1",
        "\ufeff",
    ]
    imported = await load(pool, said(*texts))
    assert imported.messages == len(texts)
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [message.content for message in page.items] == texts


@pytest.mark.parametrize("length", [2, 10, 20])
async def test_a_file_that_is_damaged_before_its_first_line_gives_nothing_and_a_whole_one_all(
    pool: Pool, length: int
) -> None:
    whole = gzip.compress(made_up(50))
    damaged = await load(pool, whole[:length])
    assert (damaged.lines, damaged.messages) == (0, 0)
    assert damaged.refusals.first == [Refusal(1, "the compressed file is damaged from here on")]
    mended = await load(pool, whole)
    assert (mended.continued_from, mended.refusals.count) == (0, 0)


async def test_a_damaged_file_gives_what_it_has_and_a_whole_one_the_rest(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    whole = gzip.compress(made_up(5_000))
    damaged = await load(pool, whole[: len(whole) // 2])
    assert 0 < damaged.lines < 5_000
    assert "damaged" in damaged.refusals.first[-1].reason
    mended = await load(pool, whole)
    assert mended.continued_from == damaged.lines
    assert len((await everything(postgres_settings))["messages"]) == made_up(5_000).count(b'"content"')
    await check_logs(postgres_settings)


async def test_import_into_an_empty_database_gives_users_and_rooms_the_derived_ids(hub: Hub) -> None:
    await hub.history.load(io.BytesIO(made_up(30)))
    assert {room.name: room.id for room in (await hub.rooms.public()).items} == {
        name: derive_room_id(name) for name in ("room 0", "room 1", "room 2")
    }
    for nickname in ("user0", "user1", "USER2"):
        user = await hub.users.find_by_username(nickname)
        assert user is not None
        assert user.id == derive_user_id(nickname)


@pytest.mark.parametrize(
    "file",
    [io.StringIO("{}"), "chat.jsonl", Path("chat.jsonl"), b"{}", 5, None],
    ids=lambda file: type(file).__name__,
)
async def test_what_is_no_file_of_bytes_is_refused(hub: Hub, file: object) -> None:
    with pytest.raises(Invalid) as refusal:
        await hub.history.load(file)  # type: ignore[arg-type]
    assert refusal.value.field == "file"


@pytest.mark.parametrize("field", ["progress", "refused"])
async def test_what_cannot_be_called_is_refused_before_a_line_is_read(hub: Hub, field: str) -> None:
    async def in_its_own_time(_: object) -> None: ...

    for listener in (3, "print", in_its_own_time):
        with pytest.raises(Invalid) as refusal:
            await hub.history.load(io.BytesIO(b"not read"), **{field: listener})  # type: ignore[arg-type]
        assert refusal.value.field == field


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_a_real_log_is_stored_in_the_order_of_its_lines(
    postgres_settings: PostgresSettings, pool: Pool
) -> None:
    imported = await load(pool, real())
    assert (imported.messages, imported.refusals.count) == (27_826, 0)
    stored = contents((await everything(postgres_settings))["messages"])
    assert stored == [one["content"] for one in parsed(real()) if one["kind"] == "message"]
    await check_logs(postgres_settings)
