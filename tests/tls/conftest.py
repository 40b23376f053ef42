"""PostgreSQL and Redis with TLS, if the machine has them. The wheels of the embedded servers have no TLS."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from commands import execute
from hubbub import PostgresSettings, RedisSettings, migrations
from hubbub.embedded import Servers
from hubbub.embedded.programs import DEBIAN
from redis_server import PASSWORD, Server
from rights import superuser
from tls.certificates import Certificate, Certificates, Kind
from versions.catalogue import program
from waiting import until

ABSENT = "there is no {} with TLS on this machine: `make servers` fetches one"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def _sockets() -> int:
    """The number of open sockets of this process."""
    count = 0
    for descriptor in Path("/dev/fd").iterdir():
        try:
            count += stat.S_ISSOCK(os.fstat(int(descriptor.name)).st_mode)
        except OSError:  # the descriptor of the folder itself
            continue
    return count


@pytest.fixture(autouse=True)
async def no_socket_is_left() -> AsyncIterator[None]:
    """Wait until refused connections are closed, which happens after the TLS shutdown."""
    before = _sockets()
    yield
    await until(lambda: _sockets() <= before)


class TlsPostgreSQL:
    """PostgreSQL that reloads certificates while it runs. It refuses connections without TLS."""

    def __init__(self, settings: PostgresSettings, folder: Path, certificates: Certificates) -> None:
        self._data = folder / "postgresql"
        self._superuser = superuser(settings, folder)
        self._certificates = certificates
        self.stranger = certificates.stranger
        self.settings = replace(settings, sslmode="verify-full", ssl_root_cert=certificates.authority)

    async def turn_on(self) -> None:
        """Turn on TLS with a valid certificate. The superuser may still connect without TLS."""
        self._put(self._certificates.of_server("good"))
        self._place(self._certificates.authority, "root.crt")
        await self._configure("ssl_ca_file", "root.crt")
        await self._configure("ssl", "on")
        await self.admit("scram-sha-256")

    async def show(self, kind: Kind) -> None:
        """Use this certificate from the next connection on."""
        self._put(self._certificates.of_server(kind))
        await self._reload()

    async def admit(self, how: str) -> None:
        """Admit clients by this method of pg_hba.conf."""
        lines = ["host all postgres 127.0.0.1/32 scram-sha-256", f"hostssl all all 127.0.0.1/32 {how}"]
        (self._data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
        await self._reload()

    def _put(self, certificate: Certificate) -> None:
        self._place(certificate.cert, "server.crt")
        self._place(certificate.key, "server.key")

    def _place(self, source: Path, name: str) -> None:
        target, owner = self._data / name, self._data.stat()
        shutil.copyfile(source, target)
        target.chmod(0o600)
        os.chown(target, owner.st_uid, owner.st_gid)

    async def _configure(self, name: str, value: str) -> None:
        await execute(self._superuser, f"ALTER SYSTEM SET {name} = '{value}'")

    async def _reload(self) -> None:
        await execute(self._superuser, "SELECT pg_reload_conf()")


def postgresql_with_tls() -> Path:
    """A folder of programs, of Debian or fetched. Without one the test is skipped."""
    found = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    programs = found[0] if found else program("postgresql-15")
    if programs is None:
        pytest.skip(ABSENT.format("PostgreSQL"))
    return programs


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def one_postgresql(certificates: Certificates) -> AsyncIterator[TlsPostgreSQL]:
    programs = postgresql_with_tls()
    folder = Path(tempfile.mkdtemp(prefix="hubbub-tls-"))  # a folder that the account of the servers may pass
    servers = Servers(folder, fsync=False)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HUBBUB_POSTGRES", str(programs))
        settings = await servers.start()
    await migrations.up(settings.postgres)
    server = TlsPostgreSQL(settings.postgres, folder, certificates)
    await server.turn_on()
    yield server
    await servers.stop()
    shutil.rmtree(folder)


@pytest.fixture
async def postgresql(one_postgresql: TlsPostgreSQL) -> TlsPostgreSQL:
    """A server with a valid certificate that requires a password."""
    await one_postgresql.show("good")
    await one_postgresql.admit("scram-sha-256")
    return one_postgresql


class TlsRedis:
    """The Redis servers of one test, one per certificate."""

    def __init__(self, binary: Path, folder: Path, certificates: Certificates) -> None:
        self.binary = binary
        self._folder = folder
        self._certificates = certificates
        self._started: list[Server] = []

    def showing(
        self, kind: Kind, *lines: str, asks_clients: bool = False, port: int | None = None
    ) -> RedisSettings:
        """Start a server with this certificate and additional lines of configuration. Returns its settings."""
        certificate = self._certificates.of_server(kind)
        folder = self._folder / f"redis-{len(self._started)}"
        folder.mkdir()
        extra = (
            *("port 0", "tls-port {port}", f'tls-cert-file "{certificate.cert}"'),
            *(f'tls-key-file "{certificate.key}"', f'tls-ca-cert-file "{self._certificates.authority}"'),
            f"tls-auth-clients {'yes' if asks_clients else 'no'}",
            *lines,
        )
        server = Server(self.binary, folder, extra=extra, port=port).start()
        self._started.append(server)
        return replace(server.settings, password=PASSWORD, tls=True, ssl_root_cert=self._certificates.authority)

    def stop(self) -> None:
        for server in self._started:
            server.stop()


@pytest.fixture
def redis(tmp_path: Path, certificates: Certificates) -> Iterator[TlsRedis]:
    binary = program("redis-7.0")
    if binary is None and (found := shutil.which("redis-server")):
        binary = Path(found)
    if binary is None:
        pytest.skip(ABSENT.format("Redis"))
    servers = TlsRedis(binary, tmp_path, certificates)
    yield servers
    servers.stop()
