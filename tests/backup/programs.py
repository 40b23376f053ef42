"""pg_dump and pg_restore, run as docs/howto/backup.md describes."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from pathlib import Path

from hubbub import PostgresSettings
from hubbub.embedded.folder import servers_account
from hubbub.embedded.programs import CHOSEN_POSTGRESQL, find_postgresql

DUMP_SECONDS = 60

DUMP = ("pg_dump", "--format=custom", "--no-owner", "--no-privileges")
RESTORE = ("pg_restore", "--no-owner", "--no-privileges", "--single-transaction")


class Programs:
    """The programs of the newest PostgreSQL of this machine, whichever version the tests run on.

    pg_dump reads servers up to its own version, and a server of its own version restores the dump.
    """

    def __init__(self) -> None:
        assert CHOSEN_POSTGRESQL not in os.environ
        self._folder = find_postgresql(servers_account(Path.cwd())).postgres.parent

    async def dump(self, database: PostgresSettings, archive: Path) -> None:
        """Write the database to a file, as the user of the settings."""
        await self._run(*DUMP, f"--file={archive}", as_=database)

    async def restore(self, archive: Path, database: PostgresSettings) -> None:
        """Restore into an empty database as its owner, completely or not at all."""
        await self._run(*RESTORE, f"--dbname={database.database}", str(archive), as_=database)

    async def _run(self, program: str, *arguments: str, as_: PostgresSettings) -> None:
        login = {
            "PGHOST": as_.host,
            "PGPORT": str(as_.port),
            "PGDATABASE": as_.database,
            "PGUSER": as_.user,
            "PGPASSWORD": str(as_.password),
        }
        process = await asyncio.create_subprocess_exec(
            self._folder / program,
            *("--no-password", *arguments),
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **login},
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            async with asyncio.timeout(DUMP_SECONDS):
                said = b"".join(await process.communicate()).decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said
        assert said == ""
