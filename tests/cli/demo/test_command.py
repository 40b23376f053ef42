"""The command as a user runs it, in its own process with its own servers. Nothing is left of either."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from hubbub import NotFound
from hubbub.cli import demo as module
from hubbub.cli.demo import Step, demo, expected, try_servers
from hubbub.cli.demo.expected import Context
from hubbub.cli.demo.report import Section
from hubbub.postgres import connect
from redis_server import title

SECONDS = 100

LINES = (
    {"kind": "join", "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z"},
    {"kind": "message", "room": "#chat", "user": "ada", "at": "2004-11-15T12:18:00Z", "content": "hello 👋"},
    {
        "kind": "message",
        "room": "#chat",
        "user": "bo@home",
        "at": "2004-11-15T12:18:00Z",
        "content": "hello yourself",
    },
    {"kind": "topic", "room": "#chat", "user": "ada", "at": "2004-11-15T12:19:00Z"},
    {"kind": "leave", "room": "#chat", "user": "ada", "at": "2004-11-15T12:19:00Z"},
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "chat.jsonl"
    file.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in LINES).encode()))
    return file


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder in which the demo makes its temporary folder."""
    home = tmp_path / "home"
    home.mkdir()
    return home


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hubbub", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_in(folder: Path) -> list[int]:
    """The servers whose data are below this folder, by their working directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:  # it has ended meanwhile
            continue
        if place.is_relative_to(folder):
            found.append(int(process.name))
    return found


def test_two_demos_at_once_pass_and_leave_nothing_behind(log: Path, home: Path) -> None:
    two_at_once = [started("--json", "--users", "4", "--log", log, "--folder", home) for _ in range(2)]
    outputs = [process.communicate(timeout=SECONDS) for process in two_at_once]
    for process, (out, err) in zip(two_at_once, outputs, strict=True):
        assert process.returncode == 0, err
        assert err == ""
        report = json.loads(out)
        assert report["ok"] is True
        assert report["servers"].keys() == {"postgresql", title().lower()}
        assert [line["line"] for line in report["log"]["first_refused"]] == [4]
        assert [one["nickname"] for one in report["log"]["renamed"]] == ["bo@home"]
        checks = [check for step in report["steps"] for check in step["checks"]]
        assert len(checks) == 19
        assert all(check["ok"] for check in checks)
    assert list(home.iterdir()) == []
    assert processes_in(home) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_servers_and_deletes_their_files(home: Path, sent: signal.Signals) -> None:
    process = started("--folder", home)
    deadline = monotonic() + SECONDS
    while not processes_in(home):
        assert process.poll() is None, process.communicate()
        assert monotonic() < deadline
    process.send_signal(sent)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + sent
    assert out == ""
    assert err == f"stopped by {sent.name}; the servers are stopped and their files deleted\n"
    assert list(home.iterdir()) == []
    assert processes_in(home) == []


def result_with(step: Step, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> Result:
    """The result of the command when this step runs between loading and checking."""
    monkeypatch.setattr(module, "STEPS", (step, expected.compare))
    return CliRunner().invoke(demo, [str(argument) for argument in arguments])


async def lose_a_message(context: Context) -> Section:
    connection = await connect(context.settings.postgres)
    await connection.execute("DELETE FROM messages WHERE seq = 2")
    await connection.close()
    return Section("A message is lost")


def test_failed_check_is_printed_and_is_the_exit_status(
    log: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_with(lose_a_message, monkeypatch, "--log", log, "--folder", home)
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert "FAILED: every row stored exactly once: messages of room " in output
    assert ": 1 instead of 2" in output
    assert "refused lines (1): 4, line: Invalid value 'topic' - at `$.kind`" in output
    assert result.output.splitlines()[-1].startswith("3 of 6 checks passed in ")
    assert list(home.iterdir()) == []


async def fail(context: Context) -> Section:
    await context.hub.rooms.get(UUID(int=1))
    return Section("not reached")


def test_error_in_a_step_stops_the_servers_and_deletes_their_files(
    log: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_with(fail, monkeypatch, "--log", log, "--folder", home)
    assert isinstance(result.exception, NotFound)
    assert list(home.iterdir()) == []
    assert processes_in(home) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--log", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--log", "."], "'.': Is a directory"),
        (["--log", "empty.jsonl"], "empty.jsonl has no usable line"),
        (["--log", "picture.png"], "picture.png has no usable line; line 1: line: not UTF-8"),
        (["--users", "1"], "--users"),
        (["--folder", "no-such-folder"], "no-such-folder"),
    ],
)
def test_bad_usage_is_refused_before_servers_start(
    arguments: Sequence[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hubbub.cli.demo.run", None)
    Path("empty.jsonl").touch()
    Path("picture.png").write_bytes(b'{"kind":"\x89PNG"}')
    result = CliRunner().invoke(demo, arguments)
    assert result.exit_code == 2
    assert named in " ".join(result.output.split())


def test_unreadable_file_is_named(tmp_path: Path, log: Path) -> None:
    if os.geteuid() == 0:
        log.unlink()
        log.symlink_to("/proc/self/mem")  # even root cannot read it from its beginning
    else:
        log.chmod(0)
    result = CliRunner().invoke(demo, ["--log", str(log)])
    assert result.exit_code == 2
    assert "chat.jsonl" in result.output


async def test_both_servers_refuse_a_wrong_password_and_log_nothing(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    check = (await try_servers(context)).checks["wrong passwords are refused"]
    assert (check.ok, check.count) == (True, 2)
    assert capsys.readouterr().err == "", "the refusals were logged"
    assert not logging.getLogger("hubbub").handlers


async def test_servers_that_accept_the_password_fail_the_check(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRONG", context.settings.postgres.password)
    check = (await try_servers(context)).checks["wrong passwords are refused"]
    assert "login to postgres: accepted instead of refused" in check.wrong
