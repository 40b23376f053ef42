from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest

from embedded.chat import (
    SERVERS,
    all_gone,
    kill,
    lives,
    owner,
    pid,
    program,
    remembers,
    rights,
    say_hello,
    sql,
    until,
    valkey,
)
from hubbub import Unavailable
from hubbub.embedded import PostgreSQL, Servers, find, free_port, up
from hubbub.postgres import connect


async def test_both_servers_accept_only_their_passwords(folder: Path) -> None:
    async with Servers(folder) as settings:
        assert await sql(settings, "SELECT 1") == 1
        assert b"+PONG" in await valkey(settings.redis, "PING")
        with pytest.raises(Unavailable):
            await connect(replace(settings.postgres, password="a guess"))
        with pytest.raises(Unavailable):
            await connect(replace(settings.postgres, user="postgres"))
        assert b"-NOAUTH" in await valkey(replace(settings.redis, password="a-guess"), "PING")


async def test_both_servers_listen_on_loopback_only(folder: Path) -> None:
    async with Servers(folder) as settings:
        assert await sql(settings, "SHOW listen_addresses") == "127.0.0.1"
        sockets = await asyncio.to_thread(Path("/proc/net/unix").read_text)
        assert f".s.PGSQL.{settings.postgres.port}" not in sockets
        assert b"\r\n127.0.0.1\r\n" in await valkey(settings.redis, "CONFIG GET bind")


async def test_owner_of_database_is_not_superuser_and_may_create_databases(folder: Path) -> None:
    async with Servers(folder) as settings:
        assert await sql(settings, "SELECT current_user::text") == "chatuser"
        assert await sql(settings, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        owned = "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()"
        assert await sql(settings, owned) == "chatuser"
        await sql(settings, "CREATE DATABASE another TEMPLATE chatapp")
        await sql(settings, "DROP DATABASE another")


async def test_text_is_utf8_ordered_by_code_point(folder: Path) -> None:
    async with Servers(folder) as settings:
        assert await sql(settings, "SHOW server_encoding") == "UTF8"
        assert await sql(settings, "SELECT upper('élan ñ')") == "ÉLAN Ñ"
        assert await sql(settings, "SELECT 'Z' < 'a' AND 'z' < 'é'") is True


@pytest.mark.parametrize(("fsync", "expected"), [(True, "on"), (False, "off")])
async def test_commit_waits_for_the_disk_unless_fsync_is_off(folder: Path, fsync: bool, expected: str) -> None:
    async with Servers(folder, fsync=fsync) as settings:
        assert await sql(settings, "SHOW fsync") == expected
        assert await sql(settings, "SHOW synchronous_commit") == expected


async def test_command_lines_and_environments_have_no_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "from the shell of the owner")
    async with Servers(folder) as settings:
        secrets = [settings.postgres.password, settings.redis.password, "from the shell of the owner"]
        for name in SERVERS:
            process = Path("/proc", str(pid(folder, name)))
            seen = (process / "cmdline").read_text() + (process / "environ").read_text()
            assert any(word in seen for word in (name, "redis-server"))
            assert not [secret for secret in secrets if secret is None or secret in seen]


def test_secret_files_are_private(folder: Path) -> None:
    assert rights(folder) & 0o067 == 0
    for name in ("passwords.json", "valkey.conf", "postgresql.log", "valkey.log"):
        assert rights(folder / name) == 0o600
    for name in SERVERS:
        assert rights(folder / name) == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"


async def test_second_start_returns_the_same_servers(folder: Path) -> None:
    servers = Servers(folder)
    first = await servers.start()
    pids = [pid(folder, name) for name in SERVERS]
    second, third = await asyncio.gather(servers.start(), servers.start())
    assert first == second == third
    assert [pid(folder, name) for name in SERVERS] == pids
    await servers.stop()
    await servers.stop()
    assert all_gone(folder)


async def test_data_and_addresses_stay_after_stop_and_start(folder: Path) -> None:
    async with Servers(folder) as before:
        hello = await say_hello(before)
    assert all_gone(folder)
    async with Servers(folder) as after:
        assert after == before
        assert await remembers(after, hello)


async def test_servers_of_killed_owner_end_and_keep_their_data(folder: Path) -> None:
    async with owner(folder) as (running, settings):
        hello = await say_hello(settings)
        running.kill()
        await until(lambda: all_gone(folder))
    async with Servers(folder) as after:
        assert await remembers(after, hello)


async def test_new_owner_starts_right_after_the_former_one_was_killed(folder: Path) -> None:
    async with owner(folder) as (running, settings):
        hello = await say_hello(settings)
        running.kill()
        await running.wait()
        async with Servers(folder) as after:
            assert await remembers(after, hello)


@pytest.mark.parametrize("name", SERVERS)
async def test_killed_server_is_restarted_with_its_data(folder: Path, name: str) -> None:
    servers = Servers(folder)
    hello = await say_hello(await servers.start())
    others = {other: pid(folder, other) for other in SERVERS if other != name}
    kill(folder, name)
    assert await remembers(await servers.start(), hello)
    assert {other: pid(folder, other) for other in others} == others
    await servers.stop()


async def test_data_survive_the_kill_of_owner_and_servers(folder: Path) -> None:
    async with owner(folder) as (running, settings):
        hello = await say_hello(settings)
        os.kill(running.pid, signal.SIGSTOP)  # so that it cannot stop them in order
        for name in SERVERS:
            kill(folder, name)
        running.kill()
        await running.wait()
    async with Servers(folder) as after:
        assert await remembers(after, hello)


async def test_ctrl_c_ends_the_owner_which_stops_its_servers(folder: Path) -> None:
    async with owner(folder) as (running, _):
        log = folder / "postgresql.log"
        before = log.stat().st_size
        running.send_signal(signal.SIGINT)
        await running.wait()
        assert all_gone(folder)
    assert b"received fast shutdown request" in log.read_bytes()[before:]


async def test_second_owner_is_refused_and_changes_nothing(folder: Path) -> None:
    async with owner(folder) as (_, settings):
        for attempt in (Servers(folder).start, lambda: up(folder)):
            with pytest.raises(Unavailable, match="has servers of its own here"):
                await attempt()
        assert await sql(settings, "SELECT 1") == 1


async def test_servers_of_hubbub_up_are_not_taken_over(folder: Path) -> None:
    settings = await up(folder)
    with pytest.raises(Unavailable, match="hubbub down"):
        await Servers(folder).start()
    assert find(folder) == settings


async def test_cancelled_start_leaves_no_server_running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()

    async def never(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(PostgreSQL, "version", never)
    starting = asyncio.create_task(Servers(folder).start())
    await reached.wait()
    await until(lambda: lives(folder, "valkey"))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert all_gone(folder)
    monkeypatch.undo()
    async with Servers(folder) as settings:
        assert await sql(settings, "SELECT 1") == 1


async def test_failed_start_of_one_server_stops_the_other(copied_folder: Path) -> None:
    (copied_folder / "postgresql" / "postgresql.conf").write_text("max_connections = many\n")
    with pytest.raises(Unavailable, match=r'ended while starting.*\n.*"max_connections"') as failure:
        await Servers(copied_folder).start()
    assert str(copied_folder / "postgresql.log") in str(failure.value)
    assert all_gone(copied_folder)


async def test_port_taken_by_another_process_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as taken:
        occupied = taken.sockets[0].getsockname()[1]
        monkeypatch.setattr("hubbub.embedded._ports", lambda _: iter([occupied, free_port()]))
        async with Servers(folder) as settings:
            assert occupied not in {settings.postgres.port, settings.redis.port}
            assert await sql(settings, "SELECT 1") == 1
            assert b"+PONG" in await valkey(settings.redis, "PING")


async def test_hanging_server_is_killed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgreSQL, "stop_signals", ((signal.SIGINT, 0.2), (signal.SIGKILL, 30.0)))
    servers = Servers(folder)
    hello = await say_hello(await servers.start())
    os.kill(pid(folder, "postgresql"), signal.SIGSTOP)
    await servers.stop()
    assert all_gone(folder)
    async with Servers(folder) as after:
        assert await remembers(after, hello)


async def test_data_directory_of_a_killed_start_is_made_again(empty_folder: Path) -> None:
    async with program(
        "import asyncio, sys; from pathlib import Path; from hubbub.embedded import Servers;"
        "asyncio.run(Servers(Path(sys.argv[1])).start())",
        str(empty_folder),
    ) as running:
        made = empty_folder / "postgresql.new" / "PG_VERSION", empty_folder / "postgresql"
        await until(lambda: any(one.exists() for one in made))
        running.kill()
        await running.wait()
    async with Servers(empty_folder, fsync=False) as settings:
        assert await sql(settings, "SELECT current_user::text") == "chatuser"
    assert not (empty_folder / "postgresql.new").exists()


async def test_incomplete_data_directory_is_not_used(copied_folder: Path) -> None:
    (copied_folder / "postgresql").rename(copied_folder / "postgresql.new")
    (copied_folder / "postgresql.new" / "global" / "pg_control").unlink()
    (copied_folder / "postgresql.password").write_text("left behind")
    async with Servers(copied_folder, fsync=False) as settings:
        assert await sql(settings, "SELECT 1") == 1
    assert not (copied_folder / "postgresql.password").exists()


async def test_event_loop_is_not_blocked_while_servers_start(folder: Path) -> None:
    """The loop makes about as many turns as a thread that only sleeps."""
    turns = turns_of_a_thread = 0
    over = threading.Event()

    async def watch() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    def watch_in_a_thread() -> None:
        nonlocal turns_of_a_thread
        while not over.is_set():
            sleep(0.001)
            turns_of_a_thread += 1

    watching = asyncio.create_task(watch())
    beside = asyncio.create_task(asyncio.to_thread(watch_in_a_thread))
    async with Servers(folder):
        watching.cancel()
        over.set()
        await beside
    assert turns > turns_of_a_thread / 10
