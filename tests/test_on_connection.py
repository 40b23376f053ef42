"""The repositories in a transaction of the application, on connections of asyncpg and SQLAlchemy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from hubbub import Hub, Invalid, NewMessage, NotFound, Options, PostgresSettings, Room, Settings, Unavailable, User
from hubbub.commits import MessagesSent, ProfileUpdated, ReadMarkMoved
from hubbub.postgres import connect
from waiting import HANGS_AFTER_SECONDS, until_it_answers


class Oops(Exception):
    pass


ORDERS = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (
    number int PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages (id) DEFERRABLE
);
GRANT USAGE ON SCHEMA shop TO PUBLIC;
GRANT ALL ON ALL TABLES IN SCHEMA shop TO PUBLIC;
"""
ORDER = "INSERT INTO shop.orders (number, message_id) VALUES ($1, $2)"
NAMED_ORDER = text("INSERT INTO shop.orders (number, message_id) VALUES (:number, :message_id)")


@pytest.fixture(autouse=True)
async def tables(postgres_settings: PostgresSettings) -> None:
    owner = await connect(postgres_settings)
    await owner.execute(ORDERS)
    await owner.close()


def arguments(settings: Settings) -> dict[str, Any]:
    postgres = settings.postgres
    cache = {} if postgres.prepared_statements else {"statement_cache_size": 0}
    return {
        "host": postgres.host,
        "port": postgres.port,
        "user": postgres.user,
        "password": postgres.password,
        "database": postgres.database,
        **cache,
    }


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(**arguments(settings))
    yield connection
    await connection.close()


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    postgres = settings.postgres
    url = URL.create(
        "postgresql+asyncpg", postgres.user, postgres.password, postgres.host, postgres.port, postgres.database
    )
    options = (
        {} if postgres.prepared_statements else {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    )
    engine = create_async_engine(url, connect_args=options, pool_size=2, max_overflow=0)
    yield engine
    await engine.dispose()


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    async with Hub(settings, options=Options(mark_read_on_send=False)) as hub:
        yield hub


@pytest.fixture
def announced(hub: Hub) -> list[str]:
    """The announced messages, by content, and the announced read marks and profiles."""
    contents: list[str] = []
    hub._commits.on(MessagesSent, lambda change: contents.extend(message.content for message in change.messages))
    hub._commits.on(ReadMarkMoved, lambda change: contents.append(f"read {change.last_read_seq}"))
    hub._commits.on(ProfileUpdated, lambda change: contents.append(change.username))
    return contents


async def contents(hub: Hub, room: Room) -> list[str]:
    return [message.content for message in (await hub.messages.page(room.id)).items]


async def orders(hub: Hub) -> list[int]:
    async with hub.transaction() as tx:
        return [row["number"] for row in await tx.fetch("SELECT number FROM shop.orders ORDER BY number")]


# A connection of asyncpg


async def test_message_and_order_are_committed_together_and_announced_at_the_end_of_the_block(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat:
        async with connection.transaction():
            message = await chat.messages.send(room.id, ada.id, "tea")
            await connection.execute(ORDER, 1, message.id)
            assert await contents(hub, room) == []
            assert (await chat.messages.get(message.id)).content == "tea"
        assert announced == []
    assert announced == ["tea"]
    assert await contents(hub, room) == ["tea"]
    assert await orders(hub) == [1]


async def test_call_announces_without_a_block_and_once(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    chat = hub.on(connection)
    for content in ("tea", "coffee"):
        async with connection.transaction():
            await chat.messages.send(room.id, ada.id, content)
            with pytest.raises(Invalid, match="connection: has its transaction open"):
                await chat.announce()
        await chat.announce()
        await chat.announce()
    assert announced == ["tea", "coffee"]


async def test_follower_of_another_process_receives_the_message_by_its_announcement(
    settings: Settings, hub: Hub, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    async with (
        Hub(settings, options=Options(follow_heartbeat_seconds=3_600)) as other,
        other.follow(ada.id) as feed,
    ):
        async with hub.on(connection) as chat, connection.transaction():
            sent = await chat.messages.send(room.id, ada.id, "tea")
        assert (await anext(feed)).message == sent  # type: ignore[union-attr]


async def test_unannounced_message_arrives_at_the_next_heartbeat(
    settings: Settings, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    async with Hub(settings, options=Options(follow_heartbeat_seconds=0.05)) as hub, hub.follow(ada.id) as feed:
        async with connection.transaction():
            sent = await hub.on(connection).messages.send(room.id, ada.id, "tea")
        assert (await anext(feed)).message == sent  # type: ignore[union-attr]


async def test_exception_in_the_transaction_leaves_and_announces_nothing(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    with suppress(Oops):
        async with hub.on(connection) as chat, connection.transaction():
            message = await chat.messages.send(room.id, ada.id, "undone")
            await connection.execute(ORDER, 1, message.id)
            raise Oops
    assert announced == []
    assert await contents(hub, room) == []
    assert await orders(hub) == []


async def test_transaction_that_the_block_has_rolled_back_is_not_announced(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat:
        for content, end in (("kept", "COMMIT"), ("undone", "ROLLBACK"), ("kept as well", "COMMIT")):
            await connection.execute("BEGIN")
            await chat.messages.send(room.id, ada.id, content)
            await connection.execute(end)
    assert announced == ["kept", "kept as well"]
    assert await contents(hub, room) == announced


async def test_exception_after_the_commit_does_not_keep_the_announcement_back(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    with suppress(Oops):
        async with hub.on(connection) as chat:
            async with connection.transaction():
                await chat.messages.send(room.id, ada.id, "kept")
            raise Oops
    assert announced == ["kept"]


async def test_savepoint_of_the_application_that_is_rolled_back_is_not_announced(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat, connection.transaction():
        first = await chat.messages.send(room.id, ada.id, "kept")
        with suppress(Oops):
            async with connection.transaction():
                await chat.messages.send(room.id, ada.id, "undone")
                async with connection.transaction():
                    await chat.users.update_profile(ada.id, username="undone")
                    await chat.receipts.mark_read(room.id, ada.id, up_to=first.seq)
                raise Oops
        async with connection.transaction():
            await chat.messages.send(room.id, ada.id, "kept in a savepoint")
        await chat.users.update_profile(ada.id, username="augusta")
    assert announced == ["kept", "kept in a savepoint", "augusta"]
    assert await contents(hub, room) == ["kept", "kept in a savepoint"]


async def test_block_that_ends_before_the_transaction_is_refused(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    with pytest.raises(Invalid, match="connection: has its transaction open"):
        async with connection.transaction(), hub.on(connection) as chat:
            await chat.messages.send(room.id, ada.id, "undone")
    assert announced == []
    assert await contents(hub, room) == []


async def test_statement_outside_of_a_transaction_is_refused(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat:
        with pytest.raises(Invalid, match="connection: has no transaction open"):
            await chat.messages.send(room.id, ada.id, "alone")
        async with connection.transaction():
            await chat.messages.send(room.id, ada.id, "in a transaction")
        with pytest.raises(Invalid, match="connection: has no transaction open"):
            await chat.users.get(ada.id)
    with pytest.raises(Unavailable, match="the transaction is over"):
        await chat.users.get(ada.id)
    assert await contents(hub, room) == ["in a transaction"]


async def test_cancelled_statement_is_rolled_back_and_leaves_the_connection_usable(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    locked = asyncio.Event()

    async def block() -> None:
        async with hub.on(connection) as chat, connection.transaction():
            await chat.users.update_profile(ada.id, username="undone")
            locked.set()
            await chat.messages.send(room.id, ada.id, "waits")

    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "locks the room")
        task = asyncio.create_task(block())
        await locked.wait()
        waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

        async def is_waiting() -> bool:
            return bool(await tx.fetch(waits))

        await until_it_answers(is_waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert announced == ["locks the room"]
    assert (await hub.users.get(ada.id)).username == "ada"
    async with hub.on(connection) as chat, connection.transaction():
        await chat.messages.send(room.id, ada.id, "again")
    assert await contents(hub, room) == ["locks the room", "again"]


async def test_deadline_ends_a_statement_and_the_connection(
    settings: Settings, connection: asyncpg.Connection[Any], hub: Hub, ada: User, room: Room
) -> None:
    impatient = replace(settings, postgres=replace(settings.postgres, deadline_seconds=3))
    async with Hub(impatient) as other, hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "locks the room")
        chat = other.on(connection)
        await connection.execute("BEGIN")
        with pytest.raises(Unavailable, match="no answer within 3 s"):
            await chat.messages.send(room.id, ada.id, "too late")
    assert connection.is_closed()


async def test_refusal_leaves_the_transaction_of_the_application_usable(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User, bob: User, room: Room
) -> None:
    """hubbub runs an operation that may fail in its own savepoint."""
    async with hub.on(connection) as chat, connection.transaction():
        sent = await chat.messages.send(room.id, ada.id, "tea")
        again = await chat.messages.send(room.id, ada.id, "tea", id=sent.id)
        with pytest.raises(NotFound):
            await chat.rooms.get(ada.id)
        await chat.room_users.add(room.id, bob.id)
        await connection.execute(ORDER, 1, again.id)
    assert await orders(hub) == [1]


class Fields(asyncpg.Record):
    def __iter__(self) -> Any:  # noqa: ANN401
        raise Oops

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return self[name]


async def test_codecs_and_row_class_of_the_application_do_not_reach_hubbub(
    hub: Hub, settings: Settings, ada: User, bob: User, room: Room
) -> None:
    def codecs(kind: str) -> Any:  # noqa: ANN401
        return {"encoder": lambda value: json.dumps([kind, value]), "decoder": json.loads, "schema": "pg_catalog"}

    connection = await asyncpg.connect(**arguments(settings), record_class=Fields)
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(kind, **codecs(kind))
    await connection.set_type_codec("uuid", encoder=str, decoder=lambda id: f"<{id}>", schema="pg_catalog")
    await connection.set_type_codec("timestamptz", encoder=str, decoder=str, schema="pg_catalog")
    async with hub.on(connection) as chat, connection.transaction():
        sent = await chat.messages.send(room.id, ada.id, "tea", metadata={"sugar": [1, None]})
        await chat.room_users.add(room.id, bob.id)
        await chat.receipts.mark_read(room.id, bob.id, up_to=sent.seq)
        events = (await chat.messages.since(room.id, None)).items
        page = await chat.messages.page_json(room.id)
        row = await connection.fetchrow("SELECT id, metadata FROM messages")
        assert (row.id, row.metadata) == (f"<{sent.id}>", {"sugar": [1, None]})
    assert sent.metadata == {"sugar": [1, None]}
    assert (await hub.messages.get(sent.id)) == sent
    assert (await hub.messages.since(room.id, None)).items == events
    assert json.loads(page)["items"][0]["metadata"] == {"sugar": [1, None]}
    await connection.close()


async def test_connection_that_a_pool_of_asyncpg_lends(
    hub: Hub, settings: Settings, announced: list[str], ada: User, room: Room
) -> None:
    async with asyncpg.create_pool(**arguments(settings), min_size=1, max_size=1) as pool:
        lent = await pool.acquire()
        async with hub.on(lent) as chat:
            async with lent.transaction():
                await chat.messages.send(room.id, ada.id, "tea")
            await pool.release(lent)
        assert announced == ["tea"]
        with pytest.raises(Unavailable, match="the transaction is over"):
            await chat.users.get(ada.id)


async def test_connection_that_another_task_uses_is_unavailable(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User
) -> None:
    async with connection.transaction():
        task = asyncio.create_task(connection.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match=r"cannot be used now: .*another operation is in progress"):
            await hub.on(connection).users.get(ada.id)
        await task


async def test_object_that_is_no_connection_is_refused(hub: Hub) -> None:
    for connection in (None, 5, "postgresql://localhost", hub):
        with pytest.raises(Invalid, match="connection: must be a connection of asyncpg"):
            hub.on(connection)  # type: ignore[arg-type]


async def test_concurrent_calls_on_one_connection_run_one_after_the_other(
    hub: Hub, connection: asyncpg.Connection[Any], announced: list[str], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat, connection.transaction():
        await asyncio.gather(*(chat.messages.send(room.id, ada.id, str(n)) for n in range(10)))
    assert sorted(announced) == sorted(await contents(hub, room)) == [str(n) for n in range(10)]


async def test_announcement_waits_for_a_second_call_while_postgresql_cannot_be_asked(
    hub: Hub,
    connection: asyncpg.Connection[Any],
    announced: list[str],
    ada: User,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = hub.on(connection)
    async with connection.transaction():
        await chat.messages.send(room.id, ada.id, "tea")

    async def fail(*_: object) -> None:
        raise Unavailable("postgresql", "is down")

    with monkeypatch.context() as patched:
        patched.setattr(hub._pool, "fetch_all", fail)
        with pytest.raises(Unavailable, match="is down"):
            await chat.announce()
        async with chat:
            pass
    assert "were not announced" in caplog.text
    await chat.announce()
    assert announced == ["tea"]


# A session of SQLAlchemy


async def test_first_statement_of_a_session_is_in_its_transaction(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    """At this point SQLAlchemy has not sent BEGIN."""
    async with AsyncSession(engine) as session:
        await hub.on(session).messages.send(room.id, ada.id, "undone")
        await session.rollback()
    assert await contents(hub, room) == []
    async with AsyncSession(engine) as session:
        await hub.on(session).messages.send(room.id, ada.id, "undone by close")
    assert await contents(hub, room) == []
    assert announced == []


async def test_commit_of_a_session_announces(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    async with AsyncSession(engine) as session:
        async with hub.on(session) as chat:
            message = await chat.messages.send(room.id, ada.id, "tea")
        await session.execute(NAMED_ORDER, {"number": 1, "message_id": message.id})
        assert (await contents(hub, room), announced) == ([], [])
        await session.commit()
        assert announced == ["tea"]
        await hub.on(session).messages.send(room.id, ada.id, "coffee")
        await hub.on(session).announce()
        assert announced == ["tea"]
        await session.commit()
        await session.commit()
    assert announced == ["tea", "coffee"]
    assert await contents(hub, room) == ["tea", "coffee"]
    assert await orders(hub) == [1]


async def test_exception_in_a_session_leaves_and_announces_nothing(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    with suppress(Oops):
        async with AsyncSession(engine) as session, session.begin():
            message = await hub.on(session).messages.send(room.id, ada.id, "undone")
            await session.execute(NAMED_ORDER, {"number": 1, "message_id": message.id})
            raise Oops
    async with AsyncSession(engine) as session, session.begin():
        await hub.on(session).messages.send(room.id, ada.id, "kept")
    assert announced == ["kept"]
    assert await contents(hub, room) == ["kept"]
    assert await orders(hub) == []


async def test_savepoint_of_a_session_that_is_rolled_back_is_not_announced(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    async with AsyncSession(engine) as session:
        chat = hub.on(session)
        async with session.begin():
            with suppress(Oops):
                async with session.begin_nested():  # nothing has been sent to the server yet
                    await chat.messages.send(room.id, ada.id, "undone")
                    async with session.begin_nested():
                        await chat.users.update_profile(ada.id, username="undone")
                    raise Oops
            async with session.begin_nested():
                await chat.messages.send(room.id, ada.id, "kept in a savepoint")
            assert announced == []
            await chat.messages.send(room.id, ada.id, "kept")
    assert announced == ["kept in a savepoint", "kept"]
    assert await contents(hub, room) == ["kept in a savepoint", "kept"]
    assert (await hub.users.get(ada.id)).username == "ada"


async def test_commit_that_fails_is_not_announced(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    async with AsyncSession(engine) as session:
        await hub.on(session).messages.send(room.id, ada.id, "undone")
        await session.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        await session.execute(NAMED_ORDER, {"number": 1, "message_id": ada.id})
        with pytest.raises(Exception, match="violates foreign key constraint"):
            await session.commit()
    assert announced == []
    assert await contents(hub, room) == []


async def test_cancelled_statement_of_a_session_is_rolled_back(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    running = asyncio.Event()

    async def block() -> None:
        async with AsyncSession(engine) as session, session.begin():
            await hub.on(session).messages.send(room.id, ada.id, "undone")
            running.set()
            await hub.on(session).messages.send(room.id, ada.id, "undone as well")
            await session.execute(text("SELECT pg_sleep(60)"))

    task = asyncio.create_task(block())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert announced == []
    assert await contents(hub, room) == []
    async with AsyncSession(engine) as session, session.begin():
        await hub.on(session).messages.send(room.id, ada.id, "kept")
    assert announced == ["kept"]


async def test_session_that_has_joined_a_transaction_of_its_connection_does_not_announce_before_the_commit(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    """Test suites do so: at the end everything is rolled back, even if it was committed."""
    async with engine.connect() as outer:
        await outer.begin()
        async with AsyncSession(outer, join_transaction_mode="create_savepoint") as session:
            await hub.on(session).messages.send(room.id, ada.id, "undone")
            await session.commit()
            await hub.on(session).messages.send(room.id, ada.id, "undone as well")
            await session.commit()
        await outer.rollback()
    assert announced == []
    assert await contents(hub, room) == []


async def test_session_in_autocommit_is_refused(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    async with AsyncSession(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(Invalid, match="connection: commits each statement by itself"):
            await hub.on(session).messages.send(room.id, ada.id, "alone")
    assert await contents(hub, room) == []


# A connection of SQLAlchemy


async def test_connection_of_sqlalchemy_begins_and_is_announced_at_the_end_of_the_block(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    async with engine.connect() as connection, hub.on(connection) as chat:
        await chat.messages.send(room.id, ada.id, "undone")
        await connection.rollback()
        async with connection.begin():
            message = await chat.messages.send(room.id, ada.id, "tea", metadata={"sugar": 1})
            await connection.execute(NAMED_ORDER, {"number": 1, "message_id": message.id})
            with suppress(Oops):
                async with connection.begin_nested():
                    await chat.messages.send(room.id, ada.id, "undone")
                    raise Oops
        assert announced == []
    assert announced == ["tea"]
    assert await contents(hub, room) == ["tea"]
    assert await orders(hub) == [1]


async def test_block_around_the_connection_of_sqlalchemy(
    hub: Hub, engine: AsyncEngine, announced: list[str], ada: User, room: Room
) -> None:
    connection: AsyncConnection
    async with engine.begin() as connection:
        chat = hub.on(connection)
        await chat.messages.send(room.id, ada.id, "tea")
        with pytest.raises(Invalid, match="has its transaction open"):
            await chat.announce()
    await chat.announce()
    assert announced == ["tea"]


# Changes by the hub that would wait for the application's COMMIT


async def refused(change: Awaitable[object]) -> None:
    with pytest.raises(Invalid, match="wait for its own COMMIT"):
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            await change


async def test_change_by_the_hub_of_a_room_that_the_same_task_has_changed_on_a_connection_is_refused_at_once(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    chat = hub.on(connection)
    async with connection.transaction():
        await chat.messages.send(room.id, ada.id, "tea")
        await refused(hub.messages.send(room.id, ada.id, "waits"))
        await refused(hub.messages.send_many(room.id, ada.id, [NewMessage("waits")]))
        await refused(hub.rooms.update(room.id, description="waits"))
        await hub.messages.send(other.id, ada.id, "elsewhere")
    await hub.messages.send(room.id, ada.id, "though it was not announced")
    async with connection.transaction():
        await hub.messages.send(room.id, ada.id, "though another one is open")
    await chat.announce()


async def test_change_by_the_hub_in_another_task_waits_for_the_commit_of_the_application(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat, connection.transaction():
        await chat.messages.send(room.id, ada.id, "tea")
        waits = asyncio.create_task(hub.messages.send(room.id, ada.id, "after it"))
        await hub.users.get(ada.id)
    assert (await waits).content == "after it"
    assert await contents(hub, room) == ["tea", "after it"]


async def test_change_by_the_hub_is_made_after_the_rollback_of_a_savepoint_of_the_connection(
    hub: Hub, connection: asyncpg.Connection[Any], ada: User, room: Room
) -> None:
    async with hub.on(connection) as chat, connection.transaction():
        with suppress(Oops):
            async with connection.transaction():
                await chat.messages.send_many(room.id, ada.id, [NewMessage("undone")])
                raise Oops
        await hub.messages.send(room.id, ada.id, "kept")
    assert await contents(hub, room) == ["kept"]


async def test_change_by_the_hub_of_a_room_that_the_same_task_has_changed_in_a_session_is_refused_at_once(
    hub: Hub, engine: AsyncEngine, ada: User, room: Room
) -> None:
    async with AsyncSession(engine) as session:
        with suppress(Oops):
            async with session.begin_nested():
                await hub.on(session).messages.send(room.id, ada.id, "undone")
                raise Oops
        await hub.messages.send(room.id, ada.id, "after the rollback")
        async with session.begin_nested():
            await hub.on(session).messages.send(room.id, ada.id, "tea")
        await refused(hub.messages.send(room.id, ada.id, "waits"))
        await session.commit()
        await hub.messages.send(room.id, ada.id, "after the commit")
    assert await contents(hub, room) == ["after the rollback", "tea", "after the commit"]
