"""TLS towards Redis: the identity of the other side is always verified."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbub import RedisSettings, Unavailable
from hubbub.redis import Connection, Subscriptions
from tls.certificates import Certificates, Kind
from tls.conftest import TlsRedis


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
    async with await subscriptions.subscribe("room") as heard:
        assert await connection.execute("PUBLISH", "room", "in secret") == 1
        assert await anext(heard) == b"in secret"
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
