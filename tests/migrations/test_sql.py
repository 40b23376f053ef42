"""The printed SQL has the same effect as the migration."""

from __future__ import annotations

import pytest
from asyncpg import RaiseError

from hubbub import Invalid, PostgresSettings, migrations
from hubbub.migrations import HEAD, Timeouts
from hubbub.postgres import connect
from migrations.catalog import schema
from migrations.filled import HUBBUB_ROWS, ORIGINAL_ROWS, fill


async def _send_statements(settings: PostgresSettings, script: str) -> None:
    """Send one statement after the other, as psql does."""
    connection = await connect(settings)
    try:
        for statement in script.strip().split(";\n\n"):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_printed_sql_up_makes_the_same_schema(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await _send_statements(empty_database, migrations.sql())
    assert await schema(empty_database) == await schema(postgres_settings)
    assert (await migrations.status(empty_database)).current == HEAD
    assert await migrations.up(empty_database) == []


async def test_printed_sql_between_two_revisions_makes_the_same_schema(
    empty_database: PostgresSettings, postgres_settings: PostgresSettings
) -> None:
    await migrations.up(empty_database, "0005")
    await fill(empty_database, ORIGINAL_ROWS)
    await _send_statements(empty_database, migrations.sql(start="0005", revision="0009"))
    assert (await migrations.status(empty_database)).current == "0009"
    await migrations.up(empty_database, timeouts=Timeouts(lock_timeout_seconds=1))
    assert await schema(empty_database) == await schema(postgres_settings)


async def test_printed_sql_down_removes_every_table(postgres_settings: PostgresSettings) -> None:
    await migrations.down(postgres_settings, "0005")
    await fill(postgres_settings, ORIGINAL_ROWS)
    await migrations.up(postgres_settings)
    await fill(postgres_settings, HUBBUB_ROWS)
    await _send_statements(postgres_settings, migrations.sql("down", revision="0003"))
    assert (await migrations.status(postgres_settings)).current == "0003"
    await _send_statements(postgres_settings, migrations.sql("down", start="0003"))
    assert (await migrations.status(postgres_settings)).current is None
    assert await schema(postgres_settings) == []


@pytest.mark.parametrize(
    ("at", "printed"),
    [
        ("0017", migrations.sql(start="0018")),
        ("0019", migrations.sql(start="0018")),
        ("0021", migrations.sql("down", start="0019", revision="0018")),
        ("0018", migrations.sql("down", start="0019", revision="0018")),
    ],
)
async def test_printed_sql_changes_nothing_in_a_database_at_another_revision(
    postgres_settings: PostgresSettings, at: str, printed: str
) -> None:
    if at != HEAD:
        await migrations.down(postgres_settings, at)
    before = await schema(postgres_settings)
    with pytest.raises(RaiseError, match=r"the database is not at revision 001[89]"):
        await _send_statements(postgres_settings, printed)
    assert await schema(postgres_settings) == before
    await migrations.up(postgres_settings)


async def test_printed_sql_and_a_late_check_do_not_bring_deleted_rooms_back(
    postgres_settings: PostgresSettings,
) -> None:
    await migrations.down(postgres_settings, "0016")
    await fill(postgres_settings, "INSERT INTO hubbub_deletions (id, is_room) VALUES (gen_random_uuid(), true)")
    with pytest.raises(RaiseError, match="run hubbub maintain"):
        await _send_statements(postgres_settings, migrations.sql("down", start="0016", revision="0015"))
    assert (await migrations.status(postgres_settings)).current == "0016"


def test_printed_sql_for_a_name_that_no_schema_of_hubbub_can_have_is_refused() -> None:
    for name in ("Chat", "chat; DROP TABLE users", "order", "pg_chat", ""):
        with pytest.raises(Invalid) as error:
            migrations.sql(schema=name)
        assert error.value.field == "schema"


def test_printed_sql_has_no_parameters() -> None:
    for direction in ("up", "down"):
        script = migrations.sql("up" if direction == "up" else "down")
        assert "$1" not in script
        assert ":name" not in script
        assert "%%" not in script


def test_printed_sql_for_unknown_revision_is_refused() -> None:
    with pytest.raises(Invalid):
        migrations.sql(start="9999")
    with pytest.raises(Invalid):
        migrations.sql(revision="9999")
    with pytest.raises(Invalid):
        migrations.sql("down", start="0003", revision="0004")
