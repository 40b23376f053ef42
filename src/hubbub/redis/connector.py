"""Chooses the server of a connection: the one in the settings, the master of Sentinels, or a node of a cluster.

Also the slots of a cluster, and the channels that have one.
"""

from __future__ import annotations

import asyncio
import random
from binascii import crc_hqx
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from typing import Final, NamedTuple

from hubbub.errors import Unavailable
from hubbub.redis.connection import Connector, Handshake, Opened, connect
from hubbub.settings import Address, RedisSettings

LATE_SECONDS: Final = 0.1
"""How long the other Sentinels may take after one has answered, so that one that hangs delays no connection."""

WATCH_SECONDS: Final = 1.0
"""The pause between two questions to a Sentinel while a connection lasts. It bounds how long a former master, cut
off from the Sentinels and not from this process, gets writes that it will lose."""


WATCH_NODE_SECONDS: Final = 2.0
"""The same for a node of a cluster. It does not say that it was cut off from the others, or removed, and gives no
message to a subscription then."""


class ServerConnector(Connector):
    """The server at this address, whose settings are those of its kind."""

    def __init__(self, settings: RedisSettings, address: Address) -> None:
        self._settings = settings
        self._address = address

    async def connect(self, client_name: str) -> Opened:
        return await connect(self._settings, *self._address, client_name, self.greet)

    async def greet(self, handshake: Handshake) -> None:
        """Refuse a server of another kind. Raises: Unavailable."""
        _check_mode(handshake, self._settings, self._address)


class Master(NamedTuple):
    """The answer of a Sentinel. The configuration with the highest epoch is the newest.

    In a failover the leading Sentinel shows, in SENTINEL MASTER, the new epoch beside the former address until all
    replicas follow the new master. The answer to SENTINEL GET-MASTER-ADDR-BY-NAME is the new one from then on.
    """

    epoch: int
    address: Address


class SentinelConnector(Connector):
    """The master that the Sentinels name, asked before each connection and while it lasts.

    All are asked at the same time, and the newest configuration counts: a Sentinel that was cut off has an older
    one. The server must say itself that it is a master, which a former one that came back does not.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._of_sentinels = replace(
            settings,
            host=settings.addresses[0].host,
            username=settings.sentinel_username,
            password=settings.sentinel_password,
            database=0,
            sentinel_master=None,
            sentinel_username=None,
            sentinel_password=None,
        )
        self._address = settings.addresses[0]
        self._connected_to: Address | None = None

    async def connect(self, client_name: str) -> Opened:
        async def greet(handshake: Handshake) -> None:
            role = handshake.role
            if not role and isinstance(answer := await handshake.ask("ROLE"), list):
                role = "master" if answer[0] == b"master" else "replica"
            if role != "master":
                raise Unavailable("redis", f"{self._address} is a replica, but the Sentinels name it as master")

        self._address = (await self.find(client_name)).address
        opened = await connect(self._settings, *self._address, client_name, greet)
        has_moved = self._connected_to not in {None, self._address}
        # Another process asks one Sentinel after another, each for two seconds at most. Those that were cut off
        # name the former master. It asks all of them when one names another.
        seconds = 2 * WATCH_SECONDS * len(self._settings.addresses) + LATE_SECONDS
        self.late_publishers_seconds = seconds if has_moved else 0
        self._connected_to = self._address
        return opened

    def watch(self) -> asyncio.Task[str]:
        return asyncio.create_task(self._until_moved(self._address), name="hubbub: watching the master of Redis")

    async def find(self, client_name: str) -> Master:
        """The newest answer of the Sentinels. Raises: Unavailable (none has the master)."""
        pending = {
            asyncio.create_task(self._ask(sentinel, client_name), name="hubbub: asking a Sentinel")
            for sentinel in self._settings.addresses
        }
        answers: list[Master] = []
        failure: Unavailable | None = None
        try:
            while pending:
                within = LATE_SECONDS if answers else None
                done, pending = await asyncio.wait(pending, timeout=within, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    if isinstance(answer := task.result(), Master):
                        answers.append(answer)
                    elif failure is None or answer.retryable:
                        failure = answer
        finally:
            for task in pending:
                task.cancel()
        if failure is not None and not answers:
            raise failure
        return max(answers)

    async def _until_moved(self, address: Address) -> str:
        for sentinel in cycle(self._settings.addresses):
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(TimeoutError, Unavailable):
                async with asyncio.timeout(WATCH_SECONDS):
                    answer = await self._ask(sentinel, "hubbub-redis-watch")
                if isinstance(answer, Master) and answer.address != address:
                    # A Sentinel that was cut off may name an older master. The newest of all answers counts.
                    newest = max(answer, await self.find("hubbub-redis-watch"))
                    if newest.address != address:
                        return f"the Sentinels name {newest.address} as the master"
        raise AssertionError

    async def _ask(self, sentinel: Address, client_name: str) -> Master | Unavailable:
        found: list[Master] = []

        async def greet(handshake: Handshake) -> None:
            name = self._settings.sentinel_master or ""
            # In this order: an epoch that is older than its address is corrected by the next question.
            epoch = _epoch(await handshake.ask("SENTINEL", "MASTER", name))
            found.append(Master(epoch, _address(await handshake.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name))))

        try:
            transport, _ = await connect(self._of_sentinels, *sentinel, client_name, greet)
        except Unavailable as error:
            return Unavailable("redis", f"the Sentinel {error.reason}", retryable=error.retryable)
        transport.abort()
        return found[0]


def _epoch(answer: object) -> int:
    if isinstance(answer, list):  # RESP2
        answer = dict(zip(answer[::2], answer[1::2], strict=False))
    if not isinstance(answer, dict):
        raise ConnectionError("the server is not a Sentinel")
    return int(answer.get(b"config-epoch") or 0)


def _address(answer: object) -> Address:
    if not isinstance(answer, list):  # removed meanwhile
        raise ConnectionError("the Sentinel has no master of this name")
    host, port = answer
    return Address(host.decode(), int(port))


class ClusterConnector(Connector):
    """Any node of a cluster: another after each loss, by what the last one said about the cluster.

    The seeds say it first. So the processes spread over all nodes, and none needs a seed once it has begun. A node
    that the others do not know any more is left.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._seeds = settings.addresses
        self._nodes = random.sample(self._seeds, len(self._seeds))
        self._known: set[Address] = set()
        self._has_learned = False
        self._address = self._seeds[0]

    async def connect(self, client_name: str) -> Opened:
        opened = await self._connect_to_next(client_name)
        if self._has_learned:
            return opened
        self._has_learned = True
        first = self._address
        try:
            another = await self._connect_to_next(client_name)
        except Unavailable:  # the first node serves as well
            if opened[0].is_closing():
                raise
            self._address = first
            return opened
        except BaseException:
            opened[0].abort()
            raise
        opened[0].abort()
        return another

    def watch(self) -> asyncio.Task[str]:
        return asyncio.create_task(
            self._until_gone(self._address), name="hubbub: watching the nodes of the cluster"
        )

    async def _connect_to_next(self, client_name: str) -> Opened:
        self._address = self._nodes.pop(0)
        self._nodes.append(self._address)
        return await self._connect_to(self._address, client_name)

    async def _connect_to(self, address: Address, client_name: str) -> Opened:
        async def greet(handshake: Handshake) -> None:
            _check_mode(handshake, self._settings, address)
            self._learn(shards_in(await handshake.ask("CLUSTER", "SLOTS"), address.host))

        return await connect(self._settings, *address, client_name, greet)

    async def _until_gone(self, address: Address) -> str:
        while True:
            await asyncio.sleep(WATCH_NODE_SECONDS)
            others = [node for node in self._nodes if node != address]
            with suppress(Unavailable):
                for asked in random.sample(others, min(len(others), 1)):
                    transport, _ = await self._connect_to(asked, "hubbub-redis-watch")
                    transport.abort()
                    if address not in self._known:
                        return f"{asked} does not know {address} as a node of the cluster"

    def _learn(self, shards: Iterable[Shard]) -> None:
        nodes = self._known = {node for shard in shards for node in shard.nodes}
        new = sorted(nodes.difference(self._nodes))
        random.shuffle(new)
        kept = [node for node in self._nodes if node in nodes]
        # The last resort: a seed may be a name of a node, or be no node any more.
        self._nodes = [*new, *kept, *[seed for seed in self._seeds if seed not in nodes]]


class Shard(NamedTuple):
    """Slots that follow each other, and the nodes that have them, of which the first is the primary."""

    slots: slice
    nodes: list[Address]


def shards_in(reply: object, asked: str) -> list[Shard]:
    """The shards in the reply to CLUSTER SLOTS. `asked` is the host of a node that reports none."""
    if not isinstance(reply, list) or not reply:  # a node that was reset has no slots
        raise ConnectionError("the node reports no slots")
    return [
        Shard(slice(first, last + 1), [Address((node[0] or b"").decode() or asked, node[1]) for node in nodes])
        for first, last, *nodes in reply
    ]


SLOTS: Final = 16_384

_ROOM: Final = "room:"
_LENGTH: Final = len(_ROOM) + 36


def slot_of(key: bytes) -> int:
    """The hash slot of a key, by the part within its first braces if there is one."""
    start = key.find(b"{")
    if start >= 0 and (end := key.find(b"}", start)) > start + 1:
        key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def has_slot(channel: str) -> bool:
    """Whether the channel is that of a room, and so has a slot where the servers have sharded pub/sub.

    Scripts publish on the other channels, each in the slot of its keys.
    """
    return channel.startswith(_ROOM) and len(channel) == _LENGTH


def _check_mode(handshake: Handshake, settings: RedisSettings, address: Address) -> None:
    """Refuse a server of another mode than the settings have. RESP2 does not report the mode."""
    if handshake.mode == "cluster" and not settings.cluster:
        raise Unavailable("redis", f"{address} is a cluster node: set REDIS_CLUSTER=true", retryable=False)
    if handshake.mode == "standalone" and settings.cluster:
        raise Unavailable("redis", f"{address} is not a cluster node: unset REDIS_CLUSTER", retryable=False)
    if handshake.mode == "sentinel":
        hint = "set REDIS_SENTINELS and REDIS_SENTINEL_MASTER"
        raise Unavailable("redis", f"{address} is a Sentinel: {hint}", retryable=False)


def connector_for(settings: RedisSettings) -> Connector:
    """The connector for the settings."""
    if settings.sentinel_master is not None:
        return SentinelConnector(settings)
    return ClusterConnector(settings) if settings.cluster else ServerConnector(settings, settings.addresses[0])
