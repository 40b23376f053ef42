"""A process of the load, seen from the test."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import msgspec

from faults.history import Tail
from hubbub import Settings

PATIENCE_SECONDS = 60


class Worker:
    """A running process and the history that it writes."""

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
                # It finds hubbub and this package where this process finds them.
                env={**settings.to_env(), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=file,
            )
        return cls(process, history)

    @property
    def has_begun(self) -> bool:
        """Whether it has written anything down."""
        return self.history.exists() and self.history.stat().st_size > 0

    @property
    def errors(self) -> str:
        """What it said on standard error."""
        return self.history.with_suffix(".errors").read_text()

    def tell(self) -> None:
        """A line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def succeeds(self) -> None:
        """Wait until it has done its work; fail with what it says when it has not."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.process.wait()
        assert self.process.returncode == 0, self.errors

    async def end(self) -> None:
        """Let it close its hub, and fail if it cannot."""
        self.process.terminate()
        await self.succeeds()

    async def kill(self) -> None:
        """kill -9. Does nothing to one that has ended."""
        if self.process.returncode is None:
            self._was_killed = True
            self.process.kill()
        await self.process.wait()

    def check(self) -> None:
        """Fail if it has ended by a failure of its own."""
        assert self._was_killed or self.process.returncode in {None, 0}, self.errors
