from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import LOCK_IS_AWAITED
from hubbub import Hub, Invalid, NotAMember, NotFound, PostgresSettings, Room, Unavailable, User
from hubbub.models import Message
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories import ReadReceipts, Rooms
from hubbub.repositories.read_receipts import MAX_RECEIPTS_PER_CALL, RECEIPTS_UP_TO_MEMBERS, SEQS_PER_STEP
from hubbub.sql import UNREAD_AMONG
from plans import pages_touched, rows_read
from waiting import HANGS_AFTER_SECONDS, until_it_answers

pytestmark = pytest.mark.usefixtures("marks_are_awaited")


@pytest.fixture
async def messages(hub: Hub, ada: User, bob: User, room: Room) -> list[Message]:
    """Five messages of Ada's, unread by Bob."""
    await hub.room_users.add(room.id, bob.id)
    return [await hub.messages.send(room.id, ada.id, f"message {n}") for n in range(5)]


async def readers(hub: Hub, message: Message) -> list[object]:
    return [receipt.user_id for receipt in (await hub.receipts.readers(message.id)).items]


async def times(hub: Hub, messages: Iterable[Message]) -> list[list[bool]]:
    """Whether the time is known, per message and reader."""
    pages = [await hub.receipts.readers(message.id) for message in messages]
    return [[receipt.read_at is not None for receipt in page.items] for page in pages]


async def fill(pool: Pool, room: Room, author: User, count: int) -> int:
    """Insert messages by one statement. Returns the head."""
    statement = Statement(
        "test.fill",
        int,
        """
        WITH head AS (
            UPDATE rooms
            SET last_seq = last_seq + $3
            WHERE id = $1
            RETURNING last_seq
        ), filled AS (
            INSERT INTO messages (room_id, seq, user_id, content)
            SELECT $1, last_seq - $3 + n, $2, 'hello'
            FROM head, generate_series(1, $3) AS n
        )
        SELECT last_seq
        FROM head
        """,
    )
    return await pool.fetch_one(statement, room.id, author.id, count) or 0


async def test_mark_read_moves_the_read_mark_and_the_unread_count(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 5}
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=messages[2].seq) == messages[2].seq
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 2}
    member = await hub.room_users.get(room.id, bob.id)
    assert (member.last_read_seq, member.last_read_message_id) == (messages[2].seq, messages[2].id)


async def test_read_mark_never_moves_back_by_itself(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    head = messages[-1].seq
    devices = [message.seq for message in messages] * 4
    await asyncio.gather(*(hub.receipts.mark_read(room.id, bob.id, up_to=seq) for seq in devices))
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=0) == head
    member = await hub.room_users.get(room.id, bob.id)
    assert (member.last_read_seq, member.last_read_message_id) == (head, messages[-1].id)


async def test_mark_read_beyond_the_head_stops_at_the_head(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=2**63 - 1) == messages[-1].seq
    await hub.messages.send(room.id, messages[0].user_id or bob.id, "one more")
    assert await hub.receipts.unread_count(room.id, bob.id) == 1


async def test_mark_unread_deletes_the_receipts(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[-1].seq)
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[3].seq) == messages[2].seq
    assert await hub.receipts.unread_count(room.id, bob.id) == 2
    assert await readers(hub, messages[2]) == [bob.id]
    assert await readers(hub, messages[3]) == []
    member = await hub.room_users.get(room.id, bob.id)
    assert member.last_read_message_id == messages[2].id
    # receipts of unread messages stay
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[4].seq) == messages[2].seq
    with pytest.raises(Invalid):
        await hub.receipts.mark_unread(room.id, bob.id, from_seq=0)


FILL_RECEIPTS = Statement(
    "test.fill_receipts",
    int,
    """
    INSERT INTO message_read_receipts (message_id, user_id, room_id)
    SELECT messages.id, room_users.user_id, room_users.room_id
    FROM messages
    JOIN room_users USING (room_id)
    WHERE room_id = $1
        AND room_users.user_id = $2
        AND messages.seq <= room_users.last_read_seq
    ON CONFLICT DO NOTHING
    """,
)


async def test_mark_unread_moves_back_in_steps_that_are_right_by_themselves(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    head = await fill(pool, room, ada, 2 * SEQS_PER_STEP + 100)
    await hub.receipts.mark_read(room.id, bob.id, up_to=head)
    await pool.execute(FILL_RECEIPTS, room.id, bob.id)
    stored = Statement(
        "test.stored",
        lambda receipts, newest: (receipts, newest),
        """
        SELECT count(*), max(messages.seq)
        FROM message_read_receipts
        JOIN messages ON messages.room_id = message_read_receipts.room_id AND messages.id = message_id
        WHERE message_read_receipts.user_id = $1
        """,
    )

    cut = await pool.fetch_one(ReadReceipts._MARK_UNREAD, room.id, bob.id, 10)  # like an interrupted call
    assert cut is not None
    step = cut.last_read_seq
    assert step == head - SEQS_PER_STEP
    member = await hub.room_users.get(room.id, bob.id)
    assert member.last_read_seq == step
    assert (await hub.messages.get(member.last_read_message_id or bob.id)).seq == step
    assert await pool.fetch_one(stored, bob.id) == (step - 2, step)

    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=10) == 9
    assert (await hub.room_users.get(room.id, bob.id)).last_read_seq == 9
    assert await pool.fetch_one(stored, bob.id) == (7, 9)
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=1) == 0
    assert await pool.fetch_one(stored, bob.id) == (0, None)


@pytest.mark.parametrize(("steps", "is_unknown"), [(0, False), (1, True)])
async def test_mark_unread_has_an_unknown_outcome_once_a_step_is_committed(
    hub: Hub,
    pool: Pool,
    ada: User,
    bob: User,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    is_unknown: bool,
) -> None:
    await hub.room_users.add(room.id, bob.id)
    head = await fill(pool, room, ada, SEQS_PER_STEP + 100)
    await hub.receipts.mark_read(room.id, bob.id, up_to=head)
    executor, left = hub.receipts._executor, steps
    fetch_one = executor.fetch_one

    async def fail_after(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable("postgresql", "no connection")
        return await fetch_one(*args, **options)

    monkeypatch.setattr(executor, "fetch_one", fail_after)
    with pytest.raises(Unavailable) as failure:
        await hub.receipts.mark_unread(room.id, bob.id, from_seq=2)
    monkeypatch.undo()
    assert failure.value.outcome_unknown == is_unknown
    read = (await hub.room_users.get(room.id, bob.id)).last_read_seq
    assert read == head - steps * SEQS_PER_STEP


@pytest.mark.parametrize("reads", [0, 1])
async def test_mark_unread_deletes_receipts_that_were_committed_while_it_waited(
    hub: Hub, pool: Pool, bob: User, room: Room, messages: list[Message], reads: int
) -> None:
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[reads].seq)
    waiting = Statement("test.waits", bool, LOCK_IS_AWAITED)

    async def waits() -> bool:
        return bool(await pool.fetch_one(waiting))

    async with hub.transaction() as tx:
        await tx.receipts.mark_read(room.id, bob.id, up_to=messages[-1].seq)
        unread = asyncio.create_task(hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[1].seq))
        await until_it_answers(waits)
    assert await unread == messages[0].seq
    assert await hub.receipts.unread_count(room.id, bob.id) == 4
    stored = Statement("test.receipts", lambda id: id, "SELECT message_id FROM message_read_receipts")
    assert await pool.fetch_all(stored) == [messages[0].id]


@pytest.mark.one_server("counts what one server reads")
async def test_step_of_mark_unread_reads_its_own_messages_and_receipts_only(
    hub: Hub, pool: Pool, postgres_settings: PostgresSettings, ada: User, bob: User, room: Room
) -> None:
    """Otherwise the steps together are quadratic, and 300,000 receipts take longer than the deadline."""
    await hub.room_users.add(room.id, bob.id)
    head = await fill(pool, room, ada, 10 * SEQS_PER_STEP)
    await hub.receipts.mark_read(room.id, bob.id, up_to=head)
    await pool.execute(FILL_RECEIPTS, room.id, bob.id)
    connection = await connect(postgres_settings)
    try:
        await connection.execute("ANALYZE")
        step = await rows_read(connection, ReadReceipts._MARK_UNREAD, room.id, bob.id, 1)
    finally:
        await connection.close()
    assert step["message_read_receipts"] == SEQS_PER_STEP
    assert SEQS_PER_STEP <= step["messages"] <= SEQS_PER_STEP + 10


async def test_step_of_mark_unread_passes_over_a_log_without_messages(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    said = await hub.messages.send(room.id, ada.id, "the last before they were purged")
    await pool.execute(Statement("test.head", int, "UPDATE rooms SET last_seq = 1000000 WHERE id = $1"), room.id)
    newest = await hub.messages.send(room.id, ada.id, "the first since")
    await hub.receipts.mark_read(room.id, bob.id, up_to=newest.seq)

    cut = await pool.fetch_one(ReadReceipts._MARK_UNREAD, room.id, bob.id, 1)
    assert cut is not None
    assert cut.last_read_seq == said.seq
    assert await readers(hub, said) == [bob.id]
    assert await readers(hub, newest) == []
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=1) == 0
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=newest.seq) == newest.seq
    assert await hub.receipts.mark_unread(room.id, bob.id, from_seq=said.seq + 5) == said.seq + 4


async def test_own_and_deleted_messages_are_not_unread(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.messages.send(room.id, bob.id, "mine")
    await hub.messages.delete(messages[1].id, by=ada.id)
    await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[0].seq)
    assert await hub.receipts.unread_count(room.id, bob.id) == 4
    assert await hub.receipts.unread_count(room.id, ada.id) == 1


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.counts_pages
async def test_unread_counts_read_the_newest_messages_only(
    hub: Hub, postgres_settings: PostgresSettings, ada: User, bob: User, room: Room
) -> None:
    """There may be any number of tombstones and of the reader's own messages."""
    await hub.room_users.add(room.id, bob.id)
    patient = Pool(replace(postgres_settings, deadline_seconds=HANGS_AFTER_SECONDS))
    connection = await connect(postgres_settings)
    pages: dict[int, list[int]] = {}
    try:
        for count in (2 * UNREAD_AMONG, 20 * UNREAD_AMONG):
            await fill(patient, room, bob, count)
            await fill(patient, room, ada, 10)
            await connection.execute(
                "UPDATE messages SET content = '', deleted_at = now() WHERE user_id = $1", ada.id
            )
            await connection.execute("VACUUM ANALYZE messages")
            pages[count] = [
                await pages_touched(connection, ReadReceipts._UNREAD_COUNT, room.id, bob.id, 100),
                await pages_touched(connection, ReadReceipts._UNREAD_COUNTS, bob.id, 100),
                await pages_touched(
                    connection, Rooms._LIST_FOR, bob.id, "infinity", UUID(int=2**128 - 1), 50, 100
                ),
            ]
    finally:
        await patient.close()
        await connection.close()
    few, many = pages.values()
    assert all(after < 2 * before for before, after in zip(few, many, strict=True)), pages
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 0}
    [newest] = [await hub.messages.send(room.id, ada.id, "the newest")]
    assert await hub.receipts.unread_counts(bob.id) == {room.id: 1}
    assert newest.seq > UNREAD_AMONG


@pytest.mark.one_server("counts what one server reads")
async def test_unread_counts_and_marks_read_the_newest_messages_only_of_a_table_without_statistics(
    hub: Hub, pool: Pool, postgres_settings: PostgresSettings, ada: User, bob: User, room: Room
) -> None:
    """As after a restore or a large import: PostgreSQL then takes every room for a small one."""
    await hub.room_users.add(room.id, bob.id)
    connection = await connect(postgres_settings)
    try:
        await connection.execute("ALTER TABLE messages SET (autovacuum_enabled = false)")
        head = await fill(pool, room, ada, 4 * UNREAD_AMONG)
        newest = ("infinity", UUID(int=2**128 - 1))
        for most, statement, *arguments in (
            (100, ReadReceipts._UNREAD_COUNT, room.id, bob.id, 100),
            (100, ReadReceipts._UNREAD_COUNTS, bob.id, 100),
            (UNREAD_AMONG, ReadReceipts._UNREAD_COUNT, room.id, ada.id, 100),
            (100 + 10, Rooms._LIST_FOR, bob.id, *newest, 50, 100),
            (100 + 10, Rooms._SUMMARY, bob.id, room.id, 100),
            (MAX_RECEIPTS_PER_CALL + 10, ReadReceipts._MARK_READ, room.id, bob.id, head),
        ):
            read = await rows_read(connection, statement, *arguments)
            assert read["messages"] <= most, (statement.name, read)
    finally:
        await connection.close()


async def test_unread_count_stops_at_the_cap(hub: Hub, bob: User, room: Room, messages: list[Message]) -> None:
    assert await hub.receipts.unread_count(room.id, bob.id, cap=3) == 3
    assert await hub.receipts.unread_counts(bob.id, cap=3) == {room.id: 3}
    for cap in (0, 1_001):
        with pytest.raises(Invalid) as refused:
            await hub.receipts.unread_counts(bob.id, cap=cap)
        assert refused.value.field == "cap"


async def test_readers_has_the_time_in_a_small_room(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[0].seq)
    await hub.receipts.mark_read(room.id, ada.id, up_to=messages[0].seq)
    [receipt] = (await hub.receipts.readers(messages[0].id)).items  # without the author
    assert (receipt.message_id, receipt.user_id) == (messages[0].id, bob.id)
    assert receipt.read_at is not None
    assert await readers(hub, messages[1]) == []


async def test_readers_finds_the_message_in_the_room_that_the_caller_names(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[-1].seq)
    page = await hub.receipts.readers(messages[0].id)
    assert [receipt.user_id for receipt in page.items] == [bob.id]
    assert await hub.receipts.readers(messages[0].id, room_id=room.id) == page
    assert await hub.receipts.readers(messages[0].id, room_id=room.id, as_user=ada.id) == page
    for as_user in (None, ada.id):
        with pytest.raises(NotFound):
            await hub.receipts.readers(messages[0].id, room_id=other.id, as_user=as_user)


async def test_readers_has_no_time_in_a_large_room(hub: Hub, ada: User, room: Room) -> None:
    group = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(RECEIPTS_UP_TO_MEMBERS)]
    await hub.room_users.add_many(room.id, [one.id for one in group])
    message = await hub.messages.send(room.id, ada.id, "hello all")
    for one in group[:5]:
        await hub.receipts.mark_read(room.id, one.id, up_to=message.seq)

    first = await hub.receipts.readers(message.id, limit=3)
    rest = await hub.receipts.readers(message.id, limit=3, after=first.next)
    receipts = first.items + rest.items
    assert {receipt.user_id for receipt in receipts} == {one.id for one in group[:5]}
    assert all(receipt.read_at is None for receipt in receipts)
    assert not rest.has_more

    await hub.room_users.remove(room.id, group[-1].id)  # 50 members: small again
    message = await hub.messages.send(room.id, ada.id, "hello few")
    await hub.receipts.mark_read(room.id, group[0].id, up_to=message.seq)
    [receipt] = (await hub.receipts.readers(message.id)).items
    assert receipt.read_at is not None


async def test_reading_state_of_a_non_member_is_refused(hub: Hub, bob: User, room: Room) -> None:
    for operation in (
        hub.receipts.mark_read(room.id, bob.id, up_to=1),
        hub.receipts.mark_unread(room.id, bob.id, from_seq=1),
        hub.receipts.unread_count(room.id, bob.id),
        hub.receipts.mark_read(uuid4(), bob.id, up_to=1),
    ):
        with pytest.raises(NotAMember):
            await operation
    assert await hub.receipts.unread_counts(bob.id) == {}


async def test_readers_of_an_unknown_message_are_not_found(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    with pytest.raises(NotFound):
        await hub.receipts.readers(uuid4())
    carol = await hub.users.create("carol@example.org", "carol", "hash")
    await hub.room_users.add(room.id, carol.id)
    newer = await hub.messages.send(room.id, messages[0].user_id or bob.id, "welcome")
    for reader in (bob, carol):
        await hub.receipts.mark_read(room.id, reader.id, up_to=newer.seq)
    cursor = (await hub.receipts.readers(newer.id, limit=1)).next
    assert cursor is not None
    with pytest.raises(Invalid):
        await hub.receipts.readers(messages[1].id, after=cursor)


@pytest.mark.parametrize("seq", [-1, 2**63, True, "5", None])
async def test_value_that_is_not_a_seq_is_refused(hub: Hub, ada: User, room: Room, seq: int) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.receipts.mark_read(room.id, ada.id, up_to=seq)
    assert refused.value.field == "up_to"


@pytest.mark.parametrize(
    ("keeps_receipts", "members", "expected"),
    [
        (None, RECEIPTS_UP_TO_MEMBERS, True),
        (None, RECEIPTS_UP_TO_MEMBERS + 1, False),
        (True, RECEIPTS_UP_TO_MEMBERS + 1, True),
        (False, 2, False),
    ],
)
async def test_room_stores_receipts_by_its_setting(
    hub: Hub, ada: User, keeps_receipts: bool | None, members: int, expected: bool
) -> None:
    room = await hub.rooms.create("asked", created_by=ada.id, keeps_receipts=keeps_receipts)
    group = await asyncio.gather(
        *(hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(members - 1))
    )
    await hub.room_users.add_many(room.id, [one.id for one in group])
    message = await hub.messages.send(room.id, ada.id, "hello")
    await hub.receipts.mark_read(room.id, group[0].id, up_to=message.seq)
    [receipt] = (await hub.receipts.readers(message.id)).items
    assert receipt.user_id == group[0].id
    assert (receipt.read_at is not None) is expected


async def test_direct_room_stores_receipts_until_it_is_set_not_to(hub: Hub, ada: User, bob: User) -> None:
    direct = await hub.rooms.direct(ada.id, bob.id)
    said = [await hub.messages.send(direct.id, ada.id, f"message {n}") for n in range(2)]
    await hub.receipts.mark_read(direct.id, bob.id, up_to=said[0].seq)
    await hub.rooms.update(direct.id, keeps_receipts=False)
    await hub.receipts.mark_read(direct.id, bob.id, up_to=said[1].seq)
    assert await times(hub, said) == [[True], [False]]


async def test_receipts_setting_applies_to_later_reads(
    hub: Hub, bob: User, room: Room, messages: list[Message]
) -> None:
    for message, keeps_receipts in zip(messages, (None, False, None, False, True), strict=True):
        await hub.rooms.update(room.id, keeps_receipts=keeps_receipts)
        await hub.receipts.mark_read(room.id, bob.id, up_to=message.seq)
    assert await times(hub, messages) == [[True], [False], [True], [False], [True]]
    # A message that is unread again loses its receipt. A later receipt depends on the setting at that time.
    await hub.receipts.mark_unread(room.id, bob.id, from_seq=messages[1].seq)
    assert await times(hub, messages) == [[True], [], [], [], []]
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[-1].seq)
    assert await times(hub, messages) == [[True]] * 5


async def test_new_member_has_not_read_earlier_messages(
    hub: Hub, ada: User, room: Room, messages: list[Message]
) -> None:
    carol = await hub.users.create("carol@example.org", "carol", "hash")
    for keeps_receipts in (False, True):
        await hub.rooms.update(room.id, keeps_receipts=keeps_receipts)
        await hub.room_users.add(room.id, carol.id)
        assert await readers(hub, messages[0]) == []
        newer = await hub.messages.send(room.id, ada.id, "welcome")
        await hub.receipts.mark_read(room.id, carol.id, up_to=newer.seq)
        assert await readers(hub, messages[0]) == []
        assert await readers(hub, newer) == [carol.id]
        await hub.room_users.remove(room.id, carol.id)


@pytest.mark.parametrize("keeps_receipts", [True, False])
async def test_returning_member_has_read_messages_with_a_receipt_only(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message], keeps_receipts: bool
) -> None:
    await hub.rooms.update(room.id, keeps_receipts=keeps_receipts)
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[0].seq)
    await hub.room_users.remove(room.id, bob.id)
    assert await readers(hub, messages[0]) == []  # a former member is not a reader
    meanwhile = await hub.messages.send(room.id, ada.id, "while you were away")
    await hub.room_users.add(room.id, bob.id)
    newer = await hub.messages.send(room.id, ada.id, "welcome back")
    await hub.receipts.mark_read(room.id, bob.id, up_to=newer.seq)
    known = [[True]] if keeps_receipts else [[]]
    assert await times(hub, [messages[0], messages[1], meanwhile]) == [*known, [], []]
    assert await times(hub, [newer]) == [[keeps_receipts]]


async def test_mark_read_of_very_many_stores_the_newest_receipts(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    first = await hub.messages.send(room.id, ada.id, "first")
    head = await fill(pool, room, ada, MAX_RECEIPTS_PER_CALL)
    await hub.messages.send(room.id, bob.id, "mine")  # gets no receipt
    assert await hub.receipts.mark_read(room.id, bob.id, up_to=head + 1) == head + 1
    second, last = (await hub.messages.page(room.id, after=first, limit=1)).items[0], head
    newest = (await hub.messages.page(room.id, before=last + 1, limit=1)).items[0]
    assert await times(hub, [first, second, newest]) == [[False], [True], [True]]


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.counts_pages
async def test_mark_read_of_a_hundred_times_as_much_touches_as_many_pages(
    hub: Hub, pool: Pool, postgres_settings: PostgresSettings, ada: User, bob: User
) -> None:
    connection = await connect(postgres_settings)
    touched = []
    for count in (50, 5_000):
        room = await hub.rooms.create(f"{count} messages", created_by=ada.id, keeps_receipts=False)
        await hub.room_users.add(room.id, bob.id)
        head = await fill(pool, room, ada, count)
        await connection.execute("ANALYZE")
        touched.append(await pages_touched(connection, ReadReceipts._MARK_READ, room.id, bob.id, head))
    await connection.close()
    assert touched[1] <= touched[0] + 20


async def test_returning_member_has_nothing_unread(
    hub: Hub, ada: User, bob: User, room: Room, messages: list[Message]
) -> None:
    await hub.room_users.remove(room.id, bob.id)
    await hub.messages.send(room.id, ada.id, "while you were away")
    await hub.room_users.add(room.id, bob.id)
    assert await hub.receipts.unread_count(room.id, bob.id) == 0
    await hub.messages.send(room.id, ada.id, "welcome back")
    assert await hub.receipts.unread_count(room.id, bob.id) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("read"), st.integers(0, 30)),
        st.tuples(st.just("unread"), st.integers(0, 30)),
        st.tuples(st.just("rejoin"), st.just(0)),
        st.tuples(st.just("receipts"), st.integers(0, 2)),
    ),
    min_size=8,
    max_size=40,
)


class ByHand:
    """A model of the messages that Bob has read in a room of Ada's."""

    def __init__(self, joined_seq: int) -> None:
        self.joined_seq = self.read_up_to = joined_seq
        self.known = 0  # the seq up to which the process of his last message knows that he has read
        self.keeps_receipts = True
        self.of_ada: dict[int, Message] = {}
        self.of_bob: dict[int, Message] = {}
        self.deleted: set[int] = set()
        self.receipts: set[int] = set()

    def send(self, message: Message, *, by_ada: bool) -> None:
        (self.of_ada if by_ada else self.of_bob)[message.seq] = message
        if not by_ada:
            if message.seq != self.known + 1:
                self.read(message.seq)
            self.known = message.seq

    def read(self, seq: int) -> None:
        if self.keeps_receipts:
            self.receipts |= {one for one in self._counting() if one <= seq}
        if seq > self.read_up_to:
            self.read_up_to = seq
            self.known = max(self.known, seq)

    def unread(self, seq: int) -> None:
        if seq <= self.read_up_to:
            self.known = 0
        self.receipts = {one for one in self.receipts if one < seq}
        self.read_up_to = min(self.read_up_to, seq - 1)

    def rejoin(self, joined_seq: int) -> None:
        self.joined_seq = self.read_up_to = joined_seq

    def count(self) -> int:
        return len(self._counting())

    def _counting(self) -> list[int]:
        return [seq for seq in self.of_ada if seq > self.read_up_to and seq not in self.deleted]

    def times(self, seq: int) -> list[bool]:
        """Whether Bob has read the message, without or with a time: [], [False] or [True]."""
        is_read = seq <= self.read_up_to and (seq > self.joined_seq or seq in self.receipts)
        return [seq in self.receipts] if is_read else []


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
async def test_unread_and_readers_equal_a_count_by_hand(
    hub: Hub, ada: User, bob: User, steps: list[tuple[str, int]]
) -> None:
    room = await hub.rooms.create("by hand", created_by=ada.id)
    by_hand = ByHand((await hub.room_users.add(room.id, bob.id)).last_read_seq)
    for step, number in steps:
        await _take(hub, room.id, by_hand, (ada, bob), step, number)
        assert await hub.receipts.unread_count(room.id, bob.id) == by_hand.count()
        member = await hub.room_users.get(room.id, bob.id)
        assert member.last_read_seq == by_hand.read_up_to
    assert (await hub.receipts.unread_counts(bob.id))[room.id] == by_hand.count()
    listed = {summary.room.id: summary for summary in (await hub.rooms.list_for(bob.id, limit=200)).items}
    assert listed[room.id].unread == by_hand.count()
    said = by_hand.of_ada  # Ada has read those of Bob that are before hers
    assert await times(hub, said.values()) == [by_hand.times(seq) for seq in said]


async def _take(
    hub: Hub, room_id: UUID, by_hand: ByHand, users: tuple[User, User], step: str, number: int
) -> None:
    ada, bob = users
    head = (await hub.rooms.get(room_id)).last_seq
    if step == "send":
        message = await hub.messages.send(room_id, users[number].id, "hello")
        by_hand.send(message, by_ada=number == 0)
    elif step == "delete" and (said := by_hand.of_ada | by_hand.of_bob):
        seq = sorted(said)[number % len(said)]
        await hub.messages.delete(said[seq].id, by=ada.id)
        by_hand.deleted.add(seq)
    elif step == "read":
        up_to = number % (head + 3)
        by_hand.read(min(up_to, head))
        await hub.receipts.mark_read(room_id, bob.id, up_to=up_to)
    elif step == "unread":
        from_seq = 1 + number % head
        by_hand.unread(from_seq)
        await hub.receipts.mark_unread(room_id, bob.id, from_seq=from_seq)
    elif step == "rejoin":
        await hub.room_users.remove(room_id, bob.id)
        by_hand.rejoin((await hub.room_users.add(room_id, bob.id)).last_read_seq)
    elif step == "receipts":
        by_hand.keeps_receipts = (True, False, True)[number]
        await hub.rooms.update(room_id, keeps_receipts=(True, False, None)[number])
