"""Several Redis servers that an application uses as one: a master with Sentinels, and a cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import hiredis

from hubbub.redis import Connection, Reply, ReplyError
from hubbub.redis.connection import pack
from hubbub.redis.connector import SLOTS, ServerConnector, Shard, shards_in
from hubbub.redis.replies import as_bytes, as_bytes_list
from hubbub.settings import RedisSettings
from ports import free_port
from redis_server import PASSWORD, Server, binaries
from rights import as_redis_user, user_line, words_of_nodes
from waiting import until_it_answers

MASTER = "chat-master"
SENTINEL_PASSWORD = "of-the-sentinels"
DOWN_AFTER_SECONDS = 1.5


async def ask(server: Server, *words: str | int, is_node: bool = False) -> Reply:
    """The reply of this server, which may be a node of a cluster."""
    settings = replace(server.settings, cluster=is_node)
    connection = Connection(settings, connector=ServerConnector(settings, settings.addresses[0]))
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
        """Wait until the replica follows, and each Sentinel has found all others."""
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
    """The reply of a Sentinel in RESP2. A `Connection` refuses Sentinels."""
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
    """Starts servers that end with the block, each in its own folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def server(self, name: str, *extra: str, arguments: tuple[str, ...] = (), port: int | None = None) -> Server:
        folder = self._folder / name
        folder.mkdir()
        server = Server(binaries()[0], folder, extra=extra, arguments=arguments, port=port)
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


NODE_TIMEOUT_SECONDS = 2.0


@dataclass
class Cluster:
    """Three primaries with a third of the slots each, and a replica of each."""

    nodes: list[Server]

    @property
    def settings(self) -> RedisSettings:
        """Settings that name only the first node."""
        return replace(self.nodes[0].settings, cluster=True)

    def of(self, address: tuple[str, int]) -> Server:
        [node] = [node for node in self.nodes if node.port == address[1]]
        return node

    async def ask(self, node: Server, *words: str | int) -> Reply:
        return await ask(node, *words, is_node=True)

    async def shards(self, asked: Server) -> list[Shard]:
        reply = await self.ask(asked, "CLUSTER", "SLOTS")
        return shards_in(reply, "127.0.0.1")

    async def form(self) -> None:
        """Make a cluster of the nodes. Returns once each node has found all others."""
        first, *others = self.nodes
        for node in others:
            await self.ask(first, "CLUSTER", "MEET", "127.0.0.1", node.port)
        step = -(-SLOTS // 3)
        for number, node in enumerate(self.nodes[:3]):
            slots = range(number * step, min((number + 1) * step, SLOTS))
            await self.ask(node, "CLUSTER", "ADDSLOTS", *slots)
        ids = [await self.ask(node, "CLUSTER", "MYID") for node in self.nodes[:3]]
        await until_it_answers(self._is_joined)
        for id, replica in zip(ids, self.nodes[3:], strict=True):
            await self.ask(replica, "CLUSTER", "REPLICATE", as_bytes(id).decode())
        await until_it_answers(self.is_whole)

    async def add_users(self) -> RedisSettings:
        """Create the user of an application on each node. Returns its settings."""
        _, *rules = user_line()
        for node in self.nodes:
            await self.ask(node, "ACL", "SETUSER", "hubbub", *rules, "&news")
            with suppress(ReplyError):  # Redis 6.2 does not have the commands
                await self.ask(node, "ACL", "SETUSER", "hubbub", *words_of_nodes())
        return as_redis_user(self.settings)

    async def is_primary(self, node: Server) -> bool:
        role = await self.ask(node, "ROLE")
        return isinstance(role, list) and role[0] == b"master"

    async def primary_of(self, slot: int) -> Server:
        for shard in await self.shards(next(node for node in self.nodes if node.runs)):
            if shard.slots.start <= slot < shard.slots.stop:
                return self.of(shard.nodes[0])
        raise AssertionError(slot)

    async def move(self, slot: int, source: Server, target: Server) -> AsyncIterator[int]:
        """Move a slot key by key, like `redis-cli --cluster reshard`. Yields the number of remaining keys."""
        ids = [as_bytes(await self.ask(node, "CLUSTER", "MYID")).decode() for node in (source, target)]
        await self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        await self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while keys := as_bytes_list(await self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1000)):
            yield len(keys)
            where = ("127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD)
            await self.ask(source, "MIGRATE", *where, "KEYS", keys[0].decode())
        yield 0
        for node in (target, source):
            await self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    async def _is_joined(self) -> bool:
        return all([len(await self._known(node)) == len(self.nodes) for node in self.nodes])

    async def _known(self, node: Server) -> list[bytes]:
        return as_bytes(await self.ask(node, "CLUSTER", "NODES")).splitlines()

    async def is_whole(self) -> bool:
        """Whether each running node sees three primaries, each with a replica if all nodes run."""
        running = [node for node in self.nodes if node.runs]
        for node in running:
            shards = await self.shards(node)
            known = {address for shard in shards for address in shard.nodes}
            if len({shard.nodes[0] for shard in shards}) != 3 or len(known) != len(running):
                return False
            if b"cluster_state:ok" not in as_bytes(await self.ask(node, "CLUSTER", "INFO")):
                return False
            if b"master_link_status:down" in as_bytes(await self.ask(node, "INFO", "replication")):
                return False
        return True


@contextmanager
def cluster(folder: Path, extra: Mapping[int, tuple[str, ...]] | None = None) -> Iterator[Cluster]:
    """Six nodes, some with additional lines of configuration. Await `form` before use."""
    lines = (
        "cluster-enabled yes",
        f"cluster-node-timeout {NODE_TIMEOUT_SECONDS * 1000:.0f}",
        *REPLICATING,
    )
    with Starter(folder) as starter:
        of = extra or {}
        yield Cluster([starter.server(f"node-{n}", *lines, *of.get(n, ()), port=port_of_node()) for n in range(6)])


def port_of_node() -> int:
    """A free port whose cluster bus, 10,000 above it, is free as well."""
    while True:
        port = free_port()
        with socket.socket() as probe, suppress(OSError, OverflowError):
            probe.bind(("127.0.0.1", port + 10_000))
            return port
