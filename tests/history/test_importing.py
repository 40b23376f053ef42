from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from history.histories import (
    REAL,
    as_file,
    check_logs,
    contents,
    conversation,
    line,
    load,
    message_lines,
    parsed,
    real_log,
    stored_rows,
)
from hubbub import (
    Hub,
    Invalid,
    MessagePage,
    MessageSent,
    Options,
    PostgresSettings,
    Resync,
    Room,
    Settings,
    Unavailable,
    User,
)
from hubbub.commits import Change, RoomTouched
from hubbub.deletions import HIDE_ACCOUNT
from hubbub.history import History, Import, Imported, Refusal, derive_room_id, derive_user_id, source
from hubbub.history.lines import FIRST_TIME, LAST_TIME
from hubbub.postgres import Pool
from hubbub.postgres.connection import Connection, run
from log import log_of
from services.feed.reading import take


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of ten lines, so that a short file has many."""
    monkeypatch.setattr(source, "BATCH_LINES", 10)


async def test_imported_messages_keep_the_order_and_times_of_their_lines(hub: Hub, pool: Pool) -> None:
    imported = await load(
        pool, message_lines("one", "two") + line(at="1999-01-01T00:00:00.123456Z", content="older")
    )
    assert (imported.lines, imported.messages, imported.refusals.count) == (3, 3, 0)
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [(message.seq, message.content) for message in page.items] == [(2, "one"), (3, "two"), (4, "older")]
    assert page.items[0].created_at == datetime(2004, 11, 15, 12, 18, tzinfo=UTC)
    assert page.items[2].updated_at == datetime(1999, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)


async def test_attempt_that_worked_for_long_before_it_failed_is_repeated(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.history.RETRY_FOR_SECONDS", 0.3)
    attempts = 0

    async def attempt() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.sleep(0.4)
            raise Unavailable("postgresql", "the server is stopping")
        return attempts

    assert await Import(pool, lambda _: None)._retry(attempt) == 2


async def test_account_of_another_system_is_that_of_its_external_id(hub: Hub, pool: Pool) -> None:
    here = await hub.users.upsert(external_id="google|7", username="here")
    known, new = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"
    imported = await load(
        pool,
        line("user", id=known, room=None, user="there", external_id="google|7")
        + line(
            "user",
            id=new,
            room=None,
            user="bot",
            content=None,
            user_kind="bot",
            display_name="Bot",
            metadata={"a": 1},
        )
        + line(user="there", user_id=known)
        + line(user="bot", user_id=new),
    )
    assert (imported.users, imported.messages, imported.refusals.first) == (1, 2, [])
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [message.user_id for message in page.items] == [here.id, UUID(new)]
    bot = await hub.users.get(UUID(new))
    assert (bot.email, bot.kind, bot.display_name, bot.metadata) == (None, "bot", "Bot", {"a": 1})
    assert [user.id for user in (await hub.users.search("bo")).items] == [bot.id]


async def test_membership_of_a_running_room_gets_the_metadata_of_a_line(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    about = {"room_id": str(room.id), "user_id": str(ada.id), "at": "2100-01-01T00:00:00Z"}  # after the join
    imported = await load(pool, line("member_change", metadata={"nickname": "countess"}, **about))
    assert (imported.events, imported.refusals.first) == (1, [])
    assert (await hub.room_users.get(room.id, ada.id)).metadata == {"nickname": "countess"}
    assert await log_of(pool, room.id) == ["joined", "member_changed"]


async def test_message_of_a_non_member_adds_a_joined_entry_first(hub: Hub, pool: Pool) -> None:
    await load(
        pool, message_lines("hello") + line("join") + line("join", user="bob") + line("leave") + line("leave")
    )
    room = await hub.rooms.get(derive_room_id("#chat"))
    assert await log_of(pool, room.id) == ["joined", "sent", "joined", "left"]
    [member] = (await hub.room_users.members(room.id)).items
    bob = await hub.users.find_by_username("BOB")
    assert bob is not None
    assert (member.user_id, member.role, member.joined_at.year) == (bob.id, "member", 2004)
    assert (room.created_by, room.name, room.created_at.year) == (None, "#chat", 2004)


async def test_imported_messages_count_as_read_and_later_ones_do_not(
    hub: Hub, pool: Pool, small_batches: None, ada: User
) -> None:
    await load(pool, line("join", user="bob") + message_lines(*map(str, range(50))))
    bob = await hub.users.find_by_username("bob")
    assert bob is not None
    for user in (ada, bob):
        [summary] = (await hub.rooms.list_for(user.id)).items
        assert summary.unread == 0
    await hub.messages.send(derive_room_id("#chat"), bob.id, "live")
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert summary.unread == 1


async def test_nickname_means_the_account_with_that_username_in_any_case(hub: Hub, pool: Pool, ada: User) -> None:
    imported = await load(pool, message_lines("hello", user="ADA"))
    assert imported.users == 0
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [message.user_id for message in page.items] == [ada.id]


async def test_imported_account_accepts_no_password_until_one_is_set(hub: Hub, pool: Pool) -> None:
    await load(pool, message_lines("hello"))
    for password in ("!", "ada", ""):
        assert await hub.authenticate("ada", password) is None
    ada = await hub.users.find_by_username("ada")
    assert ada is not None
    await hub.change_password(ada.id, "correct horse")
    assert await hub.authenticate("ada", "correct horse") == await hub.users.get(ada.id)


async def test_invalid_nicknames_get_distinct_usernames(hub: Hub, pool: Pool) -> None:
    nicknames = ["[a] ", "[a]", "a@b", "a_b", "x" * 60, "x" * 61, "\u200b", "e\u0301" * 50]
    imported = await load(pool, b"".join(message_lines("hello", user=nickname) for nickname in nicknames))
    assert (imported.users, imported.refusals.count) == (8, 0)
    assert imported.renamed_count == 6
    page = await hub.messages.page(derive_room_id("#chat"))
    assert len({message.user_id for message in page.items}) == 8


async def test_refused_lines_are_reported_with_their_numbers(pool: Pool) -> None:
    reported: list[Refusal] = []
    bad = [
        b"oops\n",
        line(content=" "),
        line("member"),
        line(seq=9),
        line(reply_to="00000000-0000-7000-8000-000000000000"),
    ]
    file = message_lines("one") + b"\n".join([*bad, b"", message_lines("two")])
    imported = await History(pool).load(as_file(file), refused=reported.append)
    assert imported.messages == 2
    assert imported.refusals.count == len(reported) == len(bad)
    lines = [number for number, one in enumerate(file.split(b"\n"), 1) if one and one + b"\n" in bad]
    assert [refusal.line for refusal in reported] == lines


async def test_second_import_of_a_file_changes_nothing(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    first = await load(pool, conversation(95))
    before = await stored_rows(postgres_settings)
    second = await load(pool, conversation(95))
    assert await stored_rows(postgres_settings) == before
    assert (first.continued_from, second.continued_from) == (0, 95)
    assert (second.messages, second.events, second.users) == (0, 0, 0)
    await check_logs(postgres_settings)


async def test_second_import_without_a_matching_checkpoint_changes_nothing(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, small_batches: None
) -> None:
    await load(pool, conversation(95))
    before = await stored_rows(postgres_settings)
    # Another first line changes the digests of all later lines. It replaces a line, so that their numbers stay.
    await load(pool, b"oops\n" + conversation(95)[len(conversation(1)) :])
    after = await stored_rows(postgres_settings)
    assert [after[table] for table in ("users", "rooms", "messages", "room_events", "room_users")] == [
        before[table] for table in ("users", "rooms", "messages", "room_events", "room_users")
    ]


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_import_of_a_grown_file_continues_where_it_ended(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None, ending: bytes
) -> None:
    start = conversation(33).rstrip() + ending
    await load(pool, start)
    again = await load(pool, conversation(77))
    assert again.continued_from == 33
    assert again.messages + again.events > 0
    grown = await stored_rows(postgres_settings)
    assert contents(grown["messages"]).count("message 32") == 1
    assert len(grown["messages"]) == conversation(77).count(b'"content"')
    await check_logs(postgres_settings)


async def test_two_concurrent_imports_of_a_file_store_it_once(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, small_batches: None
) -> None:
    file = conversation(300)
    both = await asyncio.gather(load(pool, file), load(pool, file))
    stored = await stored_rows(postgres_settings)
    assert sum(one.messages for one in both) == len(stored["messages"]) == file.count(b'"content"')
    await check_logs(postgres_settings)


async def test_concurrent_imports_of_a_file_and_its_grown_version_store_each_line_once(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    await asyncio.gather(load(pool, conversation(205)), load(pool, conversation(217)))
    stored = await stored_rows(postgres_settings)
    assert len(stored["messages"]) == conversation(217).count(b'"content"')
    await check_logs(postgres_settings)


async def test_live_messages_are_stored_between_batches_and_unread_ones_stay_unread(
    postgres_settings: PostgresSettings, settings: Settings, pool: Pool, hub: Hub, ada: User, small_batches: None
) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id)
    file = b"".join(message_lines(str(n), room_id=str(room.id), user=f"user{n % 5}") for n in range(300))
    async with Hub(settings, options=Options(mark_read_on_send=False)) as live:
        sending = asyncio.gather(*(live.messages.send(room.id, ada.id, f"live {n}") for n in range(100)))
        imported = await load(pool, file)
        await sending
    assert imported.messages == 300
    assert (await log_of(pool, room.id)).count("sent") == 400
    stored = contents((await stored_rows(postgres_settings))["messages"])
    assert [content for content in stored if "live" not in content] == [str(n) for n in range(300)]
    # A user who was a member before the import keeps the unread messages.
    assert (await hub.room_users.get(room.id, ada.id)).last_read_seq == 1


async def test_import_reports_a_change_of_every_room_that_grew(pool: Pool) -> None:
    reported: list[Change] = []
    await History(pool, reported.append).load(as_file(conversation(30)))
    rooms = {change.room_id for change in reported if isinstance(change, RoomTouched)}
    assert rooms == {derive_room_id(f"room {n}") for n in range(3)}


async def test_long_nicknames_are_told_apart_and_not_kept(hub: Hub, pool: Pool, small_batches: None) -> None:
    nicknames = ["x" * 20_000, "x" * 19_999 + "y", sha256(b"x" * 20_000).hexdigest(), "short"]
    running = Import(pool, lambda _: None)
    file = b"".join(line(user=nicknames[n % 4], content=str(n % 4)) for n in range(40))
    imported = await running.run(as_file(file), lambda _: None)
    assert (imported.messages, imported.users) == (40, 4)
    page = await hub.messages.page(derive_room_id("#chat"), limit=40)
    assert all(message.user_id == derive_user_id(nicknames[int(message.content)]) for message in page.items)
    assert max(len(key) for key in running._users._ids if not isinstance(key, UUID)) <= 100


AtCommit = Callable[[int, Callable[[Connection], Awaitable[object]]], None]


@pytest.fixture
def at_commit(monkeypatch: pytest.MonkeyPatch) -> AtCommit:
    """A function that has something else done at the n-th COMMIT from then on. The answer to it is lost."""

    def replace_commit(number: int, instead: Callable[[Connection], Awaitable[object]]) -> None:
        numbers = count(1)

        async def lost(connection: Connection, *args: Any, name: str, **options: Any) -> object:  # noqa: ANN401
            if name != "COMMIT" or next(numbers) != number:
                return await run(connection, *args, name=name, **options)
            await instead(connection)
            raise Unavailable("postgresql", "lost", outcome_unknown=True) from ConnectionResetError()

        monkeypatch.setattr("hubbub.postgres.transaction.run", lost)

    return replace_commit


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_batch_is_reported_and_counted_although_the_answer_to_its_commit_is_lost(
    pool: Pool, other_pool: Pool, small_batches: None, number: int, at_commit: AtCommit
) -> None:
    expected: list[Change] = []
    # The times descend: entries of this import must not be taken for later entries of others.
    file = line(user="[FiDo] ") + b"".join(
        line(["join", "leave", "message"][n % 3], user=f"user{n % 2}", at=f"2004-11-15T12:{59 - n}:00Z")
        for n in range(29)
    )
    undisturbed = await History(other_pool, expected.append).load(as_file(file))
    at_commit(number, lambda connection: connection.execute("COMMIT"))
    reported: list[Change] = []
    imported = await History(pool, reported.append).load(as_file(file))
    assert (imported.renamed_count, imported.continued_from) == (1, 0)
    assert imported == undisturbed
    assert reported == expected


async def test_batch_that_another_import_stored_after_a_lost_commit_was_known(
    pool: Pool, small_batches: None, at_commit: AtCommit
) -> None:
    file = conversation(9)

    async def undo(connection: Connection) -> None:
        await connection.execute("ROLLBACK")
        await load(pool, file)

    at_commit(1, undo)
    reported: list[Change] = []
    imported = await History(pool, reported.append).load(as_file(file))
    assert (imported.messages, imported.known, imported.users, imported.continued_from) == (0, 9, 0, 9)
    assert reported == []


async def test_message_with_a_known_id_is_skipped_or_refused_if_it_differs(
    hub: Hub, pool: Pool, ada: User
) -> None:
    id = "01890a5d-ac96-774b-bcce-b302099a8057"
    first = await load(pool, message_lines("hello", id=id))
    again = await load(pool, message_lines("before") + message_lines("hello", id=id))
    assert (first.messages, again.messages, again.known) == (1, 1, 1)
    other = await load(
        pool, message_lines("x") + message_lines("other", id=id) + message_lines("hello", id=id, room="b")
    )
    assert [refusal.line for refusal in other.refusals.first] == [2, 3]


async def test_import_recreates_account_deleted_during_import(
    pool: Pool, hub: Hub, ada: User, small_batches: None
) -> None:
    deleting: list[asyncio.Task[None]] = []

    def progress(_: Imported) -> None:
        if not deleting:
            deleting.append(asyncio.create_task(hub.users.delete(ada.id)))

    imported = await History(pool).load(as_file(message_lines(*map(str, range(100)))), progress=progress)
    await asyncio.gather(*deleting)
    assert imported.messages == 100


async def test_long_messages_and_messages_without_text_are_imported_once(pool: Pool, hub: Hub) -> None:
    lines = [
        line(content="", message_type="image"),
        line(content="", message_type="image", metadata={"url": "cat.png"}),
        line(content="", metadata={"url": "cat.png"}),
        line(content="\u00e4" * 65_536),
    ]
    assert (await load(pool, b"".join(lines))).messages == 4
    assert (await load(pool, b"".join(lines))).messages == 0
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [len(message.content) for message in page.items] == [0, 0, 0, 65_536]
    assert [message.metadata for message in page.items] == [None, *[{"url": "cat.png"}] * 2, None]
    assert (await hub.messages.page_json(derive_room_id("#chat"))).count(b'"content":""') == 3


async def test_line_of_another_type_without_text_changes_nothing_and_fails_no_other_line(
    pool: Pool, hub: Hub, room: Room, ada: User
) -> None:
    sent = await hub.messages.send(room.id, ada.id, "words")
    changed = {"content": "", "message_type": "image", "is_edited": True, "updated_at": "2200-01-01T00:00:00Z"}
    ids = {"id": str(sent.id), "room_id": str(room.id), "user_id": str(ada.id), "seq": sent.seq}
    imported = await load(pool, line(**ids, **changed) + line(content="next"))
    assert imported.messages == 1
    assert (await hub.messages.get(sent.id)).content == "words"


async def test_imported_hostile_text_is_returned_unchanged(pool: Pool, hub: Hub) -> None:
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
    imported = await load(pool, message_lines(*texts))
    assert imported.messages == len(texts)
    page = await hub.messages.page(derive_room_id("#chat"))
    assert [message.content for message in page.items] == texts


@pytest.mark.parametrize(
    ("at", "stored"),
    [
        ("0001-01-01T00:00:00Z", FIRST_TIME),
        ("0001-01-01T01:00:00+01:00", FIRST_TIME),
        ("0001-01-01T00:00:00.000001Z", FIRST_TIME),
        ("0001-01-01T00:00:00.000002Z", FIRST_TIME.replace(microsecond=2)),
        ("9999-12-31T23:59:59.999999Z", LAST_TIME),
        ("9999-12-31T22:59:59.999999-01:00", LAST_TIME),
        ("9999-12-31T23:59:59.999997Z", LAST_TIME.replace(microsecond=999_997)),
    ],
)
async def test_first_and_last_time_are_stored_as_finite_times_that_followers_get(
    postgres_settings: PostgresSettings, pool: Pool, hub: Hub, room: Room, ada: User, at: str, stored: datetime
) -> None:
    start = (await hub.messages.since(room.id, None)).cursor
    assert start is not None
    file = message_lines("odd", at=at, updated_at=at, room_id=str(room.id)) + line("join", at=at, user="bob")
    async with hub.follow(ada.id, after={room.id: start}) as feed:
        await load(pool, file)
        [event] = await take(feed)
        await hub.messages.send(room.id, ada.id, "after it")
        await take(feed)
    [message, _] = (await hub.messages.page(room.id)).items
    assert isinstance(event, MessageSent)
    assert event.message == message
    assert (message.created_at, message.updated_at) == (stored, stored)
    assert await hub.receipts.unread_count(room.id, ada.id) == 0  # waits for the read mark of the author
    before = await stored_rows(postgres_settings)
    again = await load(pool, b"{}\n" + file)
    assert (again.messages, again.events) == (0, 0)
    assert await stored_rows(postgres_settings) | {"hubbub_imports": []} == before | {"hubbub_imports": []}


MOMENTS = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(max_value=FIRST_TIME.replace(tzinfo=None, second=1), timezones=st.just(UTC)),
    st.datetimes(min_value=LAST_TIME.replace(tzinfo=None, second=58), timezones=st.just(UTC)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, print_blob=True)
@given(moments=st.lists(MOMENTS, min_size=1, max_size=20))
async def test_messages_of_any_times_are_read_in_the_order_of_their_lines_and_imported_once(
    pool: Pool, hub: Hub, moments: list[datetime]
) -> None:
    room = f"#{uuid4().hex}"
    room_id = derive_room_id(room)
    stored = [min(max(moment, FIRST_TIME), LAST_TIME) for moment in moments]
    file = b"".join(
        line("message", room=room, user="bob", at=moment.isoformat(), content=str(number))
        for number, moment in enumerate(moments)
    )
    for lines in (file, b"{}\n" + file):  # another file, so that each line is compared with the log
        await load(pool, lines)
        page = await hub.messages.page(room_id)
        assert [message.content for message in page.items] == [str(number) for number in range(len(moments))]
        assert [message.created_at for message in page.items] == stored
        assert msgspec.json.decode(await hub.messages.page_json(room_id), type=MessagePage) == page
        log = (await hub.messages.since(room_id, None)).items
        seqs = [event.seq for event in log if not isinstance(event, Resync)]
        assert seqs == list(range(1, len(moments) + 2))


@pytest.mark.parametrize("length", [2, 10, 20])
async def test_file_damaged_before_its_first_line_stores_nothing_and_an_intact_one_everything(
    pool: Pool, length: int
) -> None:
    whole = gzip.compress(conversation(50))
    damaged = await load(pool, whole[:length])
    assert (damaged.lines, damaged.messages) == (0, 0)
    assert damaged.refusals.first == [Refusal(1, "the compressed file is damaged from here on")]
    mended = await load(pool, whole)
    assert (mended.continued_from, mended.refusals.count) == (0, 0)


async def test_damaged_file_stores_the_lines_before_the_damage_and_an_intact_one_the_rest(
    postgres_settings: PostgresSettings, pool: Pool, small_batches: None
) -> None:
    whole = gzip.compress(conversation(5_000))
    damaged = await load(pool, whole[: len(whole) // 2])
    assert 0 < damaged.lines < 5_000
    assert "damaged" in damaged.refusals.first[-1].reason
    mended = await load(pool, whole)
    assert mended.continued_from == damaged.lines
    assert len((await stored_rows(postgres_settings))["messages"]) == conversation(5_000).count(b'"content"')
    await check_logs(postgres_settings)


async def test_import_into_an_empty_database_gives_users_and_rooms_the_derived_ids(hub: Hub) -> None:
    await hub.history.load(io.BytesIO(conversation(30)))
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
async def test_load_refuses_anything_but_a_file_of_bytes(hub: Hub, file: object) -> None:
    with pytest.raises(Invalid) as refusal:
        await hub.history.load(file)  # type: ignore[arg-type]
    assert refusal.value.field == "file"


async def test_load_refuses_a_file_that_is_closed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_bytes(line())
    for file in (io.BytesIO(line()), (tmp_path / "chat.jsonl").open("rb")):
        file.close()
        with pytest.raises(Invalid, match="file: must be a file opened"):
            await hub.history.load(file)


async def test_load_reads_an_object_that_has_only_read1(hub: Hub) -> None:
    class Blob:
        """A wrapper of an object in a blob store, as an application may have it."""

        def __init__(self, content: bytes) -> None:
            self._content = io.BytesIO(content)

        def read1(self, size: int) -> bytes:
            return self._content.read1(size)

    imported = await hub.history.load(Blob(line()))  # type: ignore[arg-type]
    assert imported.messages == 1


async def test_lines_of_an_account_whose_deletion_is_not_finished_are_refused(pool: Pool) -> None:
    """The id is taken and the name is free, so the account can neither be found nor created."""
    await load(pool, line(user="ada") + line(user="eve"))
    await pool.execute(HIDE_ACCOUNT, derive_user_id("ada"))
    imported = await load(pool, line(user="ada", content="again") + line(user="eve", content="again"))
    assert (imported.messages, imported.users) == (1, 0)
    [refusal] = imported.refusals.first
    assert refusal.line == 1
    assert "deletion is not finished" in refusal.reason


async def test_line_with_unreadable_metadata_does_not_end_the_import(pool: Pool) -> None:
    bad = line(metadata={}).replace(b"{}", b'{"n": 1e999}')
    imported = await load(pool, line() + bad + line(content="after it"))
    assert (imported.messages, [refusal.line for refusal in imported.refusals.first]) == (2, [2])


@pytest.mark.parametrize("field", ["progress", "refused"])
async def test_load_refuses_an_uncallable_callback_before_reading(hub: Hub, field: str) -> None:
    async def in_its_own_time(_: object) -> None: ...

    for listener in (3, "print", in_its_own_time):
        with pytest.raises(Invalid) as refusal:
            await hub.history.load(io.BytesIO(b"not read"), **{field: listener})  # type: ignore[arg-type]
        assert refusal.value.field == field


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_real_log_is_stored_in_the_order_of_its_lines(
    postgres_settings: PostgresSettings, pool: Pool
) -> None:
    imported = await load(pool, real_log())
    assert (imported.messages, imported.refusals.count) == (27_826, 0)
    stored = contents((await stored_rows(postgres_settings))["messages"])
    assert stored == [one["content"] for one in parsed(real_log()) if one["kind"] == "message"]
    await check_logs(postgres_settings)
