"""Import of history: JSON lines into rooms, by COPY."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import child
from benchmarks.context import Context
from benchmarks.measuring import Comparison, Figures, Pace, Target, compare

FEW = 20_000
"""Two batches: from there on the memory of an import does not grow with the file."""
START = datetime(2020, 1, 1, tzinfo=UTC)
AUTHORS, ROOMS = 500, 20
WORDS = ("the", "log", "says", "that", "it", "works,", "but", "then", "nothing", "ever", "happens", "and")


async def history(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A short file and a longer one, since the memory must not grow with the file."""
    database = await context.new_database("history")
    messages = 2 * FEW if pace.quick else 5 * FEW
    short = f"hubbub, {FEW:,} messages"
    runs = 0

    async def load(count: int) -> Figures:
        nonlocal runs
        runs += 1
        file = context.folder / "history.jsonl"
        await asyncio.to_thread(write, file, count, runs)
        return await child.run("load_history", database, str(file))

    yield await compare(
        "history",
        f"import of {messages:,} messages",
        {"hubbub": lambda _: load(messages), short: lambda _: load(FEW)},
        pace,
        targets=[Target("rate", at_least=30_000), Target("MiB at most", at_least=0.7, against=short)],
        warm_up=False,
    )


def write(file: Path, messages: int, run: int) -> None:
    """Messages of 3 to 40 words by 500 authors in 20 rooms, a second apart. Each run has its own rooms."""
    with file.open("w", encoding="utf-8") as lines:
        for number in range(messages):
            line = {
                "kind": "message",
                "room": f"room-{run}-{number % ROOMS}",
                "user": f"speaker-{number * 7 % AUTHORS}",
                "at": (START + timedelta(seconds=number)).isoformat(),
                "content": " ".join(
                    WORDS[(number + position) % len(WORDS)] for position in range(3 + number % 38)
                ),
            }
            lines.write(json.dumps(line) + "\n")
