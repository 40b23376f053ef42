"""The list of revisions, and the check of the revision at the start of a hub."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from hubbub import Invalid, PostgresSettings, SchemaMismatch, migrations
from hubbub.migrations import HEAD, REVISIONS, Timeouts, revisions, verify
from hubbub.migrations.revisions import VERSIONS
from hubbub.postgres import Pool
from migrations.filled import fill


def test_every_revision_has_one_file_up_and_one_down_of_the_same_name() -> None:
    for direction in ("up", "down"):
        files = sorted(VERSIONS.glob(f"*.{direction}.sql"))
        assert tuple(file.name.partition("_")[0] for file in files) == REVISIONS
    names = {file.name.partition(".")[0] for file in VERSIONS.iterdir()}
    assert len(names) == len(REVISIONS)


def test_every_revision_has_a_title_and_what_undoing_it_deletes() -> None:
    for revision in REVISIONS:
        described = migrations.describe(revision)
        assert described.title
        assert described.loss
    with pytest.raises(Invalid):
        migrations.describe("0042")


def test_importing_the_migrations_loads_neither_alembic_nor_sqlalchemy() -> None:
    code = "import sys, hubbub.migrations; sys.exit(bool({'alembic', 'sqlalchemy'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_former_name_of_the_timeouts_warns_and_works(empty_database: PostgresSettings) -> None:
    with pytest.deprecated_call(match="Timeouts"):
        patience: Any = migrations.Patience
    timeouts = patience(lock_timeout_seconds=1, locks_seconds=2, turn_seconds=3)
    assert timeouts == Timeouts(lock_timeout_seconds=1, retry_seconds=2, migration_lock_seconds=3)
    with pytest.deprecated_call(match="timeouts="):
        assert await migrations.up(empty_database, "0001", patience=timeouts) == ["0001"]
    with pytest.raises(AttributeError, match="no attribute 'Impatience'"):
        migrations.Impatience  # noqa: B018


async def test_migrated_database_is_accepted(postgres_settings: PostgresSettings) -> None:
    pool = Pool(postgres_settings)
    await verify(pool)
    async with pool.transaction() as transaction:
        await verify(transaction)
    await pool.close()


async def test_database_without_schema_is_refused_with_the_command_to_migrate(
    empty_database: PostgresSettings,
) -> None:
    pool = Pool(empty_database)
    async with pool.transaction() as transaction:  # a failed statement would abort it
        with pytest.raises(SchemaMismatch) as mismatch:
            await verify(transaction)
    await pool.close()
    assert (mismatch.value.found, mismatch.value.wanted) == (None, HEAD)
    assert "hubbub migrate up" in mismatch.value.hint


async def test_database_at_base_has_no_revision(postgres_settings: PostgresSettings) -> None:
    await migrations.down(postgres_settings, "base")
    assert (await migrations.status(postgres_settings)).current is None
    assert await migrations.up(postgres_settings) == list(REVISIONS)


async def test_older_database_is_refused_with_the_command_to_migrate(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0002")
    pool = Pool(empty_database)
    with pytest.raises(SchemaMismatch) as mismatch:
        await verify(pool)
    await pool.close()
    assert mismatch.value.found == "0002"
    assert "hubbub migrate up" in mismatch.value.hint


@pytest.fixture
async def newer_database(postgres_settings: PostgresSettings) -> PostgresSettings:
    await fill(postgres_settings, "UPDATE hubbub_schema_version SET version_num = '9999'")
    return postgres_settings


async def test_newer_database_is_refused_with_advice_to_upgrade(newer_database: PostgresSettings) -> None:
    pool = Pool(newer_database)
    with pytest.raises(SchemaMismatch) as mismatch:
        await verify(pool)
    await pool.close()
    assert mismatch.value.found == "9999"
    assert "upgrade hubbub" in mismatch.value.hint


async def test_newer_database_is_not_changed(newer_database: PostgresSettings) -> None:
    with pytest.raises(SchemaMismatch, match="upgrade hubbub"):
        await migrations.up(newer_database)
    with pytest.raises(SchemaMismatch, match="upgrade hubbub"):
        await migrations.down(newer_database, "base")
    status = await migrations.status(newer_database)
    assert (status.current, status.unknown) == ("9999", True)


async def test_version_table_with_two_rows_is_refused(postgres_settings: PostgresSettings) -> None:
    await fill(postgres_settings, "INSERT INTO hubbub_schema_version VALUES ('0003')")
    with pytest.raises(SchemaMismatch) as mismatch:
        await migrations.up(postgres_settings)
    assert mismatch.value.found == f"0003, {HEAD}"


@pytest.mark.parametrize("revision", ["", "heads", "10", "9999", "+1", "-2", "0001; DROP TABLE users", "0009\n"])
async def test_unknown_revision_is_refused(postgres_settings: PostgresSettings, revision: str) -> None:
    for move in (migrations.up, migrations.down):
        with pytest.raises(Invalid) as refused:
            await move(postgres_settings, revision)
        assert refused.value.field == "revision"
    assert (await migrations.status(postgres_settings)).pending == ()


async def test_down_to_newer_revision_is_refused(empty_database: PostgresSettings) -> None:
    await migrations.up(empty_database, "0002")
    with pytest.raises(Invalid, match="0003 is not applied"):
        await migrations.down(empty_database, "0003")
    assert await migrations.down(empty_database, "0002") == []


async def test_up_to_older_revision_changes_nothing(empty_database: PostgresSettings) -> None:
    assert await migrations.up(empty_database, "0003") == ["0001", "0002", "0003"]
    assert await migrations.up(empty_database, "0001") == []
    status = await migrations.status(empty_database)
    assert (status.current, status.applied) == ("0003", REVISIONS[:3])
    assert status.pending == REVISIONS[3:]


async def test_down_without_schema_undoes_nothing(empty_database: PostgresSettings) -> None:
    assert await migrations.down(empty_database, "-1") == []
    assert await migrations.down(empty_database, "base") == []


def test_revision_before_the_first_is_base() -> None:
    assert revisions.previous("0001") == "base"
    assert revisions.previous(HEAD) == REVISIONS[-2]
