from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from hubbub import Settings
from waiting import HANGS_AFTER_SECONDS

FIND = (
    "import asyncio, hubbub\nasync def main():\n    async with hubbub.open(): print('open')\nasyncio.run(main())"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, like a newcomer's. Servers in it end with the test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert hubbub("down").returncode == 0


def hubbub(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in its own process, with its output in a pipe. An inherited pipe would be noticed."""
    return subprocess.run(
        [sys.executable, "-m", "hubbub", *arguments],
        input=answer,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def running(*arguments: str) -> str:
    """The output of `hubbub status`. A server on a busy machine may answer later than the command waits."""
    began = monotonic()
    while (status := hubbub("status", *arguments)).returncode == 3 and monotonic() - began < HANGS_AFTER_SECONDS:
        pass
    assert status.returncode == 0, status
    return status.stdout


def opened(*command: str, **variables: str) -> str:
    """The output of a program that opens a hub. A server on a busy machine may answer later than the hub waits."""
    began = monotonic()
    while True:
        run = subprocess.run(command, env={**os.environ, **variables}, text=True, capture_output=True, check=False)
        if run.returncode == 0 or "Unavailable" not in run.stderr or monotonic() - began > HANGS_AFTER_SECONDS:
            return run.stdout + run.stderr


def test_servers_are_started_used_stopped_and_deleted(here: Path) -> None:
    first = hubbub("up")
    assert (first.returncode, first.stderr) == (0, "")
    assert "migrations applied" in first.stdout
    again = hubbub("up")
    assert again.returncode == 0
    assert "up to date" in again.stdout

    env = running("--output", "env")
    settings = Settings.from_env(variables := dict(line.split("=", 1) for line in shlex.split(env)))
    assert settings is not None
    assert Settings.from_urls(variables["DATABASE_URL"], variables["REDIS_URL"]) == settings
    for text in (first.stdout, again.stdout, running()):
        assert f"127.0.0.1:{settings.postgres.port}" in text
        assert f"127.0.0.1:{settings.redis.port}" in text
        assert str(settings.postgres.password) not in text
        assert str(settings.redis.password) not in text
    figures = json.loads(running("--output", "json"))
    assert figures["running"] is True
    assert Settings.from_env(figures["env"]) == settings

    assert opened(sys.executable, "-c", FIND) == "open\n"
    says = f'set -a; eval "$({sys.executable} -m hubbub status --output env)"; cd /; {sys.executable} -c "$FIND"'
    assert opened("sh", "-c", says, FIND=FIND) == "open\n"

    assert hubbub("down").stdout == "stopped; the data stay in .hubbub\n"
    assert hubbub("down").stdout == "no servers run in .hubbub\n"
    assert hubbub("status").returncode == 3
    assert "does not run" in hubbub("status").stdout

    kept = hubbub("down", "--delete-data", answer="n\n")
    assert kept.returncode == 1
    assert (here / ".hubbub" / "postgresql" / "PG_VERSION").exists()
    deleted = hubbub("down", "--delete-data", answer="y\n")
    assert deleted.returncode == 0
    assert not (here / ".hubbub").exists()


def test_schema_and_prefix_of_the_environment_count_on_the_servers_of_the_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_SCHEMA", "chat")
    monkeypatch.setenv("REDIS_PREFIX", "shop:")
    assert "schema           chat: " in hubbub("up").stdout
    assert "pending" not in hubbub("migrate", "status").stdout
    variables = dict(line.split("=", 1) for line in shlex.split(running("--output", "env")))
    assert (variables["DB_SCHEMA"], variables["REDIS_PREFIX"]) == ("chat", "shop:")
    assert opened(sys.executable, "-c", FIND) == "open\n"
    moved = hubbub("migrate", "move", "chat")
    assert "set DB_SCHEMA to the schema that they move from" in moved.stderr
    monkeypatch.setenv("DB_SCHEMA", "public")
    assert "pending" in hubbub("migrate", "status").stdout
    assert hubbub("down", "--delete-data", "--yes").returncode == 0


def test_yes_deletes_data_without_a_question(here: Path) -> None:
    assert hubbub("down", "--yes").returncode == 2
    assert "hubbub status --folder elsewhere --output env" in hubbub("up", "--folder", "elsewhere").stdout
    assert hubbub("down", "--folder", "elsewhere", "--delete-data", "--yes").returncode == 0
    assert list(here.iterdir()) == []


def test_status_without_servers_exits_with_3(here: Path) -> None:
    text = hubbub("status")
    assert (text.returncode, text.stdout) == (3, "there are no servers in .hubbub; create them: hubbub up\n")
    env = hubbub("status", "--output", "env")
    assert (env.returncode, env.stdout) == (3, "")
    assert "hubbub up" in env.stderr
    figures = hubbub("status", "--output", "json")
    assert figures.returncode == 3
    assert json.loads(figures.stdout)["running"] is False
    assert list(here.iterdir()) == []


def test_error_of_the_user_has_no_traceback(here: Path) -> None:
    (here / ".hubbub").mkdir()
    (here / ".hubbub" / "notes.txt").touch()
    refused = hubbub("up")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: ")
    assert "holds other files" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_error_of_the_system_has_no_traceback(here: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        said = subprocess.run(
            [sys.executable, "-m", "hubbub", "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert (said.returncode, said.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_closed_pipe_prints_no_error(here: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        said = subprocess.run(
            [sys.executable, "-m", "hubbub", "status"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    finally:
        os.close(writer)
    assert (said.returncode, said.stderr) == (1, "")


def test_help_names_every_command_and_imports_none() -> None:
    script = "import sys, hubbub.cli as cli; cli.main(['--help'], standalone_mode=False); print(*sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    for command in ("demo", "up", "down", "status", "migrate"):
        assert f"  {command} " in said
    assert not {"hubbub.cli.servers", "hubbub.cli.migrate", "alembic", "sqlalchemy"} & set(said.split())


def test_every_command_of_the_help_exists() -> None:
    for command in ("demo", "up", "down", "status", "migrate"):
        assert hubbub(command, "--help").returncode == 0
    assert hubbub("--version").stdout.startswith("hubbub ")
    assert hubbub("dance").returncode == 2
