"""Helpers of the tests of embedded servers: query, write, kill, and run a program that owns servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from hubbub import RedisSettings, Settings
from hubbub.embedded import locks
from hubbub.postgres import connect

SERVERS = ("postgresql", "valkey")

OWNER = """
import asyncio, json, sys
from pathlib import Path
from uuid import uuid4
from hubbub.embedded import Servers

async def main():
    async with Servers(Path(sys.argv[1])) as settings:
        print(json.dumps(settings.to_env()), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

UP = """
import asyncio, sys
from pathlib import Path
from uuid import uuid4
from hubbub.embedded import up

asyncio.run(up(Path(sys.argv[1])))
"""


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when the condition holds. Fail if it does not hold in time."""
    for pause in locks.pauses(seconds):
        if condition():
            return
        await asyncio.sleep(pause)
    raise AssertionError(f"not within {seconds} s")


def lives(folder: Path, name: str) -> bool:
    """Whether any process of this server is running."""
    return locks.is_held(folder / f"{name}.lock")


def all_gone(folder: Path) -> bool:
    return not any(lives(folder, name) for name in SERVERS)


def pid(folder: Path, name: str) -> int:
    """The pid of the server, valid while the server runs."""
    found: int = json.loads((folder / f"{name}.lock").read_text())["pid"]
    return found


def kill(folder: Path, name: str) -> None:
    os.kill(pid(folder, name), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    """The names of the entries in the folder."""
    return [entry.name for entry in folder.iterdir()]


def rights(path: Path) -> int:
    """The permissions, such as 0o700."""
    return stat.S_IMODE(path.stat().st_mode)


def parent(process: int) -> int:
    """The pid of the parent of a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


async def sql(settings: Settings, statement: str) -> object:
    """The first column of the first row of the statement's result."""
    connection = await connect(settings.postgres)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def valkey(settings: RedisSettings, *commands: str) -> bytes:
    """The server's replies to the password and to the commands."""
    reader, writer = await asyncio.open_connection(settings.host, settings.port)
    writer.write(
        "".join(f"{command}\r\n" for command in (f"AUTH {settings.password}", *commands, "QUIT")).encode()
    )
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def say_hello(settings: Settings) -> str:
    """Write a value to both servers, and return it for `remembers`."""
    hello = uuid4().hex
    await sql(settings, f"CREATE TABLE greeting_{hello} ()")
    assert b"+OK\r\n+OK\r\n" in await valkey(settings.redis, f"SET greeting {hello}")
    return hello


async def remembers(settings: Settings, hello: str) -> bool:
    """Whether both servers still have the value."""
    table = await sql(settings, f"SELECT to_regclass('greeting_{hello}')::text")
    return table is not None and hello.encode() in await valkey(settings.redis, "GET greeting")


@asynccontextmanager
async def program(text: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python program that runs beside the test and ends with it."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


@asynccontextmanager
async def owner(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Settings]]:
    """A program that owns the servers of the folder, and their settings."""
    async with program(OWNER, str(folder)) as running:
        assert running.stdout is not None
        settings = Settings.from_env(json.loads(await running.stdout.readline()))
        assert settings is not None
        yield running, settings
