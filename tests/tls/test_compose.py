"""How compose.yaml starts Valkey: its script is run with a server of this machine and folders of the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubbub import RedisSettings, Unavailable
from hubbub.embedded.supervisor import free_port
from hubbub.redis import Connection
from tls.conftest import TlsRedis
from waiting import until

ROOT = Path(__file__).parents[2]
PASSWORD, ADMIN = "of hubbub's", 'of the "administrator" \\'


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """The folder deploy as it is after deploy/certificates."""
    folder = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", folder, ignore=shutil.ignore_patterns("tls"))
    subprocess.run([folder / "certificates", "chat.example.org"], check=True, capture_output=True, timeout=60)
    return folder


def script() -> str:
    """What the container of Valkey runs, as its shell sees it."""
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


async def _connected(settings: RedisSettings) -> Connection:
    connection = Connection(settings)
    await connection.start()
    await until(lambda: connection.connected)
    return connection


async def test_the_application_may_use_its_keys_and_the_administrator_everything(started: RedisSettings) -> None:
    application = await _connected(started)
    assert await application.execute("SET", "session:{b}:x", "1", "PX", 1000) == b"OK"
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


async def test_nobody_is_let_in_without_tls(started: RedisSettings) -> None:
    await (await _connected(started)).close()
    plain = Connection(RedisSettings(host="localhost", port=started.port, password=ADMIN, deadline_seconds=1))
    await plain.start()
    with pytest.raises(Unavailable):
        await plain.execute("PING")
    await plain.close()
