"""PostgreSQL as compose.yaml starts it, with a server of this machine in place of the image."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from commands import execute
from hubbub import PostgresSettings, migrations
from hubbub.embedded import Servers
from hubbub.migrations.grants import quoted
from rights import superuser

ROLE, PASSWORD = "chat", "of the application's \\ 'role'"


class Composed:
    """PostgreSQL with a certificate of deploy/certificates and deploy/pg_hba.conf. It waits for the disk."""

    def __init__(self, folder: Path, deployed: Path) -> None:
        self._folder = folder
        self._deployed = deployed
        self._servers = Servers(folder)

    async def start(self) -> PostgresSettings:
        """Start it, migrate it, and grant rights to a role of the application, as documented."""
        settings = (await self._servers.start()).postgres
        await migrations.up(settings)
        of_all = replace(superuser(settings, self._folder), database=settings.database)
        secret = PASSWORD.replace("'", "''")
        await execute(of_all, f"CREATE ROLE {quoted(ROLE)} LOGIN PASSWORD '{secret}'")
        await migrations.grant(of_all, ROLE)
        self._copy_for_server("tls/postgres.pem", "server.crt")
        self._copy_for_server("tls/postgres.key", "server.key")
        self._copy_for_server("pg_hba.conf", "pg_hba.conf")
        await execute(of_all, "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
        authority = self._deployed / "tls" / "authority.pem"
        return replace(
            settings,
            host="localhost",
            user=ROLE,
            password=PASSWORD,
            sslmode="verify-full",
            ssl_root_cert=authority,
        )

    async def stop(self) -> None:
        await self._servers.stop()

    def _copy_for_server(self, source: str, name: str) -> None:
        """Copy a file that the `-c` options of the image name into the data folder, readable by the server."""
        target = self._folder / "postgresql" / name
        owner = target.parent.stat()
        shutil.copyfile(self._deployed / source, target)
        target.chmod(0o600)
        os.chown(target, owner.st_uid, owner.st_gid)
