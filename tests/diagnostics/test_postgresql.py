from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from diagnostics.sections import Look, Sql, failed, meanings, result_of, severities
from hubbub import Invalid, PostgresSettings, migrations
from hubbub.diagnostics import postgresql
from hubbub.diagnostics.report import Check, Result
from hubbub.diagnostics.schema import Postgres
from hubbub.postgres import Pool, Statement, connect

_WRITE = Statement("test.write", str, "INSERT INTO rooms (name) VALUES ('of the doctor') RETURNING name")


async def test_granted_role_passes_all_checks(look: Look, role: PostgresSettings) -> None:
    section = await look(role)
    assert section.out_of_reach is None
    assert len(section.checks) == len(postgresql.CHECKS)
    assert failed(section) == {"postgresql.durability"}  # the servers of the tests wait for no disk


async def test_check_that_writes_is_refused(
    look: Look, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(postgres: Postgres) -> Result:
        return Result(str(await postgres.executor.fetch_one(_WRITE)))

    monkeypatch.setattr(postgresql, "CHECKS", (Check("test.write", "write", write),))
    section = await look(database)
    assert "takes no changes" in str(section.out_of_reach)


async def test_unreachable_server_is_reported_out_of_reach(look: Look, database: PostgresSettings) -> None:
    section = await look(replace(database, port=1))
    assert "cannot connect to 127.0.0.1:1" in str(section.out_of_reach)
    assert section.checks == ()


async def test_wrong_password_is_reported_without_the_password(look: Look, database: PostgresSettings) -> None:
    section = await look(replace(database, password="not the word"))
    assert "password authentication failed" in str(section.out_of_reach)
    assert "not the word" not in repr(section)


async def test_too_old_version_is_an_error(
    look: Look, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "OLDEST", 99)
    section = await look(database)
    assert severities(section, "postgresql.version") == ["error"]
    assert "99 or later" in meanings(section, "postgresql.version")


async def test_untested_version_is_a_note(
    look: Look, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "NEWEST", 13)
    assert severities(await look(database), "postgresql.version") == ["note"]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_encoding_that_cannot_hold_every_text_is_an_error(
    look: Look, database: PostgresSettings, sql: Sql, encoding: str
) -> None:
    assert severities(await look(database), "postgresql.encoding") == []
    name = f"narrow_{uuid4().hex}"
    options = f"ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0"
    if await server_version(database) < 150_000:
        options = options.replace("LOCALE_PROVIDER libc ", "")
    await sql(f"CREATE DATABASE {name} OWNER {database.user} {options}")
    narrow = replace(database, database=name)
    section = await look(narrow)
    assert severities(section, "postgresql.encoding") == ["error"]
    assert encoding in meanings(section, "postgresql.encoding")
    with pytest.raises(Invalid, match=encoding) as refused:
        await migrations.up(narrow)
    assert refused.value.field == "database"
    assert (await migrations.status(narrow)).current is None
    await sql(f"DROP DATABASE {name}")


async def test_collation_that_has_changed_is_an_error_with_the_statements_to_run(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    if await server_version(database) < 170_000:
        pytest.skip("the collation of these servers has a version from PostgreSQL 17 on")
    await sql("UPDATE pg_database SET datcollversion = '0' WHERE datname = current_database()")
    section = await look(database)
    assert severities(section, "postgresql.encoding") == ["error"]
    assert f"REINDEX DATABASE CONCURRENTLY {database.database}" in meanings(section, "postgresql.encoding")
    await sql(f"ALTER DATABASE {database.database} REFRESH COLLATION VERSION")
    assert severities(await look(database), "postgresql.encoding") == []


async def test_collation_of_an_index_that_has_changed_is_an_error(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    if await server_version(database) < 170_000:
        pytest.skip("these servers have a collation with a version from PostgreSQL 17 on")
    await sql("CREATE TABLE words (word text COLLATE pg_c_utf8 PRIMARY KEY)")
    await sql("UPDATE pg_collation SET collversion = '0' WHERE collname = 'pg_c_utf8'")
    section = await look(database)
    assert severities(section, "postgresql.encoding") == ["error"]
    assert "ALTER COLLATION pg_c_utf8 REFRESH VERSION" in meanings(section, "postgresql.encoding")


async def test_collations_are_read_as_of_postgresql_14(database: PostgresSettings) -> None:
    pool = Pool(database)
    assert await pool.fetch_all(postgresql.stale_collations(14)) == []
    await pool.close()


async def server_version(settings: PostgresSettings) -> int:
    connection = await connect(settings)
    number = await connection.fetchval("SELECT current_setting('server_version_num')")
    await connection.close()
    return int(number)


async def test_remote_server_without_tls_is_an_error(look: Look, database: PostgresSettings) -> None:
    assert severities(await look(database), "postgresql.tls") == []
    elsewhere = replace(database, host="db.example.org")
    section = await look(database, pretended=elsewhere)
    assert severities(section, "postgresql.tls") == ["error"]
    assert "DB_SSLMODE=verify-full" in meanings(section, "postgresql.tls")


async def test_settings_that_lose_data_in_a_crash_are_errors(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    section = await look(database)  # the servers of the tests wait for no disk
    assert severities(section, "postgresql.durability") == ["error", "error", "error"]
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{setting} is off" in meanings(section, "postgresql.durability")
    await sql(f"ALTER DATABASE {database.database} SET synchronous_commit = on")
    assert severities(await look(database), "postgresql.durability") == ["error", "error"]


@pytest.mark.parametrize(("processes", "expected"), [(1, []), (4, ["note"]), (50, ["error"])])
async def test_pools_of_all_processes_are_compared_with_max_connections(
    look: Look, database: PostgresSettings, processes: int, expected: list[str]
) -> None:
    section = await look(database, processes=processes)
    assert severities(section, "postgresql.connections") == expected


async def test_connection_limit_of_the_database_counts(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {database.database} CONNECTION LIMIT 10")
    section = await look(database)
    assert severities(section, "postgresql.connections") == ["error"]
    assert "20 of 10" in meanings(section, "postgresql.connections")


async def test_connections_behind_a_pooler_are_not_counted(look: Look, database: PostgresSettings) -> None:
    section = await look(replace(database, prepared_statements=False), processes=1_000)
    assert severities(section, "postgresql.connections") == []
    assert "pooler" in result_of(section, "postgresql.connections").summary


async def test_superuser_is_an_error(look: Look, as_superuser: PostgresSettings) -> None:
    section = await look(as_superuser)
    assert severities(section, "postgresql.role") == ["error"]
    assert "hubbub migrate grant ROLE" in meanings(section, "postgresql.role")


async def test_owner_of_the_tables_is_a_warning(look: Look, database: PostgresSettings) -> None:
    section = await look(database)
    assert severities(section, "postgresql.role") == ["warning"]
    for power in ("owns the tables", "may create databases"):
        assert power in meanings(section, "postgresql.role")


async def test_rights_through_another_role_count(
    look: Look, role: PostgresSettings, database: PostgresSettings, sql: Sql
) -> None:
    assert severities(await look(role), "postgresql.role") == []
    await sql(f"GRANT {database.user} TO {role.user}")
    assert "owns the tables" in meanings(await look(role), "postgresql.role")


async def test_role_attributes_beyond_the_database_are_named(look: Look, role: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER ROLE {role.user} CREATEROLE REPLICATION BYPASSRLS")
    found = meanings(await look(role), "postgresql.role")
    for power in ("may create roles", "may replicate", "bypasses row security"):
        assert power in found


async def test_member_of_a_superuser_role_is_an_error(look: Look, role: PostgresSettings, sql: Sql) -> None:
    boss = f"boss_{uuid4().hex}"
    await sql(f"CREATE ROLE {boss} CREATEDB BYPASSRLS; GRANT {boss} TO {role.user}")
    section = await look(role)
    assert severities(section, "postgresql.role") == ["warning"]
    for power in ("may create databases", "bypasses row security"):
        assert power in meanings(section, "postgresql.role")
    await sql(f"ALTER ROLE {boss} SUPERUSER")
    assert severities(await look(role), "postgresql.role") == ["error"]
    await sql(f"DROP ROLE {boss}")
    assert severities(await look(role), "postgresql.role") == []


async def test_tables_in_two_schemas_are_a_note(look: Look, database: PostgresSettings, sql: Sql) -> None:
    assert result_of(await look(database), "postgresql.schema").findings == ()
    await sql("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.hubbub_schema_version (version_num text)")
    section = await look(database)
    assert severities(section, "postgresql.schema") == ["note"]
    assert "in elsewhere, too. This application uses those in public." in meanings(section, "postgresql.schema")


async def test_schema_named_like_the_role_hides_no_table(look: Look, database: PostgresSettings, sql: Sql) -> None:
    """PostgreSQL's default search path begins with it."""
    await sql(f"CREATE SCHEMA {database.user} CREATE TABLE users (id int)")
    assert severities(await look(database), "postgresql.migrations") == []
    assert severities(await look(database), "postgresql.plans") == []


async def test_transaction_that_has_written_and_stays_open_is_named(
    look: Look, database: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "LONG_SECONDS", 0)
    connection = await connect(database)
    transaction = connection.transaction()
    await transaction.start()
    pid = connection.get_server_pid()
    assert f"session {pid} " not in meanings(await look(database), "postgresql.transactions")  # only begun
    await connection.execute("INSERT INTO rooms (name) VALUES ('of a long transaction')")
    section = await look(database)
    assert f"session {pid} of {database.user} in {database.database}" in meanings(
        section, "postgresql.transactions"
    )
    assert f"pg_terminate_backend({pid})" in meanings(section, "postgresql.transactions")
    await transaction.rollback()
    await connection.close()
    assert f"session {pid} " not in meanings(await look(database), "postgresql.transactions")
