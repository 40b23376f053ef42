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

from benchmarks.measuring import LEAST_WARM_UP_SECONDS, Figures, Load
from benchmarks.stage import PEOPLE, ROOMS, USERS, Stage
from hubbub import PostgresSettings

HERE = Path(__file__).parent
PACKAGES = HERE.parent.parent / ".venv" / "peers" / "node_modules"
"""Where `make bench` installs pg and ioredis; HUBBUB_BENCH_NODE_MODULES names another place."""

WARM_UP = 5
"""Times the warm-up of the others: until then a call costs up to 2.5 times the processor that it does later."""

CONTENT = "It works on my machine, and the logs say nothing at all."
PAYLOAD = "x" * 200


class Node:
    """Runs one load at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    async def ask(self, request: dict[str, Any]) -> Figures:
        self._input.write(json.dumps(request).encode() + b"\n")
        line = await self._output.readline()
        if not line:
            raise RuntimeError(f"Node.js ended with {await self._process.wait()}: its error stands above")
        figures: Figures = json.loads(line)
        return figures

    def load(self, name: str, callers: int) -> Load:
        """Before its first figures it runs for longer than the others do: its compiler takes that many calls."""
        is_warm = False

        async def load(seconds: float) -> Figures:
            nonlocal is_warm
            request = {"load": name, "callers": callers}
            if not is_warm and seconds > LEAST_WARM_UP_SECONDS:
                await self.ask({**request, "seconds": WARM_UP * seconds})
            is_warm = True
            return await self.ask({**request, "seconds": seconds})

        return load

    async def close(self) -> None:
        self._input.close()
        await self._process.wait()


def node_modules() -> Path:
    return Path(os.environ.get("HUBBUB_BENCH_NODE_MODULES", PACKAGES))


def missing() -> str | None:
    """Why there can be no peers on Node.js, if so."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (node_modules() / "pg").exists():
        return "pg and ioredis are not installed: `make bench` does it, where there is npm"
    return None


@asynccontextmanager
async def node(stage: Stage, postgres: PostgresSettings, **more: object) -> AsyncIterator[Node]:
    """A process on the database of `postgres`. Loads are named as in original.js."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(HERE / "original.js"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(node_modules())},
        limit=2**20,
    )
    peer = Node(process)
    redis = stage.settings.redis
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
