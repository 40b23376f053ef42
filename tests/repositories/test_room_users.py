from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from commands import LOCK_IS_AWAITED
from hubbub import (
    Forbidden,
    Hub,
    Invalid,
    MemberChanged,
    NotAMember,
    NotFound,
    Role,
    Room,
    Settings,
    Unavailable,
    User,
)
from hubbub.models import RoomUser
from hubbub.postgres import Pool, Statement
from hubbub.repositories.room_users import MEMBERS_PER_STATEMENT, Join, MemberKey
from log import log_of
from waiting import until_it_answers


async def users(hub: Hub, count: int) -> list[User]:
    return [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(count)]


async def test_second_join_changes_nothing(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    joined = await hub.room_users.add(room.id, bob.id, Role.MODERATOR)
    assert (joined.role, joined.last_read_seq) == (Role.MODERATOR, 2)
    assert await hub.room_users.add(room.id, bob.id) == joined
    assert await log_of(pool, room.id) == ["joined", "joined"]


async def test_concurrent_joins_of_a_user_are_one_join(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    joined = await asyncio.gather(*(hub.room_users.add(room.id, bob.id) for _ in range(20)))
    assert len(set(joined)) == 1
    assert await log_of(pool, room.id) == ["joined", "joined"]


async def test_metadata_of_a_membership_is_in_lists_and_in_an_event(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    changed = await hub.room_users.update(room.id, bob.id, metadata={"nickname": "bobby"})
    assert changed.metadata == {"nickname": "bobby"}
    assert await hub.room_users.update(room.id, bob.id, metadata={"nickname": "bobby"}) == changed
    assert changed in (await hub.room_users.members(room.id)).items
    assert await hub.room_users.get(room.id, bob.id) == changed
    assert await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR) == replace(changed, role=Role.MODERATOR)
    assert (await hub.room_users.update(room.id, bob.id, metadata=None)).metadata is None
    events = [
        event for event in (await hub.messages.since(room.id, None)).items if isinstance(event, MemberChanged)
    ]
    assert [(event.user_id, event.metadata) for event in events] == [
        (bob.id, {"nickname": "bobby"}),
        (bob.id, None),
    ]
    assert await log_of(pool, room.id) == ["joined", "joined", "member_changed", "role_changed", "member_changed"]
    with pytest.raises(NotAMember):
        await hub.room_users.update(room.id, uuid4(), metadata={})
    with pytest.raises(Invalid, match="metadata"):
        await hub.room_users.update(room.id, ada.id, metadata={"a": "x" * 8_192})


async def test_members_are_counted_up_to_the_cap(hub: Hub, ada: User, room: Room) -> None:
    group = await users(hub, 12)
    await hub.room_users.add_many(room.id, [one.id for one in group])
    other = await hub.rooms.create("other", created_by=ada.id)
    unknown = uuid4()
    rooms = [room.id, other.id, unknown]
    assert await hub.room_users.member_counts(rooms) == {room.id: 13, other.id: 1, unknown: 0}
    assert await hub.room_users.member_counts(rooms, cap=5) == {room.id: 5, other.id: 1, unknown: 0}
    assert await hub.room_users.member_counts([]) == {}
    await hub.users.delete(group[0].id)
    assert await hub.room_users.member_counts([room.id]) == {room.id: 12}
    with pytest.raises(Invalid, match="room_ids"):
        await hub.room_users.member_counts([uuid4() for _ in range(201)])


async def test_new_member_has_nothing_unread_and_has_read_nothing(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    message = await hub.messages.send(room.id, ada.id, "before you came")
    joined = await hub.room_users.add(room.id, bob.id)
    assert (joined.last_read_seq, joined.last_read_message_id) == (message.seq + 1, None)
    assert await hub.receipts.unread_count(room.id, bob.id) == 0


async def test_add_many_adds_all_in_one_statement(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    group = await users(hub, 5)
    ids = [one.id for one in group]
    await hub.room_users.add(room.id, ids[0])

    joined = await hub.room_users.add_many(room.id, [*ids, *ids, ada.id])

    assert {member.user_id for member in joined} == set(ids[1:])
    assert await log_of(pool, room.id) == ["joined"] * 6
    assert await hub.room_users.add_many(room.id, ids) == []
    assert await hub.room_users.add_many(room.id, []) == []


CREATE_USERS = Statement(
    "test.create_users",
    lambda id: id,
    """
    INSERT INTO users (email, username, password_hash)
    SELECT n || '@many.example', 'one of many ' || n, '!'
    FROM generate_series(1, $1) AS n
    RETURNING id
    """,
)


async def test_more_members_than_a_statement_takes_join_in_steps(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    ids = await pool.fetch_all(CREATE_USERS, 2 * MEMBERS_PER_STATEMENT)
    unknown = uuid4()
    with pytest.raises(NotFound) as missing:
        await hub.room_users.add_many(room.id, [*ids, unknown])
    assert missing.value.key == str(unknown)
    assert await log_of(pool, room.id) == ["joined"]
    with pytest.raises(NotFound, match="room"):
        await hub.room_users.add_many(unknown, ids)
    with suppress(RuntimeError):
        async with hub.transaction() as tx:
            await tx.room_users.add_many(room.id, ids)
            raise RuntimeError
    assert await log_of(pool, room.id) == ["joined"]

    # An interrupted call has added some of them.
    await hub.room_users.add_many(room.id, [bob.id, *sorted(ids)[:MEMBERS_PER_STATEMENT]])
    joining = asyncio.create_task(hub.room_users.add_many(room.id, ids))
    await hub.messages.send(room.id, bob.id, "meanwhile")
    joined = await joining
    assert {member.user_id for member in joined} == set(sorted(ids)[MEMBERS_PER_STATEMENT:])
    assert sorted(await log_of(pool, room.id)) == ["joined"] * (2 * MEMBERS_PER_STATEMENT + 2) + ["sent"]


async def test_add_many_that_ends_after_its_first_step_has_an_unknown_outcome(
    hub: Hub, pool: Pool, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await pool.fetch_all(CREATE_USERS, 2 * MEMBERS_PER_STATEMENT)
    add_step, steps = hub.room_users._add_step, 0

    async def fail_at_the_second(*args: Any) -> list[RoomUser]:  # noqa: ANN401 - passed on
        nonlocal steps
        steps += 1
        if steps == 2:
            raise Unavailable("postgresql", "no connection")
        return await add_step(*args)

    monkeypatch.setattr(hub.room_users, "_add_step", fail_at_the_second)
    with pytest.raises(Unavailable) as failure:
        await hub.room_users.add_many(room.id, ids)
    assert failure.value.outcome_unknown
    assert len(await log_of(pool, room.id)) == 1 + MEMBERS_PER_STATEMENT


async def test_overlapping_add_many_calls_succeed_at_the_same_time(hub: Hub, pool: Pool, room: Room) -> None:
    ids = [one.id for one in await users(hub, 6)]
    groups = [ids[start:] + ids[:start] for start in range(6)]
    results = await asyncio.gather(*(hub.room_users.add_many(room.id, group) for group in groups))
    joined = Counter(member.user_id for members in results for member in members)
    assert joined == Counter(ids)
    assert await log_of(pool, room.id) == ["joined"] * 7


async def test_add_many_with_an_unknown_user_adds_none(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    unknown = uuid4()
    with pytest.raises(NotFound) as missing:
        await hub.room_users.add_many(room.id, [bob.id, unknown])
    assert (missing.value.kind, missing.value.key) == ("user", str(unknown))
    assert not await hub.room_users.is_member(room.id, bob.id)
    assert await log_of(pool, room.id) == ["joined"]


async def test_add_many_succeeds_while_each_user_joins_alone(
    hub: Hub, pool: Pool, settings: Settings, ada: User
) -> None:
    group = [await hub.users.create(f"c{n}@example.org", f"c{n}", "not a hash") for n in range(60)]
    ids = [one.id for one in group]
    async with Hub(settings) as elsewhere:
        for turn in range(4):
            room = await hub.rooms.create(f"hall {turn}", created_by=ada.id)
            alone = [elsewhere.room_users.add(room.id, user_id) for user_id in reversed(ids)]
            await asyncio.gather(hub.room_users.add_many(room.id, ids), *alone)
            assert await log_of(pool, room.id) == ["joined"] * 61


async def test_join_of_an_unknown_room_is_not_found(hub: Hub, bob: User) -> None:
    with pytest.raises(NotFound) as missing:
        await hub.room_users.add(uuid4(), bob.id)
    assert missing.value.kind == "room"


async def test_unknown_role_is_refused(hub: Hub, bob: User, room: Room) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.room_users.add(room.id, bob.id, "owner")
    assert refused.value.field == "role"
    with pytest.raises(Invalid):
        await hub.room_users.set_role(room.id, bob.id, "owner")
    assert not await hub.room_users.is_member(room.id, bob.id)


async def test_direct_room_keeps_its_two_members(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    direct = await hub.rooms.direct(ada.id, bob.id)
    [carol] = await users(hub, 1)
    with pytest.raises(Invalid):
        await hub.room_users.add(direct.id, carol.id)
    with pytest.raises(Invalid):
        await hub.room_users.remove(direct.id, bob.id)
    assert (await hub.room_users.add(direct.id, bob.id)).user_id == bob.id
    assert not await hub.room_users.remove(direct.id, carol.id)
    assert await log_of(pool, direct.id) == ["joined", "joined"]


async def test_leaving_ends_the_right_to_send(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    assert await hub.room_users.remove(room.id, bob.id)
    assert not await hub.room_users.remove(room.id, bob.id)
    assert not await hub.room_users.is_member(room.id, bob.id)
    with pytest.raises(NotAMember):
        await hub.messages.send(room.id, bob.id, "still here?")
    with pytest.raises(NotAMember):
        await hub.room_users.get(room.id, bob.id)
    assert await log_of(pool, room.id) == ["joined", "joined", "left"]


async def test_concurrent_leaves_of_a_member_are_one_leave(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    results = await asyncio.gather(*(hub.room_users.remove(room.id, bob.id) for _ in range(10)))
    assert sum(results) == 1
    assert await log_of(pool, room.id) == ["joined", "joined", "left"]


async def test_log_has_no_gap_while_users_join_leave_and_send(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    group = await users(hub, 6)

    async def come_and_go(one: User) -> None:
        for _ in range(5):
            await hub.room_users.add(room.id, one.id)
            await hub.messages.send(room.id, one.id, "hello")
            await hub.room_users.set_role(room.id, one.id, Role.MODERATOR)
            await hub.room_users.remove(room.id, one.id)

    async def talk() -> None:
        for n in range(20):
            message = await hub.messages.send(room.id, ada.id, f"message {n}")
            await hub.messages.edit(message.id, "edited", by=ada.id)

    await asyncio.gather(talk(), *(come_and_go(one) for one in group))

    assert Counter(await log_of(pool, room.id)) == {
        "joined": 31,
        "left": 30,
        "role_changed": 30,
        "sent": 50,
        "edited": 20,
    }


async def test_role_changes_once(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    changed = await hub.room_users.set_role(room.id, bob.id, Role.ADMIN)
    assert changed.role is Role.ADMIN
    assert await hub.room_users.set_role(room.id, bob.id, "admin") == changed
    assert await log_of(pool, room.id) == ["joined", "joined", "role_changed"]
    with pytest.raises(NotAMember):
        await hub.room_users.set_role(room.id, uuid4(), Role.ADMIN)


async def test_last_admin_stays_admin_and_member_while_there_are_others(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    with pytest.raises(Invalid, match=r"role: is the last admin of the room: make another"):
        await hub.room_users.set_role(room.id, ada.id, Role.MEMBER)
    with pytest.raises(Invalid, match=r"user_id: is the last admin .* force=True"):
        await hub.room_users.remove(room.id, ada.id)
    async with hub.transaction() as tx:
        with pytest.raises(Invalid):
            await tx.room_users.remove(room.id, ada.id)
        with pytest.raises(Invalid):
            await tx.room_users.set_role(room.id, ada.id, Role.MODERATOR)
    assert (await hub.room_users.get(room.id, ada.id)).role is Role.ADMIN
    assert await log_of(pool, room.id) == ["joined", "joined"]
    await hub.room_users.set_role(room.id, bob.id, Role.ADMIN)
    assert (await hub.room_users.set_role(room.id, ada.id, Role.MEMBER)).role is Role.MEMBER
    await hub.room_users.set_role(room.id, ada.id, Role.ADMIN)
    assert await hub.room_users.remove(room.id, bob.id)
    assert not await hub.room_users.remove(room.id, bob.id)
    assert await hub.room_users.remove(room.id, ada.id)  # the last member


async def test_last_admin_leaves_by_force_and_by_deletion_of_the_account(hub: Hub, ada: User, bob: User) -> None:
    for by_force in (True, False):
        room = await hub.rooms.create("room", created_by=ada.id)
        await hub.room_users.add(room.id, bob.id)
        if by_force:
            assert await hub.room_users.remove(room.id, ada.id, force=True)
        else:
            await hub.users.delete(ada.id)
        assert [member.role for member in (await hub.room_users.members(room.id)).items] == [Role.MEMBER]
        assert await hub.room_users.remove(room.id, bob.id)


@pytest.mark.parametrize("leave", [True, False])
async def test_admins_that_go_at_the_same_time_leave_one(hub: Hub, settings: Settings, leave: bool) -> None:
    """In one process and in several, and by different kinds of changes."""
    group = [one.id for one in await users(hub, 6)]
    async with Hub(settings) as elsewhere:
        for _ in range(5):
            room = await hub.rooms.create("room", created_by=group[0])
            await hub.room_users.add_many(room.id, group[1:4], Role.ADMIN)
            await hub.room_users.add_many(room.id, group[4:])
            changes = [
                one.room_users.remove(room.id, user_id)
                if leave
                else one.room_users.set_role(room.id, user_id, Role.MODERATOR)
                for user_id in group
                for one in (hub, elsewhere)
            ]
            outcomes = await asyncio.gather(*changes, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {bool, RoomUser, Invalid}
            roles = [member.role for member in (await hub.room_users.members(room.id)).items]
            assert roles.count(Role.ADMIN) == 1 or (leave and not roles)


async def test_members_are_paged_each_once_while_others_join(hub: Hub, ada: User, room: Room) -> None:
    group = await users(hub, 9)
    await hub.room_users.add_many(room.id, [one.id for one in group[:6]])
    seen, after = [], None
    while True:
        page = await hub.room_users.members(room.id, limit=2, after=after)
        seen += [member.user_id for member in page.items]
        if page.next is None:
            break
        after = page.next
        if len(seen) == 4:
            await hub.room_users.add_many(room.id, [one.id for one in group[6:]])
    assert len(seen) == len(set(seen))
    assert {ada.id, *(one.id for one in group[:6])} <= set(seen)


async def test_memberships_of_a_user_are_paged(hub: Hub, ada: User, bob: User) -> None:
    rooms = {(await hub.rooms.create(f"room {n}", created_by=ada.id)).id for n in range(5)}
    first = await hub.room_users.rooms_of(ada.id, limit=3)
    rest = await hub.room_users.rooms_of(ada.id, limit=3, after=first.next)
    assert first.has_more
    assert not rest.has_more
    assert {member.room_id for member in first.items + rest.items} == rooms
    assert (await hub.room_users.rooms_of(bob.id)).items == []


@pytest.mark.parametrize("id", ["", "not-a-uuid", None, 5, "{00000000-0000-0000-0000-000000000000}"])
async def test_value_that_is_not_an_id_is_refused(hub: Hub, ada: User, id: object) -> None:
    for operation in (
        hub.room_users.add(id, ada.id),  # type: ignore[arg-type]
        hub.room_users.remove(ada.id, id),  # type: ignore[arg-type]
        hub.room_users.is_member(id, ada.id),  # type: ignore[arg-type]
        hub.rooms.get(id),  # type: ignore[arg-type]
        hub.users.get(id),  # type: ignore[arg-type]
        hub.messages.get(id),  # type: ignore[arg-type]
    ):
        with pytest.raises(Invalid):
            await operation


WAITS = Statement("test.waits", bool, LOCK_IS_AWAITED)


@pytest.mark.parametrize("as_admin", [True, False])
async def test_last_admin_who_leaves_while_a_member_is_being_added_stays(
    hub: Hub, settings: Settings, pool: Pool, ada: User, bob: User, room: Room, as_admin: bool
) -> None:
    as_user = ada.id if as_admin else None

    async def waits() -> bool:
        return bool(await pool.fetch_one(WAITS))

    async with Hub(settings) as elsewhere:
        async with hub.transaction() as tx:
            await tx.room_users.add(room.id, bob.id, as_user=as_user)
            leaving = asyncio.create_task(elsewhere.room_users.remove(room.id, ada.id, as_user=as_user))
            await until_it_answers(waits)
        with pytest.raises(Forbidden if as_admin else Invalid, match="last admin"):
            await leaving
        assert (await hub.room_users.get(room.id, ada.id)).role is Role.ADMIN
        await hub.room_users.remove(room.id, bob.id)
        assert await elsewhere.room_users.remove(room.id, ada.id, as_user=as_user)
        assert not await elsewhere.room_users.remove(room.id, ada.id, as_user=as_user)
    assert await log_of(pool, room.id) == ["joined", "joined", "left", "left"]


@pytest.mark.one_server("each change has a statement of its own there")
async def test_batch_of_joins_that_waits_for_the_room_to_become_private_adds_none(
    hub: Hub, pool: Pool, bob: User, room: Room
) -> None:
    group = await users(hub, 2)
    other = await hub.rooms.create("public", created_by=bob.id)

    async def waits() -> bool:
        return bool(await pool.fetch_one(WAITS))

    joins = [Join(MemberKey(room.id, one.id), Role.MEMBER, one.id) for one in group]
    joins.append(Join(MemberKey(other.id, group[0].id), Role.MEMBER, group[0].id))
    joins.append(Join(MemberKey(room.id, bob.id), Role.MEMBER, None))
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, is_private=True)
        batch = asyncio.create_task(hub.room_users._add_each(joins, None, pool.deadline()))
        await until_it_answers(waits)
    *refused, elsewhere, by_application = await batch
    assert [type(one) for one in refused] == [NotAMember, NotAMember]
    assert elsewhere == await hub.room_users.get(other.id, group[0].id)
    assert by_application == await hub.room_users.get(room.id, bob.id)
    assert await log_of(pool, room.id) == ["joined", "room_changed", "joined"]
