"""Import of history: JSON lines into rooms, by COPY."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from uuid_utils.compat import uuid7

from benchmarks.contenders import COPY, Start, Window, python
from benchmarks.context import Context, connect
from benchmarks.followers import mebibytes_now
from benchmarks.measuring import Comparison, Done, Figures, Load, Pace, Target, compare
from benchmarks.peers.copying import COLUMNS
from hubbub import Hub

FEW = 20_000
"""Two batches, after which the memory of an import does not grow with the file."""
START = datetime(2020, 1, 1, tzinfo=UTC)
AUTHORS, ROOMS = 500, 20
ROWS_PER_COPY = 10_000
WORDS = ("the", "log", "says", "that", "it", "works,", "but", "then", "nothing", "ever", "happens", "and")


async def history(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A file, the same messages by bare COPY, and a shorter file, because memory must not grow with the file."""
    await context.new_database("history")
    messages = FEW if pace.quick else 3 * FEW
    short = f"hubbub, {messages // 3:,} messages"
    runs = 0

    def load(start: Start) -> Load:
        async def in_new_process(_: float) -> Figures:
            async with start(context) as contender:
                return await contender(0)

        return in_new_process

    def imported(count: int) -> Load:
        async def in_new_process(_: float) -> Figures:
            nonlocal runs
            runs += 1
            file = context.folder / "history.jsonl"
            await asyncio.to_thread(write, file, count, runs)
            return await load(python(load_history, file=str(file)))(0)

        return in_new_process

    await context.make_wal_ready()
    yield await compare(
        "history",
        f"import of {messages:,} messages",
        {
            "hubbub": imported(messages),
            COPY: load(python(copy_rows, count=messages)),
            short: imported(messages // 3),
        },
        pace,
        targets=[Target("rate", 0.75, COPY), Target("MiB at most", at_least=0.7, against=short)],
        warm_up=False,
        seldom=(short,),
    )


@asynccontextmanager
async def load_history(context: Context, file: str) -> AsyncIterator[Window]:
    """Import a file. The memory is the peak above the level before the import."""

    async def window(_: float) -> Done:
        history = hub.history  # loads the module, which must not count as time or memory of the import
        before, cpu, began = mebibytes_now(), time.process_time(), time.perf_counter()
        with Path(file).open("rb") as lines:  # noqa: ASYNC230 - as `hubbub import` does
            found = await history.load(lines)
        elapsed, used = time.perf_counter() - began, time.process_time() - cpu
        return Done(found.messages, elapsed, used, more={"MiB at most": _mebibytes_at_most() - before})

    async with Hub(context.database("history")) as hub:
        yield window


@asynccontextmanager
async def copy_rows(context: Context, count: int) -> AsyncIterator[Window]:
    """Copy the same prepared rows, of existing users into existing rooms, without checks."""
    connection = await connect(context.database("history").postgres)
    users = [await connection.fetchval(NEW_USER, f"copier-{uuid7()}") for _ in range(AUTHORS)]
    rooms = [await connection.fetchval(NEW_ROOM, count) for _ in range(ROOMS)]
    rows = [
        (uuid7(), rooms[n % ROOMS], n // ROOMS + 1, users[n * 7 % AUTHORS], content(n), "text")
        for n in range(count)
    ]

    async def window(_: float) -> Done:
        cpu, began = time.process_time(), time.perf_counter()
        for first in range(0, count, ROWS_PER_COPY):
            part = rows[first : first + ROWS_PER_COPY]
            await connection.copy_records_to_table("messages", records=part, columns=COLUMNS)
        return Done(count, time.perf_counter() - began, time.process_time() - cpu)

    yield window
    await connection.close()


NEW_USER = """
INSERT INTO users (id, email, username, password_hash)
VALUES (gen_random_uuid(), $1 || '@example.org', $1, 'not a hash')
RETURNING id
"""
NEW_ROOM = "INSERT INTO rooms (id, name, last_seq) VALUES (gen_random_uuid(), 'copied', $1) RETURNING id"


def write(file: Path, messages: int, run: int) -> None:
    """Messages of 3 to 40 words by 500 authors in 20 rooms, a second apart. Each run has its own rooms."""
    with file.open("w", encoding="utf-8") as lines:
        for number in range(messages):
            line = {
                "kind": "message",
                "room": f"room-{run}-{number % ROOMS}",
                "user": f"speaker-{number * 7 % AUTHORS}",
                "at": (START + timedelta(seconds=number)).isoformat(),
                "content": content(number),
            }
            lines.write(json.dumps(line) + "\n")


def content(number: int) -> str:
    return " ".join(WORDS[(number + position) % len(WORDS)] for position in range(3 + number % 38))


def _mebibytes_at_most() -> float:
    """The peak of resident memory. `ru_maxrss` would start with the memory of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1_024
