"""Loads that run in their own process, to measure its memory: `python -m benchmarks.child NAME [ARGUMENT]`.

Prints its figures as one line of JSON. The servers come from the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.context import PEOPLE, ROOMS, USERS
from benchmarks.measuring import Figures
from hubbub import Hub, Settings

IDLE_FOLLOWERS = 10_000


async def run(name: str, settings: Settings, *arguments: str) -> Figures:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.child", name, *arguments),
        stdout=PIPE,
        env={**os.environ, **settings.to_env()},
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{name} failed: see its error above")
    figures: Figures = json.loads(output)
    return figures


async def idle_followers(settings: Settings) -> Figures:
    """Ten followers per user, each of one room."""
    async with Hub(settings) as hub, AsyncExitStack() as stack:
        before = _mebibytes_now()
        for first in range(0, IDLE_FOLLOWERS, PEOPLE):
            feeds = [
                hub.follow(USERS[n % PEOPLE], rooms=[ROOMS[n % PEOPLE]]) for n in range(first, first + PEOPLE)
            ]
            for feed in feeds:
                await stack.enter_async_context(feed)
        used = _mebibytes_now() - before
        return {"MiB": used, "KiB a follower": used * 1_024 / IDLE_FOLLOWERS}


async def load_history(settings: Settings, file: str) -> Figures:
    """Import a file. The memory is the peak above the level before the import."""
    async with Hub(settings) as hub:
        history = hub.history  # imported here, so that it counts neither as time nor as memory of the import
        before, began = _mebibytes_now(), time.perf_counter()
        with Path(file).open("rb") as lines:  # noqa: ASYNC230 - as `hubbub import` does
            found = await history.load(lines)
        elapsed = time.perf_counter() - began
        return {"rate": found.messages / elapsed, "MiB at most": _mebibytes_at_most() - before}


def _mebibytes_now() -> float:
    """Resident memory of the process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _mebibytes_at_most() -> float:
    """The peak of resident memory. `ru_maxrss` would start with the memory of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1_024


LOADS: dict[str, Callable[..., Awaitable[Figures]]] = {
    "idle_followers": idle_followers,
    "load_history": load_history,
}


async def main(name: str, *arguments: str) -> None:
    settings = Settings.from_env()
    assert settings is not None
    print(json.dumps(await LOADS[name](settings, *arguments)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
