from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import NamedTuple
from uuid import UUID

import pytest

from hubbub import Hub, PostgresSettings, Room, Settings, User, migrations
from hubbub.diagnostics.figures import (
    ROOMS_PER_BUCKET,
    LiveFigures,
    Poller,
    StoredFigures,
    Typing,
    ask_postgres,
    ask_redis,
)
from hubbub.embedded import Servers
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.redis.expiring_sets import BUCKETS, bucket_of
from hubbub.services.presence.leases import online_key
from hubbub.services.typing_indicators import due_key, room_key
from redis_server import Server, binaries
from waiting import HANGS_AFTER_SECONDS

SECONDS = 60
ALTERNATE_SCREEN = (b"\x1b[?1049h", b"\x1b[?1049l")


class Output(NamedTuple):
    status: int | None
    lines: list[str]
    error: str

    @property
    def unreachable(self) -> list[str]:
        """The lines of servers that did not answer."""
        return [line for line in self.lines if line.split()[-1:] == ["unreachable"]]

    def figure(self, name: str) -> str:
        """The value to the right of a name."""
        [line] = [line for line in self.lines if f"  {name}  " in line]
        return line.partition(f"  {name}  ")[2].strip().split("   ")[0].strip()


Once = Callable[..., Awaitable[Output]]


@pytest.fixture
def once() -> Once:
    """`hubbub top --once` in its own process, 80 columns wide. `unreachable` servers may not answer.

    It gives up on a server after 2 s. On a busy machine a server may take longer, so the command is run again.
    """

    async def once(settings: Settings, *, interval: str = "0.3", unreachable: int = 0) -> Output:
        began = monotonic()
        while True:
            output = await run(settings, interval)
            if len(output.unreachable) <= unreachable or monotonic() - began > HANGS_AFTER_SECONDS:
                return output

    async def run(settings: Settings, interval: str) -> Output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", "top", "--once", "--interval", interval,
            env=os.environ | settings.to_env() | {"COLUMNS": "80"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        return Output(process.returncode, out.decode().splitlines(), error.decode())

    return once


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    """A Valkey for this test alone, in which no other user is online."""
    server = Server(binaries()[0], tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def settings(settings: Settings, own_redis: Server) -> Settings:
    return replace(settings, redis=own_redis.settings)


async def type_on(hub: Hub, room: Room, user: User) -> None:
    """Typing expires after 6 s, and on a busy machine the start of a process may take as long."""
    while True:
        await hub.typing.start(room.id, user.id)
        await asyncio.sleep(1)


async def test_table_shows_users_sessions_rooms_and_servers(
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
        typing = asyncio.create_task(type_on(hub, room, bob))
        output = await once(settings)
        typing.cancel()
        await asyncio.wait([typing])
    assert typing.cancelled(), typing.exception()
    assert (output.status, output.error) == (0, "")
    assert [output.figure(name) for name in ("users online", "sessions", "members typing")] == [
        "2",
        "3",
        "1 in 1 room",
    ]
    assert output.figure("engine-room") == "100%"
    assert all(output.figure(name).startswith("about ") for name in ("users", "rooms", "messages"))
    assert output.figure("messages per second") != "-"
    assert output.figure("clients") == "2"  # this hub's connections, and not that of the command
    assert int(output.figure("in hubbub pools")) >= 1
    assert [line.split()[-1] for line in output.lines if "127.0.0.1:" in line] == ["ok", "ok"]
    assert len(output.lines) <= 24
    assert max(map(len, output.lines)) <= 80
    assert str(settings.redis.password) not in "".join(output.lines)


async def test_control_characters_in_a_room_name_are_replaced(
    once: Once, settings: Settings, hub: Hub, ada: User
) -> None:
    room = await hub.rooms.create("\x1b[2J\x1b]0;owned\x07[bold red]", created_by=ada.id)
    await hub.messages.send(room.id, ada.id, "hello")
    output = await once(settings)
    assert all(line.isprintable() for line in output.lines)
    assert output.figure("?[2J?]0;owned?[bold red]") == "100%"


async def test_growth_counts_each_message_once(settings: Settings, hub: Hub, ada: User, room: Room) -> None:
    pool = Pool(settings.postgres)
    poller = Poller(partial(ask_postgres, pool))
    await poller.poll()
    for _ in range(20):
        await hub.messages.send(room.id, ada.id, "hello")
    grown = 0
    while grown < 20:  # the server counts what was committed with a delay of about a second
        await poller.poll()
        grown += poller.growth(lambda chat: chat.rows["messages"].inserted) or 0
    assert grown == 20
    assert poller.latest is not None
    assert poller.latest.rows["messages"].rows == 20
    await pool.close()


async def test_database_without_the_schema_is_reported_with_its_revision(
    once: Once, settings: Settings, empty_database: PostgresSettings
) -> None:
    output = await once(replace(settings, postgres=empty_database))
    assert output.status == 1
    assert output.error == ""
    text = "\n".join(output.lines)
    assert "cannot be used" in text
    assert "the database has no tables of hubbub" in text
    assert output.figure("messages") == "-"
    assert output.figure("users online") == "0"


async def test_server_that_is_down_leaves_the_figures_of_the_other_one(
    once: Once, settings: Settings, own_redis: Server, hub: Hub
) -> None:
    own_redis.kill()
    nowhere = replace(settings, postgres=replace(settings.postgres, port=own_redis.port))
    for one, states in ((settings, ["ok", "unreachable"]), (nowhere, ["unreachable", "unreachable"])):
        output = await once(one, unreachable=states.count("unreachable"))
        assert (output.status, output.error) == (1, "")
        assert [line.split()[-1] for line in output.lines if line.startswith(("PostgreSQL ", "Redis "))][
            :2
        ] == states
        assert output.figure("users online") == "-"
        assert max(map(len, output.lines)) <= 80


async def until(poller: Poller[StoredFigures] | Poller[LiveFigures], *, well: bool) -> None:
    async with asyncio.timeout(SECONDS):
        while (poller.error is None and poller.latest is not None) != well:
            await poller.poll()
    assert (poller.latest is None) != well


@asynccontextmanager
async def polled_redis(server: Server) -> AsyncIterator[Poller[LiveFigures]]:
    connection = Connection(replace(server.settings, connect_timeout_seconds=0.5, deadline_seconds=0.5))
    await connection.start()
    yield Poller(partial(ask_redis, connection))
    await connection.close()


async def test_poller_recovers_after_redis_freezes_or_dies(own_redis: Server) -> None:
    async with polled_redis(own_redis) as poller:
        await until(poller, well=True)
        own_redis.freeze()
        await until(poller, well=False)
        own_redis.thaw()
        await until(poller, well=True)
        own_redis.kill()
        await until(poller, well=False)
        own_redis.start()
        await until(poller, well=True)
        assert poller.rate(lambda live: live.server.number("total_commands_processed")) is None, (
            "it began to count anew"
        )
        async with asyncio.timeout(SECONDS):
            while poller.rate(lambda live: live.server.number("total_commands_processed")) is None:
                await poller.poll()


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Freeze a whole PostgreSQL: the process that accepts connections, and all processes that it has started."""
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


async def test_poller_recovers_after_postgresql_freezes(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    async with Servers(folder, fsync=False) as own:
        await migrations.up(own.postgres)
        pool = Pool(replace(own.postgres, pool_size=1, connect_timeout_seconds=0.5, deadline_seconds=1))
        poller = Poller(partial(ask_postgres, pool))
        await until(poller, well=True)
        with frozen(folder):
            await until(poller, well=False)
        await until(poller, well=True)
        await pool.close()


async def test_sessions_are_estimated_among_many_keys(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    for kind, count in (
        ("session:{abcd}:%s", 3_000),
        ("session:{abcd}:user:%s", 1_000),
        ("cache:4:user:%s", 5_000),
    ):
        await connection.execute_many([("SET", kind % number, "x", "EX", 600) for number in range(count)])
    sessions = (await ask_redis(connection)).sessions
    assert not sessions.is_exact
    assert 2_400 < sessions.number < 3_600
    await connection.close()


async def test_typing_users_are_counted_in_a_limited_number_of_rooms(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    rooms = [UUID(int=number) for number in range(BUCKETS * (ROOMS_PER_BUCKET + 1))]
    later = (time() + 600) * 1000
    await connection.execute_many(
        [("ZADD", due_key(bucket_of(room_id)), later, str(room_id)) for room_id in rooms]
        + [("ZADD", room_key(room_id), later, "one", later, "another", 1, "who has faded") for room_id in rooms]
    )
    counted = BUCKETS * ROOMS_PER_BUCKET
    assert (await ask_redis(connection)).typing == Typing(users=2 * counted, rooms=counted, is_more=True)
    await connection.close()


async def test_expired_presence_of_a_dead_process_is_not_counted(own_redis: Server) -> None:
    connection = Connection(own_redis.settings)
    await connection.start()
    await connection.execute("ZADD", online_key(3), time() * 1000 - 1, "gone", (time() + 600) * 1000, "there")
    assert (await ask_redis(connection)).online == 1
    await connection.close()


@contextmanager
def terminal(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on its own terminal, and the user's side of that terminal."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    before = termios.tcgetattr(program)
    # The first process of a session that opens the terminal controls it, and gets SIGINT for Ctrl-C.
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
    """All output up to this text. If no output comes for a minute, the error shows the output so far."""
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([person], [], [], SECONDS)
        assert ready, f"after {seen[-500:]!r} nothing came"
        seen += os.read(person, 10_000)
    return seen


@pytest.mark.parametrize("leave", [b"q", b"\x03", b"\x04", signal.SIGTERM])
async def test_key_or_signal_ends_the_command_and_restores_the_terminal(
    settings: Settings, leave: bytes | signal.Signals
) -> None:
    with terminal(settings) as (process, person):
        seen = await asyncio.to_thread(read_until, person, b"messages per second")
        assert ALTERNATE_SCREEN[0] in seen
        assert termios.tcgetattr(person)[3] & termios.NOFLSH  # or Ctrl-C makes the kernel drop output
        os.write(person, b"\x1a")  # Ctrl-Z does nothing
        # The kernel handles it later than a signal may arrive. A restored terminal then drops waiting output.
        for _ in range(2):  # tables, the first of which may have been in flight
            await asyncio.to_thread(read_until, person, b"messages per second")
        if isinstance(leave, bytes):
            os.write(person, leave)
        else:
            process.send_signal(leave)
        await asyncio.to_thread(read_until, person, ALTERNATE_SCREEN[1])
        assert await asyncio.to_thread(process.wait, SECONDS) == 0


def test_without_a_terminal_the_error_names_once(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-m", "hubbub", "top"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert output.returncode == 2
    assert "--once" in output.stderr


async def test_poller_ends_though_its_cancellation_is_lost() -> None:
    asked = asyncio.Event()

    async def ask() -> int:
        asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 1

    stop = asyncio.Event()
    running = asyncio.create_task(Poller(ask).run(0.01, lambda: None, stop))
    await asked.wait()
    stop.set()
    running.cancel()
    await running
