"""The commands of compose.yaml, run with servers and folders of the test."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from hubbub import PostgresSettings, RedisSettings, Settings, Unavailable
from hubbub.postgres import connect
from hubbub.redis import Connection
from ports import free_port
from tls.composed import Composed
from tls.conftest import TlsRedis, postgresql_with_tls
from waiting import until

ROOT = Path(__file__).parents[2]
OF_AN_ADMINISTRATOR = {"redis.version", "redis.role", "redis.memory", "redis.persistence", "redis.appendfsync"}
PASSWORD, ADMIN = "of hubbub's", 'of the "administrator" \\'


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """The folder deploy after deploy/certificates has run."""
    folder = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", folder, ignore=shutil.ignore_patterns("tls"))
    subprocess.run([folder / "certificates", "chat.example.org"], check=True, capture_output=True, timeout=60)
    return folder


def certified(certificate: Path) -> set[str]:
    """The names and addresses in the certificate."""
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions
    found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def test_certificates_cover_every_given_name_and_address(deployed: Path) -> None:
    given = ["chat.example.org", "cafe", "10.0.0.7", "fe80::1"]
    subprocess.run([deployed / "certificates", *given], check=True, capture_output=True, timeout=60)
    for server in ("postgres", "valkey"):
        assert certified(deployed / "tls" / f"{server}.pem") == {"localhost", "127.0.0.1", server, *given}
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "authority.pem", "postgres.pem", "valkey.pem"]
    subprocess.run(verify, cwd=deployed / "tls", check=True, capture_output=True, timeout=60)


def test_missing_openssl_is_reported(deployed: Path) -> None:
    ran = subprocess.run(
        ["/bin/bash", deployed / "certificates"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == "deploy/certificates needs the openssl command\n"


def test_new_certificates_need_the_same_authority(deployed: Path) -> None:
    again = [deployed / "certificates"]
    authority = (deployed / "tls" / "authority.pem").read_bytes()
    subprocess.run(again, check=True, capture_output=True, timeout=60)
    (deployed / "tls" / "authority.key").unlink()  # stored elsewhere, as the script advises
    ran = subprocess.run(again, check=False, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr.startswith("put authority.key back")) == (1, True)
    assert (deployed / "tls" / "authority.pem").read_bytes() == authority


def script() -> str:
    """The script of the Valkey container, as its shell reads it."""
    compose = (ROOT / "compose.yaml").read_text()
    [block] = re.findall(r"- \|\n((?: {8}.*\n)+)", compose[compose.index("  valkey:\n") :])
    return textwrap.dedent(block).replace("$$", "$")


@pytest.fixture
def started(deployed: Path, redis: TlsRedis, tmp_path: Path) -> Iterator[RedisSettings]:
    port = free_port()
    secrets, data = tmp_path / "secrets", tmp_path / "data"
    for folder in (secrets, data, tmp_path / "bin"):
        folder.mkdir()
    (secrets / "redis_password").write_text(PASSWORD)
    (secrets / "redis_admin_password").write_text(ADMIN)
    shutil.copy(deployed / "tls" / "valkey.key", secrets / "valkey_key")
    entry = tmp_path / "bin" / "docker-entrypoint.sh"
    entry.write_text(f'#!/bin/sh\nexec "{redis.binary}" -\n')
    entry.chmod(0o755)
    here = script().replace("-o valkey ", "").replace("tls-port 6379", f"tls-port {port}")
    for inside, outside in (
        ("/run/secrets/", f"{secrets}/"),
        ("/run/tls", str(tmp_path / "tls")),
        ("/etc/redis-user.conf", str(deployed / "redis-user.conf")),
        ("/etc/", f"{deployed}/tls/"),
        ("dir /data", f"dir {data}"),
    ):
        here = here.replace(inside, outside)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["sh", "-euc", here], env={"PATH": path}, stdout=log, stderr=log)
    authority = deployed / "tls" / "authority.pem"
    yield RedisSettings(
        host="localhost", port=port, username="hubbub", password=PASSWORD, tls=True, ssl_root_cert=authority
    )
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture
async def postgresql(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresSettings]:
    monkeypatch.setenv("HUBBUB_POSTGRES", str(postgresql_with_tls()))
    folder = Path(tempfile.mkdtemp(prefix="hubbub-composed-"))  # a folder that the account of the servers may pass
    server = Composed(folder, deployed)
    yield await server.start()
    await server.stop()
    shutil.rmtree(folder)


async def _connected(settings: RedisSettings) -> Connection:
    connection = Connection(settings)
    await connection.start()
    await until(lambda: connection.connected)
    return connection


async def test_application_may_use_its_keys_and_administrator_every_key(started: RedisSettings) -> None:
    application = await _connected(started)
    assert await application.execute("SET", "session:{b}:x", "1", "PX", 600_000) == b"OK"
    for forbidden in (("SET", "other", "1"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("PUBLISH", "other", "x")):
        with pytest.raises(Unavailable, match="NOPERM"):
            await application.execute(*forbidden)
    await application.close()
    administrator = await _connected(
        RedisSettings(
            host="localhost", port=started.port, password=ADMIN, tls=True, ssl_root_cert=started.ssl_root_cert
        )
    )
    assert await administrator.execute("DBSIZE") == 1
    await administrator.close()


async def test_connection_without_tls_is_refused(started: RedisSettings) -> None:
    await (await _connected(started)).close()
    plain = Connection(RedisSettings(host="localhost", port=started.port, password=ADMIN, deadline_seconds=1))
    await plain.start()
    with pytest.raises(Unavailable):
        await plain.execute("PING")
    await plain.close()


async def test_postgresql_refuses_connection_without_tls(postgresql: PostgresSettings) -> None:
    await (await connect(postgresql)).close()
    plain = replace(postgresql, sslmode="disable", ssl_root_cert=None)
    with pytest.raises(Unavailable, match="no encryption"):
        await connect(plain)


@pytest.mark.parametrize("who", ["application", "administrator of Redis"])
async def test_doctor_reads_passwords_from_files_and_has_no_finding(
    postgresql: PostgresSettings, started: RedisSettings, tmp_path: Path, who: str
) -> None:
    await (await _connected(started)).close()
    redis = started if who == "application" else replace(started, username=None, password=ADMIN)
    environment = dict(Settings(postgres=postgresql, redis=redis).to_env())
    for name in ("DB_PASSWORD", "REDIS_PASSWORD"):
        file = tmp_path / name
        file.write_text(f"{environment.pop(name)}\n")
        environment[f"{name}_FILE"] = str(file)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hubbub", "doctor", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=100,
        check=False,
    )
    told = msgspec.json.decode(ran.stdout)
    checks = [check for section in told["sections"] for check in section["checks"]]
    found = {check["name"] for check in checks for finding in check["findings"] if finding["severity"] != "note"}
    assert found <= {"together.passwords"}  # depends on the machine
    assert ran.returncode == (1 if found else 0)
    unseen = {check["name"] for check in checks if check["unseen"]}
    assert unseen == (OF_AN_ADMINISTRATOR if who == "application" else set())
