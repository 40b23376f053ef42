"""The role of an application, which may only use the tables."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from uuid import uuid4

import pytest
from asyncpg import InsufficientPrivilegeError, InvalidSchemaNameError
from click.testing import CliRunner

from commands import execute
from hubbub import Hub, Invalid, PostgresSettings, SchemaMismatch, Unavailable, migrations
from hubbub.cli import main
from hubbub.migrations.grants import RIGHTS, Limits, quoted
from hubbub.postgres import TABLES, connect
from rights import ROLE, as_role
from sql.package import statements

FORBIDDEN = (
    "CREATE TABLE mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE INDEX ON users (avatar_url)",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE users ADD COLUMN mine int",
    "ALTER TABLE users DISABLE TRIGGER ALL",
    "DROP TABLE users",
    "TRUNCATE messages CASCADE",
    "UPDATE room_events SET seq = seq + 1",
    "UPDATE hubbub_schema_version SET version_num = '0001'",
    "DELETE FROM hubbub_imports",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_read_file('postgresql.conf')",
    "COPY users TO PROGRAM 'cat'",
    "SELECT content FROM others.secrets",
    "SET ROLE postgres",
    "CREATE ROLE mine",
    "ALTER SYSTEM SET fsync = off",
)


@pytest.fixture
async def role(administrator: PostgresSettings) -> str:
    """A role whose name has to be quoted in SQL. It is deleted with the cluster."""
    name = f"o'\"; DROP TABLE users; --{uuid4()}"
    await execute(administrator, f"CREATE ROLE {quoted(name)} LOGIN PASSWORD 'of-the-role'")
    return name


@pytest.fixture
def migrator(administrator: PostgresSettings, postgres_settings: PostgresSettings) -> PostgresSettings:
    """A superuser in a migrated database for this test alone."""
    return replace(administrator, database=postgres_settings.database)


async def _asked(settings: PostgresSettings, question: str) -> object:
    connection = await connect(settings)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


@pytest.mark.parametrize("command", FORBIDDEN)
async def test_role_of_application_is_denied_other_commands(
    migrator: PostgresSettings, postgres_settings: PostgresSettings, command: str
) -> None:
    await execute(migrator, "CREATE SCHEMA others", "CREATE TABLE others.secrets (content text)")
    with pytest.raises(InsufficientPrivilegeError):
        await execute(as_role(postgres_settings), command)


def test_granted_rights_are_exactly_those_that_statements_need() -> None:
    needed = {
        table: {
            right
            for right, words in (
                ("SELECT", r"(?:FROM|JOIN)\s+"),
                ("INSERT", r"INSERT INTO "),
                ("UPDATE", r"(?:UPDATE |FROM (?=\w+ WHERE id = \$1 FOR UPDATE)|INSERT INTO (?=[^;]+ DO UPDATE))"),
                ("DELETE", r"DELETE FROM "),
            )
            for name, statement in statements().items()
            if re.search(rf"{words}{table}\b", statement.sql + statement.distributed)
            and not name.startswith(("demo.", "migrations."))
        }
        for table in RIGHTS
    }
    assert {table: set(rights.split(", ")) for table, rights in RIGHTS.items()} == needed
    assert set(RIGHTS) == set(migrations.TABLES)


async def test_role_name_with_quotes_is_escaped_and_second_grant_changes_nothing(
    migrator: PostgresSettings, postgres_settings: PostgresSettings, role: str
) -> None:
    first = await migrations.grant(migrator, role)
    rights = await _asked(postgres_settings, "SELECT string_agg(relacl::text, ' ' ORDER BY oid) FROM pg_class")
    assert await migrations.grant(migrator, role) == first
    assert rights == await _asked(
        postgres_settings, "SELECT string_agg(relacl::text, ' ' ORDER BY oid) FROM pg_class"
    )
    login = replace(postgres_settings, user=role, password="of-the-role")
    assert await _asked(login, "SELECT count(*) FROM users") == 0


async def test_role_gets_search_path_and_limits_in_this_database_only(
    migrator: PostgresSettings, role: str
) -> None:
    limits = Limits(statement_seconds=7, lock_seconds=0.5, idle_in_transaction_seconds=9)
    await migrations.grant(migrator, role, limits=limits)
    login = replace(migrator, user=role, password="of-the-role")
    assert await _asked(login, "SHOW search_path") == "public, pg_temp"
    assert await _asked(login, "SHOW statement_timeout") == "7s"
    assert await _asked(login, "SHOW lock_timeout") == "500ms"
    assert await _asked(login, "SHOW idle_in_transaction_session_timeout") == "9s"
    assert await _asked(replace(login, database="postgres"), "SHOW statement_timeout") == "0"


async def test_grant_revokes_former_rights(
    migrator: PostgresSettings, postgres_settings: PostgresSettings, role: str
) -> None:
    await execute(postgres_settings, f"GRANT ALL ON TABLE messages TO {quoted(role)}")
    await migrations.grant(migrator, role)
    with pytest.raises(InsufficientPrivilegeError):
        await execute(replace(postgres_settings, user=role, password="of-the-role"), "TRUNCATE messages CASCADE")


async def test_grant_finds_tables_in_another_schema(
    migrator: PostgresSettings, postgres_settings: PostgresSettings, role: str
) -> None:
    await migrations.move(migrator, "chat")
    await migrations.grant(replace(migrator, schema="chat"), role)
    login = replace(postgres_settings, user=role, password="of-the-role")
    assert await _asked(login, "SELECT count(*) FROM users") == 0
    with pytest.raises((InsufficientPrivilegeError, InvalidSchemaNameError)):
        await execute(login, "CREATE TABLE mine (id int)")


async def test_role_whose_rights_cannot_be_limited_is_refused(
    administrator: PostgresSettings, migrator: PostgresSettings, postgres_settings: PostgresSettings, role: str
) -> None:
    for unfit, reason in (
        ("postgres", "superuser"),
        (postgres_settings.user, "owns the tables"),
        ("pg_read_all_data", "PostgreSQL's own"),
        ("nobody here", "no such role"),
        ("public", "no such role"),
        ("a\0b", "NUL"),
        ("x" * 64, "at most 63"),
    ):
        with pytest.raises(Invalid, match=reason):
            await migrations.grant(migrator, unfit)
    await execute(administrator, f"GRANT {postgres_settings.user} TO {quoted(role)}")
    with pytest.raises(Invalid, match="a member of their owner"):
        await migrations.grant(migrator, role)


async def test_role_that_can_become_superuser_is_refused(
    administrator: PostgresSettings, migrator: PostgresSettings, role: str
) -> None:
    boss, between = (quoted(f"{name} {uuid4()}") for name in ("boss", "between"))
    await execute(
        administrator,
        f"CREATE ROLE {boss} SUPERUSER",
        f"CREATE ROLE {between} NOINHERIT",
        f"GRANT {boss} TO {between}",
        f"GRANT {between} TO {quoted(role)}",
    )
    with pytest.raises(Invalid, match="superuser"):
        await migrations.grant(migrator, role)
    await execute(administrator, f"REVOKE {boss} FROM {between}", f"DROP ROLE {boss}")
    await migrations.grant(migrator, role)


async def test_grant_without_the_right_to_grant_names_the_way_out_and_changes_nothing(
    administrator: PostgresSettings, postgres_settings: PostgresSettings, role: str
) -> None:
    with pytest.raises(Unavailable, match=r"permission denied.*run it as the owner of the tables") as caught:
        await migrations.grant(postgres_settings, role)
    assert not caught.value.retryable
    with pytest.raises(InsufficientPrivilegeError):
        await _asked(replace(postgres_settings, user=role, password="of-the-role"), "SELECT count(*) FROM users")
    await execute(administrator, f"ALTER ROLE {quoted(role)} CREATEDB")


async def test_right_held_through_another_role_is_refused(
    administrator: PostgresSettings, migrator: PostgresSettings, role: str
) -> None:
    other = quoted(f"others {uuid4()}")
    await execute(
        migrator,
        f"CREATE ROLE {other}",
        f"GRANT CREATE ON SCHEMA public TO {other}",
        f"GRANT {other} TO {quoted(role)}",
    )
    with pytest.raises(Unavailable, match="could still create in the schema"):
        await migrations.grant(migrator, role)
    await execute(migrator, f"REVOKE CREATE ON SCHEMA public FROM {other}")
    await migrations.grant(migrator, role)


async def test_grant_on_unmigrated_database_is_refused(empty_database: PostgresSettings, role: str) -> None:
    with pytest.raises(SchemaMismatch, match="hubbub migrate up"):
        await migrations.grant(empty_database, role)


async def test_grant_command_prints_its_statements(
    migrator: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    variables = {
        "DB_HOST": migrator.host,
        "DB_PORT": str(migrator.port),
        "DB_NAME": migrator.database,
        "DB_USER": migrator.user,
        "DB_PASSWORD": str(migrator.password),
    }
    runner = CliRunner(env=variables)
    printed = await asyncio.to_thread(runner.invoke, main, ["migrate", "grant", ROLE, "--print"])
    assert printed.exit_code == 0
    lines = [f"{sql};" for sql in await migrations.grant(migrator, ROLE, only_plan=True)]
    assert printed.output.splitlines() == ["BEGIN;", *lines, "COMMIT;"]
    done = await asyncio.to_thread(runner.invoke, main, ["migrate", "grant", ROLE, "--statement-timeout", "8"])
    assert (done.exit_code, done.output.startswith(ROLE)) == (0, True)
    assert await _asked(as_role(postgres_settings), "SHOW statement_timeout") == "8s"
    refused = await asyncio.to_thread(runner.invoke, main, ["migrate", "grant", "postgres"])
    assert (refused.exit_code, refused.output.partition(":")[0]) == (1, "Error")


async def test_hub_runs_as_granted_role(hub: Hub) -> None:
    """Every test with the fixture `hub` does so. This one asserts it."""
    ada = await hub.register("ada@example.org", "ada", "correct horse")
    assert await hub.users.get(ada.id) == ada
    assert hub.settings.postgres.user == ROLE
    assert hub.settings.redis.username == "hubbub"


async def test_owner_can_migrate_after_grant(
    migrator: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    """In PostgreSQL 14 the owner could create tables only by the right of PUBLIC."""
    await migrations.grant(migrator, ROLE)
    await migrations.down(postgres_settings, "0009")
    await migrations.up(postgres_settings)


OWNERS = """
    SELECT string_agg(DISTINCT owner::regrole::text, ', ')
    FROM (
        SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT proowner FROM pg_proc WHERE proname = 'hubbub_check_room'
    ) AS made
"""


@pytest.mark.parametrize("way", ["up", "sql", "nothing to do"])
async def test_objects_made_by_a_superuser_belong_to_the_owner_of_the_tables(
    migrator: PostgresSettings, postgres_settings: PostgresSettings, way: str
) -> None:
    owner = postgres_settings.user
    if way == "nothing to do":  # as a former version left it
        tables = ("hubbub_consumers", "hubbub_sessions", "hubbub_presence")
        changes = [*(f"TABLE {table}" for table in tables), "FUNCTION hubbub_check_room()"]
        await execute(migrator, *(f"ALTER {one} OWNER TO {quoted(migrator.user)}" for one in changes))
        assert await _asked(migrator, OWNERS) != owner
        assert await migrations.up(postgres_settings) == []  # the owner may not own them
        rest = {*TABLES} - {"rooms", *tables}
        await execute(migrator, *(f"ALTER TABLE {one} OWNER TO {quoted(migrator.user)}" for one in rest))
        assert await migrations.up(migrator) == []
    else:
        await migrations.down(postgres_settings, "0018")
        if way == "up":
            assert await migrations.up(migrator) == ["0019", "0020", "0021", "0022"]
        else:
            await execute(migrator, *migrations.sql(start="0018").strip().split(";\n\n"))
    assert await _asked(migrator, OWNERS) == owner
    await execute(postgres_settings, "DELETE FROM hubbub_sessions", "DELETE FROM hubbub_consumers")
    await migrations.down(postgres_settings, "0018")
    await migrations.up(postgres_settings)


async def test_role_that_may_not_give_its_tables_away_keeps_them(
    administrator: PostgresSettings, migrator: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    """The owner of the tables may not create any in the schema, so it may not be given one either."""
    deploy = replace(postgres_settings, user=f"deploy_{uuid4().hex}", password="of-deploy")
    await migrations.down(postgres_settings, "0018")
    await execute(
        administrator, f"CREATE ROLE {deploy.user} LOGIN PASSWORD 'of-deploy' IN ROLE {postgres_settings.user}"
    )
    await execute(
        migrator,
        f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {postgres_settings.user}",
        f"ALTER SCHEMA public OWNER TO {deploy.user}",
    )
    assert await migrations.up(deploy) == ["0019", "0020", "0021", "0022"]
    assert await migrations.up(deploy) == []
    assert await _asked(
        migrator, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'hubbub_presence'"
    ) == (deploy.user)
