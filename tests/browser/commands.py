"""Commands that serve a chat and print an address for each of its users."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ports import free_port
from waiting import HANGS_AFTER_SECONDS


async def start(folder: Path, *arguments: str | Path | int) -> Process:
    """Run Python with these arguments. The folder is also that of its temporary files."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)},
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def serving(
    folder: Path, *arguments: str | Path, end: signal.Signals = signal.SIGINT
) -> AsyncIterator[dict[str, str]]:
    """The addresses that the command prints, by user. The signal ends the command without a traceback."""
    process = await start(folder, *arguments, "--port", free_port())
    try:
        assert process.stdout is not None
        output = ""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while "Ctrl+C" not in output:
                line = await process.stdout.readline()
                assert line, (await process.communicate())[1].decode()
                output += line.decode()
        yield dict(re.findall(r"^([\w-]+): (http\S+)$", output, re.MULTILINE))
    finally:
        process.send_signal(end)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            _, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
