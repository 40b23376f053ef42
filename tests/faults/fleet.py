"""Many processes at once, forked from one that has loaded all modules, so that they share most of its memory.

python -m faults.fleet PLAN         PLAN: a `Plan` as JSON; the settings are in the environment
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
from pathlib import Path
from uuid import UUID

import msgspec

from faults.history import History, Opened, Served, now
from faults.worker import plan_of, run, settings_of_environment
from hubbub import Hub, Settings, Unavailable

# From Linux: the signal that a process gets when its parent has died.
PR_SET_PDEATHSIG = 1


class Plan(msgspec.Struct, frozen=True):
    """The number of processes, the number of callers in each process, and their pauses."""

    history: Path
    user_id: UUID
    processes: int
    callers: int = 2
    pause_seconds: float = 1
    """The pause between two calls of a caller. A refused caller tries again sooner."""


class Member:
    """One process of the fleet."""

    def __init__(self, number: int, plan: Plan, history: History) -> None:
        self._number = number
        self._plan = plan
        self._history = history

    async def live(self, settings: Settings) -> None:
        hub = await self._open(settings)
        await asyncio.gather(*(self._call(hub) for _ in range(self._plan.callers)))

    async def _open(self, settings: Settings) -> Hub:
        """Open a hub, and repeat that until it succeeds, as a supervisor of services does."""
        began, tries = now(), 1
        while True:
            try:
                hub = await Hub(settings).start()
            except Unavailable:
                tries += 1
                await _pause()
            else:
                self._history.write(Opened(now(), self._number, began, tries))
                return hub

    async def _call(self, hub: Hub) -> None:
        while True:
            began = now()
            try:
                await hub.rooms.list_for(self._plan.user_id)
            except Unavailable:
                await _pause()
            else:
                self._history.write(Served(now(), self._number, began))
                await asyncio.sleep(self._plan.pause_seconds * random.uniform(0.5, 1.5))


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.01, 0.1))


def fork(plan: Plan, settings: Settings) -> list[int]:
    """Fork processes that all start at the same moment. Returns their pids."""
    gate, opening = os.pipe()
    gc.freeze()  # or the first collection in each would make its own copy of everything
    pids = []
    for number in range(plan.processes):
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(opening)
            os.read(gate, 1)  # until the parent closes it
            random.seed(number)
            with History(plan.history) as history:
                asyncio.run(Member(number, plan, history).live(settings))
            os._exit(0)
        pids.append(pid)
    os.close(gate)
    os.close(opening)
    return pids


def main() -> None:
    plan = plan_of(Plan)
    pids = fork(plan, settings_of_environment())

    async def until_terminated(_: asyncio.Event) -> None:
        await asyncio.Event().wait()

    try:
        run(until_terminated)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
