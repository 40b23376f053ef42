"""A process of the load, from both sides: a test starts and ends it, and the process reads its plan.

No process outlives its test, because it ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from faults.history import Tail
from hubbub import Settings
from waiting import HANGS_AFTER_SECONDS

P = TypeVar("P", bound=msgspec.Struct)


class Worker:
    """A running process and the history that it writes, seen from the test."""

    def __init__(self, process: Process, history: Path) -> None:
        self.process = process
        self.history = history
        self.tail = Tail(history)
        self._was_killed = False

    @classmethod
    async def start(cls, module: str, plan: msgspec.Struct, history: Path, settings: Settings) -> Worker:
        errors = history.with_suffix(".errors")
        with errors.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-m", module, msgspec.json.encode(plan, enc_hook=str).decode()),
                # It imports hubbub and this package from the same folders as this process.
                env={**settings.to_env(), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=file,
            )
        return cls(process, history)

    @property
    def has_begun(self) -> bool:
        """Whether the process has written a record."""
        return self.history.exists() and self.history.stat().st_size > 0

    @property
    def errors(self) -> str:
        """Its standard error."""
        return self.history.with_suffix(".errors").read_text()

    def send_line(self) -> None:
        """Send a line to its standard input, which sets the event of `run`."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def succeeds(self) -> None:
        """Wait until it has done its work. If it fails, fail with its standard error."""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            await self.process.wait()
        assert self.process.returncode == 0, self.errors

    async def end(self) -> None:
        """Have it close its hub. Fail if it cannot."""
        self.process.terminate()
        await self.succeeds()

    async def kill(self) -> None:
        """kill -9. Does nothing to a process that has ended."""
        if self.process.returncode is None:
            self._was_killed = True
            self.process.kill()
        await self.process.wait()

    def check(self) -> None:
        """Fail if the process has failed."""
        assert self._was_killed or self.process.returncode in {None, 0}, self.errors


def plan_of(kind: type[P]) -> P:
    """The plan with which this process was started."""
    return msgspec.json.decode(sys.argv[1], type=kind, dec_hook=lambda type_, text: type_(text))


def settings_of_environment() -> Settings:
    settings = Settings.from_env()
    assert settings is not None
    return settings


def run(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do the work until it is done or SIGTERM arrives. A line on standard input sets its event.

    When standard input ends, the test has ended, and this process ends at once.
    """

    async def until_terminated() -> None:
        has_line = asyncio.Event()
        task = asyncio.ensure_future(work(has_line))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        listening = asyncio.create_task(_listen(has_line))
        with suppress(asyncio.CancelledError):
            await task
        listening.cancel()
        await asyncio.wait([listening])

    asyncio.run(until_terminated())


async def _listen(has_line: asyncio.Event) -> None:
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    with closing(transport):
        while await lines.readline():
            has_line.set()
        os._exit(1)
