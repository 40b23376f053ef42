"""Subscriptions in a Redis Cluster: the channels of rooms at the nodes of their slots, the others at any node.

A channel of a room, from the first subscriber to the last:

    unassigned --owner known--> at the owner --it has no sharded pub/sub--> at any node
                                 |        ^                                    |
                                 +--------+                                    |
                           MOVED, sunsubscribe or another owner                |
                                          ^                                    |
                                          +------------------------------------+
                                             an owner that has sharded pub/sub

The owner alone decides between sharded and classic pub/sub. The subscriber asks it at each new connection, and the
publisher by each message. So both agree while the nodes of a cluster have different versions. Each change of the
connection ends with a confirmation, and each subscriber that was there before gets a Gap then. Unless the former
node has ended or refused the channel, a second Gap follows once all publishers must have read the slots again. A
node that hangs, that is cut off, or that has no sharded pub/sub refuses no message after the move, and the new
node does not get it. A channel that is subscribed in the meantime gets that Gap too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, Final

import hiredis

from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.cluster import PAUSE_SECONDS, REFRESH_SECONDS, ClusterConnection
from hubbub.redis.commands import Connection
from hubbub.redis.connection import UNASKED, Handshake
from hubbub.redis.connector import ServerConnector, has_slot, slot_of
from hubbub.redis.replies import ReplyError, is_unknown_command, to_error
from hubbub.redis.subscriptions import SentCommand, SubscriptionConnection, SubscriptionProtocol, Subscriptions
from hubbub.scheduling import EarliestTimer, TimeSlice
from hubbub.settings import Address, RedisSettings

ENDED: Final = b"sunsubscribe"
"""The first word of the reply to SUNSUBSCRIBE, and of what a node sends unasked when a slot leaves it."""

LATE_PUBLISHERS_SECONDS: Final = 5 * REFRESH_SECONDS
"""How long other processes may publish at the former node of a channel if it refuses no message after the move.
They learn of the move when they read the slots, and may first ask nodes that do not answer."""


class ShardProtocol(SubscriptionProtocol):
    """As `SubscriptionProtocol`, by SSUBSCRIBE. The channels of one command have to be of one slot."""

    subscribe = "SSUBSCRIBE"
    unsubscribe = "SUNSUBSCRIBE"
    message = b"smessage"
    _connection: NodeSubscriptions

    def in_parts(self, channels: list[bytes]) -> Iterable[list[bytes]]:
        by_slot: defaultdict[int, list[bytes]] = defaultdict(list)
        for channel in channels:
            by_slot[slot_of(channel)].append(channel)
        for of_slot in by_slot.values():
            yield from super().in_parts(of_slot)

    def _take_reply(self, reply: Any) -> None:  # noqa: ANN401 - whatever the server sends
        oldest = self._sent[0] if self._sent else None
        if isinstance(reply, ReplyError):
            if reply.code == "MOVED":
                self._take_moved(oldest, reply)
                return
        elif isinstance(reply, list) and reply[0] == ENDED:
            self._take_end(oldest, reply[1])
            return
        elif oldest is not None and oldest.channels and reply[1:2] != [oldest.channels[0]]:
            self.drop(UNASKED)
            return
        super()._take_reply(reply)

    def _take_end(self, oldest: SentCommand | None, channel: bytes) -> None:
        # An end that was sent unasked may stand for the reply to a SUNSUBSCRIBE in flight. That one is answered by
        # MOVED or another end, which are ignored because no command waits for them.
        if oldest is not None and oldest.verb == self.unsubscribe and oldest.channels[0] == channel:
            super()._take_reply([ENDED, channel])
        elif channel in self.asked:
            self.asked.discard(channel)
            self._connection.moved([channel])

    def _take_moved(self, oldest: SentCommand | None, error: ReplyError) -> None:
        slot = int(str(error).split()[1])
        if oldest is None or not oldest.channels or slot_of(oldest.channels[0]) != slot:
            return
        self._sent.popleft()
        if oldest.verb == self.subscribe:
            self._connection.moved(self._give_up(oldest), error)


class ShardConnector(ServerConnector):
    """As `ServerConnector`, to a node that is asked whether it has sharded pub/sub."""

    is_sharded = True
    """Whether the server of the last connection has it."""

    async def greet(self, handshake: Handshake) -> None:
        await super().greet(handshake)
        self.is_sharded = True
        try:
            await handshake.ask("SUNSUBSCRIBE", "room:")  # of a channel that is not subscribed
        except ReplyError as refusal:
            self.is_sharded = not is_unknown_command(refusal)


class NodeSubscriptions(SubscriptionConnection):
    """The connection to one primary, for channels of its slots."""

    wanted: set[bytes]

    def __init__(
        self,
        subscriptions: ClusterSubscriptions,
        settings: RedisSettings,
        address: Address,
        heartbeat_seconds: float,
        instrumentation: Instrumentation,
    ) -> None:
        self._shards = ShardConnector(settings, address)
        super().__init__(settings, self._shards, heartbeat_seconds)
        self.wanted = set()
        self._subscriptions = subscriptions
        self.address = address
        self._instrumentation = instrumentation
        self.is_sharded = True
        """Whether the server has sharded pub/sub, as far as is known."""

    def deliver(self, name: bytes, payload: bytes) -> None:
        if name in self.wanted:  # else it comes from another node already, and would come twice
            self._subscriptions.deliver(name, payload)

    def confirmed(self, name: bytes) -> None:
        if name in self.wanted:
            self._subscriptions.confirmed(name)

    def moved(self, names: list[bytes], error: ReplyError | None = None) -> None:
        """Take note that the node no longer has the slot of these channels."""
        self._subscriptions.moved(names, error, self)

    def refused(self, names: list[bytes], error: ReplyError) -> None:
        super().refused(names, error)
        self._subscriptions.fail(names, to_error(error))

    def _make_protocol(self, transport: asyncio.Transport, reader: hiredis.Reader) -> ShardProtocol:
        return ShardProtocol(transport, reader, self)

    def _on_connected(self, protocol: SubscriptionProtocol) -> None:
        if self.is_sharded != self._shards.is_sharded:  # the server is of another version than before
            self.is_sharded = self._shards.is_sharded
            self._subscriptions.assign_again(self)
        super()._on_connected(protocol)
        self._instrumentation.connected("redis-subscriptions")

    def _on_disconnected(self, failure: Unavailable) -> None:
        self._subscriptions.lost(self, failure)


class ClusterSubscriptions(Subscriptions):
    """As `Subscriptions`, to a Redis Cluster. Its own connection is to any node, for classic pub/sub.

    There is one more to each primary that has the slot of a channel in use. `connection` knows which that is.
    """

    wanted: set[bytes]

    def __init__(
        self,
        settings: RedisSettings,
        connection: ClusterConnection,
        *,
        heartbeat_seconds: float = 5,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        super().__init__(settings, heartbeat_seconds=heartbeat_seconds, instrumentation=instrumentation)
        self.wanted = set()
        self._cluster = connection
        self._cluster.on_slots = self._slots_were_read
        self._by_slot: defaultdict[int, set[bytes]] = defaultdict(set)
        self._changed_slots: set[int] = set()
        self._nodes: dict[Address, NodeSubscriptions] = {}
        self._ended: set[NodeSubscriptions] = set()
        self._assigned: dict[bytes, SubscriptionConnection] = {}
        self._unassigned: set[bytes] = set()
        self._moved: set[bytes] = set()
        """The channels that their nodes have ended or refused. These nodes refuse messages on them too."""
        self._late_slots: dict[int | None, float] = {}
        """Until when other processes may publish at the former node of a slot."""
        self._move_timer = EarliestTimer(self._assign_moved)

    @property
    def servers(self) -> Collection[SubscriptionConnection]:
        return (self, *[node for node in self._nodes.values() if node.wanted and not node.is_starting])

    @property
    def connected(self) -> bool:
        if self._protocol is None or self._unassigned or self._moved:
            return False
        return all(node.connected or node.is_starting for node in self._nodes.values() if node.wanted)

    async def start(self) -> None:
        await super().start()
        self.assign(list(self._unassigned))

    async def close(self) -> None:
        self.is_closed = True  # no node is made any more
        self._move_timer.cancel()
        await asyncio.gather(super().close(), *[node.close() for node in {*self._nodes.values(), *self._ended}])

    def connection_of(self, name: bytes) -> SubscriptionConnection:
        return self._assigned.get(name, self)

    def is_live(self, name: bytes) -> bool:
        node = self._assigned.get(name)
        return node is not None and SubscriptionConnection.is_live(node, name)

    def needs_change(self, name: bytes) -> bool:
        node = self._assigned.get(name)
        return node is None or SubscriptionConnection.needs_change(node, name)

    def change(self, name: bytes) -> None:
        slot = self._slot_of(name)
        if name in self._channels:
            if slot is not None:
                self._by_slot[slot].add(name)
            self.assign([name])
            return
        if slot is not None:
            self._by_slot[slot].discard(name)
            if not self._by_slot[slot]:
                del self._by_slot[slot]
        self._unassigned.discard(name)
        node = self._assigned.pop(name, None)
        if node is not None:
            self._remove(node, name)

    def assign(self, names: Iterable[bytes]) -> None:
        """Give these channels to their connections. A server that ended or refused one of them is asked again."""
        for name in names:
            if name not in self._channels or self.is_closed:
                continue
            node, former = self._find(name), self._assigned.get(name)
            if node is None:
                if former is None and name not in self._unassigned:  # else the slots are being read for it
                    self._unassigned.add(name)
                    self._cluster.read_slots_soon()
                continue
            if node is not former:
                self._unassigned.discard(name)
                now = late_until = asyncio.get_running_loop().time()
                if former is None:
                    late_until = self._late_slots.get(self._slot_of(name), now)
                else:
                    self._remove(former, name)
                    if name not in self._moved:
                        late_until += LATE_PUBLISHERS_SECONDS
                if late_until > now:
                    self.expect_late_messages(name, late_until)
                self._assigned[name] = node
                node.wanted.add(name)  # type: ignore[attr-defined]  # those of a cluster are sets
                SubscriptionConnection.change(node, name)
                if former is not None and SubscriptionConnection.is_live(node, name):
                    self.confirmed(name)  # back before the node was asked to end it: no reply will come
            elif SubscriptionConnection.needs_change(node, name):
                SubscriptionConnection.change(node, name)

    def assign_again(self, node: NodeSubscriptions) -> None:
        """Give the channels of the node to the connections that their messages come on now."""
        if node.is_sharded:
            self._changed_slots.update(
                slot for slot in self._by_slot if self._cluster.owner_of(slot) == node.address
            )
            self._cluster.read_slots_soon()
        else:
            self.assign(list(node.wanted))

    def _remove(self, node: SubscriptionConnection, name: bytes) -> None:
        node.wanted.discard(name)  # type: ignore[attr-defined]
        SubscriptionConnection.change(node, name)

    def _slot_of(self, name: bytes) -> int | None:
        return slot_of(name) if has_slot(name.decode()[len(self._prefix) :]) else None

    def _find(self, name: bytes) -> SubscriptionConnection | None:
        slot = self._slot_of(name)
        if slot is None:
            return self
        address = self._cluster.owner_of(slot)
        if address is None or self._loop is None:
            return None
        node = self._nodes.get(address)
        if node is None:
            node = NodeSubscriptions(self, self._settings, address, self._heartbeat_seconds, self._instrumentation)
            self._nodes[address] = node
            node.begin()
        return node if node.is_sharded else self

    def moved(self, names: list[bytes], error: ReplyError | None, node: NodeSubscriptions) -> None:
        """Subscribe to these channels where their slots are now. After a pause: two nodes may disagree."""
        if error is not None:
            self._cluster.learn_owner(error, node.peer)
        self._cluster.read_slots_soon()
        self._moved.update(name for name in names if name in node.wanted)
        now = asyncio.get_running_loop().time()
        self._move_timer.request(now + PAUSE_SECONDS, now)

    def lost(self, node: NodeSubscriptions, failure: Unavailable) -> None:
        """Look for another owner of the slots of this node."""
        self._cluster.read_slots_soon()
        if not failure.retryable:
            self.fail(node.wanted, failure)

    def _assign_moved(self, _: float) -> None:
        self.assign(list(self._moved))
        self._moved.clear()

    async def _slots_were_read(self, changed: set[int]) -> None:
        if self.is_closed or self._loop is None:
            return
        self._changed_slots |= changed
        late_until = self._loop.time() + LATE_PUBLISHERS_SECONDS
        for slot in self._changed_slots:
            self._late_slots[slot] = late_until
        time_slice = TimeSlice()
        while self._changed_slots:
            self.assign(list(self._by_slot.get(self._changed_slots.pop(), ())))
            await time_slice.pause_if_due()
        self.assign(list(self._unassigned))
        owners = self._cluster.owners
        ended = [node for address, node in self._nodes.items() if address not in owners and not node.wanted]
        self._nodes = {address: node for address, node in self._nodes.items() if node not in ended}
        self._ended.update(ended)  # until they are closed: `close` may cancel this
        await asyncio.gather(*[node.close() for node in ended])
        self._ended.difference_update(ended)


def subscriptions_to(
    settings: RedisSettings, connection: Connection, *, instrumentation: Instrumentation = SILENT
) -> Subscriptions:
    """The subscriptions at the server or the cluster of the settings, to which `connection` is."""
    if isinstance(connection, ClusterConnection):
        return ClusterSubscriptions(settings, connection, instrumentation=instrumentation)
    return Subscriptions(settings, instrumentation=instrumentation)
