from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hubbub.cli import bench, main

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is not a clone. hubbub is not imported from a clone either."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hubbub.__file__", str(tmp_path / "lib" / "hubbub" / "__init__.py"))
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """The commands that would have run, with their folders."""
    commands: list[tuple[list[str], Path]] = []

    def run(command: list[str], *, cwd: Path, check: bool) -> subprocess.CompletedProcess[bytes]:
        commands.append((command, cwd))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr("subprocess.run", run)
    return commands


def test_without_a_clone_the_error_names_the_place_of_the_benchmarks(nowhere: Path) -> None:
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert result.output == f"Error: {bench.NO_CLONE}\n"


@pytest.fixture
def clone(nowhere: Path) -> Path:
    """The current folder, which is a clone."""
    (nowhere / "pyproject.toml").touch()
    (nowhere / "benchmarks").mkdir()
    (nowhere / "benchmarks" / "__main__.py").touch()
    return nowhere


def test_missing_peers_are_named(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEERS", ("asyncpg", "no_such_driver"))
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1
    assert "no_such_driver missing: run `pip install -e '.[embedded,bench]'`" in result.output


def test_clone_in_the_current_folder_runs_with_the_options(
    clone: Path, started: list[tuple[list[str], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PEERS", ())
    result = CliRunner().invoke(main, ["bench", "--quick", "--only", "sends", "--output", "found"])
    assert result.exit_code == 3
    options = ["--quick", "--only=sends", f"--output={clone / 'found'}"]
    assert started == [([sys.executable, "-m", "benchmarks", *options], clone)]


def test_editable_install_leads_to_its_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.find_clone() == PROJECT
