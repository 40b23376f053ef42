from __future__ import annotations

import pytest

from diagnostics.sections import Look, Sql, meanings, result_of, severities
from hubbub import PostgresSettings, migrations
from hubbub.diagnostics import schema
from hubbub.diagnostics.schema import INDEXES, hot_statements
from hubbub.migrations import HEAD, REVISIONS, TABLES
from hubbub.postgres import connect
from sql.package import statements
from waiting import until_it_answers


async def test_known_indexes_are_those_of_the_newest_revision(database: PostgresSettings) -> None:
    connection = await connect(database)
    found = await connection.fetch("SELECT indexname FROM pg_indexes WHERE tablename = ANY ($1)", list(TABLES))
    await connection.close()
    assert {name for (name,) in found} == INDEXES


async def test_pending_migrations_are_an_error(look: Look, database: PostgresSettings) -> None:
    await migrations.down(database, "-1")
    section = await look(database)
    assert severities(section, "postgresql.migrations") == ["error"]
    assert result_of(section, "postgresql.migrations").summary == f"{REVISIONS[-2]}, 1 pending"
    assert result_of(section, "postgresql.indexes").skipped == f"the database is not at {HEAD}"
    assert result_of(section, "postgresql.plans").skipped == f"the database is not at {HEAD}"


async def test_database_without_tables_is_an_error(look: Look, database: PostgresSettings) -> None:
    await migrations.down(database, "base")
    section = await look(database)
    assert "hubbub migrate up" in meanings(section, "postgresql.migrations")
    assert section.out_of_reach is None


async def test_revision_of_a_newer_hubbub_is_an_error(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql("UPDATE hubbub_schema_version SET version_num = '9999'")
    assert "upgrade hubbub" in meanings(await look(database), "postgresql.migrations")


async def test_invalid_index_is_reported_with_its_repair(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql('CREATE INDEX "idx_rooms_name_CCnew" ON rooms (name)')
    await sql(
        "UPDATE pg_index SET indisvalid = false "
        "WHERE indexrelid IN ('idx_rooms_name'::regclass, '\"idx_rooms_name_CCnew\"'::regclass)"
    )
    section = await look(database)
    assert severities(section, "postgresql.indexes") == ["error", "warning"]
    assert "REINDEX INDEX CONCURRENTLY public.idx_rooms_name," in meanings(section, "postgresql.indexes")
    assert 'DROP INDEX CONCURRENTLY public."idx_rooms_name_CCnew",' in meanings(section, "postgresql.indexes")


async def test_missing_index_is_an_error(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql("DROP INDEX idx_room_users_user_id")
    section = await look(database)
    assert severities(section, "postgresql.indexes") == ["error"]
    assert "idx_room_users_user_id is missing" in meanings(section, "postgresql.indexes")


async def test_unused_index_of_the_application_is_a_warning_once_statistics_are_old_enough(
    look: Look, database: PostgresSettings, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sql("CREATE INDEX of_the_application ON messages (message_type)")
    section = await look(database)
    assert severities(section, "postgresql.indexes") == []
    assert "too young" in result_of(section, "postgresql.indexes").summary
    monkeypatch.setattr(schema, "UNUSED_SECONDS", 0)
    section = await look(database)
    assert severities(section, "postgresql.indexes") == ["warning"]
    assert "of_the_application on messages" in meanings(section, "postgresql.indexes")


async def test_foreign_key_of_the_application_without_an_index_is_a_warning(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    await sql(
        """
        CREATE TABLE invitations (
            id bigint PRIMARY KEY,
            room_id uuid REFERENCES rooms (id),
            user_id uuid REFERENCES users (id)
        );
        CREATE INDEX ON invitations (room_id) WHERE room_id IS NOT NULL;
        CREATE INDEX ON invitations (id, user_id);
        """
    )
    section = await look(database)
    assert severities(section, "postgresql.foreign_keys") == ["warning"]
    assert "CREATE INDEX CONCURRENTLY ON invitations (user_id)" in meanings(section, "postgresql.foreign_keys")
    await sql("CREATE INDEX ON invitations (user_id)")
    assert result_of(await look(database), "postgresql.foreign_keys").summary == "each has an index"


async def test_foreign_key_of_two_columns_needs_an_index_that_begins_with_both(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    await sql(
        """
        CREATE TABLE badges (
            room_id uuid,
            user_id uuid,
            CONSTRAINT of_a_member FOREIGN KEY (room_id, user_id) REFERENCES room_users (room_id, user_id)
        );
        CREATE INDEX ON badges (room_id);
        """
    )
    assert "CONCURRENTLY ON badges (room_id, user_id)" in meanings(await look(database), "postgresql.foreign_keys")
    await sql("CREATE INDEX ON badges (user_id, room_id)")
    assert result_of(await look(database), "postgresql.foreign_keys").findings == ()


FILL = """
    ALTER TABLE users SET (autovacuum_enabled = false);
    INSERT INTO users (email, username, password_hash)
    SELECT 'user-' || n || '@example.org', 'user-' || n, '!'
    FROM generate_series(1, 20000) AS n;
    ANALYZE;
"""


async def test_autovacuum_off_for_a_table_is_a_warning(look: Look, database: PostgresSettings, sql: Sql) -> None:
    assert result_of(await look(database), "postgresql.vacuum").findings == ()
    await sql("ALTER TABLE room_users SET (autovacuum_enabled = off)")
    section = await look(database)
    assert severities(section, "postgresql.vacuum") == ["warning"]
    assert "ALTER TABLE public.room_users RESET (autovacuum_enabled)" in meanings(section, "postgresql.vacuum")


async def test_track_counts_off_is_an_error(look: Look, as_superuser: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {as_superuser.database} SET track_counts = off")
    section = await look(as_superuser)
    assert severities(section, "postgresql.vacuum") == ["error"]
    assert "track_counts is off" in meanings(section, "postgresql.vacuum")


async def test_many_dead_rows_are_reported(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql(FILL)
    await sql("UPDATE users SET avatar_url = 'https://example.org/a.png'")

    async def is_told() -> bool:  # the server takes its time to count
        return "20,000 dead rows" in meanings(await look(database), "postgresql.vacuum")

    await until_it_answers(is_told)


async def test_plan_that_reads_a_whole_large_table_names_its_statement(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    assert "no table is large enough" in result_of(await look(database), "postgresql.plans").summary
    await sql(FILL)
    section = await look(database)
    assert result_of(section, "postgresql.plans").findings == ()
    assert result_of(section, "postgresql.plans").summary == f"auto; {len(hot_statements())} statements planned"
    await sql("DROP INDEX idx_users_email")
    section = await look(database)
    assert "users.find_by_email reads all of users, by Seq Scan" in meanings(section, "postgresql.plans")


async def test_forced_custom_plans_are_reported(look: Look, database: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {database.database} SET plan_cache_mode = force_custom_plan")
    assert "plan_cache_mode = auto" in meanings(await look(database), "postgresql.plans")


async def test_plans_of_a_role_without_rights_are_skipped(look: Look, role: PostgresSettings, sql: Sql) -> None:
    await sql(FILL)
    await sql(f"REVOKE ALL ON room_events FROM {role.user}")
    assert result_of(await look(role), "postgresql.plans").skipped == "permission denied for table room_events"


def test_every_statement_of_the_repositories_is_planned() -> None:
    prefixes = ("users.", "rooms.", "room_users.", "messages.", "receipts.")
    assert {one.name for one in hot_statements()} >= {name for name in statements() if name.startswith(prefixes)}


async def test_deletion_that_was_cut_off_is_named_after_an_hour(
    look: Look, database: PostgresSettings, sql: Sql
) -> None:
    await sql("INSERT INTO hubbub_deletions (id, is_room) VALUES (gen_random_uuid(), true)")
    assert result_of(await look(database), "postgresql.deletions").summary == "none is unfinished"
    await sql("UPDATE hubbub_deletions SET created_at = now() - interval '2 hours'")
    section = await look(database)
    assert severities(section, "postgresql.deletions") == ["warning"]
    assert "1 account or room is hidden" in meanings(section, "postgresql.deletions")
    assert "hubbub maintain" in meanings(section, "postgresql.deletions")
