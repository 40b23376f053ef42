from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub import Invalid, RedisSettings, Unavailable
from hubbub.redis import Connection, Gap, Subscriptions, connector
from hubbub.redis.connection import pack
from hubbub.redis.connector import SentinelConnector
from hubbub.settings import Address
from impostor import Talk, command, handshake, impostor
from redis_server import Server
from redis_topologies import MASTER, REPLICATING, SENTINEL_PASSWORD, Starter, ask, ask_sentinel, watched
from waiting import HANGS_AFTER_SECONDS, until_it_answers


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[tuple[Connection, Subscriptions]]:
    async with AsyncExitStack() as stack:
        connection, subscriptions = Connection(settings), Subscriptions(settings)
        for one in connection, subscriptions:
            stack.push_async_callback(one.close)
            await one.start()
        yield connection, subscriptions


async def repeated(connection: Connection, *words: str) -> object:
    """Repeat the command until it succeeds. Returns its reply."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while True:
            with suppress(Unavailable):
                return await connection.execute(*words)
            await asyncio.sleep(0.01)


async def of_one(starter: Starter) -> tuple[Server, Server, RedisSettings]:
    """A server, its only Sentinel, and the settings of both."""
    server = starter.server("server", *REPLICATING)
    sentinel = starter.sentinel("sentinel", server, quorum=1)
    own = {"sentinel_master": MASTER, "sentinel_password": SENTINEL_PASSWORD}
    return server, sentinel, replace(server.settings, port=sentinel.port, **own)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("failover", ["kill", "freeze", "planned"])
async def test_both_connections_follow_the_master(tmp_path: Path, failover: str) -> None:
    with watched(tmp_path) as servers:
        await servers.ready()
        settings = replace(servers.settings, connect_timeout_seconds=1, deadline_seconds=2)
        async with connected(settings) as (connection, subscriptions):
            channel = await subscriptions.subscribe("news")
            await connection.execute("SET", "kept", "1")
            await until_it_answers(lambda: _has(servers.servers[1], "kept"))
            if failover == "planned":
                await until_it_answers(lambda: _fails_over(servers.sentinels[0]))
            else:
                getattr(servers.servers[0], failover)()
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                assert await anext(channel) == Gap("reconnected")
                await until_it_answers(lambda: _is_master(servers.servers[1]))
                assert await repeated(connection, "GET", "kept") == b"1"
                await until_it_answers(lambda: _writes_to(connection, servers.servers[1]))
                while await repeated(connection, "PUBLISH", "news", "hello") != 1:
                    pass
                while (received := await anext(channel)) != b"hello":
                    assert isinstance(received, Gap)


async def _has(server: Server, key: str) -> bool:
    return await ask(server, "EXISTS", key) == 1


async def _is_master(server: Server) -> bool:
    reply = await ask(server, "ROLE")
    return isinstance(reply, list) and reply[0] == b"master"


async def _fails_over(sentinel: Server) -> bool:
    """Start a failover. A Sentinel refuses it until it has a report of the replica."""
    return await ask_sentinel(sentinel, "SENTINEL", "FAILOVER", MASTER) == b"OK"


async def _writes_to(connection: Connection, server: Server) -> bool:
    """Whether writes reach this server. For seconds after a planned failover the former master accepts some."""
    await repeated(connection, "SET", "new", "1")
    return await ask(server, "GET", "new") == b"1"


async def _is_newer(connection: Connection) -> bool:
    return await repeated(connection, "GET", "who") == b"newer"


@pytest.mark.slow
async def test_former_master_unaware_of_the_failover_is_disconnected(tmp_path: Path) -> None:
    """A master that is cut off from the Sentinels but not from this process would lose all its writes."""
    with Starter(tmp_path) as starter:
        server, sentinel, settings = await of_one(starter)
        newer = starter.server("newer")
        async with connected(settings) as (connection, subscriptions):
            channel = await subscriptions.subscribe("news")
            assert await connection.execute("SET", "who", "former") == b"OK"
            await ask(newer, "SET", "who", "newer")
            await ask_sentinel(sentinel, "SENTINEL", "REMOVE", MASTER)
            await ask_sentinel(sentinel, "SENTINEL", "MONITOR", MASTER, "127.0.0.1", newer.port, 1)
            async with asyncio.timeout(30):
                assert await anext(channel) == Gap("reconnected")
            await until_it_answers(lambda: _is_newer(connection))
        assert server.runs


@pytest.mark.slow
async def test_second_gap_follows_once_all_publishers_must_have_left_the_former_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may notice the new master later, and publish on the former one until then.

    So a channel that was subscribed in between may miss messages too.
    """
    monkeypatch.setattr(connector, "WATCH_SECONDS", 3.0)
    with Starter(tmp_path) as starter:
        former, sentinel, settings = await of_one(starter)
        newer = starter.server("newer")
        async with connected(settings) as (connection, subscriptions):
            channel = await subscriptions.subscribe("news")
            await ask_sentinel(sentinel, "SENTINEL", "REMOVE", MASTER)
            await ask_sentinel(sentinel, "SENTINEL", "MONITOR", MASTER, "127.0.0.1", newer.port, 1)
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                assert await anext(channel) == Gap("reconnected")
                new = await subscriptions.subscribe("new")
                for name in "news", "new":
                    assert await ask(former, "PUBLISH", name, "too late") == 0
                    await repeated(connection, "PUBLISH", name, "hello")
                for one in channel, new:
                    while (received := await anext(one)) == b"hello":
                        pass
                    assert received == Gap("reconnected")


async def test_address_is_the_one_of_the_new_epoch_while_the_leader_of_the_failover_shows_the_former_one() -> None:
    """Until all replicas follow the new master, SENTINEL MASTER returns the new epoch with the former address."""

    def sentinel(shown: bytes) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            parser = await handshake(reader, writer)
            while True:
                words = await command(reader, parser)
                answer = [b"127.0.0.1", b"9001"]
                if words[1] == b"MASTER":
                    answer = [b"name", b"mymaster", b"ip", b"127.0.0.1", b"port", shown, b"config-epoch", b"5"]
                writer.write(pack(tuple(answer)))

        return talk

    async with impostor(sentinel(b"9002")) as leader, impostor(sentinel(b"9001")) as other:
        hosts = f"127.0.0.1:{leader.port},127.0.0.1:{other.port}"
        found = await SentinelConnector(replace(leader, host=hosts, sentinel_master=MASTER)).find("test")
    assert found.address == Address("127.0.0.1", 9001)


async def test_replica_that_a_sentinel_names_as_master_is_refused(tmp_path: Path) -> None:
    with Starter(tmp_path) as starter:
        _, sentinel, settings = await of_one(starter)
        replica = starter.server("replica", f"replicaof 127.0.0.1 {settings.port}")
        await ask_sentinel(sentinel, "SENTINEL", "REMOVE", MASTER)
        await ask_sentinel(sentinel, "SENTINEL", "MONITOR", MASTER, "127.0.0.1", replica.port, 1)
        async with connected(replace(settings, connect_timeout_seconds=1)) as (connection, subscriptions):
            for one in connection, subscriptions:
                assert one.failure is not None
                assert one.failure.retryable
                assert "is a replica" in one.failure.reason


@pytest.mark.slow
async def test_sentinel_that_hangs_or_is_gone_delays_no_connection(tmp_path: Path) -> None:
    with watched(tmp_path) as servers:
        await servers.ready()
        servers.sentinels[0].freeze()
        servers.sentinels[1].kill()
        settings = replace(servers.settings, connect_timeout_seconds=300)
        async with asyncio.timeout(60), connected(settings) as (connection, _):
            assert await connection.execute("PING") == b"PONG"


@pytest.mark.parametrize(
    ("changes", "reason", "retryable"),
    [
        ({"sentinel_password": "wrong"}, "the Sentinel .* refuses the login", False),
        ({"sentinel_master": "another"}, "the Sentinel .* No such master", True),
        (
            {"sentinel_master": None, "sentinel_password": None, "password": SENTINEL_PASSWORD},
            "is a Sentinel",
            False,
        ),
        ({"port": 1}, "the Sentinel no connection to 127.0.0.1:1", True),
    ],
)
async def test_failure_names_the_wrong_setting_or_server(
    tmp_path: Path, changes: dict[str, object], reason: str, retryable: bool
) -> None:
    with Starter(tmp_path) as starter:
        _, _, settings = await of_one(starter)
        async with connected(replace(settings, connect_timeout_seconds=2, **changes)) as (connection, _):  # type: ignore[arg-type]
            failure = connection.failure
            assert failure is not None
            assert failure.retryable is retryable
            with pytest.raises(Unavailable, match=reason):
                raise failure


async def test_plain_server_in_place_of_a_sentinel_is_reported(server: Server) -> None:
    settings = replace(server.settings, sentinel_master=MASTER, sentinel_password=server.settings.password)
    async with connected(settings) as (connection, _):
        assert connection.failure is not None
        assert "the Sentinel" in connection.failure.reason


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"host": "a,b"}, "REDIS_HOST"),
        ({"sentinel_password": "x"}, "REDIS_SENTINEL_PASSWORD"),
        ({"sentinel_master": "m", "sentinel_username": "x"}, "REDIS_SENTINEL_PASSWORD"),
        ({"sentinel_master": "m", "cluster": True}, "REDIS_SENTINEL_MASTER"),
        ({"cluster": True, "database": 1}, "REDIS_DB"),
        ({"cluster": True, "host": "a,a"}, "REDIS_HOST"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as error:
        RedisSettings(**{"host": "redis"} | changes)  # type: ignore[arg-type]
    assert error.value.field == field
