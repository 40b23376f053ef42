"""`hubbub ...` in a process of its own: with pipes, or at a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from hubbub import Settings
from waiting import HANGS_AFTER_SECONDS


class Output(NamedTuple):
    """The output of the command and its exit status."""

    status: int | None
    out: str
    error: str


async def run(settings: Settings, *words: str, stdin: str = "") -> Output:
    """Run the command with the servers of the test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hubbub", *words, env=os.environ | settings.to_env(),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate(stdin.encode())
    return Output(process.returncode, out.decode(), error.decode())


@asynccontextmanager
async def started(
    settings: Settings, folder: Path, *words: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The first line of the command's output, and its process, which continues in the folder."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hubbub", *words),
        cwd=folder,
        env={**settings.to_env(), "PYTHONDEVMODE": "1", "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            line = (await process.stdout.readline()).decode()
        assert line, await process.communicate()
        yield line, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Terminal:
    """A command at a terminal. `shown` is the text on the terminal, with the echoed input."""

    def __init__(self, settings: Settings, *words: str) -> None:
        self._settings = settings
        self._words = words
        self.shown = ""

    async def __aenter__(self) -> Terminal:
        self._fd, theirs = pty.openpty()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", *self._words, env=os.environ | self._settings.to_env(),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            read = os.read(self._fd, 65_536)
        except OSError:  # the command has ended
            read = b""
        if not read:
            asyncio.get_running_loop().remove_reader(self._fd)
        self.shown += read.decode(errors="replace")
        self._changed.set()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    async def until(self, *shown: str) -> None:
        """Wait until all of these texts are shown."""
        try:
            async with asyncio.timeout(60):
                while not all(text in self.shown for text in shown):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{shown} is not in {self.shown!r}") from None

    async def ended(self) -> int:
        async with asyncio.timeout(60):
            return await self.process.wait()


async def answer(terminal: Terminal, answers: Sequence[tuple[str, str]]) -> int:
    """Type each answer once its question is shown. Returns the status that the command ends with."""
    for question, typed in answers:
        await terminal.until(question)
        terminal.type(typed)
    return await terminal.ended()
