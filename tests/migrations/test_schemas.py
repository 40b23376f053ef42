"""hubbub in its own PostgreSQL schema: beside other tables, beside another hubbub, and moved into it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from commands import execute
from hubbub import Hub, Invalid, PostgresSettings, SchemaMismatch, Settings, migrations
from hubbub.migrations import REVISIONS
from hubbub.postgres import connect
from hubbub.settings.variables import refused_schema
from migrations.catalog import schema

THEIR_TABLES = "CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE messages (id int PRIMARY KEY)"


async def tables(database: PostgresSettings) -> set[str]:
    connection = await connect(database)
    query = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^pg_|^information_schema$'"
    found = {str(name) for (name,) in await connection.fetch(query)}
    await connection.close()
    return found


async def test_tables_of_an_application_with_the_same_names_are_refused_and_kept(
    empty_database: PostgresSettings,
) -> None:
    await execute(empty_database, THEIR_TABLES)
    with pytest.raises(Invalid, match=r"public has the tables messages, users already.*DB_SCHEMA=hubbub"):
        await migrations.up(empty_database)
    assert await tables(empty_database) == {"public.users", "public.messages"}
    assert await migrations.up(replace(empty_database, schema="hubbub")) == list(REVISIONS)
    assert {"public.users", "hubbub.users"} <= await tables(empty_database)


async def test_hubs_in_two_schemas_of_one_database_do_not_see_each_other(
    servers: Settings, empty_database: PostgresSettings
) -> None:
    """Statements do not depend on the search path. The last search path is empty."""
    one, other = (replace(empty_database, schema=name) for name in ("one", "other"))
    for database in (one, other):
        assert await migrations.up(database) == list(REVISIONS)
    for path in ("other", "''"):
        await execute(empty_database, f"ALTER DATABASE {empty_database.database} SET search_path = {path}")
        async with (
            Hub(replace(servers, postgres=one)) as first,
            Hub(replace(servers, postgres=other)) as second,
        ):
            name = f"ada-{len(path)}"
            ada = await first.users.create(f"{name}@example.org", name, "!")
            room = await first.rooms.create("here", created_by=ada.id)
            sent = await first.messages.send(room.id, ada.id, "hello")
            assert await second.users.find_by_username(name) is None
            await second.users.create(f"{name}@example.org", name, "!")
            assert (await first.messages.page(room.id)).items[-1].id == sent.id
            async with first.transaction() as tx:
                await tx.messages.edit(sent.id, "hello there", by=ada.id)
            assert (await first.messages.get(sent.id)).content == "hello there"


async def test_schema_has_the_same_definitions_as_public(empty_database: PostgresSettings) -> None:
    found = []
    for name in ("public", "chat"):
        database = replace(empty_database, schema=name)
        await migrations.up(database)
        found.append({line.replace(f"{name}.", "") for line in await schema(database)})
    assert found[0] == found[1]


async def test_move_keeps_all_rows_and_former_settings_get_an_error_with_the_new_schema(
    servers: Settings, postgres_settings: PostgresSettings
) -> None:
    chat = replace(postgres_settings, schema="chat")
    async with Hub(replace(servers, postgres=postgres_settings)) as hub:
        ada = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("here", created_by=ada.id)
        sent = await hub.messages.send(room.id, ada.id, "hello")
    await migrations.move(postgres_settings, "chat")
    assert {name for name in await tables(chat) if name.startswith("public.")} == set()
    with pytest.raises(SchemaMismatch, match="tables are in the schema chat: set DB_SCHEMA"):
        async with Hub(replace(servers, postgres=postgres_settings)):
            pass
    async with Hub(replace(servers, postgres=chat)) as hub:
        assert (await hub.messages.page(room.id)).items == [sent]
        await hub.messages.send(room.id, ada.id, "here as well")


async def test_move_onto_other_tables_changes_nothing(postgres_settings: PostgresSettings) -> None:
    await execute(postgres_settings, "CREATE SCHEMA taken; CREATE TABLE taken.room_users (id int)")
    before = await tables(postgres_settings)
    with pytest.raises(Invalid, match="taken has the tables room_users already"):
        await migrations.move(postgres_settings, "taken")
    with pytest.raises(Invalid, match="must be 1 to 63"):
        await migrations.move(postgres_settings, 'x"; DROP TABLE users')
    assert await tables(postgres_settings) == before


async def test_move_of_a_schema_that_is_not_migrated_is_refused(empty_database: PostgresSettings) -> None:
    with pytest.raises(SchemaMismatch, match="run `hubbub migrate up`"):
        await migrations.move(empty_database, "chat")


async def test_sql_for_a_schema_sets_the_search_path_of_its_session(empty_database: PostgresSettings) -> None:
    connection = await connect(empty_database)
    for statement in migrations.sql(schema="chat").split(";\n\n"):
        if statement.strip():
            await connection.execute(statement)
    await connection.close()
    assert (await migrations.status(replace(empty_database, schema="chat"))).pending == ()
    assert {name for name in await tables(empty_database) if name.startswith("public.")} == set()


async def test_reserved_words_of_the_server_are_refused_as_schema_names(
    postgres_settings: PostgresSettings,
) -> None:
    connection = await connect(postgres_settings)
    reserved = await connection.fetch("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    await connection.close()
    assert [word for (word,) in reserved if refused_schema(word) is None] == []
