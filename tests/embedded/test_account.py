from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path
from signal import SIGTERM

import pytest

from hubbub import Unavailable
from hubbub.embedded import launch, locks
from hubbub.embedded.folder import Account, ServerFolder, ServerPasswords, servers_account
from hubbub.embedded.process import Process


@pytest.fixture
def stranger() -> Account:
    return Account("stranger", 54_321, 54_321)


def test_account_can_enter_folder_if_all_folders_above_allow_it(tmp_path: Path, stranger: Account) -> None:
    open_to_all = Path("/")
    assert stranger.can_enter(open_to_all)
    tmp_path.chmod(0o700)
    assert not stranger.can_enter(tmp_path)
    (tmp_path / "inner").mkdir(mode=0o755)
    assert not stranger.can_enter(tmp_path / "inner")


def test_account_can_run_program_that_it_may_read_and_execute(stranger: Account) -> None:
    assert stranger.can_run(Path("/bin/sh").resolve())
    assert not stranger.can_run(Path("/etc/passwd"))


@pytest.mark.usefixtures("as_root")
def test_rights_of_group_apply_to_the_group(tmp_path: Path, stranger: Account) -> None:
    program = tmp_path / "program"
    program.touch(mode=0o750)
    program.chmod(0o750)
    assert not stranger._may(0o5, program)
    os.chown(program, -1, stranger.gid)
    assert stranger._may(0o5, program)
    os.chown(program, stranger.uid, -1)
    program.chmod(0o077)
    assert not stranger._may(0o5, program)


@pytest.mark.usefixtures("as_root")
def test_servers_started_by_root_run_as_unprivileged_account(tmp_path: Path) -> None:
    account = servers_account(tmp_path / "no data yet")
    assert account is not None
    assert account.uid != 0
    assert pwd.getpwnam(account.name).pw_uid == account.uid
    assert account.name in {"postgres", "nobody"}


@pytest.mark.usefixtures("as_root")
def test_servers_run_as_owner_of_their_data(tmp_path: Path) -> None:
    os.chown(tmp_path, 54_321, 54_322)
    assert servers_account(tmp_path) == Account("user 54321", 54_321, 54_322)
    os.chown(tmp_path, 0, 0)
    account = servers_account(tmp_path)
    assert account is not None
    assert account.uid != 0


def test_servers_started_by_ordinary_user_run_as_that_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert servers_account(tmp_path) is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", [54_321, 0])
async def test_root_signals_only_processes_of_the_servers_account(
    tmp_path: Path, stranger: Account, user: int
) -> None:
    # The servers can write their lock files, and so name any process.
    lock = locks.try_acquire(tmp_path / "valkey.lock")
    assert lock is not None
    with subprocess.Popen(["cat"], user=user, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:  # noqa: ASYNC220 - starts at once
        try:
            signed = {"pid": named.pid, "started": launch.start_time(named.pid), "port": 1, "detached": True}
            os.pwrite(lock.descriptor, json.dumps(signed).encode(), 0)
            server_folder = ServerFolder(tmp_path, ServerPasswords("", "", ""), stranger, needs_descriptor=False)
            with pytest.raises(Unavailable, match="does not stop"):  # this process holds the lock
                await Process("Valkey", "valkey", server_folder).stop([(SIGTERM, 0.1)])
            out, _ = named.communicate(b"still here")
            assert out == (b"" if user == stranger.uid else b"still here")
        finally:
            named.kill()
            lock.release()


@pytest.mark.parametrize("several", [0, -1, -4321])
def test_lock_file_with_process_group_is_ignored(tmp_path: Path, several: int) -> None:
    signed = {"pid": several, "started": "", "port": 1, "detached": True}
    (tmp_path / "valkey.lock").write_text(json.dumps(signed))
    server_folder = ServerFolder(tmp_path, ServerPasswords("", "", ""), None, needs_descriptor=False)
    assert Process("Valkey", "valkey", server_folder).holder() is None
