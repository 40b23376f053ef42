"""The channels of rooms in a cluster, by sharded pub/sub if the servers have it, otherwise by classic pub/sub."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from diagnostics.sections import result_of
from hubbub import RedisSettings, Settings, Unavailable, new_id
from hubbub.diagnostics.doctor import check_servers
from hubbub.events import room_channel
from hubbub.redis import ClusterConnection, ClusterSubscriptions, Gap, Received, ReplyError
from hubbub.redis import sharded as module
from hubbub.redis.commands import Call
from hubbub.redis.connection import pack
from hubbub.redis.connector import has_slot, slot_of
from hubbub.redis.replies import as_bytes
from hubbub.redis.sharded import NodeSubscriptions
from hubbub.settings import Address
from hubbub.testing import run
from impostor import command, handshake, impostor
from redis_server import Server, binaries
from redis_topologies import Cluster, cluster
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

pytestmark = pytest.mark.slow

WITHOUT_SHARDS = tuple(f'rename-command {verb} ""' for verb in ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE"))
"""A node with these lines refuses the commands, like Redis 6.2."""


@pytest.fixture
def mixed_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose second primary, with its replica, does not have sharded pub/sub."""
    version = subprocess.run([binaries()[0], "--version"], capture_output=True, check=True).stdout
    older = () if b"v=6." in version else WITHOUT_SHARDS
    with cluster(tmp_path, {1: older, 4: older}) as nodes:
        run(nodes.form())
        yield nodes


@asynccontextmanager
async def connected(
    settings: RedisSettings, of_subscriptions: RedisSettings | None = None
) -> AsyncIterator[tuple[ClusterConnection, ClusterSubscriptions]]:
    connection = ClusterConnection(settings)
    subscriptions = ClusterSubscriptions(of_subscriptions or settings, connection, heartbeat_seconds=1)
    try:
        await connection.start()
        await subscriptions.start()
        yield connection, subscriptions
    finally:
        await subscriptions.close()
        await connection.close()


async def has_shards(nodes: Cluster) -> bool:
    try:
        await nodes.ask(nodes.nodes[0], "SPUBLISH", "", "")
    except ReplyError as refusal:
        return refusal.code == "MOVED"
    return True


async def sent_on_the_bus(nodes: Cluster, kind: str) -> int:
    """The number of messages of this kind that the nodes have sent to each other."""
    total = 0
    for node in nodes.nodes:
        info = as_bytes(await nodes.ask(node, "CLUSTER", "INFO")).decode()
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        total += int(fields.get(f"cluster_stats_messages_{kind}_sent", 0))
    return total


def rooms(number: int) -> list[str]:
    return [room_channel(new_id()) for _ in range(number)]


async def room_of(nodes: Cluster, owner: Server) -> str:
    """A channel in a slot of this node."""
    return await room_in(nodes, owner, rooms(100))


class Recorder:
    """The messages and gaps of a channel."""

    def __init__(self) -> None:
        self.all: list[Received] = []

    @property
    def gaps(self) -> int:
        return sum(isinstance(one, Gap) for one in self.all)

    @property
    def numbers(self) -> list[int]:
        return [int(one) for one in self.all if not isinstance(one, Gap)]

    def since(self, number: int) -> Recorder:
        """The messages and gaps from this number on."""
        tail = Recorder()
        tail.all = self.all[self.all.index(b"%d" % number) :]
        return tail

    def no_number_is_missing_without_a_gap(self) -> bool:
        newest: int | None = None
        for one in self.all:
            if isinstance(one, Gap):
                newest = None
            elif newest is None or int(one) == newest + 1:
                newest = int(one)
            else:
                return False
        return True


def test_only_channels_of_rooms_are_sharded() -> None:
    assert has_slot(room_channel(new_id()))
    assert not any(map(has_slot, ["room:changes", "presence", "memberships", f"typing:{new_id()}"]))


async def test_thousand_rooms_receive_their_messages_and_spare_the_bus(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_PUBLISHERS_SECONDS", HANGS_AFTER_SECONDS)  # then a Gap would come
    is_on_shards = await has_shards(shared_cluster)
    settings = replace(await shared_cluster.add_users(), prefix="")
    async with connected(settings) as (connection, subscriptions):
        names = rooms(1_000)
        before = [await sent_on_the_bus(shared_cluster, kind) for kind in ("publish", "publishshard")]
        listening = [await subscriptions.subscribe(name) for name in names[:10]]
        listening += await asyncio.gather(*map(subscriptions.subscribe, names[10:]))
        assert len(subscriptions.servers) == (4 if is_on_shards else 1)
        for text in ("a", "b"):
            await connection.execute_many([("PUBLISH", name, f"{text} {name}") for name in names])
        for name, one in zip(names, listening, strict=True):
            async with asyncio.timeout(30):
                assert [await anext(one), await anext(one)] == [f"a {name}".encode(), f"b {name}".encode()]
        classic, sharded = [await sent_on_the_bus(shared_cluster, kind) for kind in ("publish", "publishshard")]
        if is_on_shards:
            assert classic == before[0]
            assert 0 < sharded - before[1] <= 2_000  # one replica each
        else:
            assert classic - before[0] >= 2_000
        for one in listening:
            one.unsubscribe()
        await until(lambda: not any(one._protocol and one._protocol.asked for one in subscriptions.servers))
        assert not subscriptions._assigned


async def test_channels_with_a_prefix_are_sharded_too(shared_cluster: Cluster) -> None:
    async with connected(replace(shared_cluster.settings, prefix="chat:")) as (connection, subscriptions):
        [name] = rooms(1)
        listening = await subscriptions.subscribe(name)
        assert len(subscriptions.servers) == (2 if await has_shards(shared_cluster) else 1)
        await connection.execute("PUBLISH", name, "hello")
        assert await anext(listening) == b"hello"


async def test_node_that_does_not_know_the_command_decides_only_for_its_own_slots(shared_cluster: Cluster) -> None:
    """For other slots their owner is asked, as for a subscription."""
    async with connected(replace(shared_cluster.settings, prefix="")) as (connection, subscriptions):
        [name] = rooms(1)
        listening = await subscriptions.subscribe(name)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        call = Call(answered, pack(("SPUBLISH", name, "hello")), loop.time(), loop.time() + 30, True)
        assert connection.send_again(call, ReplyError("ERR unknown command 'SPUBLISH'"), connection)
        async with asyncio.timeout(30):
            await answered
            assert await anext(listening) == b"hello"


async def test_doctor_receives_on_the_channel_of_a_room(
    shared_cluster: Cluster, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubbub.diagnostics.doctor.DELIVERY_SECONDS", HANGS_AFTER_SECONDS)
    report = await check_servers(replace(settings, redis=await shared_cluster.add_users()), 1)
    [section] = [one for one in report.sections if one.kind == "together"]
    assert result_of(section, "together.delivery").summary.startswith("received after")


async def test_room_whose_slot_moves_under_load_gets_a_gap_and_all_later_messages(own_cluster: Cluster) -> None:
    async with connected(own_cluster.settings) as (connection, subscriptions):
        source, target, *_ = own_cluster.nodes
        name = await room_of(own_cluster, source)
        slot, received, number, is_moving = slot_of(name.encode()), Recorder(), 0, True
        await subscriptions.subscribe_with(name, received.all.append)

        async def publish() -> None:
            nonlocal number
            while is_moving:
                await connection.execute("PUBLISH", name, number)
                number += 1
                await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        await until(lambda: len(received.numbers) > 10)
        for to, of in ((target, source), (source, target)):
            gaps = received.gaps
            async for _ in own_cluster.move(slot, of, to):
                pass
            if await has_shards(own_cluster):
                await until(lambda gaps=gaps: received.gaps > gaps)  # type: ignore[misc]
            reached = number
            await until(lambda reached=reached: received.numbers[-1] > reached + 10)  # type: ignore[misc]
        is_moving = False
        await publishing
        await until(lambda: received.numbers[-1] == number - 1)
        assert received.no_number_is_missing_without_a_gap()
        assert received.numbers == sorted(set(received.numbers))


@pytest.mark.parametrize("failover", ["kill", "freeze", "planned"])
async def test_failover_of_the_owner_gives_a_gap_and_all_later_messages(
    own_cluster: Cluster, failover: str
) -> None:
    settings = replace(own_cluster.settings, connect_timeout_seconds=2, deadline_seconds=2)
    slow = replace(settings, connect_timeout_seconds=10, deadline_seconds=10)
    async with connected(settings, slow) as (connection, subscriptions):
        owner, other, *_ = own_cluster.nodes
        name, elsewhere = await room_of(own_cluster, owner), await room_of(own_cluster, other)
        unasked_name, new_name = [await room_of(own_cluster, owner) for _ in range(2)]
        received, quiet, unasked, new = [Recorder() for _ in range(4)]

        def receive(one: Received) -> None:
            received.all.append(one)
            if isinstance(one, Gap) and received.gaps == 1:
                subscriptions.subscribe_soon_with(new_name, new.all.append)

        await subscriptions.subscribe_with(name, receive)
        await subscriptions.subscribe_with(elsewhere, quiet.all.append)
        if failover == "freeze" and await has_shards(own_cluster):  # as with more channels than one turn takes
            at_owner = subscriptions.connection_of(f"{settings.prefix}{name}".encode())._protocol
            assert at_owner is not None
            at_owner.pause_writing()
            subscriptions.subscribe_soon_with(unasked_name, unasked.all.append)
        if failover == "planned":
            [replica] = [
                own_cluster.of(shard.nodes[1])
                for shard in await own_cluster.shards(other)
                if shard.nodes[0].port == owner.port
            ]
            await own_cluster.ask(replica, "CLUSTER", "FAILOVER")
        else:
            getattr(owner, failover)()
        number = 0

        async def is_published() -> bool:
            nonlocal number
            number += 1
            with suppress(Unavailable):
                await connection.execute("PUBLISH", name, number)
            return bool(received.gaps) and received.numbers[-1:] == [number]

        async def is_received_elsewhere() -> bool:
            # With classic pub/sub the broken node may be that of the publisher or of the subscriber.
            with suppress(Unavailable):
                await connection.execute("PUBLISH", elsewhere, 1)
            return bool(quiet.numbers)

        if await has_shards(Cluster([other])):
            await until_it_answers(is_published)
            for _ in range(100):
                number += 1
                await connection.execute("PUBLISH", name, number, deadline_seconds=30)
            if failover == "planned":
                # The former owner is a replica now. It passes on what it gets, which comes after other messages.
                await until(lambda: {*received.numbers} >= {*range(number - 100, number + 1)})
            else:  # the second one covers messages that still went to the former owner
                await until(lambda: received.numbers[-1] == number)
                assert received.since(number - 100).no_number_is_missing_without_a_gap()
                await until(lambda: received.gaps >= 2)
                await until(lambda: new.gaps >= 2)  # the first one means that it is live
            if failover == "freeze":
                await until(lambda: unasked.gaps >= 2)
        await until_it_answers(is_received_elsewhere)
        await until(lambda: subscriptions.connected)


async def test_nodes_of_mixed_versions_deliver_every_message(
    mixed_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_PUBLISHERS_SECONDS", 0.5)
    nodes = mixed_cluster
    has_both = await has_shards(nodes)
    async with (
        connected(nodes.settings) as (connection, subscriptions),
        connected(nodes.settings) as (publisher, _),
    ):
        received = {name: Recorder() for name in rooms(60)}
        for name, one in received.items():
            await subscriptions.subscribe_with(name, one.all.append)

        async def all_receive(number: int) -> None:
            for sender in connection, publisher:
                await sender.execute_many([("PUBLISH", name, number) for name in received])
            await until(lambda: all(one.numbers.count(number) == 2 for one in received.values()))

        await all_receive(1)
        if has_both:
            assert 0 < len(subscriptions.wanted) < len(received)
        # A slot of the second primary moves to a node with sharded pub/sub and back.
        newer, older, *_ = nodes.nodes
        slot = slot_of((await room_in(nodes, older, list(received))).encode())
        [moving, *_] = [one for name, one in received.items() if slot_of(name.encode()) == slot]
        for number, (of, to) in enumerate(((older, newer), (newer, older)), start=2):
            gaps = moving.gaps
            async for _ in nodes.move(slot, of, to):
                pass
            if has_both:  # the second one covers messages of a publisher without news of the move
                expected = gaps + (2 if of is older else 1)
                await until(lambda expected=expected: moving.gaps >= expected)  # type: ignore[misc]
            address = Address("127.0.0.1", to.port)
            for sender in connection, publisher:
                await until(lambda of=sender, at=address: of.owner_of(slot) == at)  # type: ignore[misc]
            await all_receive(number)
        for node in nodes.nodes[4], older:
            upgrade(node)
            await until_it_answers(nodes.is_whole)
        if has_both:
            await until(lambda: not subscriptions.wanted)
            await until(lambda: all(reach_sharded_nodes(sender) for sender in (connection, publisher)))
        await until(lambda: all(subscriptions.is_live(name.encode()) for name in received))
        await all_receive(4)
        assert all(one.numbers == [1, 1, 2, 2, 3, 3, 4, 4] for one in received.values())


async def test_idle_connection_to_a_node_without_sharded_pubsub_gives_no_gap_when_it_is_made_again(
    mixed_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channels of its slots are subscribed at another node, whose connection stays."""
    monkeypatch.setattr(module, "LATE_PUBLISHERS_SECONDS", HANGS_AFTER_SECONDS)  # then a Gap would come
    nodes = mixed_cluster
    async with connected(nodes.settings) as (connection, subscriptions):
        older = nodes.nodes[1]
        name, received = await room_of(nodes, older), Recorder()
        await subscriptions.subscribe_with(name, received.all.append)
        await until(lambda: name.encode() in subscriptions.wanted)
        idle = subscriptions._nodes[Address("127.0.0.1", older.port)]
        for number in range(3):
            former = idle._protocol
            assert former is not None
            former.drop("as by a firewall")
            await until(lambda former=former: idle._protocol not in {None, former})  # type: ignore[misc]
            await connection.execute("PUBLISH", name, number)
            await until(lambda number=number: received.numbers[-1:] == [number])  # type: ignore[misc]
        assert received.all == [b"0", b"1", b"2"]


async def test_slot_that_moves_concerns_no_channel_of_another_slot(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a reshard of a cluster with many followed rooms, the slots are read twenty times a second."""
    async with connected(own_cluster.settings) as (connection, subscriptions):
        source, target, *_ = own_cluster.nodes
        names = rooms(300)
        await asyncio.gather(*[subscriptions.subscribe(name) for name in names])
        moving = await room_in(own_cluster, source, names)
        slot = slot_of(moving.encode())
        looked_up: list[bytes] = []
        changed: set[int] = set()  # more than one slot if the cluster has a failover, as on a busy machine
        find, use_slots = subscriptions._find, connection.on_slots

        async def noting_slots(slots: set[int]) -> None:
            changed.update(slots)
            await use_slots(slots)

        def noting(name: bytes) -> Any:  # noqa: ANN401
            looked_up.append(name)
            return find(name)

        monkeypatch.setattr(subscriptions, "_find", noting)
        monkeypatch.setattr(connection, "on_slots", noting_slots)
        async for _ in own_cluster.move(slot, source, target):
            pass
        await until(lambda: moving.encode() in looked_up)
        await until(lambda: subscriptions.connected)
        assert slot in {slot_of(name) for name in looked_up} <= changed | {slot}


def reach_sharded_nodes(sender: ClusterConnection) -> bool:
    """Whether it is connected to the owner of each slot, and none of these connections has refused SPUBLISH."""
    return all(owner is not None and owner.connected and owner.is_sharded for owner in set(sender._owners))


async def room_in(nodes: Cluster, owner: Server, names: list[str]) -> str:
    for name in names:
        if (await nodes.primary_of(slot_of(name.encode()))).port == owner.port:
            return name
    raise AssertionError


def upgrade(node: Server) -> None:
    """Restart the node with sharded pub/sub."""
    node.kill()
    config = node.folder / "server.conf"
    lines = [line for line in config.read_text().splitlines() if line not in WITHOUT_SHARDS]
    config.write_text("\n".join(lines) + "\n")
    node.start()


class Recording:
    """Stands in for the subscriptions of a cluster."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def deliver(self, name: bytes, payload: bytes) -> None:
        self.calls.append(("deliver", name, payload))

    def confirmed(self, name: bytes) -> None:
        self.calls.append(("confirmed", name))

    def moved(self, names: list[bytes], error: ReplyError | None, _: NodeSubscriptions) -> None:
        self.calls.append(("moved", names, str(error or "")))

    def lost(self, node: NodeSubscriptions, failure: Unavailable) -> None:
        """The loss of a node, which this test does not record."""


def push(*words: bytes) -> bytes:
    return (
        b">%d\r\n" % (len(words) + 1)
        + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        + b":1\r\n"
    )


Answers = dict[tuple[bytes, ...], bytes]

PROBE = (b"SUNSUBSCRIBE", b"room:")
"""The command by which a new connection checks for sharded pub/sub."""

A, B = b"room:{a}", b"room:{a}:b"
MOVED = b"-MOVED %d 127.0.0.1:7001\r\n" % slot_of(A)


@asynccontextmanager
async def node_at(answers: Answers, *, connections: list[int]) -> AsyncIterator[NodeSubscriptions]:
    """The subscriptions at a node with the given answers to each command."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        parser = await handshake(reader, writer)
        while True:
            words = tuple(await command(reader, parser))
            writer.write(push(b"sunsubscribe", b"room:") if words == PROBE else answers[words])

    async with impostor(talk) as settings:
        address = Address("127.0.0.1", settings.port)
        recording = cast("Any", Recording())
        node = NodeSubscriptions(recording, replace(settings, cluster=True), address, 60, cast("Any", Silent()))
        await node.start()
        try:
            yield node
        finally:
            await node.close()


class Silent:
    def connected(self, _: str) -> None:
        """Ignored in these tests."""


def calls(node: NodeSubscriptions) -> list[tuple[object, ...]]:
    return cast("Recording", node._subscriptions).calls


def want(node: NodeSubscriptions, *names: bytes) -> None:
    node.wanted.update(names)
    for name in names:
        node.change(name)


def leave(node: NodeSubscriptions, *names: bytes) -> None:
    node.wanted.difference_update(names)
    for name in names:
        node.change(name)


async def test_unrequested_unsubscribe_means_that_the_slot_has_moved() -> None:
    answers: Answers = {(b"SSUBSCRIBE", A): push(b"ssubscribe", A) + push(b"sunsubscribe", A)}
    made: list[int] = []
    async with node_at(answers, connections=made) as node:
        want(node, A)
        await until(lambda: len(calls(node)) == 2)
        assert calls(node) == [("confirmed", A), ("moved", [A], "")]
        assert not node.is_live(A)
        assert len(made) == 1


async def test_moved_names_the_channels_of_the_command_that_was_refused() -> None:
    made: list[int] = []
    async with node_at({(b"SSUBSCRIBE", A): MOVED}, connections=made) as node:
        want(node, A)
        await until(lambda: len(calls(node)) == 1)
        assert calls(node) == [("moved", [A], MOVED.decode()[1:-2])]
        assert len(made) == 1


async def test_slot_that_moves_while_a_channel_is_given_up_confuses_no_later_command() -> None:
    """The node ends the channel by itself, and then refuses the SUNSUBSCRIBE that was in flight."""
    other = b"room:{c}"
    message = b">3\r\n$8\r\nsmessage\r\n$8\r\n%b\r\n$5\r\nhello\r\n" % other
    answers: Answers = {
        (b"SSUBSCRIBE", A): push(b"ssubscribe", A),
        (b"SUNSUBSCRIBE", A): push(b"sunsubscribe", A) + MOVED,
        (b"SSUBSCRIBE", B): MOVED,
        (b"SSUBSCRIBE", other): push(b"ssubscribe", other) + message,
    }
    made: list[int] = []
    async with node_at(answers, connections=made) as node:
        want(node, A)
        await until(lambda: node.is_live(A))
        leave(node, A)
        want(node, B, other)
        await until(lambda: len(calls(node)) == 4)
        assert sorted(map(str, calls(node)[1:])) == sorted(
            map(str, [("moved", [B], MOVED.decode()[1:-2]), ("confirmed", other), ("deliver", other, b"hello")])
        )
        assert node.is_live(other)
        assert not node.is_live(B)
        assert len(made) == 1


async def test_reply_for_another_channel_leads_to_a_new_connection() -> None:
    made: list[int] = []
    async with node_at({(b"SSUBSCRIBE", A): push(b"ssubscribe", B)}, connections=made) as node:
        want(node, A)
        await until(lambda: len(made) > 1)
        assert not calls(node)
