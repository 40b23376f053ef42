"""Changes that share statements: effects of a locked room, a refusal or a cancelled caller on other callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

import pytest

from commands import LOCK_IS_AWAITED
from hubbub import (
    Forbidden,
    Hub,
    HubbubError,
    Invalid,
    NewMessage,
    NotAMember,
    NotFound,
    Options,
    PostgresSettings,
    Room,
    Settings,
    User,
)
from hubbub.batching import MAX_WORKERS
from hubbub.hub import Repositories
from hubbub.postgres import Pool, connect
from log import log_of
from performance.conftest import Statements, statements
from waiting import HANGS_AFTER_SECONDS, until_it_answers

__all__ = ["statements"]

COUNT = 25
"""More callers than connections in the pool, which are 20."""

Change: TypeAlias = Callable[[], Awaitable[Any]]


class Oops(Exception):
    pass


async def edits(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    sent = await hub.messages.send_many(room.id, ada.id, [NewMessage("hello")] * len(users))
    return [partial(hub.messages.edit, message.id, "edited", by=ada.id) for message in sent]


async def deletions(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    sent = await hub.messages.send_many(room.id, ada.id, [NewMessage("hello")] * len(users))
    return [partial(hub.messages.delete, message.id, by=ada.id) for message in sent]


async def joins(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    return [partial(hub.room_users.add, room.id, user.id) for user in users]


async def long_joins(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    return [partial(hub.room_users.add_many, room.id, [user.id]) for user in users]


async def leaves(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    await hub.room_users.add_many(room.id, [user.id for user in users])
    return [partial(hub.room_users.remove, room.id, user.id) for user in users]


async def roles(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    await hub.room_users.add_many(room.id, [user.id for user in users])
    return [partial(hub.room_users.set_role, room.id, user.id, "moderator") for user in users]


async def taggings(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    await hub.room_users.add_many(room.id, [user.id for user in users])
    return [partial(hub.room_users.update, room.id, user.id, metadata={"name": user.username}) for user in users]


async def renamings(hub: Repositories, room: Room, ada: User, users: Sequence[User]) -> list[Change]:
    return [partial(hub.rooms.update, room.id, name=user.username) for user in users]


class Kind(NamedTuple):
    """A kind of change. It is made once per user in a room, and appends an entry of this kind to the log."""

    prepare: Callable[[Repositories, Room, User, Sequence[User]], Awaitable[list[Change]]]
    entry: str


SHARED = {
    "edit": Kind(edits, "edited"),
    "delete": Kind(deletions, "deleted"),
    "join": Kind(joins, "joined"),
    "leave": Kind(leaves, "left"),
    "role": Kind(roles, "role_changed"),
}
ALONE = {
    "add_many": Kind(long_joins, "joined"),
    "update": Kind(renamings, "room_changed"),
    "update member": Kind(taggings, "member_changed"),
}

each_kind = pytest.mark.parametrize("kind", [*SHARED.values(), *ALONE.values()], ids=[*SHARED, *ALONE])
each_shared_kind = pytest.mark.parametrize("kind", SHARED.values(), ids=SHARED)


@pytest.fixture
async def users(hub: Hub) -> list[User]:
    return list(
        await asyncio.gather(*(hub.users.create(f"u{n}@example.org", f"u{n}", "hash") for n in range(COUNT)))
    )


async def make_rooms(hub: Hub, ada: User, count: int) -> list[Room]:
    return [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(count)]


def start(changes: Sequence[Change]) -> list[asyncio.Task[Any]]:
    async def run(change: Change) -> object:
        return await change()

    return [asyncio.create_task(run(change)) for change in changes]


@each_kind
async def test_locked_room_leaves_senders_and_changes_of_other_rooms_alone(
    hub: Hub, pool: Pool, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    others = await make_rooms(hub, ada, 3)
    changes = await kind.prepare(hub, room, ada, users)
    elsewhere = [change for other in others for change in await kind.prepare(hub, other, ada, users[:5])]
    holder = await connect(hub.settings.postgres)
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM rooms WHERE id = $1 FOR UPDATE", room.id)
        stuck = start(changes)
        await asyncio.sleep(0.2)
        assert hub._pool.use.waiting == 0
        assert hub._pool.use.in_use <= MAX_WORKERS
        # Each would fail at the deadline that it shares with the stuck ones.
        await asyncio.gather(
            *start(elsewhere),
            *(hub.messages.send(other.id, ada.id, "elsewhere") for other in others for _ in range(20)),
        )
        assert not any(change.done() for change in stuck)
        assert hub._pool.use.in_use <= 3
    await asyncio.gather(*stuck)
    await holder.close()
    assert (await log_of(pool, room.id)).count(kind.entry) >= COUNT
    for other in others:
        assert (await log_of(pool, other.id)).count(kind.entry) >= 5


@each_kind
async def test_only_change_of_its_kind_in_a_batch_waits_for_no_locked_room(
    hub: Hub, pool: Pool, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    [other] = await make_rooms(hub, ada, 1)
    [change] = await kind.prepare(hub, room, ada, users[:1])
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, description="locked")
        [first] = start([partial(hub.rooms.update, other.id, name="keeps the others waiting")])
        await asyncio.sleep(0)
        stuck = start([change])
        # Otherwise each would fail at the deadline of the stuck one.
        await asyncio.gather(first, *start([partial(hub.rooms.update, other.id, name="in its batch")] * 3))
        assert not stuck[0].done()
    await asyncio.gather(*stuck)
    assert (await log_of(pool, room.id)).count(kind.entry) >= 1


@pytest.mark.one_server("each change has a statement of its own there")
@each_shared_kind
async def test_changes_that_wait_share_statements(
    statements: Statements, settings: Settings, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    async with Hub(settings, options=Options(mark_read_on_send=False)) as hub:
        changes = await kind.prepare(hub, room, ada, users)
        assert await statements.of(*(change() for change in changes)) <= 8


@each_kind
async def test_change_that_cannot_be_stored_fails_alone(
    hub: Hub, postgres_settings: PostgresSettings, pool: Pool, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    """A trigger that refuses one change stands for any unforeseen refusal by the database."""
    [other] = await make_rooms(hub, ada, 1)
    changes = [change for of in (room, other) for change in await kind.prepare(hub, of, ada, users[:10])]
    head = (await hub.messages.since(other.id, None)).items[-1].seq  # type: ignore[union-attr]
    owner = await connect(postgres_settings)
    await owner.execute(
        f"ALTER TABLE room_events ADD CONSTRAINT refused CHECK (room_id <> '{other.id}' OR seq <> {head + 10})"
    )
    await owner.close()
    results = await asyncio.gather(*start(changes), return_exceptions=True)
    refused = [number for number, result in enumerate(results) if isinstance(result, BaseException)]
    assert len(refused) == 1
    assert (await log_of(pool, room.id)).count(kind.entry) >= 10


@each_kind
async def test_caller_that_is_cancelled_takes_nothing_from_the_others(
    hub: Hub, pool: Pool, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    changes = await kind.prepare(hub, room, ada, users)
    before = (await log_of(pool, room.id)).count(kind.entry)
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, description="locked")
        stuck = start(changes)
        await asyncio.sleep(0.1)
        for change in stuck[::2]:
            change.cancel()
        await asyncio.wait(stuck[::2])
    await asyncio.gather(*stuck[1::2])
    assert (await log_of(pool, room.id)).count(kind.entry) >= before + COUNT // 2


@each_kind
async def test_change_whose_only_caller_is_cancelled_in_flight_is_made_and_announced(
    settings: Settings, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    async with Hub(settings, options=Options(follow_heartbeat_seconds=3_600)) as hub:
        [change] = await kind.prepare(hub, room, ada, users[:1])
        async with hub.follow(ada.id) as feed:
            holder = await connect(settings.postgres)
            async with holder.transaction():
                await holder.execute("SELECT 1 FROM rooms WHERE id = $1 FOR UPDATE", room.id)
                [stuck] = start([change])

                async def is_in_flight() -> bool:
                    return bool(await holder.fetchval(LOCK_IS_AWAITED))

                await until_it_answers(is_in_flight)
                stuck.cancel()
                await asyncio.wait([stuck])
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                event = await anext(feed)
            assert event.kind == kind.entry  # type: ignore[union-attr]
            await holder.close()


@each_kind
async def test_change_in_room_that_own_transaction_has_locked_is_refused_at_once(
    hub: Hub, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    first, second = await kind.prepare(hub, room, ada, users[:2])
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, description="locked")
        with pytest.raises(Invalid, match="wait for its own COMMIT"):
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                await first()
    await asyncio.gather(first(), second())


@each_kind
async def test_send_into_room_that_own_transaction_has_changed_is_refused_at_once(
    hub: Hub, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    async with hub.transaction() as tx:
        [change] = await kind.prepare(tx, room, ada, users[:1])
        await change()
        with pytest.raises(Invalid, match="wait for its own COMMIT"):
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                await hub.messages.send(room.id, ada.id, "waits")
    await hub.messages.send(room.id, ada.id, "after it")


@each_kind
async def test_change_in_room_that_a_savepoint_had_locked_is_made_after_its_rollback(
    hub: Hub, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    [change] = await kind.prepare(hub, room, ada, users[:1])
    async with hub.transaction() as tx:
        with suppress(Oops):
            async with tx.savepoint() as part:
                await part.messages.send(room.id, ada.id, "undone")
                raise Oops
        await change()


@each_kind
async def test_close_waits_for_changes_and_refuses_later_ones(
    settings: Settings, ada: User, users: list[User], room: Room, kind: Kind
) -> None:
    async with Hub(settings) as closing:
        *changes, late = await kind.prepare(closing, room, ada, users)
        started = start(changes)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*started)
    with pytest.raises(HubbubError, match="closed"):
        await late()


async def outcome(change: Awaitable[object]) -> object:
    try:
        return await change
    except HubbubError as refusal:
        return type(refusal)


async def test_each_change_of_messages_in_a_batch_has_its_own_outcome(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    [other] = await make_rooms(hub, ada, 1)
    await hub.room_users.add(room.id, bob.id)
    sent = await hub.messages.send_many(room.id, ada.id, [NewMessage(f"{n}") for n in range(6)])
    elsewhere = await hub.messages.send(other.id, ada.id, "elsewhere")
    deleted = await hub.messages.delete(sent[5].id, by=ada.id)

    edit, delete = hub.messages.edit, hub.messages.delete
    outcomes = await asyncio.gather(
        outcome(edit(sent[0].id, "edited", by=ada.id)),
        outcome(edit(sent[1].id, "1", by=ada.id)),
        outcome(edit(sent[2].id, "not hers", by=bob.id)),
        outcome(edit(elsewhere.id, "not a member", by=bob.id)),
        outcome(edit(elsewhere.id, "edited", by=ada.id)),
        outcome(edit(sent[5].id, "deleted", by=ada.id)),
        outcome(edit(uuid4(), "unknown", by=ada.id)),
        outcome(edit(sent[0].id, "edited again", by=ada.id)),
        outcome(delete(sent[5].id, by=ada.id)),
        outcome(delete(sent[3].id, by=bob.id)),
        outcome(delete(sent[3].id, by=ada.id)),
        outcome(delete(uuid4(), by=ada.id)),
    )
    now = await hub.messages.get_many([message.id for message in [*sent, elsewhere]])
    assert outcomes[0].content == "edited"  # type: ignore[attr-defined]
    assert outcomes[1:] == [
        sent[1],
        Forbidden,
        NotAMember,
        now[elsewhere.id],
        Invalid,
        NotFound,
        now[sent[0].id],
        deleted,
        Forbidden,
        now[sent[3].id],
        NotFound,
    ]
    assert now[sent[0].id].content == "edited again"
    log = await log_of(pool, room.id)
    assert log == [
        "joined",
        "joined",
        *["sent"] * 6,
        "deleted",
        *sorted(["edited", "edited", "deleted"], key=log[9:].index),
    ]
    assert await log_of(pool, other.id) == ["joined", "sent", "edited"]


async def test_each_change_of_memberships_in_a_batch_has_its_own_outcome(
    hub: Hub, pool: Pool, ada: User, users: list[User], room: Room
) -> None:
    direct = await hub.rooms.direct(ada.id, users[0].id)
    await hub.room_users.add_many(room.id, [user.id for user in users[:4]])
    add, remove, set_role = hub.room_users.add, hub.room_users.remove, hub.room_users.set_role
    outcomes = await asyncio.gather(
        outcome(add(room.id, users[4].id)),  # in its own statement, for which the others wait
        outcome(add(room.id, users[5].id, "admin")),
        outcome(add(room.id, users[0].id, "admin")),
        outcome(add(uuid4(), users[6].id)),
        outcome(add(room.id, uuid4())),
        outcome(add(direct.id, users[6].id)),
        outcome(add(direct.id, ada.id)),
        outcome(hub.room_users.add_many(room.id, [users[5].id, users[6].id])),
        outcome(hub.room_users.add_many(room.id, [users[7].id, uuid4()])),
        outcome(hub.room_users.add_many(uuid4(), [])),
        outcome(hub.room_users.add_many(direct.id, [])),
        outcome(remove(room.id, users[1].id)),
        outcome(remove(room.id, users[7].id)),
        outcome(remove(direct.id, ada.id)),
        outcome(remove(uuid4(), ada.id)),
        outcome(set_role(room.id, users[2].id, "moderator")),
        outcome(set_role(room.id, ada.id, "admin")),
        outcome(set_role(room.id, users[7].id, "admin")),
        outcome(hub.rooms.update(room.id, name="first")),
        outcome(hub.rooms.update(room.id, name="second")),
        outcome(hub.rooms.update(uuid4(), name="third")),
        outcome(remove(room.id, users[5].id)),
    )
    members = {member.user_id: member for member in (await hub.room_users.members(room.id)).items}
    assert set(members) == {ada.id, *(users[n].id for n in (0, 2, 3, 4, 6))}
    assert outcomes[0] == members[users[4].id]
    assert outcomes[1].role == "admin"  # type: ignore[attr-defined]
    assert outcomes[2:6] == [members[users[0].id], NotFound, NotFound, Invalid]
    assert outcomes[6] == await hub.room_users.get(direct.id, ada.id)
    assert outcomes[7:11] == [[members[users[6].id]], NotFound, NotFound, []]
    assert outcomes[11:15] == [True, False, Invalid, False]
    assert outcomes[15:18] == [members[users[2].id], members[ada.id], NotAMember]
    assert [outcomes[18].name, outcomes[19].name, outcomes[20]] == ["first", "second", NotFound]  # type: ignore[attr-defined]
    assert outcomes[21] is True
    log = (await hub.messages.since(room.id, None)).items
    assert sorted(event.kind for event in log) == sorted(  # type: ignore[union-attr]
        [*["joined"] * 8, "left", "left", "role_changed", "room_changed", "room_changed"]
    )
    assert len(await log_of(pool, room.id)) == 13
    for member in members.values():
        [joined] = [event for event in log if event.kind == "joined" and event.user_id == member.user_id]  # type: ignore[union-attr]
        assert joined.role == ("member" if member.role == "moderator" else member.role)  # type: ignore[union-attr]
    assert await log_of(pool, direct.id) == ["joined", "joined"]


async def test_storm_of_joins_through_two_processes_appends_each_once(
    hub: Hub, settings: Settings, pool: Pool, users: list[User], room: Room
) -> None:
    async with Hub(settings) as elsewhere:
        joined = await asyncio.gather(
            *(one.room_users.add(room.id, user.id) for user in users for one in (hub, elsewhere) for _ in range(2))
        )
    members = {member.user_id: member for member in (await hub.room_users.members(room.id)).items}
    assert len(members) == COUNT + 1
    assert all(member == members[member.user_id] for member in joined)
    assert await log_of(pool, room.id) == ["joined"] * (COUNT + 1)


# Read marks


@pytest.mark.one_server("each change has a statement of its own there")
async def test_marks_share_statements_and_each_has_its_own_outcome(
    statements: Statements, settings: Settings, pool: Pool, ada: User, users: list[User], room: Room
) -> None:
    async with Hub(settings, options=Options(mark_read_on_send=False)) as hub:
        direct = await hub.rooms.direct(ada.id, users[0].id)
        *members, stranger, late = users
        await hub.room_users.add_many(room.id, [user.id for user in [*members, late]])
        sent = await hub.messages.send_many(room.id, ada.id, [NewMessage(f"{n}") for n in range(10)])
        await hub.messages.send(direct.id, ada.id, "hello")
        await hub.receipts.mark_read(room.id, late.id, up_to=sent[4].seq)
        mark = hub.receipts.mark_read
        results: list[object] = []

        async def mark_all() -> None:
            results.extend(
                await asyncio.gather(
                    *(mark(room.id, user.id, up_to=sent[0].seq + n % 3) for n, user in enumerate(members)),
                    outcome(mark(room.id, stranger.id, up_to=sent[3].seq)),
                    mark(room.id, late.id, up_to=sent[1].seq),
                    mark(direct.id, users[0].id, up_to=1_000),
                    outcome(mark(uuid4(), ada.id, up_to=1)),
                    mark(room.id, late.id, up_to=sent[9].seq),
                )
            )

        assert await statements.of(mark_all()) <= 6
        seqs = [sent[0].seq + n % 3 for n in range(len(members))]
        assert results == [*seqs, NotAMember, sent[4].seq, 3, NotAMember, sent[9].seq]
        assert [await hub.receipts.unread_count(room.id, user.id) for user in members[:3]] == [9, 8, 7]
        for number, message in enumerate(sent):
            readers = (await hub.receipts.readers(message.id, limit=200)).items
            expected = {user.id for n, user in enumerate(members) if n % 3 >= number} | {late.id}
            assert {reader.user_id for reader in readers} == expected
            assert all(reader.read_at is not None for reader in readers)


async def test_mark_of_one_member_that_is_locked_leaves_those_of_others_alone(
    hub: Hub, ada: User, users: list[User], room: Room
) -> None:
    await hub.room_users.add_many(room.id, [user.id for user in users])
    await hub.messages.send(room.id, ada.id, "hello")
    head = (await hub.messages.page(room.id)).items[-1].seq
    mark = hub.receipts.mark_read
    async with hub.transaction() as tx:
        await tx.receipts.mark_read(room.id, users[0].id, up_to=head - 1)
        await tx.room_users.set_role(room.id, users[1].id, "moderator")
        [first] = start([partial(mark, room.id, ada.id, up_to=head)])
        await asyncio.sleep(0)
        stuck = start([partial(mark, room.id, users[n % 2].id, up_to=head) for n in range(COUNT)])
        others = start([partial(mark, room.id, user.id, up_to=head) for user in users[2:]])
        # Each would fail at the deadline that it shares with the stuck ones.
        assert set(await asyncio.gather(first, *others)) == {head}
        assert not any(mark.done() for mark in stuck)
        assert hub._pool.use.waiting == 0
    assert set(await asyncio.gather(*stuck)) == {head}
