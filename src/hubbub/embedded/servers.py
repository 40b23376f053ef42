"""Servers that live as long as a program at most: for a demo and for tests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType

from hubbub.embedded import disk
from hubbub.embedded.folder import Folder
from hubbub.embedded.locks import Lock
from hubbub.embedded.supervisor import Pair
from hubbub.errors import Unavailable
from hubbub.settings import Settings


class Servers:
    """PostgreSQL and Valkey that live exactly as long as this object's process at most.

        async with Servers(Path("chat-servers")) as settings:
            ...

    `folder` is new, empty or of an earlier run. Data, passwords and logs in it are kept when the servers stop and
    found again by the next start, also when owner or servers were killed; it serves one owner at a time. With
    `fsync=False` nothing waits for the disk: fast, and after a power cut the data may be lost. For tests.

    On Linux the servers stop when the thread that started them ends, however it ends. Elsewhere those of an owner
    that was killed go on, until `hubbub down --folder ...`.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = Folder(folder)
        self._fsync = fsync
        self._pair: Pair | None = None
        self._ownership: Lock | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> Settings:
        """Starts what is not running yet; returns when both answer.

        May be called again at any time: it asks the servers, and starts again one that has died. The first start
        in a folder also makes the data. Raises Unavailable, and then leaves nothing running that was not before.
        """
        async with self._turn:
            with disk.failures("cannot start servers"):
                if self._pair is not None:
                    return await self._pair.start(detached=False)
                return await self._take_and_start()

    async def stop(self) -> None:
        """Stops the servers in good order and keeps all they have. Does nothing when none run.

        Raises Unavailable for one that cannot be stopped.
        """
        async with self._turn:
            if self._pair is None or self._ownership is None:
                return
            try:
                await self._pair.stop()
            finally:
                self._ownership.release()
                self._pair = self._ownership = None

    async def __aenter__(self) -> Settings:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _take_and_start(self) -> Settings:
        async with self._folder.command():
            pair = Pair(await asyncio.to_thread(self._folder.set_up), fsync=self._fsync)
            if any(server.process.is_detached() for server in pair.servers):
                raise Unavailable(
                    "embedded",
                    f"the servers of `hubbub up` run in {self._folder.path}: use them, or `hubbub down` first",
                    retryable=False,
                )
            ownership = await self._folder.own()
            try:
                settings = await pair.start(detached=False)
            except BaseException:
                ownership.release()
                raise
            self._pair, self._ownership = pair, ownership
            return settings
