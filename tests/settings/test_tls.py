"""Files that belong together, the verification by a context, and the reload of changed files."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from hubbub.errors import Invalid
from settings.pem import Pem
from settings.reading import DATABASE_URL, PARTS, read, refusal


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_verifying_without_root_certificate_is_refused(mode: str) -> None:
    assert refusal(PARTS | {"DB_SSLMODE": mode}).field == "DB_SSLROOTCERT"
    assert refusal(PARTS | {"DATABASE_URL": f"{DATABASE_URL}?sslmode={mode}"}).field == "DB_SSLROOTCERT"


def test_certificate_without_key_or_key_without_certificate_is_refused(pem: Pem) -> None:
    cert, key = str(pem.cert), str(pem.key)
    assert refusal(PARTS | {"DB_SSLMODE": "require", "DB_SSLCERT": cert}).field == "DB_SSLKEY"
    assert refusal(PARTS | {"DB_SSLMODE": "require", "DB_SSLKEY": key}).field == "DB_SSLCERT"
    assert refusal(PARTS | {"REDIS_TLS": "1", "REDIS_CERT_FILE": cert}).field == "REDIS_KEY_FILE"
    assert refusal(PARTS | {"REDIS_TLS": "1", "REDIS_KEY_FILE": key}).field == "REDIS_CERT_FILE"


def test_certificate_that_would_be_unused_is_refused(pem: Pem) -> None:
    cert, pair = str(pem.cert), {"DB_SSLCERT": str(pem.cert), "DB_SSLKEY": str(pem.key)}
    assert refusal(PARTS | {"DB_SSLROOTCERT": cert}).field == "DB_SSLROOTCERT"
    assert refusal(PARTS | {"DB_SSLMODE": "disable"} | pair).field == "DB_SSLCERT"
    assert refusal(PARTS | {"REDIS_CA_FILE": cert}).field == "REDIS_CA_FILE"


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Run a whole handshake in memory. Raises the error of the side that refuses it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        waiting = [side for side in sides if not is_done(side)]
        if not waiting:
            return
    pytest.fail("the handshake does not end")


def is_done(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def server_context(pem: Pem, *, asks_for_a_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    if asks_for_a_certificate:
        context.load_verify_locations(pem.cert)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def postgres_context(**tls: object) -> ssl.SSLContext:
    context = replace(read(PARTS).postgres, **tls).ssl()  # type: ignore[arg-type]
    assert isinstance(context, ssl.SSLContext)
    return context


def redis_context(**tls: object) -> ssl.SSLContext:
    context = replace(read(PARTS).redis, tls=True, **tls).ssl()  # type: ignore[arg-type]
    assert context is not None
    return context


def test_mode_without_verification_is_passed_to_the_driver() -> None:
    postgres = read(PARTS).postgres
    assert postgres.ssl() == "prefer"
    assert replace(postgres, sslmode="disable").ssl() == "disable"
    assert read(PARTS).redis.ssl() is None


def test_require_accepts_any_certificate_as_in_libpq(pem: Pem) -> None:
    handshake(postgres_context(sslmode="require"), server_context(pem), "elsewhere.example.org")


def test_require_with_a_root_certificate_verifies_as_in_libpq(pem: Pem) -> None:
    assert postgres_context(sslmode="require", ssl_root_cert=pem.cert).verify_mode is ssl.CERT_REQUIRED


def test_verify_ca_checks_the_certificate_and_not_the_name(pem: Pem) -> None:
    handshake(postgres_context(sslmode="verify-ca", ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1")


def test_verify_full_checks_the_name_as_well(pem: Pem) -> None:
    handshake(postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert), server_context(pem), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        handshake(
            postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1"
        )


def test_redis_over_tls_always_checks_certificate_and_name(pem: Pem) -> None:
    handshake(redis_context(ssl_root_cert=pem.cert), server_context(pem), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        handshake(redis_context(ssl_root_cert=pem.cert), server_context(pem), "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        handshake(redis_context(), server_context(pem), "localhost")


def test_client_certificate_is_sent_to_the_server(pem: Pem) -> None:
    asking, pair = server_context(pem, asks_for_a_certificate=True), {"ssl_cert": pem.cert, "ssl_key": pem.key}
    handshake(postgres_context(sslmode="verify-full", ssl_root_cert=pem.cert, **pair), asking, "localhost")
    handshake(redis_context(ssl_root_cert=pem.cert, **pair), asking, "localhost")
    with pytest.raises(ssl.SSLError):
        handshake(postgres_context(sslmode="require"), asking, "localhost")


def test_file_without_certificate_or_key_is_refused_by_name(pem: Pem) -> None:
    with pytest.raises(Invalid, match=r"^DB_SSLROOTCERT: "):
        postgres_context(sslmode="verify-full", ssl_root_cert=pem.rubbish)
    with pytest.raises(Invalid, match=r"^DB_SSLCERT: "):
        postgres_context(sslmode="require", ssl_cert=pem.cert, ssl_key=pem.rubbish)
    with pytest.raises(Invalid, match=r"^REDIS_CA_FILE: "):
        redis_context(ssl_root_cert=pem.rubbish)
    with pytest.raises(Invalid, match=r"^REDIS_CERT_FILE: "):
        redis_context(ssl_cert=pem.rubbish, ssl_key=pem.key)


def test_encrypted_key_is_refused_without_a_password_prompt(pem: Pem) -> None:
    with pytest.raises(Invalid, match="without a password"):
        postgres_context(sslmode="require", ssl_cert=pem.cert, ssl_key=pem.encrypted_key)


# Files that change


def put(pem: Pem, folder: Path) -> dict[str, Path]:
    """Replace the certificate in the folder atomically, as a renewal does."""
    placed = {"ssl_root_cert": folder / "root.pem", "ssl_cert": folder / "cert.pem", "ssl_key": folder / "key.pem"}
    for file, source in zip(placed.values(), (pem.cert, pem.cert, pem.key), strict=True):
        new = file.with_suffix(".new")
        new.write_bytes(source.read_bytes())
        new.replace(file)
    return placed


def test_connections_share_one_context_while_files_are_unchanged(pem: Pem) -> None:
    verified = {"sslmode": "verify-full", "ssl_root_cert": pem.cert}
    assert postgres_context(**verified) is postgres_context(**verified)
    assert redis_context(ssl_root_cert=pem.cert) is redis_context(ssl_root_cert=pem.cert)
    assert redis_context() is redis_context()


def test_settings_that_verify_less_have_a_context_of_their_own(pem: Pem) -> None:
    full, ca = (postgres_context(sslmode=mode, ssl_root_cert=pem.cert) for mode in ("verify-full", "verify-ca"))
    assert (full.check_hostname, ca.check_hostname) == (True, False)
    unverified = postgres_context(sslmode="require")
    assert unverified.verify_mode is ssl.CERT_NONE
    assert redis_context().verify_mode is ssl.CERT_REQUIRED


def test_renewed_certificates_are_used_by_the_next_connection(pem: Pem, renewed: Pem, tmp_path: Path) -> None:
    files = put(pem, tmp_path)
    postgres = replace(read(PARTS).postgres, sslmode="verify-full", **files)  # type: ignore[arg-type]
    redis = replace(read(PARTS).redis, tls=True, **files)  # type: ignore[arg-type]
    for current in (pem, renewed):
        put(current, tmp_path)
        for context in (postgres.ssl(), redis.ssl()):
            assert isinstance(context, ssl.SSLContext)
            handshake(context, server_context(current, asks_for_a_certificate=True), "localhost")


def test_certificates_renewed_through_a_link_are_used(pem: Pem, renewed: Pem, tmp_path: Path) -> None:
    current, root = tmp_path / "current", tmp_path / "current" / "cert.pem"
    current.symlink_to(pem.cert.parent)
    handshake(redis_context(ssl_root_cert=root), server_context(pem), "localhost")
    (tmp_path / "next").symlink_to(renewed.cert.parent)
    (tmp_path / "next").replace(current)
    handshake(redis_context(ssl_root_cert=root), server_context(renewed), "localhost")


def test_unreadable_certificate_is_refused_until_it_is_readable_again(pem: Pem, tmp_path: Path) -> None:
    files = put(pem, tmp_path)
    redis = replace(read(PARTS).redis, tls=True, ssl_root_cert=files["ssl_root_cert"])
    assert redis.ssl() is not None
    files["ssl_root_cert"].unlink()
    with pytest.raises(Invalid, match=r"^REDIS_CA_FILE: "):
        redis.ssl()
    put(pem, tmp_path)
    handshake(redis.ssl() or pytest.fail("no TLS"), server_context(pem), "localhost")
