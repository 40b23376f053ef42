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
from hubbub.embedded.folder import Account, Passwords, ServerFolder, servers_account
from hubbub.embedded.process import Process


@pytest.fixture
def stranger() -> Account:
    return Account("stranger", 54_321, 54_321)


def test_an_account_enters_where_every_folder_above_lets_it(tmp_path: Path, stranger: Account) -> None:
    open_to_all = Path("/")
    assert stranger.can_enter(open_to_all)
    tmp_path.chmod(0o700)
    assert not stranger.can_enter(tmp_path)
    (tmp_path / "inner").mkdir(mode=0o755)
    assert not stranger.can_enter(tmp_path / "inner")


def test_an_account_runs_what_it_may_read_and_run(stranger: Account) -> None:
    assert stranger.can_run(Path("/bin/sh").resolve())
    assert not stranger.can_run(Path("/etc/passwd"))


@pytest.mark.usefixtures("as_root")
def test_the_rights_of_the_group_count_for_the_group(tmp_path: Path, stranger: Account) -> None:
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
def test_root_hands_the_servers_to_an_unprivileged_account(tmp_path: Path) -> None:
    account = servers_account(tmp_path / "no data yet")
    assert account is not None
    assert account.uid != 0
    assert pwd.getpwnam(account.name).pw_uid == account.uid
    assert account.name in {"postgres", "nobody"}


@pytest.mark.usefixtures("as_root")
def test_data_stay_with_the_account_that_they_belong_to(tmp_path: Path) -> None:
    os.chown(tmp_path, 54_321, 54_322)
    assert servers_account(tmp_path) == Account("user 54321", 54_321, 54_322)
    os.chown(tmp_path, 0, 0)
    account = servers_account(tmp_path)
    assert account is not None
    assert account.uid != 0


def test_an_ordinary_user_runs_them_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert servers_account(tmp_path) is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", [54_321, 0])
async def test_root_signals_a_process_of_the_servers_account_and_no_other_that_the_lock_names(
    tmp_path: Path, stranger: Account, user: int
) -> None:
    # The servers can write their lock files, and so name whomever they like.
    lock = locks.try_acquire(tmp_path / "valkey.lock")
    assert lock is not None
    with subprocess.Popen(["cat"], user=user, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:  # noqa: ASYNC220 - starts at once
        try:
            signed = {"pid": named.pid, "started": launch.start_time(named.pid), "port": 1, "detached": True}
            os.pwrite(lock.descriptor, json.dumps(signed).encode(), 0)
            server_folder = ServerFolder(tmp_path, Passwords("", "", ""), stranger, needs_descriptor=False)
            with pytest.raises(Unavailable, match="does not stop"):  # we hold the lock all the while
                await Process("Valkey", "valkey", server_folder).stop([(SIGTERM, 0.1)])
            out, _ = named.communicate(b"still here")
            assert out == (b"" if user == stranger.uid else b"still here")
        finally:
            named.kill()
            lock.release()


@pytest.mark.parametrize("several", [0, -1, -4321])
def test_a_lock_names_one_process_and_never_a_group_of_them(tmp_path: Path, several: int) -> None:
    signed = {"pid": several, "started": "", "port": 1, "detached": True}
    (tmp_path / "valkey.lock").write_text(json.dumps(signed))
    server_folder = ServerFolder(tmp_path, Passwords("", "", ""), None, needs_descriptor=False)
    assert Process("Valkey", "valkey", server_folder).holder() is None
