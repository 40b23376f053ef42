"""The original stack, in a process of Node.js."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import LEAST_WARM_UP_SECONDS, Figures, Load
from hubbub import PostgresSettings

HERE = Path(__file__).parent
PACKAGES = HERE.parent.parent / ".venv" / "peers" / "node_modules"
"""The folder in which `make bench` installs pg and ioredis, unless HUBBUB_BENCH_NODE_MODULES names another."""

WARM_UP_FACTOR = 5
"""Of the warm-up of the others. Before that, a call takes up to 2.5 times the processor time of later ones."""

CONTENT = "It works on my machine, and the logs say nothing at all."
PAYLOAD = "x" * 200


class Node:
    """A process of Node.js. It runs one load at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    async def ask(self, request: dict[str, Any]) -> Figures:
        self._input.write(json.dumps(request).encode() + b"\n")
        line = await self._output.readline()
        if not line:
            raise RuntimeError(f"Node.js ended with {await self._process.wait()}: see its error above")
        figures: Figures = json.loads(line)
        return figures

    def load(self, name: str, callers: int) -> Load:
        """A load that warms up for longer than the others, because the compiler of Node.js needs more calls."""
        is_warm = False

        async def load(seconds: float) -> Figures:
            nonlocal is_warm
            request = {"load": name, "callers": callers}
            if not is_warm and seconds > LEAST_WARM_UP_SECONDS:
                await self.ask({**request, "seconds": WARM_UP_FACTOR * seconds})
            is_warm = True
            return await self.ask({**request, "seconds": seconds})

        return load

    async def close(self) -> None:
        self._input.close()
        await self._process.wait()


def node_modules() -> Path:
    return Path(os.environ.get("HUBBUB_BENCH_NODE_MODULES", PACKAGES))


def missing() -> str | None:
    """The reason why there are no peers on Node.js, None if there are."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (node_modules() / "pg").exists():
        return "pg and ioredis are not installed: `make bench` installs them if npm is available"
    return None


@asynccontextmanager
async def node(context: Context, postgres: PostgresSettings, **more: object) -> AsyncIterator[Node]:
    """A process that uses the database of `postgres`. The names of loads are those of original.js."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(HERE / "original.js"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(node_modules())},
        limit=2**20,
    )
    peer = Node(process)
    redis = context.settings.redis
    names = ("host", "port", "user", "password", "database")
    await peer.ask(
        {
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
        yield peer
    finally:
        await peer.close()
