"""Starting and stopping the two servers of a folder, side by side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack

from hubbub.embedded.folder import Place
from hubbub.embedded.locks import pauses
from hubbub.embedded.postgresql import PostgreSQL
from hubbub.embedded.valkey import Valkey
from hubbub.settings import Settings

Server = PostgreSQL | Valkey

START_SECONDS = 60
"""How long a server may take until it serves. Recovery after a crash is the longest part."""

PORTS_TO_TRY = 5


class Pair:
    """PostgreSQL and Valkey of one folder."""

    def __init__(self, place: Place, *, fsync: bool = True) -> None:
        self.postgresql = PostgreSQL(place, fsync=fsync)
        self.valkey = Valkey(place)
        self.servers: tuple[Server, ...] = (self.postgresql, self.valkey)

    async def start(self, *, detached: bool) -> Settings:
        """Starts what does not serve yet. Where one cannot be started, none is left that was not there before.

        Servers that are not `detached` die with this thread. Raises Unavailable.
        """
        async with AsyncExitStack() as undo:
            try:
                async with asyncio.TaskGroup() as group:
                    starts = [
                        group.create_task(_serve(server, undo, detached=detached)) for server in self.servers
                    ]
            except ExceptionGroup as failures:
                first = failures.exceptions[0]
                raise first from first.__cause__
            undo.pop_all()
        return self.settings(*(start.result() for start in starts))

    async def stop(self) -> bool:
        """Stops both. False when none lived. Raises Unavailable when one cannot be stopped."""
        stops = (server.process.stop(server.stop_signals) for server in self.servers)
        # Not a TaskGroup: that one of them does not stop is no reason to give up on the other.
        results = await asyncio.gather(*stops, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return any(results)

    def settings(self, postgresql_port: int, valkey_port: int) -> Settings:
        """How to log in at these ports."""
        return Settings(
            postgres=self.postgresql.settings(postgresql_port), redis=self.valkey.settings(valkey_port)
        )


async def _serve(server: Server, undo: AsyncExitStack, *, detached: bool) -> int:
    """The port of the server, which is started unless it serves already.

    One that runs but is not for us to use, because its owner was killed a moment ago, is waited for to end.
    """
    process = server.process
    for pause in pauses(START_SECONDS):
        if not process.is_alive():
            undo.push_async_callback(process.stop, server.stop_signals)
            return await _start(server, detached=detached)
        holder = process.holder()
        usable = holder is not None and (holder.detached if detached else process.is_ours())
        if holder is not None and usable and await server.version(holder.port):
            return holder.port
        await asyncio.sleep(pause)
    raise process.failure(f"{server.title} runs but does not answer (`hubbub down` stops it)")


async def _start(server: Server, *, detached: bool) -> int:
    former = server.process.holder()
    command = await server.prepare()
    for port in _ports(former.port if former else 0):
        await server.process.launch(
            command(port),
            folder=server.data,
            port=port,
            last_signal=None if detached else server.stop_signals[0][0],
        )
        if await _serves(server, port):
            return port
        # Somebody else may take a port between our look and the server's start.
        if "Address already in use" not in server.process.new_log():
            raise server.process.failure(f"{server.title} ended while starting")
    raise server.process.failure(f"{server.title} found no free port")


async def _serves(server: Server, port: int) -> bool:
    """True once the server answers, False when it has ended instead."""
    for pause in pauses(START_SECONDS):
        if await server.version(port):
            return True
        if not server.process.is_alive():
            return False
        await asyncio.sleep(pause)
    raise server.process.failure(f"{server.title} did not answer within {START_SECONDS} s")


def _ports(former: int) -> Iterator[int]:
    """Ports of the loopback interface that are free right now; the former one first, so that addresses last."""
    if former and _is_free(former):
        yield former
    for _ in range(PORTS_TO_TRY):
        yield free_port()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
