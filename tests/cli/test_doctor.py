"""`hubbub doctor` as its user sees it: the output and the exit status."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hubbub import Hub, PostgresSettings, Room, Settings, User
from hubbub.cli import main
from hubbub.diagnostics import doctor as checks_of_both
from hubbub.diagnostics import postgresql, redis
from waiting import HANGS_AFTER_SECONDS

ALL = [check.name for checks in (postgresql.CHECKS, redis.CHECKS, checks_of_both.CHECKS) for check in checks]


async def doctor(settings: Settings, *arguments: str) -> Result:
    runner = CliRunner(env=dict(settings.to_env()))
    # The command has an event loop of its own.
    return await asyncio.to_thread(runner.invoke, main, ["doctor", *arguments])


async def test_report_shows_servers_findings_and_remedies(settings: Settings) -> None:
    result = await doctor(settings)
    assert result.exit_code == 1, result.output  # the servers of the tests wait for no disk
    assert f" at 127.0.0.1:{settings.postgres.port}\n" in result.output
    assert "fsync is off" in result.output
    assert "Set fsync = on in postgresql.conf" in result.output
    assert result.output.splitlines()[-1].endswith(".")


async def test_json_has_every_check_by_name(settings: Settings) -> None:
    result = await doctor(settings, "--json")
    told = json.loads(result.output)
    assert told["exit_status"] == result.exit_code == 1
    assert [section["kind"] for section in told["sections"]] == ["postgresql", "redis", "together"]
    assert [check["name"] for section in told["sections"] for check in section["checks"]] == ALL


async def test_login_with_fewest_rights_gets_few_findings_and_the_skipped_checks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checks_of_both, "DELIVERY_SECONDS", HANGS_AFTER_SECONDS
    )  # later is a finding on a busy machine
    sections = json.loads((await doctor(settings, "--json")).output)["sections"]
    checks = [check for section in sections for check in section["checks"]]
    assert {check["name"] for check in checks if check["findings"]} <= {
        "postgresql.durability",  # the servers of the tests wait for no disk
        "together.passwords",  # and the machine may be any
    }
    assert {check["name"] for check in checks if check["unseen"]} == {
        "redis.version",
        "redis.role",
        "redis.memory",
        "redis.persistence",
        "redis.appendfsync",
    }
    assert all("NOPERM" in check["unseen"] for check in checks if check["unseen"])


@pytest.mark.session("compares with what the server has, which behind a pooler is not what matters")
async def test_pools_of_many_processes_that_exceed_max_connections_are_reported(settings: Settings) -> None:
    result = await doctor(settings, "--processes", "100")
    assert "100 processes with pools of 20 may open 2,000" in " ".join(result.output.split())


@pytest.mark.parametrize("away", ["postgres", "redis"])
async def test_server_out_of_reach_leaves_the_checks_of_the_other_one(settings: Settings, away: str) -> None:
    nowhere = replace(getattr(settings, away), port=1, connect_timeout_seconds=1)
    result = await doctor(replace(settings, **{away: nowhere}), "--json")
    assert result.exit_code == 3
    chat, live, both = json.loads(result.output)["sections"]
    assert (chat["out_of_reach"] is not None, live["out_of_reach"] is not None) == (
        away == "postgres",
        away == "redis",
    )
    assert bool(chat["checks"]) == (away == "redis")
    assert bool(live["checks"]) == (away == "postgres")
    assert [check["name"] for check in both["checks"]] == [check.name for check in checks_of_both.CHECKS]


async def test_report_contains_no_password(settings: Settings) -> None:
    secrets = [settings.postgres.password, settings.redis.password]
    for arguments in ([], ["--json"]):
        result = await doctor(settings, *arguments)
        assert not [secret for secret in secrets if secret and secret in result.output]


async def test_doctor_changes_no_data(settings: Settings, hub: Hub, ada: User, room: Room) -> None:
    message = await hub.messages.send(room.id, ada.id, "hello")
    await doctor(settings)
    assert (await hub.messages.page(room.id)).items[-1] == message
    assert (await hub.rooms.get(room.id)).last_seq == message.seq


async def test_database_without_tables_is_reported_with_the_command_that_creates_them(
    servers: Settings, empty_database: PostgresSettings
) -> None:
    result = await doctor(replace(servers, postgres=empty_database))
    assert result.exit_code == 1
    assert "Run `hubbub migrate up`" in " ".join(result.output.split())


def test_every_check_is_in_the_table_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = page.partition("| check | finds |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+\.\w+)`", table)) == sorted(ALL)


async def test_without_servers_the_error_names_hubbub_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = await asyncio.to_thread(CliRunner().invoke, main, ["doctor"])
    assert result.exit_code == 1
    assert "hubbub up" in result.output
