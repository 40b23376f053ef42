from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from uuid import UUID

import pytest

from diagnostics.sections import meanings, result_of, severities
from hubbub import Hub, Options, RedisSettings, Settings, Unavailable, new_id
from hubbub.diagnostics import redis as doctor
from hubbub.diagnostics.figures import Sessions, ask_redis
from hubbub.events import MessageSent
from hubbub.passwords import MIN_COST, Passwords
from hubbub.redis import Connection, Gap, ReplyError, Subscriptions, connection_to
from hubbub.redis.cluster import ClusterConnection
from hubbub.redis.commands import Call
from hubbub.redis.connection import Opened, pack
from hubbub.redis.connector import ClusterConnector, slot_of
from hubbub.redis.replies import as_bytes
from hubbub.services.sessions import SessionService, find_ended, key_of, tag_of
from hubbub.testing import empty
from redis_server import Server, check_usable
from redis_topologies import Cluster
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

pytestmark = pytest.mark.slow


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[tuple[ClusterConnection, Subscriptions]]:
    async with AsyncExitStack() as stack:
        connection, subscriptions = ClusterConnection(settings), Subscriptions(settings)
        for one in connection, subscriptions:
            stack.push_async_callback(one.close)
            await one.start()
        yield connection, subscriptions


@pytest.mark.parametrize(
    "key", [b"123456789", b"foo{bar}baz", b"foo{}bar", b"foo{{bar}}zap", b"a{b", b"a}b{c}{d}"]
)
async def test_slot_is_that_of_the_server(shared_cluster: Cluster, key: bytes) -> None:
    assert await shared_cluster.ask(shared_cluster.nodes[0], "CLUSTER", "KEYSLOT", key.decode()) == slot_of(key)


async def test_commands_reach_the_nodes_of_their_keys_from_one_seed(shared_cluster: Cluster) -> None:
    async with connected(replace(shared_cluster.settings, prefix="shop:")) as (connection, _):
        keys = [f"limit:{n}" for n in range(100)]
        assert await connection.execute_many([("SET", key, key) for key in keys]) == [b"OK"] * 100
        assert await connection.execute_many([("GET", key) for key in keys]) == [key.encode() for key in keys]
        assert await connection.execute_many([]) == []
        assert len(connection.servers) == 3
        for one in connection.servers.values():
            assert await one.execute("DBSIZE")
        outcomes = await connection.execute_many([("GET", keys[0]), ("LPUSH", keys[1], "x")])
        assert outcomes[0] == keys[0].encode()
        assert isinstance(outcomes[1], ReplyError)
    await empty(shared_cluster.settings)
    async with connected(shared_cluster.settings) as (connection, _):
        assert [await one.execute("DBSIZE") for one in connection.servers.values()] == [0, 0, 0]


async def test_first_node_that_closes_while_the_second_is_tried_is_not_used(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_to_next, opened = ClusterConnector._connect_to_next, list[asyncio.Transport]()

    async def connect_once(self: ClusterConnector, client_name: str) -> Opened:
        if len(opened) == 1:
            first = opened[0]
            opened.append(first)
            kill = ("CLIENT", "KILL", "ADDR", "{}:{}".format(*first.get_extra_info("sockname")))
            assert await shared_cluster.ask(shared_cluster.of(first.get_extra_info("peername")), *kill) == 1
            await until(first.is_closing)
            raise Unavailable("redis", "the second node does not answer")
        transport, reader = await connect_to_next(self, client_name)
        opened.append(transport)
        return transport, reader

    monkeypatch.setattr(ClusterConnector, "_connect_to_next", connect_once)
    await check_usable(Connection(shared_cluster.settings))
    assert len(opened) == 3


async def test_doctor_and_top_look_at_every_primary(shared_cluster: Cluster) -> None:
    await empty(shared_cluster.settings)
    async with connected(shared_cluster.settings) as (connection, _):
        sessions = SessionService(connection)
        for _ in range(30):
            await sessions.create_session(new_id())
        live = await ask_redis(connection)
        assert live.sessions == Sessions(30, is_exact=True)
        assert live.server.number("connected_clients") >= 3
        section = await doctor.check(connection, shared_cluster.settings)
        summary = result_of(section, "redis.topology").summary
        assert summary == "cluster ok, 16,384 of 16,384 slots, 1 replica"
        assert severities(section, "redis.persistence") == ["warning"]
        assert not meanings(section, "redis.persistence").startswith("127.0.0.1")
        one = connection.servers.popitem()[0]
        node = shared_cluster.of(("", int(one.rpartition(":")[2])))
        await shared_cluster.ask(node, "CONFIG", "SET", "appendonly", "yes")
        section = await doctor.check(connection, shared_cluster.settings)
        assert meanings(section, "redis.persistence").startswith("127.0.0.1")
        assert one not in meanings(section, "redis.persistence")
        assert section.out_of_reach is None


async def test_doctor_finds_slots_without_a_primary_and_a_primary_without_a_replica(own_cluster: Cluster) -> None:
    slot = slot_of(b"session:a")
    await own_cluster.ask(await own_cluster.primary_of(slot), "CLUSTER", "DELSLOTS", slot)
    own_cluster.nodes[3].kill()
    async with connected(own_cluster.settings) as (connection, _):

        async def is_found() -> bool:
            section = await doctor.check(connection, own_cluster.settings)
            found = meanings(section, "redis.topology")
            return "Some slots have no primary" in found and "It has no replica" in found

        await until_it_answers(is_found)
        assert await connection.execute("PING") == b"PONG"


async def test_wrong_kind_of_server_is_named(shared_cluster: Cluster, server: Server) -> None:
    for settings, hint in (
        (replace(shared_cluster.settings, cluster=False), "set REDIS_CLUSTER=true"),
        (replace(server.settings, cluster=True), "unset REDIS_CLUSTER"),
    ):
        connection = connection_to(settings)
        await connection.start()
        with pytest.raises(Unavailable, match=hint) as error:
            await connection.execute("GET", "session:a")
        assert not error.value.retryable
        await connection.close()


async def test_everything_of_every_service_works_in_a_cluster(shared_cluster: Cluster, settings: Settings) -> None:
    redis = await shared_cluster.add_users()
    options = Options(typing_seconds=3, presence_grace_seconds=0, presence_heartbeat_seconds=3)
    within = Settings(postgres=settings.postgres, redis=redis)
    cheap = Passwords(cost=MIN_COST)
    async with (
        Hub(within, options=options, passwords=cheap) as hub,
        Hub(within, options=options, passwords=cheap) as other,
    ):
        users = [await hub.register(f"u{n}@example.org", f"u{n}", f"kept-cluster-{n}") for n in range(6)]
        rooms = [(await hub.rooms.create(f"room {n}", created_by=users[0].id)).id for n in range(8)]
        for room_id in rooms:
            await hub.room_users.add_many(room_id, [user.id for user in users[1:]])
        for number, user in enumerate(users):
            for one in (other, hub):  # the second time with a known topology
                found = await one.authenticate(f"u{number}", f"kept-cluster-{number}", address="192.0.2.1")
                assert found is not None
                assert found.id == user.id
            await _use_sessions(hub, other, user.id)
        await asyncio.gather(*[_type(hub, other, room_id, users[1].id) for room_id in rooms])
        assert await hub.typing.start(rooms[0], users[2].id)
        assert await hub.typing.start(rooms[1], users[2].id)
        assert await hub.typing.stop_everywhere(users[2].id) == 2
        await _be_online(hub, other, [user.id for user in users])
        for user in users:
            assert await other.cache.user(user.id) == await hub.cache.user(user.id)
        async with asyncio.timeout(60):
            followed = other.follow(users[3].id)
            async with followed as events, await other.realtime.listen("news") as news:
                for room_id in rooms:
                    message_id = (await hub.messages.send(room_id, users[0].id, "hello")).id
                    await _receives(events, message_id)
                    assert str(message_id).encode() in await other.cache.newest_page(room_id)
                await hub.realtime.publish("news", "extra")
                assert await anext(news) == "extra"
        verdicts = [
            (await one.limits.take("send", f"key {key}", capacity=2, refill_per_second=0.01)).allowed
            for key in range(5)
            for one in (hub, other, hub)
        ]
        assert verdicts == [True, True, False] * 5
        health = await hub.health(deadline_seconds=20)
        assert health.ready
        assert not health.degraded


async def _receives(events: AsyncIterator[object], message_id: UUID) -> None:
    async for event in events:
        if isinstance(event, MessageSent) and event.message.id == message_id:
            return


async def _use_sessions(hub: Hub, other: Hub, user_id: UUID) -> None:
    tokens = [await hub.sessions.create_session(user_id, {"n": n}) for n in range(3)]
    assert {session.data["n"] for session in await other.sessions.list(user_id)} == {0, 1, 2}
    rotated = await other.sessions.rotate(tokens[0])
    assert rotated is not None
    assert await hub.sessions.get_session(tokens[0]) is None
    assert await hub.sessions.get_session(rotated) is not None
    await other.sessions.delete_session(tokens[1])
    assert await hub.sessions.get_session(tokens[1]) is None
    assert await hub.sessions.revoke(user_id, key_of(tokens[2]).id)
    assert await other.sessions.revoke_all(user_id) == 1
    assert await hub.sessions.get_session(rotated) is None


async def _type(hub: Hub, other: Hub, room_id: UUID, user_id: UUID) -> None:
    watching = other.typing.watch(room_id)
    assert isinstance(await anext(watching), Gap)
    assert await hub.typing.start(room_id, user_id)
    assert await other.typing.typing_users(room_id) == [user_id]
    for is_typing in (True, False):  # the stop comes from the expiry
        change = await anext(watching)
        assert not isinstance(change, Gap)
        assert (change.user_id, change.is_typing) == (user_id, is_typing)
    await watching.aclose()


async def _be_online(hub: Hub, other: Hub, user_ids: list[UUID]) -> None:
    async def are(online: bool) -> bool:
        return await other.presence.is_online(user_ids) == dict.fromkeys(user_ids, online)

    async with AsyncExitStack() as stack:
        for user_id in user_ids:
            await stack.enter_async_context(hub.presence.online(user_id, "phone"))
        assert await are(True)
        assert [device.name for device in await other.presence.devices(user_ids[0])] == ["phone"]
    await until_it_answers(lambda: are(False))


@pytest.mark.parametrize(
    ("failover", "which"),
    [("kill", "seed"), ("freeze", "host of the subscriptions"), ("planned", "another primary")],
)
async def test_failover_of_a_primary_loses_no_session_and_no_subscription(
    own_cluster: Cluster, failover: str, which: str
) -> None:
    settings = replace(own_cluster.settings, connect_timeout_seconds=2, deadline_seconds=3)
    async with connected(settings) as (connection, subscriptions):
        channel = await subscriptions.subscribe("news")
        keys = [f"session:{n}" for n in range(100)]
        await connection.execute_many([("SET", key, key) for key in keys])
        node = {
            "seed": own_cluster.nodes[0],
            "host of the subscriptions": _node_of(own_cluster, subscriptions),
            "another primary": own_cluster.nodes[1],
        }[which]
        replicas = await _replicas_have(own_cluster, len(keys))
        assert replicas
        if failover == "planned":
            chosen = await _replica_of(own_cluster, node) if await own_cluster.is_primary(node) else node
            await own_cluster.ask(chosen, "CLUSTER", "FAILOVER")
        else:
            getattr(node, failover)()

        async def all_answer() -> bool:
            answers = await asyncio.gather(
                *[connection.execute("GET", key, writes=False) for key in keys], return_exceptions=True
            )
            assert {type(answer) for answer in answers} <= {bytes, Unavailable}
            return answers == [key.encode() for key in keys]

        async def is_delivered() -> bool:
            with suppress(Unavailable):
                await connection.execute("PUBLISH", "news", "hello")
            while True:
                try:
                    async with asyncio.timeout(0.5):
                        if await anext(channel) == b"hello":
                            return True
                except TimeoutError:
                    return False

        await until_it_answers(is_delivered)
        await until_it_answers(all_answer)

        async def all_are_set() -> bool:
            with suppress(Unavailable):  # writes that the former primary holds back
                return await connection.execute_many([("SET", key, "new") for key in keys]) == [b"OK"] * len(keys)
            return False

        await until_it_answers(all_are_set)


async def test_write_that_the_former_primary_holds_back_ends_by_its_deadline_and_the_next_goes_to_the_new_one(
    shared_cluster: Cluster,
) -> None:
    """After a planned failover Redis 6.2 still holds back writes from during it. Here any server does so."""
    async with connected(replace(shared_cluster.settings, deadline_seconds=1)) as (connection, _):
        slot = slot_of(b"session:a")
        former = await shared_cluster.primary_of(slot)
        await shared_cluster.ask(former, "CLIENT", "PAUSE", 60_000, "WRITE")
        held = connection.execute("SET", "session:a", "held back")
        await shared_cluster.ask(await _replica_of(shared_cluster, former), "CLUSTER", "FAILOVER")
        with pytest.raises(Unavailable) as error:
            await held
        assert error.value.outcome_unknown

        async def is_set() -> bool:
            with suppress(Unavailable):
                return await connection.execute("SET", "session:a", "new") == b"OK"
            return False

        await until_it_answers(is_set)
        assert (await shared_cluster.primary_of(slot)).port != former.port
        assert await connection.execute("GET", "session:a") == b"new"
        await shared_cluster.ask(former, "CLIENT", "UNPAUSE")
        await until_it_answers(shared_cluster.is_whole)


async def test_node_that_was_removed_from_the_cluster_is_disconnected(own_cluster: Cluster) -> None:
    async with connected(own_cluster.settings) as (connection, subscriptions):
        channel = await subscriptions.subscribe("news")
        node = _node_of(own_cluster, subscriptions)
        id = as_bytes(await own_cluster.ask(node, "CLUSTER", "MYID")).decode()
        if await own_cluster.is_primary(node):
            await own_cluster.ask(await _replica_of(own_cluster, node), "CLUSTER", "FAILOVER")

            async def is_replica() -> bool:
                return not await own_cluster.is_primary(node)

            await until_it_answers(is_replica)
        for other in own_cluster.nodes:
            if other is not node:
                await own_cluster.ask(other, "CLUSTER", "FORGET", id)
        await own_cluster.ask(node, "CLUSTER", "RESET")
        async with asyncio.timeout(60):
            assert await anext(channel) == Gap("reconnected")
            assert node.port != _node_of(own_cluster, subscriptions).port
            await until(lambda: connection.connected and _node_of(own_cluster, connection).port != node.port)
            await connection.execute("PUBLISH", "news", "hello")
            assert await anext(channel) == b"hello"


def _node_of(nodes: Cluster, connection: Connection | Subscriptions) -> Server:
    protocol = connection._protocol
    assert protocol is not None
    return nodes.of(protocol._transport.get_extra_info("peername"))


async def _replica_of(nodes: Cluster, primary: Server) -> Server:
    for shard in await nodes.shards(primary):
        if shard.nodes[0].port == primary.port:
            return nodes.of(shard.nodes[1])
    raise AssertionError


async def _replicas_have(nodes: Cluster, number: int) -> bool:
    async def have() -> bool:
        sizes = [await nodes.ask(node, "DBSIZE") for node in nodes.nodes]
        return sum(size for size in sizes if isinstance(size, int)) == 2 * number

    await until_it_answers(have)
    return True


async def test_slot_that_moves_under_load_gives_no_wrong_answer(own_cluster: Cluster, settings: Settings) -> None:
    redis = await own_cluster.add_users()
    async with Hub(Settings(postgres=settings.postgres, redis=redis)) as hub:
        user = await hub.users.create("u@example.org", "u", "not a hash")
        tokens = [await hub.sessions.create_session(user.id) for _ in range(20)]
        expected = {key_of(token).id for token in tokens}
        slot = slot_of(f"{{{tag_of(user.id)}}}".encode())
        source = await own_cluster.primary_of(slot)
        target = next(node for node in own_cluster.nodes[:3] if node.port != source.port)
        rounds, is_moving = count(), True

        async def read() -> None:
            while is_moving:
                assert None not in await asyncio.gather(*map(hub.sessions.get_session, tokens))
                next(rounds)

        async def list_them() -> None:
            while is_moving:
                assert {one.id for one in await hub.sessions.list(user.id)} == expected

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(list_them())
            async for left in own_cluster.move(slot, source, target):
                reached = next(rounds)
                if left > 1:
                    await until(lambda at_least=reached + 3: next(rounds) > at_least)  # type: ignore[misc]
            is_moving = False
        assert await hub.sessions.revoke(user.id, key_of(tokens[0]).id)
        assert await hub.sessions.revoke_all(user.id) == len(tokens) - 1
        assert await asyncio.gather(*map(hub.sessions.get_session, tokens)) == [None] * len(tokens)
    assert (await own_cluster.primary_of(slot)).port == target.port


async def test_revocation_while_the_slot_moves_ends_all_sessions(own_cluster: Cluster, settings: Settings) -> None:
    """A script that ends sessions by an index would miss sessions on the other node."""
    redis = await own_cluster.add_users()
    async with Hub(Settings(postgres=settings.postgres, redis=redis)) as hub:
        user = await hub.users.create("u@example.org", "u", "not a hash")
        tokens = [await hub.sessions.create_session(user.id) for _ in range(6)]
        slot = slot_of(f"{{{tag_of(user.id)}}}".encode())
        source = await own_cluster.primary_of(slot)
        target = next(node for node in own_cluster.nodes[:3] if node.port != source.port)
        revoking: list[asyncio.Task[object]] = []
        async for left in own_cluster.move(slot, source, target):
            if left <= 4 and not revoking:
                revoking.append(asyncio.create_task(hub.sessions.revoke(user.id, key_of(tokens[0]).id)))
            elif left <= 3 and len(revoking) == 1:
                revoking.append(asyncio.create_task(hub.sessions.revoke_all(user.id)))
        ended = await asyncio.gather(*revoking)
        assert ended in ([True, 5], [False, 6])
        assert await asyncio.gather(*map(hub.sessions.get_session, tokens)) == [None] * len(tokens)


async def test_sessions_are_looked_up_at_the_primaries_that_can_be_reached(
    shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(shared_cluster.settings) as (connection, _):
        names = [f"session:{{{number}}}:id" for number in range(30)]
        await connection.execute("SET", names[0], "living")
        nodes = {name: connection._owners[slot_of(f"{connection.prefix}{name}".encode())] for name in names}
        unreachable = nodes[names[1]]
        assert unreachable is not None
        assert unreachable is not nodes[names[0]]

        def execute(*_: object, **__: object) -> asyncio.Future[object]:
            refused = asyncio.get_running_loop().create_future()
            refused.set_exception(Unavailable("redis", "no connection"))
            return refused

        monkeypatch.setattr(unreachable, "execute", execute)
        found = await find_ended(connection, names)
        assert found == {name: name != names[0] for name in names if nodes[name] is not unreachable}
        await connection.execute("DEL", names[0])


async def test_command_of_a_slot_without_a_node_ends_by_its_deadline(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(own_cluster.settings, deadline_seconds=2)
    async with connected(settings) as (connection, _):
        slot = slot_of(b"session:a")
        owner = await own_cluster.primary_of(slot)
        await own_cluster.ask(owner, "CLUSTER", "DELSLOTS", slot)
        # At its deadline the command is waiting in a pause. If it were in flight, its outcome would be unknown.
        monkeypatch.setattr("hubbub.redis.cluster.PAUSE_SECONDS", 1.5)
        with pytest.raises(Unavailable, match="CLUSTERDOWN") as error:
            await connection.execute("SET", "session:a", "1")
        assert error.value.retryable
        assert not error.value.outcome_unknown


async def test_close_ends_calls_that_wait(own_cluster: Cluster) -> None:
    async with connected(own_cluster.settings) as (connection, _):
        slot = slot_of(b"session:a")
        await own_cluster.ask(await own_cluster.primary_of(slot), "CLUSTER", "DELSLOTS", slot)
        waiting = connection.execute("SET", "session:a", "1")
        await until(lambda: bool(connection._paused))
    with pytest.raises(Unavailable, match="closed"):
        await waiting


async def test_call_for_a_node_that_is_about_to_be_closed_goes_to_the_owner_of_the_slot(
    shared_cluster: Cluster,
) -> None:
    """The connection is closed in the next turn of the loop, and would fail commands of this turn."""
    async with connected(shared_cluster.settings) as (connection, _):
        await connection.execute("SET", "session:a", "1")
        node = connection._owners[slot_of(b"session:a")]
        assert node is not None
        node.is_retired = True
        del connection._nodes[node.address]
        closing = asyncio.create_task(node.close())
        now = asyncio.get_running_loop().time()
        reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        packed = pack(("GET", f"{shared_cluster.settings.prefix}session:a"))
        connection._send(node, Call(reply, packed, now, now + HANGS_AFTER_SECONDS, False))
        await closing
        assert await reply == b"1"
