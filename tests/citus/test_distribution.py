"""`hubbub distribute`: its steps, its refusals, and the statements of a database whose rooms are distributed.

Without Citus a catalog records what is distributed. So the keys, the rules and the functions are those of a
distributed database, and the rows are on one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from citus.stopping import Killed, stop_after
from citus.talk import talk
from commands import execute
from diagnostics.sections import meanings, result_of, section_of, severities
from hubbub import (
    Hub,
    Invalid,
    NotAMember,
    NotFound,
    PostgresSettings,
    SchemaMismatch,
    Settings,
    Unavailable,
    migrations,
)
from hubbub.cli import main
from hubbub.diagnostics import postgresql
from hubbub.migrations import distribution
from hubbub.migrations.runner import LOCK_KEY
from hubbub.postgres import Pool, connect
from hubbub.postgres.statement import functions
from waiting import until, until_it_answers

# A step is done once a table has no pages, which the catalog of these tests does not truncate.
pytestmark = pytest.mark.counts_pages


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


TRIGGER = """
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
    CREATE TRIGGER audited AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION audit()
"""


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        (TRIGGER.format(table="messages"), "trigger audited of messages"),
        (TRIGGER.format(table="users"), "trigger audited of users"),
        ("CREATE UNIQUE INDEX one_name ON rooms (name)", "unique index one_name of rooms"),
        ("ALTER TABLE messages ADD CONSTRAINT once EXCLUDE (content WITH =)", "unique index once of messages"),
    ],
)
async def test_object_that_citus_does_not_support_is_refused_before_the_first_step(
    sql: str, named: str, recorded: PostgresSettings
) -> None:
    await execute(recorded, sql)
    with pytest.raises(Invalid, match=named):
        await distribution.distribute(recorded)
    assert await rows(recorded, "SELECT FROM pg_constraint WHERE conname = 'rooms_name_check'") == []


async def test_unique_index_with_the_room_is_accepted(recorded: PostgresSettings) -> None:
    await execute(recorded, "CREATE UNIQUE INDEX one_first ON messages (room_id, (content = 'first'))")
    assert (await distribution.plan(recorded)).left


async def test_plan_names_all_tables_that_are_locked(recorded: PostgresSettings) -> None:
    await execute(recorded, "CREATE TABLE orders (user_id uuid REFERENCES users (id))")
    locks = {step.title: step.locks for step in (await distribution.plan(recorded)).left}
    assert locks["drop messages_user_id_fkey"] == "messages, users"
    assert locks["drop room_users_last_read_message_id_fkey"] == "room_users, messages"
    assert locks["copy users to each node"] == "users, orders"
    assert locks["delete the rows of users that were copied"] == "users, orders"


ADD_NODES = """
    INSERT INTO pg_dist_node (groupid, isactive, shouldhaveshards)
    SELECT n, true, true
    FROM generate_series(3, 10) AS n
"""


async def test_rooms_are_divided_by_the_number_of_nodes(recorded: PostgresSettings) -> None:
    async def shards(wanted: int | None = None) -> str:
        left = (await distribution.plan(recorded, wanted)).left
        [sql] = [step.sql for step in left if step.title == "distribute rooms by id"]
        return sql.rpartition(":= ")[2]

    assert (await shards(), await shards(32)) == ("8)", "32)")
    await execute(recorded, ADD_NODES)
    assert await shards() == "40)"


async def test_process_that_is_connected_is_refused(recorded: PostgresSettings, hub: Hub) -> None:
    with pytest.raises(Invalid, match="stop the application"):
        await distribution.distribute(recorded)
    plan = await distribution.plan(recorded)
    assert len(plan.left) == plan.steps


async def idle(hub: Hub) -> None:
    """Wait until the process has no connection, so that no server can see it."""
    await until(lambda: hub._pool.size == 0)


@pytest.fixture
def soon_idle(settings: Settings) -> Settings:
    return replace(settings, postgres=replace(settings.postgres, idle_timeout_seconds=0.05))


@pytest.mark.parametrize("steps", [1, 20, 1_000])
async def test_process_that_was_idle_refuses_calls_once_a_step_is_taken(
    steps: int, recorded: PostgresSettings, soon_idle: Settings
) -> None:
    async with Hub(soon_idle) as hub:
        ada = await _user(hub, "ada")
        room = await hub.rooms.create("room", created_by=ada)
        await idle(hub)
        with suppress(Killed):
            await distribution.distribute(recorded, done=stop_after(steps))
        calls = (
            hub.messages.send(room.id, ada, "hello"),
            hub.room_users.remove(room.id, ada),
            hub.users.set_online_many({ada: True}),
            hub.messages.page(room.id),
            hub.users.get(ada),
        )
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, Unavailable)
            assert "restart it" in error.reason
            assert not error.retryable
            assert not error.outcome_unknown
        health = await hub.health()
        assert not health.ready
        assert "restart it" in str(health.postgres.reason)
        await distribution.distribute(recorded)  # the process has no connection, and opens none
    assert await rows(recorded, "SELECT last_seq FROM rooms") == [(1,)]
    assert await rows(recorded, "SELECT is_online FROM users") == [(False,)]


async def test_process_that_was_idle_goes_on_where_no_step_was_taken(
    recorded: PostgresSettings, soon_idle: Settings
) -> None:
    async with Hub(soon_idle) as hub:
        ada = await _user(hub, "ada")
        await idle(hub)
        assert (await distribution.plan(recorded)).left
        assert (await hub.users.get(ada)).id == ada


async def test_plan_waits_for_the_step_of_a_run_that_was_killed(recorded: PostgresSettings) -> None:
    killed, watcher = await connect(recorded), await connect(recorded)
    await killed.fetchval("SELECT pg_advisory_lock($1)", LOCK_KEY)
    await killed.execute("BEGIN; LOCK TABLE rooms")
    planning = asyncio.create_task(distribution.plan(replace(recorded, deadline_seconds=0.5)))
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hubbub distribute' AND state = 'idle' "
        "AND datname = current_database()"
    )

    async def has_asked_for_its_turn() -> bool:
        return planning.done() or bool(await watcher.fetchval(asked))

    await until_it_answers(has_asked_for_its_turn)
    await asyncio.wait([planning], timeout=1)  # longer than its deadline
    await killed.close()
    await watcher.close()
    assert (await planning).left


async def test_check_names_the_run_that_it_waits_for_and_gives_up(
    recorded: PostgresSettings, servers: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    variables = replace(servers, postgres=replace(recorded, deadline_seconds=2)).to_env()
    runner = CliRunner(env={name: text for name, text in variables.items() if name.startswith("DB_")})
    other = await connect(recorded)
    await other.fetchval("SELECT pg_advisory_lock($1)", LOCK_KEY)
    result = await asyncio.to_thread(runner.invoke, main, ["distribute", "--check"])
    await other.close()
    assert result.exit_code == 1
    assert "waiting for another `hubbub migrate` or `hubbub distribute`" in caplog.text
    assert "other processes were migrating it for 2 s" in result.output


async def test_second_run_has_nothing_to_do(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    constraints = await rows(recorded, CONSTRAINTS)
    assert (await distribution.plan(recorded)).left == ()
    taken: list[distribution.Step] = []
    await distribution.distribute(recorded, done=taken.append)
    assert taken == []
    assert await rows(recorded, CONSTRAINTS) == constraints


@pytest.mark.slow
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


async def test_foreign_key_of_another_kind_is_replaced(recorded: PostgresSettings, settings: Settings) -> None:
    await distribution.distribute(recorded)
    constraints = await rows(recorded, CONSTRAINTS)
    name = "room_users_user_id_fkey"
    key = "FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE"
    await execute(recorded, f"ALTER TABLE room_users DROP CONSTRAINT {name}, ADD CONSTRAINT {name} {key}")
    with pytest.raises(SchemaMismatch, match="hubbub distribute"):
        async with Hub(settings):
            pass
    await distribution.distribute(recorded)
    assert await rows(recorded, CONSTRAINTS) == constraints


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


FORMER_FUNCTION = "hubbub_send(uuid,uuid,uuid,text,text,uuid)"


async def test_functions_of_another_version_are_made_beside_those_in_use(
    recorded: PostgresSettings, settings: Settings
) -> None:
    await distribution.distribute(recorded)
    name = functions()["hubbub_send"].name
    # The function of a release with other parameters and another result.
    await execute(
        recorded,
        f"CREATE FUNCTION {FORMER_FUNCTION} RETURNS int LANGUAGE sql AS 'SELECT 1'",
        f"INSERT INTO pg_dist_object VALUES ('pg_proc'::regclass, '{FORMER_FUNCTION}'::regprocedure, 1)",
    )
    async with Hub(settings):
        await execute(recorded, f"DROP FUNCTION {name}")
        taken: list[distribution.Step] = []
        await distribution.distribute(recorded, done=taken.append)
        assert [step.title for step in taken] == [f"make {name}", f"run {name} on the node of its room"]
        with pytest.raises(Invalid, match="stop the application"):
            await distribution.drop_former_functions(recorded)
    delegated = (
        "SELECT proname::text FROM pg_dist_object JOIN pg_proc ON pg_proc.oid = objid WHERE proname LIKE '%send%'"
    )
    assert {found for (found,) in await rows(recorded, delegated)} >= {name, "hubbub_send"}
    assert await distribution.drop_former_functions(recorded) == [FORMER_FUNCTION]
    assert await distribution.drop_former_functions(recorded) == []
    async with Hub(settings) as hub:
        await talk(hub)


async def test_hub_does_not_start_without_a_function_of_its_version(
    recorded: PostgresSettings, settings: Settings
) -> None:
    await distribution.distribute(recorded)
    await execute(recorded, f"DROP FUNCTION {functions()['hubbub_mark_read'].name}")
    with pytest.raises(SchemaMismatch, match="hubbub distribute"):
        async with Hub(settings):
            pass


async def test_former_functions_are_looked_for_where_rooms_are_distributed(recorded: PostgresSettings) -> None:
    with pytest.raises(Invalid, match="no rooms"):
        await distribution.drop_former_functions(recorded)


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


@pytest.fixture
async def chat(distributed: Settings) -> AsyncIterator[Hub]:
    async with Hub(distributed) as hub:
        yield hub


async def _user(hub: Hub, name: str) -> UUID:
    return (await hub.users.create(f"{name}@example.org", name, "not a hash")).id


async def test_deleted_account_takes_no_author_from_a_message_with_the_same_id(chat: Hub) -> None:
    ada, bob = await _user(chat, "ada"), await _user(chat, "bob")
    room, copy = await chat.rooms.create("room", created_by=ada), await chat.rooms.create("copy", created_by=bob)
    await chat.room_users.add(room.id, bob)
    sent = await chat.messages.send(room.id, ada, "hello")
    await chat.receipts.mark_read(room.id, bob, up_to=sent.seq)
    await chat.messages.send(copy.id, bob, "hello", id=sent.id)
    await chat.users.delete(bob)
    assert (await chat.messages.get(sent.id, room_id=room.id)).user_id == ada
    assert (await chat.messages.get(sent.id, room_id=copy.id)).user_id is None


async def test_message_is_not_hidden_by_another_one_with_its_id(chat: Hub) -> None:
    ada, eve = await _user(chat, "ada"), await _user(chat, "eve")
    room = await chat.rooms.create("room", created_by=ada)
    await chat.room_users.add(room.id, eve)
    sent = await chat.messages.send(room.id, ada, "hello")
    await chat.receipts.mark_read(room.id, eve, up_to=sent.seq)
    for _ in range(8):  # rooms of any id
        other = await chat.rooms.create("other", created_by=eve)
        await chat.messages.send(other.id, eve, "mine", id=sent.id)
    assert await chat.messages.get(sent.id) == sent
    assert await chat.messages.get(sent.id, as_user=ada) == sent
    assert await chat.messages.get_many([sent.id]) == {sent.id: sent}
    assert [one.user_id for one in (await chat.receipts.readers(sent.id)).items] == [eve]
    assert (await chat.messages.page(room.id, around=sent.id)).items == [sent]
    assert (await chat.messages.delete(sent.id, by=ada)).room_id == room.id


async def test_id_of_another_room_does_not_hide_why_a_send_is_refused(chat: Hub) -> None:
    ada, eve = await _user(chat, "ada"), await _user(chat, "eve")
    room, other = await chat.rooms.create("room", created_by=ada), await chat.rooms.create("own", created_by=eve)
    sent = await chat.messages.send(other.id, eve, "hello")
    with pytest.raises(NotAMember):
        await chat.messages.send(room.id, eve, "hello", id=sent.id)


async def test_member_whose_account_is_being_deleted_cannot_be_added(
    chat: Hub, recorded: PostgresSettings
) -> None:
    ada, bob = await _user(chat, "ada"), await _user(chat, "bob")
    room = await chat.rooms.create("room", created_by=ada)
    await chat.room_users.add(room.id, bob)
    await execute(recorded, f"INSERT INTO hubbub_deletions (id, is_room) VALUES ('{bob}', false)")
    with pytest.raises(NotFound):
        await chat.room_users.add_many(room.id, [bob])
    with pytest.raises(NotFound):
        await chat.room_users.add(room.id, bob)


async def test_newest_page_is_the_page_before_the_end(chat: Hub) -> None:
    """It has a shorter statement of its own, with and without a viewer."""
    ada, eve = await _user(chat, "ada"), await _user(chat, "eve")
    room = await chat.rooms.create("room", created_by=ada)
    of_ada, of_eve = chat.as_user(ada).messages, chat.as_user(eve).messages
    assert (await chat.messages.page(room.id)).items == (await of_ada.page(room.id)).items == []
    for number in range(4):
        last = await chat.messages.send(room.id, ada, f"message {number}")
    for limit in (1, 3, 4, 5, 200):
        newest = await chat.messages.page(room.id, limit=limit)
        assert newest == await chat.messages.page(room.id, before=last.seq + 1, limit=limit)
        assert newest == await of_ada.page(room.id, limit=limit)
        assert newest.has_older is (limit < 4)
    with pytest.raises(NotAMember):
        await of_eve.page(room.id)
    with pytest.raises(NotFound):
        await chat.messages.page(uuid4())


async def test_account_is_not_deleted_in_a_transaction(chat: Hub) -> None:
    """Its rooms are on several nodes, and each has a transaction of its own."""
    ada = await _user(chat, "ada")
    room = await chat.rooms.create("room", created_by=ada)
    async with chat.transaction() as transaction:
        with pytest.raises(Invalid, match="where rooms are distributed"):
            await transaction.users.delete(ada)
        await transaction.messages.send(room.id, ada, "still here")
    assert [one.content for one in (await chat.messages.page(room.id)).items] == ["still here"]


async def test_presence_writes_no_account(chat: Hub, recorded: PostgresSettings) -> None:
    ada, bob = await _user(chat, "ada"), await _user(chat, "bob")
    before = await rows(recorded, "SELECT id, xmin::text, is_online FROM users ORDER BY id")
    await chat.users.set_online_many({ada: True, bob: False, uuid4(): True})
    online = await chat.users.get(ada)
    assert (online.is_online, online.last_seen is not None) == (True, True)
    assert (await chat.users.get_many([ada]))[ada] == online
    assert await chat.users.find_by_username("ada") == online
    assert await chat.users.find_by_email("ada@example.org") == online
    assert (await chat.users.search("ada")).items == [online.public]
    await chat.users.set_online_many({ada: True})
    assert await chat.users.get(ada) == online
    assert (await chat.users.update_profile(ada, display_name="Ada")).last_seen == online.last_seen
    await chat.users.update_online_status(ada, False)
    assert not (await chat.users.get(ada)).is_online
    with pytest.raises(NotFound):
        await chat.users.update_online_status(uuid4(), True)
    assert await rows(recorded, "SELECT id, xmin::text, is_online FROM users WHERE username = 'bob'") == [
        row for row in before if row[0] == bob
    ]
    await chat.users.delete(ada)
    assert await rows(recorded, f"SELECT FROM hubbub_presence WHERE user_id = '{ada}'") == []


async def test_doctor_reports_a_distribution_that_is_not_complete(
    recorded: PostgresSettings,
) -> None:
    names = ("postgresql.distribution", "postgresql.indexes", "postgresql.foreign_keys")

    async def findings() -> dict[str, list[str]]:
        section = await section_of(recorded)
        return {name: severities(section, name) for name in names}

    assert await findings() == {name: [] for name in names}
    with pytest.raises(Killed):
        await distribution.distribute(recorded, done=stop_after(1))
    assert (await findings())["postgresql.distribution"] == ["error"]
    await distribution.distribute(recorded)
    assert await findings() == {name: [] for name in names}


async def test_doctor_reports_nodes_that_cannot_be_queried(recorded: PostgresSettings) -> None:
    name = "postgresql.nodes"
    assert result_of(await section_of(recorded), name).summary == "one server"
    await distribution.distribute(recorded)
    assert result_of(await section_of(recorded), name).summary == "2 of 2 answer"
    await execute(recorded, "UPDATE pg_dist_node SET nodeport = 1 WHERE groupid = 1")
    await execute(recorded, "UPDATE pg_dist_node SET isactive = false WHERE groupid = 2")
    section = await section_of(recorded)
    assert severities(section, name) == ["error", "error"]
    assert "localhost:1 " in meanings(section, name)
    assert "localhost:5432 " in meanings(section, name)
    assert result_of(section, name).summary == "0 of 2 answer"


async def test_nodes_that_hang_do_not_end_the_checks(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    await execute(recorded, "UPDATE pg_dist_node SET nodeport = 2 WHERE groupid = 1", ADD_NODES)
    await execute(recorded, "UPDATE pg_dist_node SET nodeport = 2 WHERE groupid = 10")
    section = await section_of(recorded)
    assert section.out_of_reach is None
    assert result_of(section, "postgresql.nodes").summary == "8 of 10 answer"
    assert meanings(section, "postgresql.nodes").count("localhost:2 ") == 2


async def test_doctor_reports_forced_custom_plans_where_rooms_are_distributed(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    await execute(recorded, f"ALTER DATABASE {recorded.database} SET plan_cache_mode = force_custom_plan")
    section = await section_of(recorded)
    assert severities(section, "postgresql.plans") == ["warning"]
    assert result_of(section, "postgresql.plans").summary == "force_custom_plan; rooms are distributed"


async def test_hub_starts_where_shards_are_hidden_and_doctor_warns(
    recorded: PostgresSettings, settings: Settings, administrator: PostgresSettings
) -> None:
    await distribution.distribute(recorded)
    await execute(
        administrator, f"ALTER DATABASE {recorded.database} RESET citus.show_shards_for_app_name_prefixes"
    )
    name = "postgresql.distribution"
    async with Hub(settings):
        pass
    pool = Pool(recorded)
    try:
        assert severities(await postgresql.check(pool, recorded, 1), name) == ["warning"]
        taken: list[distribution.Step] = []
        # Without the library, an owner may not set its parameters.
        as_administrator = replace(administrator, database=recorded.database)
        await distribution.distribute(as_administrator, done=taken.append)
        assert [step.title.partition(" to ")[0] for step in taken] == ["show shards"]
        assert (await distribution.plan(recorded)).left == ()
        # The session of the pool is older than the setting.
        assert severities(await postgresql.check(pool, recorded, 1), name) == []
    finally:
        await pool.close()


async def test_tables_stay_in_their_schema_where_rooms_are_distributed(recorded: PostgresSettings) -> None:
    await distribution.distribute(recorded)
    with pytest.raises(Invalid, match="distributed"):
        await migrations.move(recorded, "elsewhere")
    assert not await migrations.restored(recorded)
    with pytest.raises(Invalid, match="distributed"):
        await migrations.down(recorded, "-1")
    assert await migrations.up(recorded) == []
    assert (await distribution.plan(recorded)).left == ()
