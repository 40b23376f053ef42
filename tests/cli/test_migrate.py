"""The output and exit status of `hubbub migrate`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hubbub import PostgresSettings, Settings, migrations
from hubbub.cli import main
from hubbub.cli.migrate import SOMETHING_PENDING
from hubbub.migrations import HEAD, REVISIONS
from hubbub.postgres import connect
from migrations.filled import fill


class Terminal:
    """A terminal whose environment names one database. A migration needs no Redis."""

    def __init__(self, servers: Settings, database: PostgresSettings) -> None:
        variables = replace(servers, postgres=database).to_env()
        self._environment = {name: text for name, text in variables.items() if name.startswith("DB_")}

    async def types(self, command: str, answer: str | None = None) -> Result:
        runner = CliRunner(env=dict(self._environment))
        # The command has an event loop of its own.
        return await asyncio.to_thread(runner.invoke, main, ["migrate", *command.split()], answer)


@pytest.fixture
def new(servers: Settings, empty_database: PostgresSettings) -> Terminal:
    return Terminal(servers, empty_database)


@pytest.fixture
def migrated(servers: Settings, postgres_settings: PostgresSettings) -> Terminal:
    return Terminal(servers, postgres_settings)


async def test_up_lists_applied_revisions(new: Terminal) -> None:
    result = await new.types("up 0002")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "0001  applied  The table of users, in the original schema.",
        "0002  applied  The table of rooms, in the original schema.",
    ]
    result = await new.types("up")
    assert [line[:13] for line in result.output.splitlines()] == [f"{one}  applied" for one in REVISIONS[2:]]
    assert (await new.types("up")).output == "nothing to do\n"


async def test_check_exits_with_3_while_a_revision_is_pending(new: Terminal) -> None:
    result = await new.types("check")
    assert (result.exit_code, result.output.partition(":")[0]) == (3, f"{len(REVISIONS)} pending")
    await new.types(f"up {REVISIONS[-2]}")
    result = await new.types("check")
    assert (result.exit_code, result.output) == (3, f"1 pending: {HEAD} (run `hubbub migrate up`)\n")
    await new.types("up")
    result = await new.types("check")
    assert (result.exit_code, result.output) == (0, f"at {HEAD}, nothing pending\n")


async def test_status_lists_applied_and_pending_revisions(new: Terminal) -> None:
    first_line = f"the database is at no revision, this hubbub at {HEAD}\n"
    assert (await new.types("status")).output.startswith(first_line)
    await new.types("up 0009")
    lines = (await new.types("status")).output.splitlines()
    assert lines[0] == f"the database is at 0009, this hubbub at {HEAD}"
    applied = [f"{one}  applied" for one in REVISIONS[:9]]
    pending = [f"{one}  pending" for one in REVISIONS[9:]]
    assert [line[:13] for line in lines[1:]] == applied + pending


async def test_down_lists_losses_and_continues_only_after_confirmation(
    migrated: Terminal, postgres_settings: PostgresSettings
) -> None:
    result = await migrated.types("down 0007", answer="n\n")
    assert result.exit_code == 1
    assert "0008  which rooms are the direct rooms of two people" in result.output
    assert (await migrations.status(postgres_settings)).current == HEAD
    result = await migrated.types("down 0007", answer="y\n")
    assert result.exit_code == 0
    undone = [f"{one}  undone" for one in reversed(REVISIONS[7:])]
    assert [line[:12] for line in result.output.splitlines()[-len(undone) :]] == undone
    assert (await migrations.status(postgres_settings)).current == "0007"


async def test_down_without_confirmation_changes_nothing(
    migrated: Terminal, postgres_settings: PostgresSettings
) -> None:
    assert (await migrated.types("down base", answer="")).exit_code == 1
    assert (await migrations.status(postgres_settings)).current == HEAD


async def test_down_undoes_newest_revision_by_default(
    migrated: Terminal, postgres_settings: PostgresSettings
) -> None:
    assert (await migrated.types("down --yes")).exit_code == 0
    assert (await migrations.status(postgres_settings)).current == REVISIONS[-2]
    assert (await migrated.types("down -1 --yes")).exit_code == 0
    assert (await migrations.status(postgres_settings)).current == REVISIONS[-3]
    assert (await migrated.types("down base --yes")).exit_code == 0
    assert (await migrated.types("down --yes")).output == "nothing to do\n"


async def test_sql_prints_and_changes_nothing(new: Terminal, empty_database: PostgresSettings) -> None:
    result = await new.types("sql")
    assert result.exit_code == 0
    assert result.output == migrations.sql()
    result = await new.types("sql --down --from 0003 --to 0001")
    assert result.output == migrations.sql("down", start="0003", revision="0001")
    assert (await migrations.status(empty_database)).current is None


@pytest.mark.parametrize("command", ["up 9999", "down 9999 --yes", "down --force", "sql --to 9999"])
async def test_unknown_revision_is_refused_in_one_line(migrated: Terminal, command: str) -> None:
    result = await migrated.types(command)
    assert result.exit_code == 1
    assert result.output == f"Error: revision: there is no such revision: they go from 0001 to {HEAD}\n"


@pytest.mark.parametrize("command", ["up", "down --yes", "check"])
async def test_newer_database_is_refused_in_one_line(
    migrated: Terminal, postgres_settings: PostgresSettings, command: str
) -> None:
    await fill(postgres_settings, "UPDATE hubbub_schema_version SET version_num = '9999'")
    result = await migrated.types(command)
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "upgrade hubbub" in result.output
    assert "upgrade hubbub" in (await migrated.types("status")).output


async def test_unreachable_server_is_one_line_without_the_password(
    servers: Settings, empty_database: PostgresSettings
) -> None:
    result = await Terminal(servers, replace(empty_database, port=1, password="s3cret")).types("up")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "cannot connect" in result.output
    assert "s3cret" not in result.output


async def test_missing_settings_error_names_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = await asyncio.to_thread(CliRunner().invoke, main, ["migrate", "status"])
    assert result.exit_code == 1
    assert "hubbub up" in result.output
    assert "DATABASE_URL" in result.output


async def test_restored_reports_whether_there_was_something_to_do(
    migrated: Terminal, postgres_settings: PostgresSettings
) -> None:
    assert (await migrated.types("restored")).output == "nothing to do\n"
    owner = await connect(postgres_settings)
    await owner.execute("INSERT INTO rooms (id, name) VALUES (gen_random_uuid(), 'engine-room')")
    columns = "room_id, seq, kind, transaction_id"
    await owner.execute(f"INSERT INTO room_events ({columns}) SELECT id, 1, 'joined', 2::bigint ^ 40 FROM rooms")
    assert (await migrated.types("restored")).output == "new entries follow the restored ones\n"
    assert (await migrated.types("restored")).output == "nothing to do\n"
    await owner.execute("INSERT INTO room_events (room_id, seq, kind) SELECT id, 2, 'joined' FROM rooms")
    ids = "SELECT transaction_id FROM room_events ORDER BY seq"
    first, second = [row["transaction_id"] for row in await owner.fetch(ids)]
    assert second > first
    await owner.close()


async def test_schema_option_reaches_every_command_and_move_prints_the_setting_to_change(
    new: Terminal, empty_database: PostgresSettings
) -> None:
    assert (await new.types("--schema chat up")).exit_code == 0
    assert (await new.types("--schema chat check")).output == f"at {HEAD}, nothing pending\n"
    refused = await new.types("check")
    assert refused.exit_code == SOMETHING_PENDING
    moved = await new.types("--schema chat move talk")
    assert moved.exit_code == 0
    assert moved.output == ("the tables of hubbub are in talk now, and no longer in chat: set DB_SCHEMA=talk\n")
    assert (await new.types("--schema talk check")).exit_code == 0
    sql = (await new.types("--schema talk sql --to 0001")).output
    assert sql.startswith("CREATE SCHEMA IF NOT EXISTS talk;\n\nSET search_path = talk;\n")


async def test_unusable_schema_names_the_argument(new: Terminal) -> None:
    result = await new.types("--schema pg_mine up")
    assert result.exit_code == 1
    assert "DB_SCHEMA" in result.output
