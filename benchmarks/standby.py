"""A hot standby of the PostgreSQL in a folder of servers, for benchmarks and tests of faults."""

from __future__ import annotations

import asyncio
import shutil

from hubbub.embedded import PostgreSQL, start_server
from hubbub.embedded.folder import ServerFolder, private_folder, write_private
from hubbub.embedded.process import Process
from hubbub.embedded.programs import PostgresPrograms
from hubbub.settings import PostgresSettings

# Enough for a pg_basebackup of some gigabytes on a slow disk under load.
COPY_SECONDS = 120


class Standby(PostgreSQL):
    """A hot standby of the PostgreSQL in a folder, by streaming replication. Its data are beside the primary's."""

    title = "the standby"

    def __init__(self, folder: ServerFolder, primary_port: int) -> None:
        super().__init__(folder)
        self._primary_port = primary_port
        self._password_file = folder.path / "standby.password"
        self.data = folder.path / "standby"
        self.process = Process(self.title, "standby", folder)

    async def start(self) -> PostgresSettings:
        """Copy the primary, and return the settings of the copy once it answers. It ends with this thread.

        Raises: Unavailable.
        """
        return self.settings(await start_server(self, detached=False))

    async def stop(self) -> None:
        """Stop it, and delete its data. Raises: Unavailable."""
        await self.process.stop(self.stop_signals)
        await asyncio.to_thread(shutil.rmtree, self.data)
        self._password_file.unlink()

    async def _make_data(self, programs: PostgresPrograms) -> None:
        private_folder(self.data, self._folder.account)
        line = f"127.0.0.1:{self._primary_port}:*:postgres:{self._folder.passwords.postgresql_superuser}"
        await asyncio.to_thread(write_private, self._password_file, line.encode(), self._folder.account)
        # The path is relative to the data folder, in which pg_basebackup and later the standby are started.
        login = f"host=127.0.0.1 port={self._primary_port} user=postgres passfile=../{self._password_file.name}"
        backup = [
            *(str(programs.postgres.with_name("pg_basebackup")), "--pgdata", str(self.data), "--dbname", login),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-password"),
        ]
        await self.process.run(backup, cwd=self.data, seconds=COPY_SECONDS)
