"""TLS towards PostgreSQL: the identity of the other side is always verified."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hubbub import PostgresSettings, Unavailable
from hubbub.postgres import Pool, Statement, connect
from tls.certificates import Certificates, Kind
from tls.conftest import TlsPostgreSQL

ENCRYPTED = Statement("tests.encrypted", bool, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


async def is_encrypted(settings: PostgresSettings) -> bool | None:
    pool = Pool(settings)
    try:
        await pool.open()
        return await pool.fetch_one(ENCRYPTED)
    finally:
        await pool.close()


async def refusal(settings: PostgresSettings) -> str:
    with pytest.raises(Unavailable) as caught:
        await is_encrypted(settings)
    assert caught.value.service == "postgresql"
    assert not caught.value.retryable
    assert str(settings.password) not in str(caught.value)
    return caught.value.reason


async def test_server_certified_by_our_authority_is_accepted_over_tls(postgresql: TlsPostgreSQL) -> None:
    assert await is_encrypted(postgresql.settings)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("of a stranger", "self-signed certificate|unable to get local issuer"),
        ("for another host", "IP address mismatch"),
        ("expired", "certificate has expired"),
    ],
)
async def test_server_without_valid_certificate_is_refused(
    postgresql: TlsPostgreSQL, kind: Kind, reason: str
) -> None:
    await postgresql.show(kind)
    said = await refusal(postgresql.settings)
    assert any(part in said for part in reason.split("|")), said


async def test_verify_ca_checks_the_authority_and_not_the_name(postgresql: TlsPostgreSQL) -> None:
    await postgresql.show("for another host")
    assert await is_encrypted(replace(postgresql.settings, sslmode="verify-ca"))
    await postgresql.show("of a stranger")
    assert "certificate" in await refusal(replace(postgresql.settings, sslmode="verify-ca"))


async def test_certificate_is_checked_for_every_new_connection(postgresql: TlsPostgreSQL) -> None:
    pool = Pool(replace(postgresql.settings, idle_timeout_seconds=0.1, pool_size=1))
    assert await pool.fetch_one(ENCRYPTED)
    await postgresql.show("of a stranger")
    await pool.close()
    assert "certificate" in await refusal(postgresql.settings)
    trusting_the_stranger = replace(postgresql.settings, ssl_root_cert=postgresql.stranger)
    assert await is_encrypted(trusting_the_stranger)


async def test_connection_without_tls_is_refused(postgresql: TlsPostgreSQL) -> None:
    plain = replace(postgresql.settings, sslmode="disable", ssl_root_cert=None)
    assert "no encryption" in await refusal(plain)


async def test_client_certificate_replaces_a_password(
    postgresql: TlsPostgreSQL, certificates: Certificates
) -> None:
    await postgresql.admit("cert")
    own = certificates.of_client(postgresql.settings.user)
    settings = replace(postgresql.settings, password=None, ssl_cert=own.cert, ssl_key=own.key)
    assert await is_encrypted(settings)


async def test_client_without_certificate_or_with_another_users_is_refused(
    postgresql: TlsPostgreSQL, certificates: Certificates
) -> None:
    await postgresql.admit("cert")
    assert "requires a valid client certificate" in await refusal(postgresql.settings)
    other = certificates.of_client("somebody-else")
    refused = await refusal(replace(postgresql.settings, ssl_cert=other.cert, ssl_key=other.key))
    assert "certificate authentication failed" in refused


async def test_client_certificate_of_unknown_authority_is_refused(
    postgresql: TlsPostgreSQL, certificates: Certificates
) -> None:
    await postgresql.admit("cert")
    own = certificates.of_client(postgresql.settings.user, by_stranger=True)
    with pytest.raises(Unavailable, match="the connection was lost"):  # TLS 1.3 gives no other reason
        await is_encrypted(replace(postgresql.settings, ssl_cert=own.cert, ssl_key=own.key))


async def test_each_host_of_a_list_is_verified_by_its_own_name(postgresql: TlsPostgreSQL) -> None:
    settings, port = postgresql.settings, postgresql.settings.port
    several = replace(settings, host=f"localhost:{port},{settings.host}:{port}")
    connection = await connect(several)
    assert connection.address.host == settings.host
    connection.terminate()
    await postgresql.show("for another host")
    said = await refusal(several)
    assert "mismatch" in said
    assert f"TLS with localhost:{port} failed" in said
    assert f"TLS with {settings.host}:{port} failed" in said
