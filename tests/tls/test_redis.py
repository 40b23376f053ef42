"""TLS towards Redis: the identity of the other side is always verified."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbub import RedisSettings, Unavailable, new_id
from hubbub.events import room_channel
from hubbub.redis import ClusterConnection, ClusterSubscriptions, Connection, Subscriptions
from hubbub.redis.connector import SLOTS, ServerConnector
from hubbub.redis.replies import as_bytes
from redis_topologies import port_of_node
from tls.certificates import Certificates, Kind
from tls.conftest import TlsRedis
from waiting import until_it_answers


async def refusal(settings: RedisSettings) -> str:
    connection = Connection(replace(settings, deadline_seconds=1))
    await connection.start()
    try:
        with pytest.raises(Unavailable) as caught:
            await connection.execute("PING")
    finally:
        await connection.close()
    assert caught.value.service == "redis"
    assert not caught.value.retryable
    assert str(settings.password) not in str(caught.value)
    return caught.value.reason


async def test_server_certified_by_our_authority_is_accepted_over_tls(redis: TlsRedis) -> None:
    settings = redis.showing("good")
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    await subscriptions.start()
    async with await subscriptions.subscribe("room") as subscription:
        assert await connection.execute("PUBLISH", "room", "in secret") == 1
        assert await anext(subscription) == b"in secret"
    await connection.close()
    await subscriptions.close()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("of a stranger", "self-signed certificate|unable to get local issuer"),
        ("for another host", "IP address mismatch"),
        ("expired", "certificate has expired"),
    ],
)
async def test_server_without_valid_certificate_is_refused(redis: TlsRedis, kind: Kind, reason: str) -> None:
    said = await refusal(redis.showing(kind))
    assert any(part in said for part in reason.split("|")), said


async def test_client_certificate_is_sent_on_request(redis: TlsRedis, certificates: Certificates) -> None:
    settings = redis.showing("good", asks_clients=True)
    own = certificates.of_client("chat")
    connection = Connection(replace(settings, ssl_cert=own.cert, ssl_key=own.key))
    await connection.start()
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_client_without_certificate_is_refused(redis: TlsRedis) -> None:
    settings = redis.showing("good", asks_clients=True)
    connection = Connection(replace(settings, deadline_seconds=1))
    await connection.start()
    with pytest.raises(Unavailable):
        await connection.execute("PING")
    await connection.close()


async def test_nodes_of_a_cluster_are_reached_over_tls(redis: TlsRedis) -> None:
    lines = ("cluster-enabled yes", "tls-cluster yes")
    settings = replace(redis.showing("good", *lines, port=port_of_node()), cluster=True)
    node = Connection(settings, connector=ServerConnector(settings, settings.addresses[0]))
    await node.start()
    await node.execute("CLUSTER", "ADDSLOTS", *range(SLOTS))
    connection = ClusterConnection(settings)
    subscriptions = ClusterSubscriptions(settings, connection)
    await connection.start()
    await subscriptions.start()
    await until_it_answers(lambda: _is_ok(node))
    channel = room_channel(new_id())
    async with await subscriptions.subscribe(channel) as subscription:
        assert len(subscriptions.servers) == 2
        await connection.execute("PUBLISH", channel, "in secret")
        assert await anext(subscription) == b"in secret"
    for one in subscriptions, connection, node:
        await one.close()


async def _is_ok(node: Connection) -> bool:
    return b"cluster_state:ok" in as_bytes(await node.execute("CLUSTER", "INFO"))
