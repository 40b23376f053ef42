"""The original stack, in a Node.js process."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.contenders import Contender, Start, duel, hub_loop, hubbub
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, aims
from hubbub import Hub

HERE = Path(__file__).parent
PACKAGES = HERE.parent.parent / ".venv" / "peers" / "node_modules"
"""The folder in which `make bench` installs pg and ioredis, unless HUBBUB_BENCH_NODE_MODULES names another."""

WARM_UP_FACTOR = 3
"""A multiple of the usual warm-up. Before that, a call takes up to 2.5 times the processor time of later calls."""

CONTENT = "It works on my machine, and the logs say nothing at all."
PAYLOAD = "x" * 200

STRICT = "original, strict"
"""The original stack, doing hubbub's work on hubbub's schema in one statement per call."""
BARE = "original, bare INSERT"
ORIGINAL = "original"
IOREDIS = "ioredis"


def node_modules() -> Path:
    return Path(os.environ.get("HUBBUB_BENCH_NODE_MODULES", PACKAGES))


def missing() -> str | None:
    """The reason why there are no peers on Node.js. None if there are."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (node_modules() / "pg").exists():
        return "pg and ioredis are not installed: `make bench` installs them if npm is available"
    return None


def skipped(*names: str) -> dict[str, str]:
    reason = missing()
    return dict.fromkeys(names, reason) if reason else {}


def node(load: str, callers: int, *, original: bool = False, **more: object) -> Start:
    """A load of original.js, on the original schema or on hubbub's."""

    @asynccontextmanager
    async def start(context: Context) -> AsyncIterator[Contender]:
        process = await asyncio.create_subprocess_exec(
            "node",
            str(HERE / "original.js"),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "NODE_PATH": str(node_modules())},
            limit=2**20,
        )
        contender = Contender(context, process, WARM_UP_FACTOR)
        postgres, redis = context.original if original else context.settings.postgres, context.settings.redis
        names = ("host", "port", "user", "password", "database")
        await contender.ask(
            {
                "load": load,
                "callers": callers,
                "postgres": {name: getattr(postgres, name) for name in names},
                "redis": {"host": redis.host, "port": redis.port, "password": redis.password, "db": 0},
                "people": [str(user_id) for user_id in USERS],
                "rooms": [str(room_id) for room_id in ROOMS[:PEOPLE]],
                "strict_send": (HERE / "send.sql").read_text(encoding="utf-8"),
                "content": CONTENT,
                "payload": PAYLOAD,
                **more,
            }
        )
        try:
            yield contender
        finally:
            await contender.close()

    return start


async def beside_original(
    context: Context,
    pace: Pace,
    cell: str,
    title: str,
    *,
    step: Callable[[Hub, int], Awaitable[object]],
    original: Start,
    callers: int,
    at_least: float,
    name: str = ORIGINAL,
    others: Mapping[str, Start] | None = None,
) -> Comparison:
    """Callers of hubbub's `step` on both event loops, beside the same load of the original stack."""
    return await duel(
        context,
        pace,
        cell,
        title,
        {**hubbub(hub_loop, step=step, callers=callers), name: original, **(others or {})},
        targets=aims(("rate", at_least, name)),
        skipped=skipped(name),
    )
