from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from typing import NamedTuple
from uuid import UUID

import pytest

from hubbub import Hub, PostgresSettings, Room, Settings, User, migrations
from hubbub.cli._top import postgresql, redis
from hubbub.cli._top.watched import Watched
from hubbub.embedded import Servers
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.services.presence.leases import online_key
from hubbub.services.typing_indicators import BUCKETS as TYPING_BUCKETS
from hubbub.services.typing_indicators import bucket_of, due_key, room_key
from redis_server import Server, binaries

SECONDS = 60
ALTERNATE_SCREEN = (b"\x1b[?1049h", b"\x1b[?1049l")


class Said(NamedTuple):
    status: int | None
    lines: list[str]
    error: str

    def figure(self, name: str) -> str:
        """What stands to the right of a name: the last word of it, or all that is not blank."""
        [line] = [line for line in self.lines if f"  {name}  " in line]
        return line.partition(f"  {name}  ")[2].strip().split("   ")[0].strip()


Once = Callable[..., Awaitable[Said]]


@pytest.fixture
def once() -> Once:
    """`hubbub top --once` in a process of its own, 80 columns wide."""

    async def once(settings: Settings, *, interval: str = "0.3") -> Said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", "top", "--once", "--interval", interval,
            env=os.environ | settings.to_env() | {"COLUMNS": "80"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        return Said(process.returncode, out.decode().splitlines(), error.decode())

    return once


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    """Valkey of this test's own: nobody else is online there."""
    server = Server(binaries()[0], tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def settings(settings: Settings, own_redis: Server) -> Settings:
    return replace(settings, redis=own_redis.settings)


async def test_it_says_who_is_there_and_how_the_servers_do(
    once: Once, settings: Settings, hub: Hub, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    for _ in range(3):
        await hub.messages.send(room.id, ada.id, "hello")
        await hub.sessions.create_session(ada.id)
    async with AsyncExitStack() as present:
        for user in (ada, bob):
            for device in ("phone", "laptop"):
                await present.enter_async_context(hub.presence.online(user.id, device))
        await hub.typing.start(room.id, bob.id)
        said = await once(settings)
    assert (said.status, said.error) == (0, "")
    assert [said.figure(name) for name in ("users online", "sessions", "members typing")] == [
        "2",
        "3",
        "1 in 1 room",
    ]
    assert said.figure("engine-room") == "100%"
    assert all(said.figure(name).startswith("about ") for name in ("users", "rooms", "messages"))
    assert said.figure("messages a second") != "-"
    assert said.figure("clients") == "2"  # this hub's connections, and not that of the command
    assert int(said.figure("in pools of hubbub")) >= 1
    assert [line.split()[-1] for line in said.lines if "127.0.0.1:" in line] == ["ok", "ok"]
    assert len(said.lines) <= 24
    assert max(map(len, said.lines)) <= 80
    assert str(settings.redis.password) not in "".join(said.lines)


async def test_what_a_room_is_named_does_not_steer_the_terminal(
    once: Once, settings: Settings, hub: Hub, ada: User
) -> None:
    room = await hub.rooms.create("\x1b[2J\x1b]0;owned\x07[bold red]", created_by=ada.id)
    await hub.messages.send(room.id, ada.id, "hello")
    said = await once(settings)
    assert all(line.isprintable() for line in said.lines)
    assert said.figure("?[2J?]0;owned?[bold red]") == "100%"


async def test_messages_are_counted_as_they_come(settings: Settings, hub: Hub, ada: User, room: Room) -> None:
    pool = Pool(settings.postgres)
    watched = Watched(partial(postgresql.ask, pool))
    await watched.look()
    for _ in range(20):
        await hub.messages.send(room.id, ada.id, "hello")
    grown = 0
    while grown < 20:  # the server counts what was committed with a delay of about a second
        await watched.look()
        grown += watched.grown(lambda chat: chat.rows["messages"].inserted) or 0
    assert grown == 20
    assert watched.now is not None
    assert watched.now.rows["messages"].rows == 20
    await pool.close()


async def test_a_database_without_the_schema_is_told_with_the_way_out(
    once: Once, settings: Settings, empty_database: PostgresSettings
) -> None:
    said = await once(replace(settings, postgres=empty_database))
    assert said.status == 1
    assert said.error == ""
    text = "\n".join(said.lines)
    assert "cannot be used" in text
    assert "the database is at revision none" in text
    assert said.figure("messages") == "-"
    assert said.figure("users online") == "0"


async def test_each_server_that_is_down_is_told_and_the_other_one_shown(
    once: Once, settings: Settings, own_redis: Server, hub: Hub
) -> None:
    own_redis.kill()
    nowhere = replace(settings, postgres=replace(settings.postgres, port=own_redis.port))
    for one, states in ((settings, ["ok", "unreachable"]), (nowhere, ["unreachable", "unreachable"])):
        said = await once(one)
        assert (said.status, said.error) == (1, "")
        assert [line.split()[-1] for line in said.lines if line.startswith(("PostgreSQL ", "Redis "))][
            :2
        ] == states
        assert said.figure("users online") == "-"
        assert max(map(len, said.lines)) <= 80


async def until(watched: Watched[postgresql.Chat] | Watched[redis.Live], *, well: bool) -> None:
    async with asyncio.timeout(SECONDS):
        while (watched.trouble is None and watched.now is not None) != well:
            await watched.look()
    assert (watched.now is None) != well


@asynccontextmanager
async def redis_watched(server: Server) -> AsyncIterator[Watched[redis.Live]]:
    connection = Connection(replace(server.settings, connect_timeout_seconds=0.5, deadline_seconds=0.5))
    await connection.start()
    yield Watched(partial(redis.ask, connection))
    await connection.close()


async def test_redis_may_freeze_or_die_and_come_back(own_redis: Server) -> None:
    async with redis_watched(own_redis) as watched:
        await until(watched, well=True)
        own_redis.freeze()
        await until(watched, well=False)
        own_redis.thaw()
        await until(watched, well=True)
        own_redis.kill()
        await until(watched, well=False)
        own_redis.start()
        await until(watched, well=True)
        assert watched.per_second(lambda live: live.server.commands) is None, "it began to count anew"
        await watched.look()
        assert watched.per_second(lambda live: live.server.commands) is not None


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """The whole of a PostgreSQL: the process that accepts, and all that it has started."""
    pid = int((folder / "postgresql" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGSTOP)
    try:
        yield
    finally:
        for stopped in (pid, *children):
            os.kill(stopped, signal.SIGCONT)


async def test_postgresql_may_freeze_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    async with Servers(folder, fsync=False) as own:
        await migrations.up(own.postgres)
        pool = Pool(replace(own.postgres, pool_size=1, connect_timeout_seconds=0.5, deadline_seconds=1))
        watched = Watched(partial(postgresql.ask, pool))
        await until(watched, well=True)
        with frozen(folder):
            await until(watched, well=False)
        await until(watched, well=True)
        await pool.close()


async def test_of_very_many_keys_the_sessions_are_estimated(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    for kind, count in (
        ("session:{abcd}:%s", 3_000),
        ("session:{abcd}:user:%s", 1_000),
        ("cache:3:user:%s", 5_000),
    ):
        await connection.execute_many([("SET", kind % number, "x", "EX", 600) for number in range(count)])
    sessions = (await redis.ask(connection)).sessions
    assert not sessions.is_exact
    assert 2_400 < sessions.number < 3_600
    await connection.close()


async def test_who_typed_in_many_rooms_is_counted_as_far_as_it_is_cheap(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    rooms = [UUID(int=number) for number in range(TYPING_BUCKETS * (redis.ROOMS_A_BUCKET + 1))]
    later = (time() + 600) * 1000
    await connection.execute_many(
        [("ZADD", due_key(bucket_of(room_id)), later, str(room_id)) for room_id in rooms]
        + [("ZADD", room_key(room_id), later, "one", later, "another", 1, "who has faded") for room_id in rooms]
    )
    counted = TYPING_BUCKETS * redis.ROOMS_A_BUCKET
    assert (await redis.ask(connection)).typing == redis.Typing(users=2 * counted, rooms=counted, is_more=True)
    await connection.close()


async def test_whoever_was_online_when_the_last_process_died_is_not(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    await connection.execute("ZADD", online_key(3), time() * 1000 - 1, "gone", (time() + 600) * 1000, "there")
    assert (await redis.ask(connection)).online == 1
    await connection.close()


@contextmanager
def terminal(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on a terminal of its own, and the side of it where a person sits."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    before = termios.tcgetattr(program)
    # A shell that opens the terminal as the first of its session has it for its own: Ctrl-C comes to it as SIGINT.
    process = subprocess.Popen(
        [
            "sh",
            "-c",
            'exec "$0" -m hubbub top --interval 0.2 <"$1" >"$1" 2>&1',
            sys.executable,
            os.ttyname(program),
        ],
        env=environment | settings.to_env() | {"TERM": "xterm"},
        start_new_session=True,
    )
    try:
        yield process, person
        assert termios.tcgetattr(program) == before, "the terminal is not as it was"
    finally:
        process.kill()
        process.wait()
        os.close(person)
        os.close(program)


def read_until(person: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(person, 10_000)
    return seen


@pytest.mark.parametrize("leave", [b"q", b"\x03", b"\x04", signal.SIGTERM])
async def test_it_is_left_with_a_key_or_a_signal_and_the_terminal_is_as_before(
    settings: Settings, leave: bytes | signal.Signals
) -> None:
    with terminal(settings) as (process, person):
        seen = await asyncio.to_thread(read_until, person, b"messages a second")
        assert ALTERNATE_SCREEN[0] in seen
        assert termios.tcgetattr(person)[3] & termios.NOFLSH  # or the kernel drops what answers a Ctrl-C too soon
        os.write(person, b"\x1a")  # Ctrl-Z does nothing
        if isinstance(leave, bytes):
            os.write(person, leave)
        else:
            process.send_signal(leave)
        await asyncio.to_thread(read_until, person, ALTERNATE_SCREEN[1])
        assert await asyncio.to_thread(process.wait, SECONDS) == 0


def test_without_a_terminal_it_says_what_works(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "hubbub", "top"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert said.returncode == 2
    assert "--once" in said.stderr
