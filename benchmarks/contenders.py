"""A contender runs in its own process, so that its figures do not depend on the garbage or modules of another.

The process reads one line of JSON for each window of load, and answers with its figures. `python -m
benchmarks.contenders` is such a process in Python; peers/original.js is one in Node.js.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import sys
from array import array
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.context import Context
from benchmarks.measuring import (
    ASYNCIO,
    UVLOOP,
    Comparison,
    Done,
    Figures,
    Pace,
    Step,
    Target,
    closed_loop,
    compare,
    quantiles,
    summary,
)
from hubbub import Hub, collect_garbage_rarely

# A load in the process of the contender: it works for this many seconds.
Window = Callable[[float], Awaitable[Done]]

# Makes a load in the process of the contender, which finds it by name. So it is a function of a module.
Prepare = Callable[..., AbstractAsyncContextManager[Window]]

# Starts a contender on the servers of a run.
Start = Callable[[Context], AbstractAsyncContextManager["Contender"]]


COPY = "COPY"
"""The limit of the table. It runs seldom, because it does not depend on the client."""


class Contender:
    """A process with one load. It runs while the other contenders of its cell wait."""

    def __init__(self, context: Context, process: asyncio.subprocess.Process, warm_up_factor: float = 1) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._context = context
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._warm_up_factor = warm_up_factor

    async def ask(self, request: object) -> Figures:
        line = request if isinstance(request, bytes) else json.dumps(request).encode()
        self._input.write(line + b"\n")
        answer = await self._output.readline()
        if not answer:
            raise RuntimeError(f"a contender ended with {await self._process.wait()}: see its error above")
        figures: Figures = json.loads(answer)
        return figures

    async def warm_up(self, seconds: float) -> None:
        await self.ask({"seconds": seconds * self._warm_up_factor, "kept": False})

    async def __call__(self, seconds: float) -> Figures:
        """The figures of a window, with the processor time that the servers took meanwhile."""
        before = self._context.servers_cpu_seconds()
        figures = await self.ask({"seconds": seconds, "kept": True})
        operations = figures.pop("operations")
        for name, used in self._context.servers_cpu_seconds().items():
            figures[f"{name}_us"] = (used - before[name]) * 1_000_000 / operations
        return figures

    async def pooled(self) -> Figures:
        """p50 and p99 of all calls since the warm-up."""
        return await self.ask({"pooled": True})

    async def close(self) -> None:
        self._input.close()
        await self._process.wait()


def python(prepare: Prepare, *, loop: str = "asyncio", **options: Any) -> Start:  # noqa: ANN401
    """`prepare` in its own process, on asyncio or uvloop."""

    @asynccontextmanager
    async def start(context: Context) -> AsyncIterator[Contender]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.contenders", loop, stdin=PIPE, stdout=PIPE, limit=2**20
        )
        contender = Contender(context, process)
        await contender.ask(base64.b64encode(pickle.dumps((prepare, context, options))))
        try:
            yield contender
        finally:
            await contender.close()

    return start


def hubbub(prepare: Prepare, **options: Any) -> dict[str, Start]:  # noqa: ANN401
    """hubbub in two columns: on uvloop, as under uvicorn, and on plain asyncio."""
    return {
        UVLOOP: python(prepare, loop="uvloop", **options),
        ASYNCIO: python(prepare, loop="asyncio", **options),
    }


@asynccontextmanager
async def loop_of(step: Step, callers: int) -> AsyncIterator[Window]:
    yield lambda seconds: closed_loop(step, callers, seconds)


@asynccontextmanager
async def hub_loop(
    context: Context, step: Callable[[Hub, int], Awaitable[object]], callers: int
) -> AsyncIterator[Window]:
    """Callers of a hub, each of which runs one `step` after another."""
    async with Hub(context.settings) as hub:
        yield lambda seconds: closed_loop(lambda number: step(hub, number), callers, seconds)


async def duel(
    context: Context,
    pace: Pace,
    cell: str,
    title: str,
    contenders: Mapping[str, Start],
    *,
    targets: list[Target],
    skipped: Mapping[str, str | None] | None = None,
) -> Comparison:
    """Start the contenders and compare them. COPY, and contenders without a target for uvloop, run seldom."""
    missing = {name: reason for name, reason in (skipped or {}).items() if reason}
    async with AsyncExitStack() as stack:
        present = {name: start for name, start in contenders.items() if name not in missing}
        started = await asyncio.gather(*(stack.enter_async_context(start(context)) for start in present.values()))
        await context.make_wal_ready()
        regular = {name for target in targets for name in (target.of, target.against)} - {ASYNCIO, COPY}
        return await compare(
            cell,
            title,
            dict(zip(present, started, strict=True)),
            pace,
            targets=targets,
            skipped=missing,
            seldom=present.keys() - regular if regular else (),
        )


async def main() -> None:
    prepare, context, options = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))
    kept = array("d")
    async with prepare(context, **options) as window:
        _answer({})
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            request = json.loads(line)
            if "pooled" in request:
                _answer(quantiles(kept))
                continue
            done = await window(request["seconds"])
            if request["kept"]:
                kept.extend(done.latencies)
            else:
                # Applications of hubbub do so. The peers in Python do it as well.
                collect_garbage_rarely()
            _answer({"operations": done.operations, **summary(done)})


def _answer(figures: Figures) -> None:
    os.write(1, json.dumps(figures).encode() + b"\n")


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
