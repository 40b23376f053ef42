from __future__ import annotations

from dataclasses import replace

import pytest

from cli._doctor.saying import Look, Sql, meanings, of, severities
from hubbub import PostgresSettings
from hubbub.cli._doctor import postgres_server


async def test_a_version_that_is_too_old_is_an_error(
    look: Look, patient: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "OLDEST", 99)
    section = await look(patient)
    assert severities(section, "postgresql.version") == ["error"]
    assert "99 or later" in meanings(section, "postgresql.version")


async def test_a_version_that_nobody_has_tested_is_a_note(
    look: Look, patient: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_server, "NEWEST", 13)
    assert severities(await look(patient), "postgresql.version") == ["note"]


async def test_a_way_over_the_network_without_tls_is_an_error(look: Look, patient: PostgresSettings) -> None:
    assert severities(await look(patient), "postgresql.tls") == []
    elsewhere = replace(patient, host="db.example.org")
    section = await look(patient, said=elsewhere)
    assert severities(section, "postgresql.tls") == ["error"]
    assert "DB_SSLMODE=verify-full" in meanings(section, "postgresql.tls")


async def test_what_does_not_survive_a_crash_is_an_error(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    section = await look(patient)  # the servers of the tests wait for no disk
    assert severities(section, "postgresql.durability") == ["error", "error", "error"]
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{setting} is off" in meanings(section, "postgresql.durability")
    await sql(f"ALTER DATABASE {patient.database} SET synchronous_commit = on")
    assert severities(await look(patient), "postgresql.durability") == ["error", "error"]


@pytest.mark.parametrize(("processes", "said"), [(1, []), (4, ["note"]), (50, ["error"])])
async def test_the_pools_of_all_processes_must_fit_into_the_server(
    look: Look, patient: PostgresSettings, processes: int, said: list[str]
) -> None:
    section = await look(patient, processes=processes)
    assert severities(section, "postgresql.connections") == said


async def test_a_limit_of_the_database_counts(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {patient.database} CONNECTION LIMIT 10")
    section = await look(patient)
    assert severities(section, "postgresql.connections") == ["error"]
    assert "20 of 10" in meanings(section, "postgresql.connections")


async def test_behind_a_pooler_nothing_is_counted(look: Look, patient: PostgresSettings) -> None:
    section = await look(replace(patient, prepared_statements=False), processes=1_000)
    assert severities(section, "postgresql.connections") == []
    assert "pooler" in of(section, "postgresql.connections").remark
