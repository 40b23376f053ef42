"""The connection for commands to a Redis Cluster. It has one connection per primary, by the slots of keys.

    execute --> connection of the slot --> answered
                 ^    |
                 |    | MOVED, ASK: at once, to the connection of the node that was named
                 |    | TRYAGAIN, CLUSTERDOWN: after a pause
                 +----+ until the deadline of the call

A command that is refused like this has done nothing, so it is not carried out twice. CLUSTER SLOTS maps slots to
nodes. It is read at the start, at MOVED, and twice a second while a primary cannot be reached.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import Any, Final, NamedTuple

from hubbub.background import BackgroundTask
from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.commands import WITHOUT_KEYS, Call, CommandProtocol, Connection, ReplyOrError, prefixed
from hubbub.redis.connection import CLOSED, pack
from hubbub.redis.connector import SLOTS, ServerConnector, has_slot, shards_in, slot_of
from hubbub.redis.replies import Part, Reply, ReplyError, is_unknown_command
from hubbub.scheduling import EarliestTimer
from hubbub.settings import Address, RedisSettings

SENT_AGAIN: Final = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
"""Another node has the slot, or it is on its way to one. The command was not carried out."""

PAUSE_SECONDS: Final = 0.05
"""Before a command is sent again for which no other node was named, and between two readings of the slots."""

DOUBT_SECONDS: Final = 0.5
"""The pause between two readings of the slots while a primary cannot be reached: a replica may take its place."""

REFRESH_SECONDS: Final = 1.0
"""The same while all can be reached. It finds the replica that took the place of a primary that hangs."""

ANSWER_SECONDS: Final = 0.5
"""How long a node may take to say which slots the cluster has, before another is asked."""

ON_ANY_NODE: Final = WITHOUT_KEYS | {"PUBLISH"}
"""Each node gives a message to all others, so its channel has no slot."""

SPUBLISH: Final = (b"*3\r\n$8\r\nSPUBLISH\r\n", b"*3\r\n$7\r\nPUBLISH\r\n")
"""How the packed command begins, and how that begins which takes its place."""

ASKING: Final = pack(("ASKING",))


class Resent(Call, eq=False, gc=False):
    """A call that is sent again, with the future of the one that was refused."""

    command: bytes
    """The packed command, without ASKING."""
    is_asked: bool = False
    """Whether the first reply is the one to ASKING."""

    def answer(self, reply: Reply | ReplyError) -> None:
        if self.is_asked:
            self.is_asked = False
        else:
            super().answer(reply)


class Paused(NamedTuple):
    """A call that waits to be sent again on the node that refused it."""

    at: float
    node: Connection
    call: Resent
    refusal: ReplyError


class NodeConnection(Connection):
    """The connection to one primary."""

    def __init__(self, cluster: ClusterConnection, settings: RedisSettings, address: Address) -> None:
        super().__init__(replace(settings, prefix=""), connector=ServerConnector(settings, address))
        self._cluster = cluster
        self.address = address
        self.is_retired = False
        """Whether the node had no slot any more when the slots were read."""
        self.is_sharded = True
        """Whether the server has SPUBLISH. True until one on this connection was refused as unknown."""

    def redirect(self, call: Call, error: ReplyError) -> bool:
        return self._cluster.send_again(call, error, self)

    def _on_connected(self, protocol: CommandProtocol) -> None:
        self.is_sharded = True  # the server may be a newer one now
        super()._on_connected(protocol)

    def _on_disconnected(self, failure: Unavailable) -> None:
        super()._on_disconnected(failure)
        self._cluster.read_slots_soon()


class ClusterConnection(Connection):
    """As a `Connection`, to a Redis Cluster. Its own connection is to any node, for commands without a key.

    A command that is refused because its slot moves is sent again until its deadline. A script is not sent to the
    new node before the whole slot is there: it would not find keys that are still at the former one.

    The commands of `execute_many` are in order for each node.
    """

    is_cluster = True

    def __init__(self, settings: RedisSettings, *, instrumentation: Instrumentation = SILENT) -> None:
        super().__init__(settings, instrumentation=instrumentation)
        self._nodes: dict[Address, NodeConnection] = {}
        self._ended: set[NodeConnection] = set()
        self._owners: list[NodeConnection | None] = [None] * SLOTS
        self._reading = BackgroundTask("reading the slots of the cluster", self._read_slots)
        self._first_reading_ended = asyncio.Event()
        self._paused: deque[Paused] = deque()
        self._pause_timer = EarliestTimer(self._send_paused)
        self._changed_slots: set[int] = set()
        self.on_slots: Callable[[set[int]], Awaitable[None]] = _ignore
        """Called each time that the slots were read, with those whose owner has changed since the last time."""

    @property
    def waiting(self) -> int:
        return super().waiting + len(self._paused) + sum(node.waiting for node in self._nodes.values())

    @property
    def connected_at(self) -> float:
        return max((node.connected_at for node in self.servers.values()), default=inf)

    async def start(self) -> None:
        await super().start()
        self._reading.start()
        await self._first_reading_ended.wait()

    async def close(self) -> None:
        self.is_closed = True  # no reply makes a further connection
        await self._reading.close()
        self._first_reading_ended.set()
        self._pause_timer.cancel()
        for paused in self._paused:
            paused.call.fail(Unavailable("redis", CLOSED, retryable=False))
        self._paused.clear()
        await asyncio.gather(*[node.close() for node in {*self._nodes.values(), *self._ended}], super().close())

    def execute(
        self, *parts: Part, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[Reply]:
        name = parts[0]
        if name == "PUBLISH" and has_slot(str(parts[1])):
            name, parts = "SPUBLISH", ("SPUBLISH", *parts[1:])
        if name in ON_ANY_NODE:
            return super().execute(*parts, deadline_seconds=deadline_seconds, writes=writes)
        words = prefixed(self.prefix, parts) if self.prefix else parts
        key = words[3] if name in {"EVALSHA", "EVAL"} else words[1]
        slot = slot_of(key.encode() if isinstance(key, str) else bytes(key))  # type: ignore[arg-type]
        node = self._owners[slot]
        if node is None:  # any node answers with the owner
            return super().execute(*parts, deadline_seconds=deadline_seconds, writes=writes)
        if name == "SPUBLISH" and not node.is_sharded:
            return super().execute("PUBLISH", *parts[1:], deadline_seconds=deadline_seconds, writes=writes)
        return node.execute(*words, deadline_seconds=deadline_seconds, writes=writes)

    def execute_many(
        self, commands: Iterable[Sequence[Part]], *, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[list[ReplyOrError]]:
        sent = [self.execute(*parts, deadline_seconds=deadline_seconds, writes=writes) for parts in commands]
        return gather_outcomes(sent, self._loop or asyncio.get_running_loop(), writes=writes)

    @property
    def servers(self) -> dict[str, Connection]:
        return {str(node.address): node for node in self._nodes.values() if not node.is_retired}

    def server_of(self, channel: str) -> str:
        if not has_slot(channel):
            return ""
        node = self._owners[slot_of(f"{self.prefix}{channel}".encode())]
        return str(node.address) if node is not None and node.is_sharded else ""

    def owner_of(self, slot: int) -> Address | None:
        """The primary that has the slot, as far as this process knows."""
        node = self._owners[slot]
        return None if node is None else node.address

    @property
    def owners(self) -> set[Address]:
        """The primaries that have slots."""
        return {node.address for node in set(self._owners) if node is not None}

    def read_slots_soon(self) -> None:
        """A slot may have moved."""
        self._reading.wake()

    def learn_owner(self, refusal: ReplyError, asked: str) -> None:
        """Take note of the node that a MOVED names. Its host is `asked` if it names none."""
        if self.is_closed:
            return
        slot, named = int(str(refusal).split()[1]), self._node_at(_named_in(refusal, asked))
        if named is not self._owners[slot]:
            self._owners[slot] = named
            self._changed_slots.add(slot)
        self.read_slots_soon()

    async def _read_slots(self) -> float:
        try:
            for asked in self._connected():
                with suppress(Unavailable, ReplyError, ConnectionError):
                    reply = await asked.execute("CLUSTER", "SLOTS", deadline_seconds=ANSWER_SECONDS, writes=False)
                    await self._use_slots(reply, asked)
                    break
        finally:
            self._first_reading_ended.set()
        await asyncio.sleep(PAUSE_SECONDS)
        owners = set(self._owners)
        is_certain = None not in owners and all(node.connected and node in owners for node in self._nodes.values())
        return REFRESH_SECONDS if is_certain else DOUBT_SECONDS

    def _connected(self) -> list[Connection]:
        nodes = [node for node in (self, *self._nodes.values()) if node.connected]
        return random.sample(nodes, len(nodes))

    async def _use_slots(self, reply: Reply, asked: Connection) -> None:
        owners: list[NodeConnection | None] = [None] * SLOTS
        for slots, [primary, *_] in shards_in(reply, asked.peer):
            owners[slots] = [self._node_at(primary)] * (slots.stop - slots.start)
        if owners != self._owners:
            self._changed_slots.update(
                slot
                for slot, (new, former) in enumerate(zip(owners, self._owners, strict=True))
                if new is not former
            )
            self._owners = owners
        owning, ended = set(owners), []
        for node in [node for node in self._nodes.values() if node not in owning]:
            for call in node.take_unwritten():
                self._send(self, call)
            # The former primary of a planned failover refuses at once what it was sent. A hanging one does not.
            if node.is_retired or not node.waiting:
                del self._nodes[node.address]
                ended.append(node)
            node.is_retired = True
        self._ended.update(ended)  # until they are closed: `close` may cancel this
        changed, self._changed_slots = self._changed_slots, set()
        await asyncio.gather(self.on_slots(changed), *[node.close() for node in ended])
        self._ended.difference_update(ended)

    def _node_at(self, address: Address) -> NodeConnection:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = NodeConnection(self, self._settings, address)
            node.begin()
        node.is_retired = False
        return node

    def send_again(self, call: Call, refusal: ReplyError, node: Connection) -> bool:
        """Whether this refusal is one after which the call is sent again."""
        code = refusal.code
        command = call.command if isinstance(call, Resent) else call.packed
        is_unknown = command.startswith(SPUBLISH[0]) and is_unknown_command(refusal)
        if code not in SENT_AGAIN and not is_unknown:
            return False
        if self.is_closed:
            call.fail(Unavailable("redis", CLOSED, retryable=False))
        if call.future.done():
            return True
        target = node
        if is_unknown:
            if isinstance(node, NodeConnection):
                node.is_sharded = False
            owner = self._owners[slot_of(_channel_in(command))]
            if owner is not None and owner.is_sharded and not owner.is_closed:
                target = owner  # it alone decides, as for the subscribers: its refusal ends this
            else:
                target = self
                command = SPUBLISH[1] + command.removeprefix(SPUBLISH[0])
        again = Resent(call.future, command, call.since, call.deadline, call.writes, command)
        if code in {"MOVED", "ASK"}:
            named = self._node_at(_named_in(refusal, node.peer))
            if code == "MOVED":
                target = named
                self.learn_owner(refusal, node.peer)
            elif b"EVAL" not in command[:24]:
                again.packed, again.is_asked = ASKING + command, True
                self._send(named, again)
                return True
        if is_unknown or (code == "MOVED" and not isinstance(call, Resent)):
            self._send(target, again)
            return True
        if len(self._paused) >= self._max_waiting:
            call.fail(Unavailable("redis", f"too many commands are waiting (at most {self._max_waiting})"))
            return True
        now = asyncio.get_running_loop().time()
        self._paused.append(Paused(now + PAUSE_SECONDS, target, again, refusal))
        self._pause_timer.request(now + PAUSE_SECONDS, now)
        return True

    def _send_paused(self, now: float) -> None:
        while self._paused and self._paused[0].at <= now:
            _, node, call, refusal = self._paused.popleft()
            if call.deadline <= now:
                call.fail(Unavailable("redis", f"the cluster refuses: {refusal}"))
            elif not call.future.done():
                self._send(node, call)
        if self._paused:
            self._pause_timer.request(self._paused[0].at, now)

    def _send(self, node: Connection, call: Call) -> None:
        if isinstance(node, NodeConnection) and (node.is_retired or node.is_closed):
            node = self  # any node answers with the present owner of the slot
        if node is self and isinstance(call, Resent):
            call.packed, call.is_asked = call.command, False
        commands = 2 if isinstance(call, Resent) and call.is_asked else 1
        loop = asyncio.get_running_loop()
        node._enqueue(call, commands, loop, loop.time())

    def redirect(self, call: Call, error: ReplyError) -> bool:
        return self.send_again(call, error, self)


async def _ignore(_: set[int]) -> None:
    """Nothing depends on the slots."""


def _channel_in(spublish: bytes) -> bytes:
    """The channel of a packed SPUBLISH."""
    length, _, words = spublish.removeprefix(SPUBLISH[0])[1:].partition(b"\r\n")
    return words[: int(length)]


def _named_in(refusal: ReplyError, asked: str) -> Address:
    """The node in `MOVED slot host:port` or `ASK slot host:port`."""
    host, _, port = str(refusal).split()[2].rpartition(":")
    return Address(host or asked, int(port))


def gather_outcomes(
    sent: list[asyncio.Future[Reply]], loop: asyncio.AbstractEventLoop, *, writes: bool
) -> asyncio.Future[list[ReplyOrError]]:
    """The outcomes of all, in their order. Without a reply to one, its error is that of the whole."""
    together: asyncio.Future[list[ReplyOrError]] = loop.create_future()
    left = len(sent)

    def one_is_done(_: asyncio.Future[Reply]) -> None:
        nonlocal left
        left -= 1
        if left:
            return
        outcomes: list[Any] = [one.exception() or one.result() for one in sent]
        lost = [o for o in outcomes if isinstance(o, Unavailable) and not isinstance(o.__cause__, ReplyError)]
        if together.done():
            return
        if not lost:
            together.set_result(outcomes)
            return
        first = lost[0]
        is_unknown = writes and (len(lost) < len(sent) or any(error.outcome_unknown for error in lost))
        together.set_exception(
            Unavailable(first.service, first.reason, retryable=first.retryable, outcome_unknown=is_unknown)
        )

    for one in sent:
        one.add_done_callback(one_is_done)
    if not sent:
        together.set_result([])
    return together


def connection_to(settings: RedisSettings, *, instrumentation: Instrumentation = SILENT) -> Connection:
    """The connection for commands to the server or the cluster of the settings."""
    kind = ClusterConnection if settings.cluster else Connection
    return kind(settings, instrumentation=instrumentation)
