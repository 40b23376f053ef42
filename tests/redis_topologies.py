"""Several Redis servers that are one for an application: a master with Sentinels, and a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import hiredis

from hubbub.redis import Connection, Reply
from hubbub.redis.connection import pack
from hubbub.settings import RedisSettings
from redis_server import PASSWORD, Server, binaries
from waiting import until_it_answers

MASTER = "chat-master"
SENTINEL_PASSWORD = "of-the-sentinels"
DOWN_AFTER_SECONDS = 1.0


async def ask(server: Server, *words: str | int, settings: RedisSettings | None = None) -> Reply:
    connection = Connection(settings or server.settings)
    await connection.start()
    try:
        return await connection.execute(*words)
    finally:
        await connection.close()


@dataclass
class Watched:
    """Two servers, of which one replicates the other, and three Sentinels that watch them."""

    servers: list[Server]
    sentinels: list[Server]

    @property
    def settings(self) -> RedisSettings:
        return replace(
            self.servers[0].settings,
            host=",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels),
            sentinel_master=MASTER,
            sentinel_password=SENTINEL_PASSWORD,
        )

    async def role(self, server: Server) -> str:
        info = await ask(server, "INFO", "replication")
        assert isinstance(info, bytes)
        fields = dict(line.split(":", 1) for line in info.decode().split() if ":" in line)
        return fields["role"] if fields.get("master_link_status", "up") == "up" else "connecting"

    async def ready(self) -> None:
        """Once the replica follows, and each Sentinel knows all others."""
        await until_it_answers(self._is_ready)

    async def _is_ready(self) -> bool:
        if sorted([await self.role(server) for server in self.servers]) != ["master", "slave"]:
            return False
        for sentinel in self.sentinels:
            reply = await ask_sentinel(sentinel, "SENTINEL", "MASTER", MASTER)
            assert isinstance(reply, list)
            fields = dict(zip(reply[::2], reply[1::2], strict=True))
            if (fields[b"num-other-sentinels"], fields[b"num-slaves"], fields[b"flags"]) != (
                b"2",
                b"1",
                b"master",
            ):
                return False
        return True


async def ask_sentinel(sentinel: Server, *words: str | int) -> object:
    """The reply of a Sentinel in RESP2. A `Connection` refuses one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sentinel.port)
    replies = hiredis.Reader()
    try:
        writer.write(pack(("AUTH", SENTINEL_PASSWORD)) + pack(words))
        found: list[object] = []
        while len(found) < 2:
            replies.feed(await reader.read(65_536))
            while (reply := replies.gets()) is not False:
                found.append(reply)
        return found[1]
    finally:
        writer.close()


class Starter(ExitStack):
    """Starts servers, each in a folder of its own, that end with the block."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def server(self, name: str, *extra: str, arguments: tuple[str, ...] = ()) -> Server:
        folder = self._folder / name
        folder.mkdir()
        server = Server(binaries()[0], folder, extra=extra, arguments=arguments)
        self.callback(server.stop)
        return server.start()

    def sentinel(self, name: str, master: Server, *, quorum: int) -> Server:
        lines = (
            f"requirepass {SENTINEL_PASSWORD}",
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} {quorum}",
            f"sentinel auth-pass {MASTER} {PASSWORD}",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_SECONDS * 1000:.0f}",
            f"sentinel failover-timeout {MASTER} 5000",
        )
        return self.server(name, *lines, arguments=("--sentinel",))


REPLICATING = (f"masterauth {PASSWORD}", "repl-diskless-sync-delay 0")


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """A master, a replica of it, and three Sentinels. Await `ready` before use."""
    with Starter(folder) as starter:
        master = starter.server("master", *REPLICATING)
        replica = starter.server("replica", *REPLICATING, f"replicaof 127.0.0.1 {master.port}")
        sentinels = [starter.sentinel(f"sentinel-{n}", master, quorum=2) for n in range(3)]
        yield Watched([master, replica], sentinels)
