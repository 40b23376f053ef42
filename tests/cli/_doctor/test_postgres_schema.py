from __future__ import annotations

import pytest

from cli._doctor.saying import Look, Sql, meanings, of, severities
from hubbub import PostgresSettings, migrations
from hubbub.cli._doctor import postgres_schema
from hubbub.cli._doctor.postgres_schema import INDEXES
from hubbub.migrations import HEAD, REVISIONS, TABLES
from hubbub.postgres import connect


async def test_the_indexes_that_it_knows_are_those_of_the_newest_revision(patient: PostgresSettings) -> None:
    connection = await connect(patient)
    found = await connection.fetch("SELECT indexname FROM pg_indexes WHERE tablename = ANY ($1)", list(TABLES))
    await connection.close()
    assert {name for (name,) in found} == INDEXES


async def test_pending_migrations_are_an_error(look: Look, patient: PostgresSettings) -> None:
    await migrations.down(patient, "-1")
    section = await look(patient)
    assert severities(section, "postgresql.migrations") == ["error"]
    assert of(section, "postgresql.migrations").remark == f"{REVISIONS[-2]}, 1 pending"
    assert of(section, "postgresql.indexes").unseen == f"the database is not at {HEAD}"
    assert of(section, "postgresql.plans").unseen == f"the database is not at {HEAD}"


async def test_a_database_without_tables_is_an_error(look: Look, patient: PostgresSettings) -> None:
    await migrations.down(patient, "base")
    section = await look(patient)
    assert "hubbub migrate up" in meanings(section, "postgresql.migrations")
    assert section.out_of_reach is None


async def test_a_revision_that_only_a_newer_hubbub_knows_is_an_error(
    look: Look, patient: PostgresSettings, sql: Sql
) -> None:
    await sql("UPDATE hubbub_schema_version SET version_num = '9999'")
    assert "upgrade hubbub" in meanings(await look(patient), "postgresql.migrations")


async def test_an_invalid_index_is_told_with_what_mends_it(
    look: Look, patient: PostgresSettings, sql: Sql
) -> None:
    await sql("CREATE INDEX idx_rooms_name_ccnew ON rooms (name)")
    await sql(
        "UPDATE pg_index SET indisvalid = false "
        "WHERE indexrelid IN ('idx_rooms_name'::regclass, 'idx_rooms_name_ccnew'::regclass)"
    )
    section = await look(patient)
    assert severities(section, "postgresql.indexes") == ["error", "warning"]
    assert "REINDEX INDEX CONCURRENTLY idx_rooms_name," in meanings(section, "postgresql.indexes")
    assert "DROP INDEX CONCURRENTLY idx_rooms_name_ccnew," in meanings(section, "postgresql.indexes")


async def test_a_missing_index_is_an_error(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    await sql("DROP INDEX idx_room_users_user_id")
    section = await look(patient)
    assert severities(section, "postgresql.indexes") == ["error"]
    assert "idx_room_users_user_id is missing" in meanings(section, "postgresql.indexes")


async def test_an_index_that_was_added_and_is_never_used_is_told_once_statistics_are_old_enough(
    look: Look, patient: PostgresSettings, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sql("CREATE INDEX of_the_application ON messages (message_type)")
    section = await look(patient)
    assert severities(section, "postgresql.indexes") == []
    assert "too young" in of(section, "postgresql.indexes").remark
    monkeypatch.setattr(postgres_schema, "TELLING_SECONDS", 0)
    section = await look(patient)
    assert severities(section, "postgresql.indexes") == ["warning"]
    assert "of_the_application on messages" in meanings(section, "postgresql.indexes")


async def test_a_foreign_key_of_the_application_needs_an_index_too(
    look: Look, patient: PostgresSettings, sql: Sql
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
    section = await look(patient)
    assert severities(section, "postgresql.foreign_keys") == ["warning"]
    assert "CREATE INDEX CONCURRENTLY ON invitations (user_id)" in meanings(section, "postgresql.foreign_keys")
    await sql("CREATE INDEX ON invitations (user_id)")
    assert of(await look(patient), "postgresql.foreign_keys").remark == "each has an index"


async def test_a_foreign_key_of_two_columns_needs_an_index_that_begins_with_both(
    look: Look, patient: PostgresSettings, sql: Sql
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
    assert "CONCURRENTLY ON badges (room_id, user_id)" in meanings(await look(patient), "postgresql.foreign_keys")
    await sql("CREATE INDEX ON badges (user_id, room_id)")
    assert of(await look(patient), "postgresql.foreign_keys").findings == ()
