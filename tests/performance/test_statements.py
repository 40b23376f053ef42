"""The number of statements of an operation, alone and under load."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from commands import execute
from hubbub import Hub, PostgresSettings, Room, User
from hubbub.commits import ignore
from hubbub.hub import Repositories
from hubbub.postgres import Pool, Statement
from hubbub.repositories import MessageWriter
from performance.conftest import Statements


async def test_each_operation_of_one_caller_is_one_statement(
    hub: Hub, ada: User, bob: User, room: Room, statements: Statements
) -> None:
    await hub.room_users.add(room.id, bob.id)
    carol = await hub.users.create("carol@example.org", "carol", "not a hash")
    sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(60)]
    operations = {
        "send": hub.messages.send(room.id, ada.id, "hello"),
        "page": hub.messages.page(room.id, before=sent[55].seq),
        "edit": hub.messages.edit(sent[0].id, "hello again", by=ada.id),
        "delete": hub.messages.delete(sent[1].id, by=ada.id),
        "mark read": hub.receipts.mark_read(room.id, bob.id, up_to=sent[50].seq),
        "unread counts": hub.receipts.unread_counts(bob.id),
        "room list": hub.rooms.list_for(bob.id),
        "user": hub.users.get(ada.id),
        "membership": hub.room_users.get(room.id, bob.id),
        "join": hub.room_users.add(room.id, carol.id),
        "rename": hub.rooms.update(room.id, name="boiler-room"),
        "role": hub.room_users.set_role(room.id, bob.id, "moderator"),
        "leave": hub.room_users.remove(room.id, bob.id),
    }
    taken = {name: await statements.of(operation) for name, operation in operations.items()}
    assert taken == dict.fromkeys(operations, 1)


FILL = (
    """
    INSERT INTO users (id, email, username, password_hash)
    SELECT gen_random_uuid(), n || '@example.org', 'user-' || n, '!' FROM generate_series(1, 1000) AS n
    """,
    "INSERT INTO rooms (id, name) SELECT gen_random_uuid(), 'room-' || n FROM generate_series(1, 1000) AS n",
    """
    INSERT INTO room_users (room_id, user_id)
    SELECT id, (SELECT id FROM users WHERE username = 'user-' || substr(name, 6)) FROM rooms WHERE name ~ '^room-'
    """,
    """
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type)
    SELECT gen_random_uuid(), room_id, seq, user_id, 'hello', 'text'
    FROM room_users, generate_series(1000, 1020) AS seq
    """,
    "ANALYZE",
)
PLANNED_ANEW = Statement(
    "test.planned_anew", str, "SELECT statement FROM pg_prepared_statements WHERE custom_plans > 5"
)
"""After five executions PostgreSQL decides whether to plan a statement at each execution."""


@pytest.mark.counts_pages
@pytest.mark.session("reads the plans of its own session")
async def test_statement_of_a_few_callers_is_not_planned_anew_each_time(
    postgres_settings: PostgresSettings, ada: User, bob: User, room: Room
) -> None:
    await execute(postgres_settings, *FILL)
    pool = Pool(replace(postgres_settings, pool_size=1))
    hub = Repositories(pool, ignore, MessageWriter(pool, ignore, deadline_seconds=60))
    for _ in range(7):
        sent = await asyncio.gather(*(hub.messages.send(room.id, ada.id, "hello") for _ in range(4)))
        await asyncio.gather(*(hub.messages.get(message.id) for message in sent))
        await asyncio.gather(*(hub.room_users.is_member(room.id, user.id) for user in (ada, bob, ada)))
    assert await pool.fetch_all(PLANNED_ANEW) == []
    await pool.close()


async def test_operation_of_an_acting_user_takes_as_many_statements_as_without_a_check(
    hub: Hub, ada: User, bob: User, room: Room, statements: Statements
) -> None:
    await hub.room_users.add(room.id, bob.id)
    sent = [await hub.messages.send(room.id, ada.id, f"message {number}") for number in range(9)]
    admin, member = hub.as_user(ada.id), hub.as_user(bob.id)
    public = await hub.rooms.create("public", created_by=ada.id)
    operations = {
        "send": member.messages.send(room.id, "hello"),
        "message": member.messages.get(sent[0].id),
        "page": member.messages.page(room.id, before=sent[5].seq),
        "page as JSON": member.messages.page_json(room.id),
        "log": member.messages.since(room.id, sent[2].cursor),
        "edit": admin.messages.edit(sent[0].id, "hello again"),
        "delete": admin.messages.delete(sent[1].id),
        "mark read": member.receipts.mark_read(room.id, up_to=sent[4].seq),
        "readers": member.receipts.readers(sent[3].id),
        "unread counts": member.receipts.unread_counts(),
        "room": member.rooms.get(room.id),
        "room list": member.rooms.list(),
        "members": member.room_users.members(room.id),
        "join": member.room_users.join(public.id),
        "rename": admin.rooms.update(room.id, name="boiler-room"),
        "role": admin.room_users.set_role(room.id, bob.id, "moderator"),
        "removal": admin.room_users.remove(room.id, bob.id),
        "addition": admin.room_users.add(room.id, bob.id),
    }
    taken = {name: await statements.of(operation) for name, operation in operations.items()}
    assert taken == dict.fromkeys(operations, 1)


async def test_hundreds_of_acting_users_who_send_and_join_share_few_statements(
    hub: Hub, ada: User, room: Room, statements: Statements
) -> None:
    users = await asyncio.gather(*(hub.users.create(f"u{n}@example.org", f"u{n}", "hash") for n in range(300)))
    assert await statements.of(*(hub.as_user(user.id).room_users.join(room.id) for user in users)) <= 8
    sends = [hub.as_user(user.id).messages.send(room.id, "hello") for user in users]
    assert await statements.of(*sends) <= 8


async def test_thousand_concurrent_sends_share_few_statements(hub: Hub, ada: User, statements: Statements) -> None:
    rooms = [await hub.rooms.create(f"room {number}", created_by=ada.id) for number in range(20)]
    sends = [hub.messages.send(rooms[number % 20].id, ada.id, f"message {number}") for number in range(1_000)]
    # The first send has its own statement, and up to 500 sends share each of the others. On a busy machine more
    # workers may run.
    assert await statements.of(*sends) <= 12


async def test_hundreds_of_concurrent_joins_and_leaves_share_few_statements(
    hub: Hub, ada: User, room: Room, statements: Statements
) -> None:
    users = await asyncio.gather(*(hub.users.create(f"u{n}@example.org", f"u{n}", "hash") for n in range(300)))
    assert await statements.of(*(hub.room_users.add(room.id, user.id) for user in users)) <= 8
    assert await statements.of(*(hub.room_users.remove(room.id, user.id) for user in users)) <= 8


async def test_hundreds_of_concurrent_lookups_share_few_statements(
    hub: Hub, ada: User, bob: User, room: Room, statements: Statements
) -> None:
    users = [hub.users.get(user.id) for user in (ada, bob) for _ in range(100)]
    memberships = [hub.room_users.get(room.id, ada.id) for _ in range(200)]
    assert await statements.of(*users, *memberships) <= 8


async def test_hundreds_of_concurrent_pages_of_one_room_share_few_statements(
    hub: Hub, ada: User, room: Room, statements: Statements
) -> None:
    await hub.messages.send(room.id, ada.id, "hello")
    pages = [hub.messages.page(room.id) for _ in range(200)]
    as_json = [hub.messages.page_json(room.id) for _ in range(200)]
    assert await statements.of(*pages, *as_json) <= 8


async def test_hundreds_of_acting_users_who_open_a_room_at_once_share_few_statements(
    hub: Hub, ada: User, room: Room, statements: Statements
) -> None:
    await hub.messages.send(room.id, ada.id, "hello")
    users = await asyncio.gather(*(hub.users.create(f"u{n}@example.org", f"u{n}", "hash") for n in range(200)))
    await hub.room_users.add_many(room.id, [user.id for user in users])
    pages = [hub.as_user(user.id).messages.page(room.id) for user in users]
    as_json = [hub.as_user(user.id).messages.page_json(room.id) for user in users]
    assert await statements.of(*pages, *as_json) <= 8
