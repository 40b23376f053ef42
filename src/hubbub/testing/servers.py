"""PostgreSQL and Valkey for as long as the tests run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubbub.embedded import Servers
from hubbub.settings import Settings


@contextmanager
def serving(folder: Path) -> Iterator[Settings]:
    """Servers of the block's own, in a new or empty folder, which end with it and with the process.

    They do not wait for the disk: fast, and nothing to keep data on. Raises `Unavailable`, which says what to
    install where there are no servers on this machine.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        servers = Servers(folder, fsync=False)
        settings = runner.run(servers.start())
        try:
            yield settings
        finally:
            runner.run(servers.stop())
