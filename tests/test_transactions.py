from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from hubbub import Conflict, Hub, Invalid, NotFound, PostgresSettings, Room, Settings, Unavailable, User
from hubbub.hub import Transaction
from hubbub.migrations.grants import quoted
from hubbub.postgres import connect
from hubbub.postgres.connection import Connection
from rights import ROLE

TABLE = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    number int PRIMARY KEY CHECK (number > 0),
    message_id uuid NOT NULL REFERENCES messages (id),
    note text,
    tags text[] NOT NULL DEFAULT '{{}}',
    CONSTRAINT orders_note_key UNIQUE (note)
);
CREATE TABLE shop.lines (
    order_number int NOT NULL REFERENCES shop.orders (number)
);
GRANT USAGE ON SCHEMA shop TO {quoted(ROLE)};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA shop TO {quoted(ROLE)};
"""

ORDER = "INSERT INTO shop.orders (number, message_id, note) VALUES ($1, $2, $3)"


class Oops(Exception):
    pass


@pytest.fixture
async def owner(postgres_settings: PostgresSettings) -> AsyncIterator[Connection]:
    """A connection of the owner, who has created tables of the application beside those of hubbub."""
    connection = await connect(postgres_settings)
    await connection.execute(TABLE)
    yield connection
    await connection.close()


async def orders(owner: Connection) -> list[int]:
    return [row["number"] for row in await owner.fetch("SELECT number FROM shop.orders ORDER BY number")]


# SQL of the application in a transaction of hubbub


async def test_order_and_its_message_are_committed_together(
    hub: Hub, owner: Connection, ada: User, room: Room
) -> None:
    async with hub.transaction() as tx:
        message = await tx.messages.send(room.id, ada.id, "one tea, please")
        assert await tx.execute(ORDER, 1, message.id, "tea") == 1
        found = await tx.fetch("SELECT number, note FROM shop.orders")
        assert [(row["number"], row[1]) for row in found] == [(1, "tea")]
        assert await orders(owner) == []
    assert await orders(owner) == [1]
    assert (await hub.messages.get(message.id)).content == "one tea, please"


async def test_order_and_its_message_are_rolled_back_together(
    hub: Hub, owner: Connection, ada: User, room: Room
) -> None:
    with suppress(Oops):
        async with hub.transaction() as tx:
            message = await tx.messages.send(room.id, ada.id, "one tea, please")
            await tx.execute(ORDER, 1, message.id, "tea")
            raise Oops
    assert await orders(owner) == []
    with pytest.raises(NotFound):
        await hub.messages.get(message.id)


async def test_savepoint_undoes_a_refused_order_alone(hub: Hub, owner: Connection, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        message = await tx.messages.send(room.id, ada.id, "tea")
        await tx.execute(ORDER, 1, message.id, "tea")
        with pytest.raises(Conflict):  # noqa: PT012 - the error leaves the savepoint
            async with tx.savepoint() as savepoint:
                await savepoint.messages.send(room.id, ada.id, "undone")
                await savepoint.execute(ORDER, 2, message.id, "tea")
        async with tx.savepoint() as savepoint:
            assert await savepoint.execute(ORDER, 3, message.id, "coffee") == 1
    assert await orders(owner) == [1, 3]
    assert [message.content for message in (await hub.messages.page(room.id)).items] == ["tea"]


async def test_caught_error_of_a_statement_commits_nothing(
    hub: Hub, owner: Connection, ada: User, room: Room
) -> None:
    with pytest.raises(Unavailable, match="a statement in it had failed"):  # noqa: PT012
        async with hub.transaction() as tx:
            message = await tx.messages.send(room.id, ada.id, "tea")
            with pytest.raises(Invalid):
                await tx.execute("UPDATE shop.nowhere SET number = 1")
            with pytest.raises(Unavailable, match="a statement in it had failed"):
                await tx.execute(ORDER, 1, message.id, "tea")
    assert await orders(owner) == []


async def test_rows_are_counted_found_and_absent(hub: Hub, owner: Connection, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        message = await tx.messages.send(room.id, ada.id, "tea")
        await tx.execute(
            "INSERT INTO shop.orders (number, message_id) SELECT n, $1 FROM generate_series(1, 3) AS n", message.id
        )
        assert await tx.execute("UPDATE shop.orders SET note = number::text WHERE number > $1", 1) == 2
        assert await tx.execute("SELECT number FROM shop.orders") == 3
        assert await tx.execute("LOCK TABLE shop.orders IN ROW EXCLUSIVE MODE") == 0
        row = await tx.fetch_one("SELECT number, tags FROM shop.orders WHERE number = $1", 2)
        assert row is not None
        assert dict(row) == {"number": 2, "tags": []}
        assert await tx.fetch_one("SELECT 1 FROM shop.orders WHERE number = $1", 9) is None
        assert await tx.fetch("SELECT 1 FROM shop.orders WHERE number = $1", 9) == []


REFUSED: list[tuple[str, tuple[object, ...], type[Exception], str]] = [
    (ORDER, (1, None, "tea"), Invalid, "message_id: is required"),
    (ORDER, (0, "message", "tea"), Invalid, "orders_number_check: refuses the row"),
    (ORDER, (5, "message", "tea"), Conflict, "this orders_pkey is already in use"),
    (ORDER, (6, "message", "first"), Conflict, "this orders_note_key is already in use"),
    (ORDER, (6, UUID(int=7), "tea"), NotFound, f"there is no message {UUID(int=7)}"),
    ("INSERT INTO shop.lines VALUES ($1)", (77,), NotFound, "there is no row of orders 77"),
    ("DELETE FROM shop.orders WHERE number = $1", (5,), Invalid, 'has rows in table "lines" that still refer'),
    ("DELETE FROM messages WHERE id = $1", ("message",), Invalid, 'has rows in table "orders" that still refer'),
    ("SELEKT 1", (), Invalid, 'sql: syntax error at or near "SELEKT"'),
    ("SELECT 1; SELECT 2", (), Invalid, "sql: cannot insert multiple commands"),
    ("SELECT nothing FROM shop.orders", (), Invalid, 'sql: column "nothing" does not exist'),
    ("SELECT 1 FROM shop.nowhere", (), Invalid, 'sql: relation "shop.nowhere" does not exist'),
    ("SELECT (SELECT generate_series(1, 2))", (), Invalid, "sql: more than one row returned"),
    ("SELECT missing($1::int)", (1,), Invalid, "sql: function missing"),
    ("SELECT $1", (), Invalid, "args: the server expects 1 argument"),
    ("SELECT 1", ("too many",), Invalid, "args: the server expects 0 arguments"),
    ("SELECT $1::int", ("hunter2",), Invalid, r"\$1: has a type or a size that the statement cannot take$"),
    ("SELECT $2::timestamptz, $1::text", ("a", 5), Invalid, r"\$2: has a type or a size"),
    ("SELECT $1::text", ("\ud800",), Invalid, r"\$1: has a type or a size"),
    ("SELECT $1::text", ("a\0b",), Invalid, r"argument: .* \(SQLSTATE 22021\)"),
    ("SELECT 1 / $1::int", (0,), Invalid, r"argument: .* \(SQLSTATE 22012\)"),
    ("VACUUM", (), Invalid, "sql: VACUUM cannot run inside a transaction block"),
]


@pytest.mark.parametrize(("sql", "args", "error", "says"), REFUSED, ids=[says for *_, says in REFUSED])
async def test_refused_statement_raises_a_typed_error_that_names_the_fault(
    hub: Hub,
    owner: Connection,
    ada: User,
    room: Room,
    sql: str,
    args: tuple[object, ...],
    error: type[Exception],
    says: str,
) -> None:
    message = await hub.messages.send(room.id, ada.id, "first")
    await owner.execute(ORDER, 5, message.id, "first")
    await owner.execute("INSERT INTO shop.lines VALUES (5)")
    values = [message.id if arg == "message" else arg for arg in args]
    calls: list[Callable[[Transaction], Any]] = [
        lambda tx: tx.execute(sql, *values),
        lambda tx: tx.fetch(sql, *values),
        lambda tx: tx.fetch_one(sql, *values),
    ]
    for call in calls:
        with pytest.raises(error, match=says) as raised:
            async with hub.transaction() as tx:
                await call(tx)
        assert raised.value.__cause__ is not None
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "sql",
    [
        *("COMMIT", "  rollback", "-- a comment\nEND", "/* one\ntwo */ Begin", "START TRANSACTION", "abort"),
        *("SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "PREPARE TRANSACTION 'a'", "/*/**/commit"),
        *("SET search_path = shop", "SET SESSION jit = off", "RESET ALL", "DISCARD ALL", "LISTEN a", "UNLISTEN *"),
        *("", " ", "SELECT '\ud800'", "SELECT 1\0"),
        *(None, 5, b"SELECT 1"),
    ],
)
async def test_command_that_ends_or_outlives_the_transaction_is_refused_before_it_is_sent(
    hub: Hub, owner: Connection, ada: User, room: Room, sql: object
) -> None:
    async with hub.transaction() as tx:
        message = await tx.messages.send(room.id, ada.id, "tea")
        for call in (tx.execute, tx.fetch, tx.fetch_one):
            with pytest.raises(Invalid, match="sql: must"):
                await call(sql)  # type: ignore[arg-type]
        await tx.execute(ORDER, 1, message.id, "tea")
        assert await orders(owner) == []
    assert await orders(owner) == [1]


async def test_setting_of_the_transaction_ends_with_it(hub: Hub, owner: Connection, ada: User, room: Room) -> None:
    async with hub.transaction() as tx:
        await tx.execute("SET LOCAL search_path = shop")
        message = await tx.messages.send(room.id, ada.id, "names its schema itself")
        await tx.execute("INSERT INTO orders (number, message_id) VALUES ($1, $2)", 1, message.id)
    with pytest.raises(Invalid, match='relation "orders" does not exist'):
        async with hub.transaction() as tx:
            await tx.execute("SELECT number FROM orders")
    assert await orders(owner) == [1]


async def test_statement_is_cancelled_at_the_deadline_and_the_transaction_rolled_back(
    settings: Settings, owner: Connection
) -> None:
    async with Hub(replace(settings, postgres=replace(settings.postgres, deadline_seconds=3))) as hub:
        with pytest.raises(Unavailable, match="no answer within 3 s"):
            async with hub.transaction() as tx:
                await tx.execute("SELECT pg_sleep($1)", 60.0)
        async with hub.transaction() as tx:
            assert await tx.execute("SELECT 1") == 1


async def test_cancelled_statement_leaves_the_pool_usable(settings: Settings, ada: User, room: Room) -> None:
    async with Hub(replace(settings, postgres=replace(settings.postgres, pool_size=1))) as hub:
        running = asyncio.Event()

        async def block() -> None:
            async with hub.transaction() as tx:
                await tx.messages.send(room.id, ada.id, "undone")
                running.set()
                await tx.execute("SELECT pg_sleep($1)", 60.0)

        task = asyncio.create_task(block())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await hub.messages.page(room.id)).items == []
