"""Servers that outlive the command that started them: what `hubbub up`, `down` and `status` do."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

from hubbub.embedded import disk
from hubbub.embedded.folder import Folder
from hubbub.embedded.supervisor import Pair, Server
from hubbub.errors import Unavailable
from hubbub.settings import Settings

FOLDER = Path(".hubbub")
"""Where `hubbub up` has its servers, in the folder that it is called in."""

LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server: `version` and `port` are None unless it answers, with the folder's password."""

    title: str
    version: str | None
    port: int | None
    alive: bool
    log: Path


@dataclass(frozen=True, slots=True)
class Status:
    """The servers of a folder. `settings` is None unless both answer; `servers` is empty where none ever ran."""

    folder: Path
    servers: tuple[ServerStatus, ...]
    settings: Settings | None


async def up(folder: Path) -> Settings:
    """Starts the servers of this folder unless they run, and leaves them running.

    The first time this makes the folder, passwords and data. Raises Unavailable, and then leaves nothing running
    that was not before.
    """
    ours = Folder(folder)
    with disk.failures("cannot start servers"):
        async with ours.command():
            return await Pair(await asyncio.to_thread(ours.set_up)).start(detached=True)


async def down(folder: Path) -> bool:
    """Stops the servers of this folder and keeps all they have. False when none ran.

    Raises Unavailable where they belong to a program that runs, and for one that cannot be stopped.
    """
    ours = Folder(folder)
    with disk.failures("cannot stop servers"):
        if ours.place() is None:
            return False
        async with ours.command():
            place = ours.place()
            return place is not None and await Pair(place).stop()


async def delete_data(folder: Path) -> bool:
    """Stops the servers of this folder and deletes data, passwords and logs, for good. False where none were.

    Whatever else is in the folder stays. Raises Unavailable as `down` does.
    """
    ours = Folder(folder)
    with disk.failures("cannot delete the data"):
        if ours.place() is None:
            return False
        async with ours.command():
            if (place := ours.place()) is not None:
                await Pair(place).stop()
            await asyncio.to_thread(ours.delete)
            return place is not None


def find(folder: Path) -> Settings | None:
    """How to log in to the servers that run in this folder; None when they do not both run, or are not ours.

    Looks at two lock files and two ports, and asks for no password: for a caller that is about to connect.
    """
    try:
        place = Folder(folder).place()
    except Unavailable:
        return None
    if place is None:
        return None
    pair = Pair(place)
    ports = [_listening_port(server) for server in pair.servers]
    running = [port for port in ports if port is not None]
    return pair.settings(*running) if len(running) == len(ports) else None


async def status(folder: Path) -> Status:
    """Asks the servers of this folder how they are. Starts and makes nothing.

    Raises Unavailable where the folder belongs to another user.
    """
    place = Folder(folder).place()
    if place is None:
        return Status(folder, (), None)
    pair = Pair(place)
    servers = await asyncio.gather(*(_ask(server) for server in pair.servers))
    ports = [server.port for server in servers if server.port is not None]
    settings = pair.settings(*ports) if len(ports) == len(servers) else None
    return Status(folder, tuple(servers), settings)


async def _ask(server: Server) -> ServerStatus:
    alive = server.process.is_alive()
    holder = server.process.holder()
    version = await server.version(holder.port) if alive and holder is not None else None
    port = holder.port if holder is not None and version is not None else None
    return ServerStatus(server.title, version, port, alive, server.process.log)


def _listening_port(server: Server) -> int | None:
    holder = server.process.holder()
    if holder is None or not server.process.is_alive():
        return None
    try:
        with socket.create_connection(("127.0.0.1", holder.port), timeout=LOOK_SECONDS):
            return holder.port
    except OSError:
        return None
