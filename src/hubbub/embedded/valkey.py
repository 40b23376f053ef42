"""Valkey, or Redis, in a folder."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from signal import SIGKILL, SIGTERM

from hubbub.embedded import disk
from hubbub.embedded.binaries import find_valkey
from hubbub.embedded.folder import Place
from hubbub.embedded.process import Process
from hubbub.settings import RedisSettings

ANSWER_SECONDS = 1

# `dir .` is the data directory, in which the server is started: so no path has to be quoted.
#
# Every write is in the append-only file before it is answered, so a server that is killed loses nothing. There
# `everysec` would do worse: it holds writes back for up to two seconds while the disk is busy. What `no` leaves to
# the system is when the file reaches the disk: a power cut may cost the last half minute, of what is not the log.
CONFIGURATION = """\
bind 127.0.0.1
protected-mode yes
requirepass {password}
dir .
save ""
appendonly yes
appendfsync no
"""


class Valkey:
    """The Valkey of a folder: its data directory and its one process at a time."""

    title = "Valkey"
    stop_signals = ((SIGTERM, 30.0), (SIGKILL, 5.0))

    def __init__(self, place: Place) -> None:
        self._place = place
        self.data = place.folder / "valkey"
        self.process = Process(self.title, "valkey", place)

    def settings(self, port: int) -> RedisSettings:
        """How to log in. Without TLS: the server listens on the loopback interface alone."""
        return RedisSettings(host="127.0.0.1", port=port, password=self._place.passwords.valkey)

    async def version(self, port: int) -> str | None:
        """What the server on that port says it is, for instance "9.1.2"; None unless it is ours and serves.

        Asked in three plain lines over a socket: hiredis is for redis/ alone, and its connections are
        more than a question needs. PONG is what a server that still loads its data does not say.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(f"AUTH {self._place.passwords.valkey}\r\nPING\r\nINFO server\r\n".encode())
                    replies = [await reader.readline() for _ in range(3)]
                    if replies[:2] != [b"+OK\r\n", b"+PONG\r\n"] or not replies[2].startswith(b"$"):
                        return None
                    information = await reader.readexactly(int(replies[2][1:]))
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError):  # not there, gone while we asked, or something else on that port
            return None
        # Valkey also names the Redis that it descends from.
        found = re.search(rb"valkey_version:(\S+)", information) or re.search(rb"redis_version:(\S+)", information)
        return found[1].decode() if found else None

    async def prepare(self) -> Callable[[int], list[str]]:
        """The command that starts the server on a port, once its configuration is written. Raises Unavailable."""
        program = await asyncio.to_thread(find_valkey, self._place.account)
        disk.private_folder(self.data, self._place.account)
        configuration = self.data.with_name("valkey.conf")
        text = CONFIGURATION.format(password=self._place.passwords.valkey)
        await asyncio.to_thread(disk.write_private, configuration, text.encode(), self._place.account)
        return lambda port: [str(program), str(configuration), "--port", str(port)]
