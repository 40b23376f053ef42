"""A hot standby of a server that is killed or frozen, and the faults of the standby itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals

from benchmarks import standby
from commands import execute
from faults.fragile import FragileServers
from hubbub import PostgresSettings, Settings
from hubbub.embedded.folder import Folder
from hubbub.postgres import connect
from rights import superuser
from waiting import until_it_answers


@dataclass(frozen=True, slots=True)
class Pair:
    """A primary and its standby. `settings` are those of the primary."""

    primary: FragileServers
    standby: Standby
    settings: Settings

    @property
    def hosts(self) -> Settings:
        """Settings that name both hosts."""
        postgres = self.settings.postgres
        hosts = f"127.0.0.1:{postgres.port},127.0.0.1:{self.standby.settings.port}"
        return replace(self.settings, postgres=replace(postgres, host=hosts))

    @property
    def replicated(self) -> Settings:
        """Settings with the standby as a read replica."""
        return replace(self.settings, replicas=(self.standby.settings,))


class Standby:
    """The standby of the PostgreSQL in a folder of servers."""

    settings: PostgresSettings

    def __init__(self, folder: Path, primary: PostgresSettings) -> None:
        found = Folder(folder).find()
        assert found is not None
        self._server = standby.Standby(found, primary.port)
        self._database = primary.database
        self._primary = superuser(primary, folder)

    async def start(self) -> None:
        """Copy the primary, and return once the copy answers."""
        self.settings = replace(await self._server.start(), database=self._database)
        self._superuser = replace(self._primary, port=self.settings.port)

    async def stop(self) -> None:
        await self._server.stop()

    async def promote(self) -> None:
        """Promote it. It is a primary when this returns."""
        await execute(self._superuser, "SELECT pg_promote()")

    async def synchronous(self) -> None:
        """Have the primary acknowledge only commits that the standby has."""
        await execute(self._primary, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        await until_it_answers(lambda: self._replicates("sync_state = 'sync'"))

    async def asynchronous(self) -> None:
        """Have the primary acknowledge commits without the standby again, including those that wait for it."""
        await execute(self._primary, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")

    async def cut_off(self) -> None:
        """Keep later commits from the standby. It has replayed all earlier ones when this returns."""
        await execute(self._superuser, "ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        await until_it_answers(self._is_cut_off)

    async def delay(self, milliseconds: int) -> None:
        """Have it replay each commit with this delay."""
        await execute(
            self._superuser,
            f"ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds}",
            "SELECT pg_reload_conf()",
        )

    async def pause(self) -> None:
        """Have it receive the log of the primary without replaying it."""
        await execute(self._superuser, "SELECT pg_wal_replay_pause()")

    async def resume(self) -> None:
        await execute(self._superuser, "SELECT pg_wal_replay_resume()")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        self._signal(SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes within the block (SIGSTOP). They keep their connections."""
        self._signal(SIGSTOP)
        try:
            yield
        finally:
            self._signal(SIGCONT)

    def _signal(self, signal: Signals) -> None:
        holder = self._server.process.holder()
        assert holder is not None
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        for pid in (holder.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal)

    async def _is_cut_off(self) -> bool:
        return not await self._replicates("true") and await self._has_replayed_all()

    async def _replicates(self, condition: str) -> bool:
        return await _holds(self._primary, f"SELECT count(*) > 0 FROM pg_stat_replication WHERE {condition}")

    async def _has_replayed_all(self) -> bool:
        """Whether its startup process has found no further part of the log."""
        event = "RecoveryRetrieveRetryInterval"
        return await _holds(
            self._superuser, f"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = '{event}'"
        )


async def _holds(settings: PostgresSettings, condition: str) -> bool:
    connection = await connect(settings)
    try:
        return bool(await connection.fetchval(condition))
    finally:
        await connection.close()
