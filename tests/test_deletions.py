"""Accounts and rooms with more rows than a step are hidden at once. The next caller completes their deletion."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID, uuid4

import pytest

from hubbub import (
    Hub,
    Invalid,
    MaintenanceResult,
    MemberLeft,
    Message,
    MessageSent,
    NewMessage,
    NotAMember,
    NotFound,
    PostgresSettings,
    Room,
    RoomGone,
    Settings,
    Unavailable,
    User,
    deletions,
)
from hubbub.deletions import RECEIPTS_PER_STEP, ROWS_PER_STEP
from hubbub.postgres import Executor, LockNotAvailable, OpenTransaction, Pool, Statement, connect
from hubbub.repositories.users import DELETE_ATTEMPTS
from log import log_of
from plans import rows_read
from sql.package import statements
from waiting import HANGS_AFTER_SECONDS

MESSAGES = 2 * ROWS_PER_STEP + 500

FILL = Statement(
    "test.fill",
    lambda id: id,
    """
    WITH head AS (
        UPDATE rooms
        SET last_seq = last_seq + $3
        WHERE id = $1
        RETURNING last_seq
    )
    INSERT INTO messages (room_id, seq, user_id, content, created_at)
    SELECT $1, last_seq - $3 + n, $2, 'hello', now() - interval '1 day' + n * interval '1 ms'
    FROM head, generate_series(1, $3) AS n
    RETURNING id
    """,
)
READ = Statement(
    "test.read",
    int,
    """
    INSERT INTO message_read_receipts (message_id, user_id, room_id)
    SELECT messages.id, room_users.user_id, room_id
    FROM messages
    JOIN room_users USING (room_id)
    WHERE room_id = $1
    """,
)
ROWS = Statement(
    "test.rows",
    lambda *counts: counts,
    """
    SELECT
        (SELECT count(*) FROM users WHERE id = $1),
        (SELECT count(*) FROM rooms WHERE id = $1 OR created_by = $1),
        (SELECT count(*) FROM messages WHERE room_id = $1 OR user_id = $1),
        (SELECT count(*) FROM room_events WHERE room_id = $1),
        (SELECT count(*) FROM room_users WHERE room_id = $1 OR user_id = $1),
        (SELECT count(*) FROM message_read_receipts WHERE room_id = $1 OR user_id = $1),
        (SELECT count(*) FROM hubbub_deletions)
    """,
)
Step: TypeAlias = tuple[deletions._Progress | None, list[UUID]]
NOTHING = (0, 0, 0, 0, 0, 0, 0)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def cut_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupt deletions after this many steps. The next step is undone."""

    def cut_after(steps: int) -> None:
        async def step(
            part: Executor, deletion: deletions.Deletion, progress: deletions._Progress, ended: list[str]
        ) -> Step:
            nonlocal steps
            done = await original(part, deletion, progress, ended)
            if steps == 0:
                monkeypatch.setattr(deletions, "_step", original)
                raise Killed
            steps -= 1
            return done

        original = deletions._step
        monkeypatch.setattr(deletions, "_step", step)

    return cut_after


async def raises(error: type[Exception], *calls: Awaitable[object]) -> None:
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [error] * len(calls), outcomes


class Busy(NamedTuple):
    """A chat in which Bob has created a room and sent many messages to it."""

    hub: Hub
    ada: User
    bob: User
    room: Room
    direct: Room
    ids: list[UUID]
    last: Message


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with time for thousands of rows on a busy machine: the default is 10 s."""
    return replace(settings, postgres=replace(settings.postgres, deadline_seconds=HANGS_AFTER_SECONDS))


@pytest.fixture
async def busy(hub: Hub, pool: Pool, ada: User) -> Busy:
    bob = await hub.register("bob@example.org", "bob", "correct horse")
    room = await hub.rooms.create("lobby", created_by=bob.id)
    direct = await hub.rooms.direct(ada.id, bob.id)
    await hub.room_users.add(room.id, ada.id)
    ids = await pool.fetch_all(FILL, room.id, bob.id, MESSAGES)
    await pool.execute(READ, room.id)
    for member in (ada, bob):
        await hub.receipts.mark_read(room.id, member.id, up_to=10**9)
    last = await hub.messages.send(room.id, bob.id, "the last", id=uuid4())
    return Busy(hub, ada, bob, room, direct, ids, last)


async def account_is_gone(busy: Busy) -> None:
    hub, ada, bob, room, last = busy.hub, busy.ada, busy.bob, busy.room.id, busy.last
    assert await hub.users.get_many([bob.id, ada.id]) == {ada.id: await hub.users.get(ada.id)}
    assert await hub.users.find_by_email("bob@example.org") is None
    assert await hub.users.find_by_username(bob.username) is None
    assert await hub.users.find_credentials("bob") is None
    assert await hub.authenticate("bob@example.org", "correct horse") is None
    await raises(
        NotFound,
        hub.users.get(bob.id),
        hub.cache.user(bob.id),
        hub.users.update_profile(bob.id, username="bobby"),
        hub.users.change_password_hash(bob.id, "hash"),
        hub.users.update_online_status(bob.id, True),
        hub.rooms.create("another", created_by=bob.id),
        hub.rooms.direct(bob.id, (await hub.users.create("eve@example.org", "eve", "hash")).id),
        hub.room_users.add(room, bob.id),
        hub.room_users.add_many(room, [bob.id, ada.id]),
    )
    await raises(
        NotAMember,
        hub.room_users.get(room, bob.id),
        hub.room_users.set_role(room, bob.id, "moderator"),
        hub.messages.send(room, bob.id, "I am here"),
        hub.messages.send_many(room, bob.id, [NewMessage("I am here")]),
        hub.messages.edit(last.id, "edited", by=bob.id),
        hub.receipts.mark_read(room, bob.id, up_to=1),
        hub.receipts.mark_unread(room, bob.id, from_seq=1),
        hub.receipts.unread_count(room, bob.id),
        hub.follow(bob.id, rooms=[room]).__aenter__(),
    )
    assert not await hub.room_users.is_member(room, bob.id)
    assert not await hub.room_users.remove(room, bob.id)
    assert [one.user_id for one in (await hub.room_users.members(room)).items] == [ada.id]
    assert (await hub.room_users.rooms_of(bob.id)).items == []
    assert (await hub.rooms.list_for(bob.id)).items == []
    assert {one.partner_id for one in (await hub.rooms.list_for(ada.id)).items} == {None}
    assert await hub.receipts.unread_counts(bob.id) == {}
    assert (await hub.messages.by_author(bob.id)).items == []

    messages = [await hub.messages.get(id) for id in (busy.ids[0], busy.ids[-1], last.id)]
    messages += (await hub.messages.get_many(busy.ids[:3])).values()
    messages += (await hub.messages.page(room, before=last.seq, limit=200)).items
    messages += (await hub.messages.page(room, after=0, limit=200)).items
    messages += [one.last_message for one in (await hub.rooms.list_for(ada.id)).items if one.last_message]
    entries = (await hub.messages.since(room, None)).items
    messages += [entry.message for entry in entries if isinstance(entry, MessageSent)]
    assert {message.user_id for message in messages} == {None}
    for page in (await hub.messages.page_json(room, around=last.id), await hub.cache.newest_page(room)):
        assert {message["user_id"] for message in json.loads(page)["items"]} == {None}
    assert await hub.receipts.unread_count(room, ada.id) == 1
    assert [one.user_id for one in (await hub.receipts.readers(busy.ids[0])).items] == [ada.id]
    exported = b"".join([piece async for piece in hub.history.lines(room)]).decode()
    assert "bob@example.org" not in exported
    assert '"user":"bob"' not in exported


async def room_is_gone(busy: Busy) -> None:
    hub, ada, bob, room, last = busy.hub, busy.ada, busy.bob, busy.room.id, busy.last
    assert await hub.rooms.get_many([room]) == {}
    assert await hub.messages.get_many([last.id]) == {}
    await raises(
        NotFound,
        hub.rooms.get(room),
        hub.rooms.update(room, name="hall"),
        hub.room_users.add(room, ada.id),
        hub.messages.get(last.id),
        hub.messages.page(room),
        hub.messages.page_json(room),
        hub.cache.newest_page(room),
        hub.messages.since(room, None),
        hub.messages.edit(last.id, "edited", by=bob.id),
        hub.messages.delete(last.id, by=bob.id),
        hub.receipts.readers(last.id),
        _read(hub.history.lines(room)),
    )
    await raises(
        NotAMember,
        hub.room_users.get(room, ada.id),
        hub.room_users.set_role(room, ada.id, "admin"),
        hub.messages.send(room, ada.id, "hello?"),
        hub.messages.send(room, bob.id, "the last", id=last.id),
        hub.messages.send_many(room, ada.id, [NewMessage("hello?")]),
        hub.receipts.mark_read(room, ada.id, up_to=1),
        hub.receipts.unread_count(room, ada.id),
        hub.follow(ada.id, rooms=[room]).__aenter__(),
    )
    assert not await hub.room_users.is_member(room, ada.id)
    assert not await hub.room_users.remove(room, ada.id)
    assert (await hub.room_users.members(room)).items == []
    assert [one.room_id for one in (await hub.room_users.rooms_of(ada.id)).items] == [busy.direct.id]
    assert [one.room.id for one in (await hub.rooms.list_for(ada.id)).items] == [busy.direct.id]
    assert set(await hub.receipts.unread_counts(ada.id)) == {busy.direct.id}
    assert (await hub.rooms.public()).items == []
    assert (await hub.messages.by_author(bob.id)).items == []


async def _read(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


@pytest.mark.parametrize("steps", range(7))
async def test_account_that_is_cut_is_gone_at_once_and_finished_by_the_next(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None], steps: int
) -> None:
    hub, bob = busy.hub, busy.bob
    cut_after(steps)
    with pytest.raises(Killed):
        await hub.delete_account(bob.id)
    await account_is_gone(busy)
    twin = await hub.register("bob@example.org", "bob", "another horse")
    if steps % 2:
        await hub.users.delete(bob.id)
    else:
        assert await hub.maintain() == MaintenanceResult(accounts=1, rooms=0, unfinished=0)
    await raises(NotFound, hub.users.delete(bob.id))
    assert await pool.fetch_one(ROWS, bob.id) == NOTHING
    assert await hub.authenticate("bob", "another horse") == await hub.users.get(twin.id)
    log = await log_of(pool, busy.room.id)
    assert log == ["joined", "joined", *["sent"] * (MESSAGES + 1), "left"]


async def test_account_is_deleted_even_if_others_have_its_id_in_their_names(busy: Busy, pool: Pool) -> None:
    """A stranger can see the id of an account."""
    hub, bob = busy.hub, busy.bob
    names = [f"deleted-{id}" for id in (bob.id, bob.id.hex, bob.username)]
    strangers = [await hub.users.create(None, name, None) for name in names]
    await hub.users.delete(bob.id)
    await raises(NotFound, hub.users.get(bob.id), hub.users.delete(bob.id))
    assert await pool.fetch_one(ROWS, bob.id) == NOTHING
    assert await hub.users.get_many([one.id for one in strangers]) == {one.id: one for one in strangers}


@pytest.mark.parametrize("steps", range(7))
async def test_room_that_is_cut_is_gone_at_once_and_finished_by_the_next(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None], steps: int
) -> None:
    hub, room = busy.hub, busy.room.id
    async with hub.follow(busy.ada.id) as feed:
        cut_after(steps)
        with pytest.raises(Killed):
            await hub.rooms.delete(room)
        assert await anext(feed) == RoomGone(room)
    await room_is_gone(busy)
    if steps % 2:
        await hub.rooms.delete(room)
    else:
        assert await hub.maintain() == MaintenanceResult(accounts=0, rooms=1, unfinished=0)
    await raises(NotFound, hub.rooms.delete(room))
    assert await pool.fetch_one(ROWS, room) == NOTHING
    await hub.rooms.create("again", created_by=busy.ada.id, id=room)


@pytest.mark.parametrize("steps", range(6))
async def test_admin_goes_on_with_a_deletion_that_was_cut(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None], steps: int
) -> None:
    hub, room = busy.hub, busy.room.id
    await hub.room_users.set_role(room, busy.ada.id, "admin")
    cut_after(steps)
    with pytest.raises(Killed):
        await hub.rooms.delete(room, as_user=busy.bob.id)
    await room_is_gone(busy)
    await hub.rooms.delete(room, as_user=busy.ada.id if steps % 2 else busy.bob.id)
    assert await pool.fetch_one(ROWS, room) == NOTHING
    await raises(NotAMember, hub.rooms.delete(room, as_user=busy.bob.id))


async def test_room_with_many_receipts_is_deleted_in_bounded_steps(
    hub: Hub, pool: Pool, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message has twenty readers, so less than a page of messages has more receipts than a step deletes."""
    room = await hub.rooms.create("read by all", created_by=ada.id)
    readers = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(20)]
    await hub.room_users.add_many(room.id, [one.id for one in readers])
    await pool.fetch_all(FILL, room.id, ada.id, 1_900)
    await pool.execute(READ, room.id)
    seqs: list[object] = []

    async def step(
        part: Executor, deletion: deletions.Deletion, progress: deletions._Progress, ended: list[str]
    ) -> Step:
        following = await original(part, deletion, progress, ended)
        if progress.stage == 1:
            seqs.append(progress.arguments)
        return following

    original = deletions._step
    monkeypatch.setattr(deletions, "_step", step)
    await hub.rooms.delete(room.id)
    assert len(seqs) == 2
    assert await pool.fetch_one(ROWS, room.id) == NOTHING


async def test_direct_room_that_is_cut_makes_place_for_another(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None]
) -> None:
    hub = busy.hub
    await pool.fetch_all(FILL, busy.direct.id, busy.bob.id, MESSAGES)
    cut_after(1)
    with pytest.raises(Killed):
        await hub.rooms.delete(busy.direct.id)
    another = await hub.rooms.direct(busy.bob.id, busy.ada.id)
    assert another.id != busy.direct.id
    await hub.maintain()
    assert await hub.rooms.direct(busy.bob.id, busy.ada.id) == another


async def test_several_maintainers_and_callers_finish_together(
    busy: Busy, pool: Pool, settings: Settings, cut_after: Callable[[int], None]
) -> None:
    hub = busy.hub
    rooms = [await hub.rooms.create(f"room {n}", created_by=busy.ada.id) for n in range(3)]
    for room in rooms:
        await pool.fetch_all(FILL, room.id, busy.ada.id, MESSAGES)
    for deletion in (hub.users.delete(busy.bob.id), *(hub.rooms.delete(room.id) for room in rooms)):
        cut_after(1)
        with pytest.raises(Killed):
            await deletion

    async def maintained() -> None:
        async with Hub(settings) as other:
            while (await other.maintain()).unfinished:
                pass

    await asyncio.gather(
        maintained(), maintained(), hub.users.delete(busy.bob.id), *(hub.rooms.delete(room.id) for room in rooms)
    )
    for id in (busy.bob.id, *(room.id for room in rooms)):
        assert await pool.fetch_one(ROWS, id) == NOTHING
    assert (await log_of(pool, busy.room.id)).count("left") == 1


async def test_joining_that_was_in_flight_is_left_in_the_log(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None]
) -> None:
    hub, bob = busy.hub, busy.bob
    other = await hub.rooms.create("other", created_by=busy.ada.id)
    cut_after(4)
    with pytest.raises(Killed):
        await hub.users.delete(bob.id)
    late = Statement(
        "test.join",
        int,
        """
        WITH head AS (UPDATE rooms SET last_seq = last_seq + 1 WHERE id = $1 RETURNING id, last_seq),
        member AS (INSERT INTO room_users (room_id, user_id) SELECT id, $2 FROM head)
        INSERT INTO room_events (room_id, seq, kind, user_id) SELECT id, last_seq, 'joined', $2 FROM head
        """,
    )
    await pool.execute(late, other.id, bob.id)
    assert [one.user_id for one in (await hub.room_users.members(other.id)).items] == [busy.ada.id]
    await hub.maintain()
    assert await log_of(pool, other.id) == ["joined", "joined", "left"]
    assert await pool.fetch_one(ROWS, bob.id) == NOTHING


async def test_user_who_goes_on_joining_rooms_is_deleted(
    hub: Hub, pool: Pool, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_one = OpenTransaction.fetch_one
    joined: list[Room] = []
    conflicts = [LockNotAvailable("postgresql", "a lock was not available")] * (DELETE_ATTEMPTS - 1)

    async def joining(transaction: OpenTransaction, statement: Statement[Any], *args: object) -> object:
        if statement is deletions.LOCK_ACCOUNT:  # after the user has left all rooms
            if len(joined) == DELETE_ATTEMPTS - 1 and conflicts:  # before the attempt that hides the account
                raise conflicts.pop()
            with suppress(NotFound):
                joined.append(await hub.rooms.create("another", created_by=bob.id))
        return await fetch_one(transaction, statement, *args)

    monkeypatch.setattr(OpenTransaction, "fetch_one", joining)
    await hub.users.delete(bob.id)
    assert len(joined) == DELETE_ATTEMPTS
    for room in joined:
        assert await log_of(pool, room.id) == ["joined", "left"]
    assert await pool.fetch_one(ROWS, bob.id) == NOTHING


async def test_deletion_that_cannot_begin_raises_the_reason(
    hub: Hub, pool: Pool, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_one = OpenTransaction.fetch_one

    async def joining(transaction: OpenTransaction, statement: Statement[Any], *args: object) -> object:
        if statement is deletions.LOCK_ACCOUNT:
            await hub.rooms.create("another", created_by=bob.id)
        return await fetch_one(transaction, statement, *args)

    async def conflicting(transaction: OpenTransaction, statement: Statement[Any], *args: object) -> object:
        raise LockNotAvailable("postgresql", "a lock was not available")

    monkeypatch.setattr(OpenTransaction, "fetch_one", joining)
    with pytest.raises(Unavailable, match="the user keeps joining rooms"):
        async with hub.transaction() as tx:  # a transaction hides no account
            await tx.users.delete(bob.id)
    monkeypatch.setattr(OpenTransaction, "fetch_one", conflicting)
    with pytest.raises(Unavailable, match="a lock was not available"):
        await hub.users.delete(bob.id)
    assert await hub.users.get(bob.id) == bob


async def test_account_in_more_rooms_than_a_step_takes_leaves_each_of_them(
    hub: Hub, pool: Pool, ada: User
) -> None:
    bob = await hub.users.create("bob@example.org", "bob", "hash")
    many = Statement(
        "test.many_rooms",
        lambda id: id,
        """
        WITH room AS (
            INSERT INTO rooms (name, created_by, last_seq)
            SELECT 'r', $1, 1 FROM generate_series(1, $2)
            RETURNING id
        ), member AS (INSERT INTO room_users (room_id, user_id) SELECT id, unnest(ARRAY[$1, $3::uuid]) FROM room),
        joining AS (INSERT INTO room_events (room_id, seq, kind, user_id) SELECT id, 1, 'joined', $1 FROM room)
        SELECT id FROM room
        """,
    )
    rooms = await pool.fetch_all(many, bob.id, MESSAGES, ada.id)
    async with hub.follow(ada.id) as feed:
        await hub.users.delete(bob.id)
        events = [await anext(feed) for _ in rooms]
    left = {event.room_id for event in events if isinstance(event, MemberLeft) and event.user_id == bob.id}
    assert left == set(rooms)
    for room_id in (rooms[0], rooms[-1]):
        assert await log_of(pool, room_id) == ["joined", "left"]
    assert await pool.fetch_one(ROWS, bob.id) == NOTHING


async def test_deletion_raises_at_its_deadline_and_maintain_returns_at_its_own(
    busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def step(
        part: Executor, deletion: deletions.Deletion, progress: deletions._Progress, ended: list[str]
    ) -> Step:
        if asyncio.get_running_loop().time() > until:
            raise Unavailable("postgresql", "no answer within 1 s")
        return await original(part, deletion, progress, ended)

    original, until = deletions._step, 0.0
    monkeypatch.setattr(deletions, "_step", step)
    with pytest.raises(Unavailable) as caught:
        await busy.hub.rooms.delete(busy.room.id)
    assert caught.value.outcome_unknown
    assert await busy.hub.maintain(deadline_seconds=1e-6) == MaintenanceResult(accounts=0, rooms=0, unfinished=1)
    with pytest.raises(Unavailable):
        await busy.hub.maintain()
    until = float("inf")
    assert await busy.hub.maintain() == MaintenanceResult(accounts=0, rooms=1, unfinished=0)
    assert await busy.hub.maintain() == MaintenanceResult(accounts=0, rooms=0, unfinished=0)


async def test_account_that_cannot_be_deleted_does_not_block_other_deletions(
    busy: Busy, pool: Pool, postgres_settings: PostgresSettings, cut_after: Callable[[int], None]
) -> None:
    """A table of the application refers to the account."""
    hub = busy.hub
    owner = await connect(postgres_settings)
    await owner.execute("CREATE TABLE orders (user_id uuid REFERENCES users)")
    await owner.execute("INSERT INTO orders VALUES ($1)", busy.bob.id)
    for deletion in (hub.users.delete(busy.bob.id), hub.rooms.delete(busy.room.id)):
        cut_after(1)
        with pytest.raises(Killed):
            await deletion
    with pytest.raises(Exception, match="orders"):
        await hub.maintain()
    assert await pool.fetch_one(ROWS, busy.room.id) == (*NOTHING[:-1], 1)
    await owner.execute("DROP TABLE orders")
    await owner.close()
    assert (await hub.maintain()).unfinished == 0


async def test_deletion_in_a_transaction_is_made_for_few_rows_and_refused_for_many(
    busy: Busy, pool: Pool, cut_after: Callable[[int], None]
) -> None:
    hub, ada = busy.hub, busy.ada
    small = await hub.rooms.create("small", created_by=ada.id)
    async with hub.transaction() as tx:
        for deletion in (tx.users.delete(busy.bob.id), tx.rooms.delete(busy.room.id)):
            with pytest.raises(Invalid, match="outside of"):
                await deletion
        await tx.rooms.delete(small.id)
    assert await hub.users.get(busy.bob.id) == busy.bob
    assert await hub.room_users.is_member(busy.room.id, busy.bob.id)
    assert (await hub.rooms.get(busy.room.id)).created_by == busy.bob.id
    await raises(NotFound, hub.rooms.get(small.id))
    assert (await pool.fetch_one(ROWS, small.id)) == NOTHING


async def test_few_rows_are_deleted_without_steps(
    hub: Hub, pool: Pool, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "_step", None)
    room = await hub.rooms.create("small", created_by=bob.id)
    await hub.room_users.add(room.id, ada.id)
    await hub.messages.send(room.id, bob.id, "hello")
    await hub.rooms.delete(room.id)
    await hub.users.delete(bob.id)
    for id in (room.id, bob.id):
        assert await pool.fetch_one(ROWS, id) == NOTHING


async def test_command_finishes_deletions(
    busy: Busy, settings: Settings, cut_after: Callable[[int], None]
) -> None:
    cut_after(2)
    with pytest.raises(Killed):
        await busy.hub.rooms.delete(busy.room.id)
    for rooms in (1, 0):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", "maintain", env=os.environ | settings.to_env(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert (process.returncode, out.decode()) == (0, f"deleted 0 accounts and {rooms} rooms, 0 left\n")


READS_HIDDEN = {
    "deletions.",
    "demo.",
    "top.",
    "migrations.",
    "doctor.",
    "history.",
    "presence.page_of_users",
}
"""Statements that may read hidden rows, by the start of their names."""


def test_every_statement_of_the_application_leaves_out_hidden_rows() -> None:
    tables = ("FROM users", "FROM rooms", "FROM room_users", "FROM messages", "UPDATE users", "UPDATE room_users")
    missing = {
        name
        for name, statement in statements().items()
        if any(table in statement.sql for table in tables)
        and "hubbub_deletions" not in statement.sql
        and not name.startswith(tuple(READS_HIDDEN))
    }
    locks = {"rooms.not_locked", "room_users.lock_room", "room_users.lock_with_room", "users.rooms_among"}
    positions = {
        "changes.first_since",
        "changes.take",
        "replicas.head",
        "replicas.heads",
    }  # they only find new entries and their positions
    assert missing == locks | positions  # these return no content


STEPS: dict[str, tuple[object, ...]] = {
    "LEAVE": (),
    "_AUTHOR": ("infinity", UUID(int=2**128 - 1)),
    "_CREATOR": (),
    "_RECEIPTS_OF_ACCOUNT": (),
    "_MEMBERS": (UUID(int=0), False),
    "_MESSAGES": (0,),
    "_EVENTS": (0,),
}
"""The statements of steps, with the arguments after the id."""
OF_ROOM = ("_MEMBERS", "_MESSAGES", "_EVENTS")

FILL_ALL = """
    INSERT INTO users (id, username)
    SELECT gen_random_uuid(), 'u' || n
    FROM generate_series(1, 20000) AS n;

    INSERT INTO rooms (id, name, created_by, last_seq)
    SELECT gen_random_uuid(), 'r' || n, '{user_id}', 1
    FROM generate_series(1, 20000) AS n;

    INSERT INTO rooms (id, name, created_by, last_seq)
    SELECT gen_random_uuid(), 's' || n, id, 3
    FROM (SELECT id, row_number() OVER () AS n FROM users WHERE id <> '{user_id}') AS others;

    INSERT INTO room_users (room_id, user_id)
    SELECT '{room_id}', id
    FROM users
    ON CONFLICT DO NOTHING;

    INSERT INTO room_users (room_id, user_id)
    SELECT id, created_by
    FROM rooms
    ON CONFLICT DO NOTHING;

    INSERT INTO messages (room_id, seq, user_id, content)
    SELECT '{room_id}', 100 + n, '{user_id}', 'hello'
    FROM generate_series(1, 50000) AS n;

    INSERT INTO room_events (room_id, seq, kind, user_id)
    SELECT '{room_id}', 100000 + n, 'joined', '{user_id}'
    FROM generate_series(1, 20000) AS n;

    INSERT INTO room_events (room_id, seq, kind, user_id)
    SELECT id, seq, 'joined', created_by
    FROM rooms, generate_series(2, 3) AS seq
    WHERE created_by <> '{user_id}';

    INSERT INTO messages (room_id, seq, user_id, content)
    SELECT id, 1, created_by, 'hello'
    FROM rooms
    WHERE created_by <> '{user_id}';

    INSERT INTO message_read_receipts (message_id, user_id, room_id)
    SELECT id, '{user_id}', room_id
    FROM messages
    WHERE room_id = '{room_id}';

    ANALYZE;
"""


async def test_step_reads_few_rows_beside_its_own(
    hub: Hub, postgres_settings: PostgresSettings, ada: User, room: Room
) -> None:
    """Steps that read a whole table, or all rows of a large room, would make the deletion quadratic.

    Most rooms and users have few rows, so a generic plan expects few.
    """
    connection = await connect(postgres_settings)
    read: dict[str, int] = {}
    try:
        await connection.execute(FILL_ALL.format(user_id=ada.id, room_id=room.id))
        for name, arguments in STEPS.items():
            id = room.id if name in OF_ROOM else ada.id
            rows = await rows_read(connection, getattr(deletions, name), id, *arguments)
            read |= {f"{name} {table}": count for table, count in rows.items()}
    finally:
        await connection.close()
    # Each row of the page is found, perhaps locked, and then changed.
    receipts = read.pop("_RECEIPTS_OF_ACCOUNT message_read_receipts")
    assert receipts <= 2 * RECEIPTS_PER_STEP
    wrong = {name: count for name, count in read.items() if not ROWS_PER_STEP <= count <= 3 * ROWS_PER_STEP}
    assert not wrong
    assert len(read) == 8
