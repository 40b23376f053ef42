from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import hubbub
from embedded.chat import (
    SERVERS,
    UP,
    all_gone,
    kill,
    lives,
    names,
    owner,
    parent,
    pid,
    program,
    remembers,
    say_hello,
    sql,
    until,
)
from hubbub import Unavailable, embedded
from hubbub.embedded import Status, delete_data, down, find, status, up
from hubbub.embedded.folder import Account
from waiting import HANGS_AFTER_SECONDS, until_it_answers

ORDINARY = """
import asyncio, sys
from pathlib import Path
from hubbub.embedded import Servers, delete_data, down, find, up
from hubbub.postgres import connect

async def main(folder):
    async with Servers(folder, fsync=False) as settings:
        connection = await connect(settings.postgres)
        await connection.execute("CREATE TABLE kept ()")
        await connection.close()
    settings = await up(folder)
    assert find(folder) == settings
    connection = await connect(settings.postgres)
    print(await connection.fetchval("SELECT to_regclass('kept')::text"))
    await connection.close()
    assert await down(folder)
    assert await delete_data(folder)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_servers_outlive_the_program_that_started_them(folder: Path) -> None:
    async with program(UP, str(folder)) as running:
        assert await running.wait() == 0
    settings = find(folder)
    assert settings is not None
    assert await sql(settings, "SELECT 1") == 1
    assert await up(folder) == settings
    assert await down(folder)
    assert find(folder) is None
    assert not await down(folder)


async def test_servers_are_not_children_of_the_program_that_started_them(folder: Path) -> None:
    await up(folder)
    assert os.getpid() not in {parent(pid(folder, name)) for name in SERVERS}


async def test_data_and_addresses_stay_after_down_and_up(folder: Path) -> None:
    before = await up(folder)
    hello = await say_hello(before)
    await down(folder)
    after = await up(folder)
    assert after == before
    assert await remembers(after, hello)


@pytest.mark.parametrize("name", SERVERS)
async def test_up_restarts_only_the_dead_server(folder: Path, name: str) -> None:
    hello = await say_hello(await up(folder))
    others = {other: pid(folder, other) for other in SERVERS if other != name}
    kill(folder, name)
    await until(lambda: not lives(folder, name))
    assert find(folder) is None
    assert await remembers(await up(folder), hello)
    assert {other: pid(folder, other) for other in others} == others


async def test_two_concurrent_first_ups_make_one_pair_of_servers(empty_folder: Path) -> None:
    async with program(UP, str(empty_folder)) as one, program(UP, str(empty_folder)) as other:
        assert [await one.wait(), await other.wait()] == [0, 0]
    settings = find(empty_folder)
    assert settings is not None
    assert await sql(settings, "SELECT count(*) FROM pg_database WHERE datname = 'chatapp'") == 1
    assert (empty_folder / "postgresql.log").read_text().count("LOG:  starting PostgreSQL") == 1
    assert (empty_folder / "valkey.log").read_text().count("Ready to accept connections") == 1


async def test_servers_of_killed_up_are_found_and_stopped(folder: Path) -> None:
    async with program(UP, str(folder)) as running:
        await until(lambda: lives(folder, "postgresql"))
        running.kill()
        await running.wait()
    settings = await up(folder)
    assert find(folder) == settings
    assert await sql(settings, "SELECT 1") == 1
    assert await down(folder)


async def test_servers_survive_the_end_of_their_terminal(folder: Path) -> None:
    await up(folder)
    for name in SERVERS:
        assert os.getsid(pid(folder, name)) not in {os.getsid(0), os.getsid(os.getppid())}


async def test_command_output_ends_while_servers_run(folder: Path) -> None:
    # With an inherited pipe this would return when the servers end.
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UP, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(running.communicate(), 60)
    assert (running.returncode, output) == (0, b"")
    assert find(folder) is not None


async def test_down_does_not_stop_servers_of_a_running_program(folder: Path) -> None:
    async with owner(folder) as (_, settings):
        with pytest.raises(Unavailable, match="has servers of its own here"):
            await down(folder)
        with pytest.raises(Unavailable, match="has servers of its own here"):
            await delete_data(folder)
        assert await sql(settings, "SELECT 1") == 1


async def test_missing_folder_is_not_found_and_not_made(tmp_path: Path) -> None:
    nowhere = tmp_path / ".hubbub"
    assert find(nowhere) is None
    assert (await status(nowhere)).servers == ()
    assert not await down(nowhere)
    assert not await delete_data(nowhere)
    assert not nowhere.exists()


async def status_once(folder: Path, *answering: bool) -> Status:
    """The status, once these servers answer. On a busy machine one may answer later than `status` waits."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while True:
            found = await status(folder)
            if tuple(server.version is not None for server in found.servers) == answering:
                return found


async def test_status_comes_from_the_servers_themselves(folder: Path) -> None:
    settings = await up(folder)
    running = await status_once(folder, True, True)
    assert running.settings == settings
    assert [server.title for server in running.servers] == ["PostgreSQL", "Valkey"]
    os.kill(pid(folder, "valkey"), signal.SIGSTOP)
    frozen = await status_once(folder, True, False)
    assert frozen.settings is None
    assert all(server.alive for server in frozen.servers)
    os.kill(pid(folder, "valkey"), signal.SIGCONT)
    await down(folder)
    stopped = await status(folder)
    assert stopped.settings is None
    assert not any(server.alive for server in stopped.servers)


async def test_lock_file_of_dead_server_is_ignored(folder: Path) -> None:
    settings = await up(folder)
    await down(folder)
    # Another program listens on the port of our server, and the files still name our server.
    async with (
        await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", settings.postgres.port),
        await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", settings.redis.port),
    ):
        assert find(folder) is None
        assert (await status(folder)).settings is None
        moved = await up(folder)
        assert moved.postgres.port != settings.postgres.port
        assert moved.redis.port != settings.redis.port


async def test_hanging_server_is_reported_after_a_bounded_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await up(folder)
    os.kill(pid(folder, "valkey"), signal.SIGSTOP)
    monkeypatch.setattr("hubbub.embedded.START_SECONDS", 0.5)

    async def is_reported() -> bool:
        with pytest.raises(Unavailable) as caught:
            await up(folder)
        return "Valkey runs but does not answer" in str(caught.value)  # on a busy machine it may be the other one

    await until_it_answers(is_reported)
    os.kill(pid(folder, "valkey"), signal.SIGCONT)
    assert lives(folder, "postgresql")


async def test_deleting_data_stops_servers_and_removes_the_folder(copied_folder: Path) -> None:
    await up(copied_folder)
    assert await delete_data(copied_folder)
    assert copied_folder.name not in names(copied_folder.parent)


async def test_find_only_opens_a_connection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = await up(folder)
    monkeypatch.setattr("hubbub.embedded.connect", None)
    monkeypatch.setattr(embedded, "status", None)
    assert find(folder) == settings


NOBODY = Account("nobody", 65_534, 65_534)


@pytest.fixture
def ordinary_python(as_root: None) -> Iterator[Path]:
    """This Python, or a copy of it if it is in a private home."""
    here = Path(sys.executable).resolve()
    if NOBODY.can_run(here):
        yield here
        return
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    unneeded = shutil.ignore_patterns("test", "idlelib", "site-packages", "__pycache__", "config-*")
    with tempfile.TemporaryDirectory(prefix="hubbub-python-") as folder:
        copy = Path(folder)
        copy.chmod(0o755)
        (copy / "bin").mkdir()
        shutil.copy(here, copy / "bin" / name)
        shutil.copytree(Path(sys.base_prefix, "lib", name), copy / "lib" / name, ignore=unneeded)
        for library in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
            shutil.copy(library, copy / "lib")
        yield copy / "bin" / name


async def test_ordinary_user_needs_no_rights(empty_folder: Path, ordinary_python: Path) -> None:
    os.chown(empty_folder, NOBODY.uid, NOBODY.gid)
    packages = [Path(hubbub.__file__).parent.parent, Path(asyncpg.__file__).parent.parent]
    if not all(NOBODY.can_enter(folder) for folder in packages):
        pytest.skip("hubbub is itself installed where no ordinary user may go")
    running = await asyncio.create_subprocess_exec(
        *(ordinary_python, "-B", "-c", ORDINARY, str(empty_folder / "servers")),
        env={
            "PYTHONPATH": ":".join(map(str, packages)),
            "LD_LIBRARY_PATH": str(ordinary_python.parent.with_name("lib")),
            "HOME": str(empty_folder),
            "PATH": "/usr/bin:/bin",
        },
        cwd=empty_folder,
        stdout=asyncio.subprocess.PIPE,
        user=NOBODY.uid,
        group=NOBODY.gid,
        extra_groups=[],
    )
    output, _ = await running.communicate()
    assert (running.returncode, output) == (0, b"kept\n")
    assert all_gone(empty_folder / "servers")
