"""`hubbub distribute`: its steps, what it refuses, and the statements of a database whose rooms are distributed.

Without Citus a catalog records what is distributed. So the keys, the rules and the functions are those of a
distributed database, and the rows are on one node.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from click.testing import CliRunner

from citus.stopping import Killed, stop_after
from citus.talk import talk
from commands import execute
from diagnostics.sections import severities
from hubbub import Hub, Invalid, PostgresSettings, SchemaMismatch, Settings, migrations
from hubbub.cli import main
from hubbub.diagnostics import postgresql
from hubbub.migrations import distribution
from hubbub.postgres import Pool, connect


async def rows(settings: PostgresSettings, sql: str) -> list[tuple[object, ...]]:
    connection = await connect(settings)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
        AND contype <> 'n'
    ORDER BY 1, 2
"""


async def test_database_without_citus_is_refused(postgres_settings: PostgresSettings) -> None:
    with pytest.raises(Invalid, match="CREATE EXTENSION citus"):
        await distribution.plan(postgres_settings)


async def test_database_that_is_not_migrated_is_refused(empty_database: PostgresSettings) -> None:
    with pytest.raises(SchemaMismatch):
        await distribution.plan(empty_database)


async def test_database_without_nodes_is_refused(recorded: PostgresSettings) -> None:
    await execute(recorded, "DELETE FROM pg_dist_node WHERE groupid = 0")
    with pytest.raises(Invalid, match="citus_set_coordinator_host"):
        await distribution.plan(recorded)
    await execute(recorded, "DELETE FROM pg_dist_node")
    with pytest.raises(Invalid, match="citus_add_node"):
        await distribution.plan(recorded)


async def test_foreign_key_of_an_application_to_rooms_is_refused(recorded: PostgresSettings) -> None:
    await execute(recorded, "CREATE TABLE orders (room_id uuid REFERENCES rooms (id))")
    with pytest.raises(Invalid, match="orders"):
        await distribution.plan(recorded)


async def test_process_that_is_connected_is_refused(recorded: PostgresSettings, hub: Hub) -> None:
    with pytest.raises(Invalid, match="stop the application"):
        await distribution.distribute(recorded)
    plan = await distribution.plan(recorded)
    assert len(plan.left) == plan.steps


async def test_second_run_has_nothing_to_do(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    constraints = await rows(recorded, CONSTRAINTS)
    assert (await distribution.plan(recorded)).left == ()
    taken: list[distribution.Step] = []
    await distribution.distribute(recorded, done=taken.append)
    assert taken == []
    assert await rows(recorded, CONSTRAINTS) == constraints


async def test_run_that_was_stopped_after_any_step_is_completed(recorded: PostgresSettings) -> None:
    stops = 0
    while (await distribution.plan(recorded)).left:
        try:
            await distribution.distribute(recorded, done=stop_after(1))
        except Killed:
            stops += 1
    assert stops > 40
    by_steps = await rows(recorded, CONSTRAINTS)
    assert ("messages", "messages_pkey", "PRIMARY KEY (room_id, id)") in by_steps
    foreign_keys = {name for _, name, definition in by_steps if str(definition).startswith("FOREIGN KEY")}
    assert foreign_keys == {name for _, name in distribution.FOREIGN_KEYS}


async def test_hub_does_not_start_on_a_database_that_is_partly_distributed(
    recorded: PostgresSettings, settings: Settings
) -> None:
    async with Hub(settings):
        pass
    with pytest.raises(Killed):
        await distribution.distribute(recorded, done=stop_after(1))
    with pytest.raises(SchemaMismatch, match="hubbub distribute"):
        async with Hub(settings):
            pass


async def test_function_of_another_version_is_made_anew(recorded: PostgresSettings, settings: Settings) -> None:
    await distribution.distribute(recorded)
    other = (
        "CREATE OR REPLACE FUNCTION hubbub_send(uuid, uuid, uuid, text, text, uuid, text) RETURNS SETOF messages"
    )
    await execute(
        recorded,
        "DROP FUNCTION hubbub_send",
        f"{other} LANGUAGE sql AS 'SELECT * FROM messages LIMIT 0'",
    )
    with pytest.raises(SchemaMismatch, match="hubbub distribute"):
        async with Hub(settings):
            pass
    await distribution.distribute(recorded)
    async with Hub(settings):
        pass


async def test_command_shows_the_steps_and_asks(recorded: PostgresSettings, servers: Settings) -> None:
    variables = replace(servers, postgres=recorded).to_env()
    runner = CliRunner(env={name: text for name, text in variables.items() if name.startswith("DB_")})

    async def types(*words: str, answer: str | None = None) -> tuple[int, str]:
        result = await asyncio.to_thread(runner.invoke, main, ["distribute", *words], answer)
        return result.exit_code, result.output

    status, output = await types("--check")
    assert status == 3
    assert "distribute messages by room_id  (locks messages)" in output
    status, output = await types(answer="n\n")
    assert (status, "Continue?" in output) == (1, True)
    assert (await types("--check"))[1].partition("\n")[0] == output.partition("\n")[0]
    status, output = await types("--yes")
    assert (status, "done: distribute rooms by id" in output) == (0, True)
    assert await types("--check") == (0, "rooms are distributed over 2 nodes, nothing left to do\n")


# The statements, with the keys, rules and functions of a distributed database


@pytest.fixture
async def distributed(recorded: PostgresSettings, settings: Settings) -> Settings:
    await distribution.distribute(recorded)
    return settings


async def test_chat_goes_on_where_rooms_are_distributed(distributed: Settings) -> None:
    async with Hub(distributed) as hub:
        await talk(hub)


async def test_doctor_reports_a_distribution_that_is_not_complete(
    recorded: PostgresSettings,
) -> None:
    names = ("postgresql.distribution", "postgresql.indexes", "postgresql.foreign_keys")

    async def findings() -> dict[str, list[str]]:
        pool = Pool(recorded)
        try:
            section = await postgresql.check(pool, recorded, 1)
        finally:
            await pool.close()
        return {name: severities(section, name) for name in names}

    assert await findings() == {name: [] for name in names}
    with pytest.raises(Killed):
        await distribution.distribute(recorded, done=stop_after(1))
    assert (await findings())["postgresql.distribution"] == ["error"]
    await distribution.distribute(recorded)
    assert await findings() == {name: [] for name in names}


async def test_tables_stay_in_their_schema_where_rooms_are_distributed(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    with pytest.raises(Invalid, match="distributed"):
        await migrations.move(recorded, "elsewhere")
    assert not await migrations.restored(recorded)
    assert await migrations.up(recorded) == []
    assert (await distribution.plan(recorded)).left == ()
