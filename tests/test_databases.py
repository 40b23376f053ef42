"""Each test gets a database that no other test has changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from commands import execute
from databases import Databases
from hubbub import Hub, PostgresSettings, Settings
from hubbub.postgres import connect


async def test_database_with_rows_is_given_to_the_next_test_without_them(
    databases: Databases, servers: Settings
) -> None:
    database, state = await databases.take()
    async with Hub(replace(servers, postgres=database)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "not a hash")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        await hub.messages.send(room.id, ada.id, "hello")
    await databases.give_back(database, state)
    again, state = await databases.take()
    assert again == database
    async with Hub(replace(servers, postgres=again)) as hub:
        assert await hub.users.get_many([ada.id]) == {}
        assert (await hub.users.create("ada@example.org", "ada", "not a hash")).id != ada.id
    await databases.give_back(again, state)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE notes (id int)",
        "CREATE SCHEMA shop",
        "ALTER TABLE users ADD pets int",
        "ALTER TABLE messages ADD CONSTRAINT no_fifteen CHECK (content <> '15')",
        "DROP INDEX idx_users_email",
        "ALTER TABLE rooms DISABLE TRIGGER hubbub_check_room",
        "GRANT SELECT ON users TO PUBLIC",
        "GRANT SELECT (email) ON users TO PUBLIC",
        "UPDATE hubbub_schema_version SET version_num = version_num",
        "INSERT INTO users (email, username, password_hash) VALUES ('a@b.org', 'a', '!'); ANALYZE users",
        "ALTER DATABASE {} SET timezone = 'Asia/Tokyo'",
        "ALTER DATABASE {} CONNECTION LIMIT 2",
        "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
    ],
)
async def test_database_in_which_more_than_rows_was_changed_is_given_to_no_other_test(
    databases: Databases, administrator: PostgresSettings, change: str
) -> None:
    database, state = await databases.take()
    await execute(replace(administrator, database=database.database), change.format(database.database))
    await databases.give_back(database, state)
    await assert_is_dropped(databases, database)


async def test_database_with_a_connection_is_given_to_no_other_test(databases: Databases) -> None:
    database, state = await databases.take()
    connection = await connect(database)
    await databases.give_back(database, state)
    connection.terminate()
    await assert_is_dropped(databases, database)


async def assert_is_dropped(databases: Databases, database: PostgresSettings) -> None:
    other, state = await databases.take()
    connection = await connect(other)
    names = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
    await connection.close()
    await databases.give_back(other, state)
    assert other.database in names
    assert database.database not in names
