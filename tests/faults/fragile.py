"""PostgreSQL and Valkey that are killed and frozen, and come back at the same ports with what they had."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Literal

from hubbub import Settings
from hubbub.embedded import Servers

Which = Literal["postgresql", "valkey"]


class FragileServers:
    """Servers with fsync, for tests that end them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers = Servers(folder)

    async def start(self) -> Settings:
        """Start what does not run. After a kill PostgreSQL recovers, on the port it had."""
        return await self._servers.start()

    async def stop(self) -> None:
        await self._servers.stop()

    def kill(self, which: Which) -> None:
        """kill -9, for PostgreSQL of all its processes."""
        for pid in self._pids(which):
            with suppress(ProcessLookupError):  # a child ends by itself when it notices
                os.kill(pid, SIGKILL)

    @contextmanager
    def frozen(self, which: Which) -> Iterator[None]:
        """They are there, accept connections, and say nothing."""
        pids: list[int] = []
        try:
            # The first process first: it starts no more others then.
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
