"""PostgreSQL and Valkey for a laptop and for tests: started and stopped by hubbub, on loopback, with passwords.

`up`, `down`, `status` and `delete_data` are for servers that outlive the command that started them. `Servers` end
with the program.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hubbub.embedded.folder import Folder, os_errors_as_unavailable
from hubbub.embedded.servers import Server, ServerPair, Servers
from hubbub.errors import Unavailable
from hubbub.settings import Settings

__all__ = ["FOLDER", "ServerStatus", "Servers", "Status", "delete_data", "down", "find", "status", "up"]

FOLDER = Path(".hubbub")
"""The folder of the servers of `hubbub up`, in the folder that it is called in."""

# `find` runs when an application opens a hub, so it waits for a port of this machine no longer than this.
CONNECT_SECONDS = 0.5


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
    """The servers of a folder. `settings` is None unless both answer; `servers` is empty if none ever ran."""

    folder: Path
    servers: tuple[ServerStatus, ...]
    settings: Settings | None


async def up(folder: Path) -> Settings:
    """Start the servers of this folder unless they run, and leave them running.

    The first call makes the folder, passwords and data.
    Raises: Unavailable (then no server is left that this call started).
    """
    ours = Folder(folder)
    with os_errors_as_unavailable("cannot start servers"):
        async with ours.command():
            return await ServerPair(await asyncio.to_thread(ours.set_up)).start(detached=True)


async def down(folder: Path) -> bool:
    """Stop the servers of this folder and keep their data. False when none ran.

    Raises: Unavailable (they belong to a running program, or one cannot be stopped).
    """
    with os_errors_as_unavailable("cannot stop servers"):
        return await _end(Folder(folder), delete=False)


async def delete_data(folder: Path) -> bool:
    """Stop the servers of this folder and delete data, passwords and logs permanently. False if there were none.

    Other files in the folder stay.
    Raises: Unavailable (as `down` does).
    """
    with os_errors_as_unavailable("cannot delete the data"):
        return await _end(Folder(folder), delete=True)


async def _end(ours: Folder, *, delete: bool) -> bool:
    if ours.find() is None:
        return False
    async with ours.command():
        found = ours.find()
        stopped = found is not None and await ServerPair(found).stop()
        if delete:
            await asyncio.to_thread(ours.delete)
        return found is not None if delete else stopped


def find(folder: Path) -> Settings | None:
    """The settings of the servers that run in this folder; None if they do not both run, or are another user's.

    It checks two lock files and two ports, and no password, for a caller that is about to connect.
    """
    with suppress(Unavailable):
        if (found := Folder(folder).find()) is not None:
            pair = ServerPair(found)
            return _settings(pair, [_listening_port(server) for server in pair.servers])
    return None


async def status(folder: Path) -> Status:
    """The status of the servers of this folder. Starts and makes nothing.

    Raises: Unavailable (the folder belongs to another user).
    """
    found = Folder(folder).find()
    if found is None:
        return Status(folder, (), None)
    pair = ServerPair(found)
    servers = await asyncio.gather(*(_server_status(server) for server in pair.servers))
    return Status(folder, tuple(servers), _settings(pair, [server.port for server in servers]))


def _settings(pair: ServerPair, ports: list[int | None]) -> Settings | None:
    running = [port for port in ports if port is not None]
    return pair.settings(*running) if len(running) == len(pair.servers) else None


async def _server_status(server: Server) -> ServerStatus:
    alive = server.process.is_alive()
    holder = server.process.holder() if alive else None
    version = await server.version(holder.port) if holder else None
    return ServerStatus(
        server.title, version, holder.port if holder and version else None, alive, server.process.log
    )


def _listening_port(server: Server) -> int | None:
    if (holder := server.process.living_holder()) is not None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", holder.port), timeout=CONNECT_SECONDS):
            return holder.port
    return None
