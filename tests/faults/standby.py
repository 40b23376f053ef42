"""A hot standby of a server that is killed or frozen: made by pg_basebackup, fed by streaming replication."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from commands import execute
from hubbub import PostgresSettings, Unavailable
from hubbub.embedded.folder import Folder, private_folder
from hubbub.embedded.process import Process
from hubbub.embedded.programs import find_postgresql
from hubbub.embedded.servers import PostgreSQL, free_port
from hubbub.postgres import connect
from rights import superuser
from waiting import until_it_answers

BACKUP_SECONDS = 60


class Standby:
    """The standby of the PostgreSQL in a folder of servers. Its data are in the same folder."""

    def __init__(self, folder: Path, primary: PostgresSettings, name: str = "standby") -> None:
        servers = Folder(folder).find()
        assert servers is not None
        self._account = servers.account
        self._data = servers.path / name
        self._process = Process("the standby", name, servers)
        self._primary = superuser(primary, folder)
        self.settings = replace(primary, port=free_port())
        self._superuser = replace(self._primary, port=self.settings.port)

    async def start(self) -> None:
        """Copy the primary, and return once the copy answers."""
        programs = find_postgresql(self._account)
        private_folder(self._data, self._account)
        primary = self._primary
        login = f"host={primary.host} port={primary.port} user={primary.user} password={primary.password}"
        backup = [
            *(str(programs.postgres.with_name("pg_basebackup")), "--pgdata", str(self._data), "--dbname", login),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-password"),
        ]
        await self._process.run(backup, cwd=self._data, seconds=BACKUP_SECONDS)
        server = [
            *(str(programs.postgres), "-D", str(self._data), f"--port={self.settings.port}"),
            *("--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--logging_collector=off"),
        ]
        signal = PostgreSQL.stop_signals[0][0]
        await self._process.launch(server, cwd=self._data, port=self.settings.port, death_signal=signal)
        await until_it_answers(self._answers)

    async def stop(self) -> None:
        await self._process.stop(PostgreSQL.stop_signals)
        shutil.rmtree(self._data)

    async def promote(self) -> None:
        """Make it a primary, which it is when this returns."""
        await execute(self._superuser, "SELECT pg_promote()")

    async def synchronous(self) -> None:
        """Let the primary acknowledge no commit that the standby does not have."""
        await execute(self._primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        await until_it_answers(lambda: self._replicates("sync_state = 'sync'"))

    async def cut_off(self) -> None:
        """Let it receive nothing of what is committed from now on."""
        await execute(self._superuser, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        await until_it_answers(self._is_cut_off)

    async def delay(self, milliseconds: int) -> None:
        """Let it replay each commit so much later than it was made."""
        await execute(
            self._superuser,
            f"ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds}",
            "SELECT pg_reload_conf()",
        )

    async def pause(self) -> None:
        """Let it receive the log of the primary, and replay nothing."""
        await execute(self._superuser, "SELECT pg_wal_replay_pause()")

    async def resume(self) -> None:
        await execute(self._superuser, "SELECT pg_wal_replay_resume()")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        holder = self._process.holder()
        assert holder is not None
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        for pid in (holder.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)

    async def _is_cut_off(self) -> bool:
        return not await self._replicates("true")

    async def _replicates(self, condition: str) -> bool:
        connection = await connect(self._primary)
        try:
            sql = f"SELECT count(*) > 0 FROM pg_stat_replication WHERE {condition}"
            return bool(await connection.fetchval(sql))
        finally:
            await connection.close()

    async def _answers(self) -> bool:
        try:
            await execute(self._superuser)
        except Unavailable:
            return False
        return True
