"""PostgreSQL and Valkey that can be killed, stopped and frozen, and restarted on the same port with their data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Literal

from hubbub import PostgresSettings, Settings
from hubbub.embedded import Servers, locks
from rights import superuser
from waiting import until

Which = Literal["postgresql", "valkey"]

# Signals by which an administrator stops them. The fast shutdown of PostgreSQL ends its sessions.
STOP_SIGNALS = {"postgresql": SIGINT, "valkey": SIGTERM}


class FragileServers:
    """Servers with fsync, for tests that end them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers = Servers(folder)

    async def start(self) -> Settings:
        """Start the servers that are not running. After a kill PostgreSQL recovers, on the same port."""
        return await self._servers.start()

    async def stop(self) -> None:
        await self._servers.stop()

    def kill(self, which: Which) -> None:
        """kill -9, for PostgreSQL of all its processes."""
        for pid in self._pids(which):
            with suppress(ProcessLookupError):  # a child ends by itself when it notices
                os.kill(pid, SIGKILL)

    async def shut_down(self, which: Which) -> None:
        """Shut down cleanly. Returns once the last process of the server has ended."""
        os.kill(self._pids(which)[0], STOP_SIGNALS[which])
        await until(lambda: not locks.is_held(self._folder / f"{which}.lock"))

    def administrator(self, settings: PostgresSettings) -> PostgresSettings:
        """A superuser, in the database of `settings`, bypassing any pooler."""
        port = json.loads((self._folder / "postgresql.lock").read_text())["port"]
        return replace(superuser(settings, self._folder), port=port, database=settings.database)

    def log(self, which: Which) -> str:
        """The whole log of the server."""
        return (self._folder / f"{which}.log").read_text(errors="replace")

    @contextmanager
    def frozen(self, which: Which) -> Iterator[None]:
        """The processes exist and their sockets accept connections, but they do not answer."""
        pids: list[int] = []
        try:
            # The main process first, so that it does not start others meanwhile.
            os.kill(self._pids(which)[0], SIGSTOP)
            pids = self._pids(which)
            for pid in pids[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGSTOP)
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGCONT)

    def _pids(self, which: Which) -> list[int]:
        pid: int = json.loads((self._folder / f"{which}.lock").read_text())["pid"]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]
