from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedded.chat import kill
from history.histories import REAL, check_logs, conversation, load, real_log, stored_rows
from hubbub import PostgresSettings, Settings, migrations
from hubbub.embedded import Servers
from hubbub.postgres import Pool

PROGRAM = """
import asyncio, os, sys
from hubbub.history import History, source
from hubbub.postgres import Pool
from hubbub.settings import Settings

async def main():
    source.BATCH_LINES = int(sys.argv[2])
    pool = Pool(Settings.from_env(os.environ).postgres)
    with open(sys.argv[1], "rb") as file:
        await History(pool).load(file, progress=lambda done: print(done.lines, flush=True))
    await pool.close()

asyncio.run(main())
"""


@asynccontextmanager
async def importing(settings: Settings, file: Path, lines: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """An import in its own process. It prints the number of lines after each batch, and ends with the test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(file), str(lines),
        env=os.environ | settings.to_env(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def undisturbed(
    other_pool: Pool, other_settings: PostgresSettings, content: bytes
) -> dict[str, list[object]]:
    """The rows that an import without a kill stores."""
    await load(other_pool, content)
    return await stored_rows(other_settings)


async def kill_at_random(settings: Settings, file: Path, lines: int, times: int) -> None:
    """Start the import this many times, and kill each run a moment after some of its batches."""
    for _ in range(times):
        async with importing(settings, file, lines) as process:
            assert process.stdout is not None
            for _ in range(random.randint(0, 4)):
                await process.stdout.readline()
            await asyncio.sleep(random.uniform(0, 0.05))
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)


async def finish(settings: Settings, file: Path, lines: int) -> None:
    async with importing(settings, file, lines) as process:
        await process.communicate()
        assert process.returncode == 0


async def test_import_killed_repeatedly_stores_the_same_as_an_undisturbed_one(
    settings: Settings,
    postgres_settings: PostgresSettings,
    other_pool: Pool,
    other_settings: PostgresSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(conversation(4_000))
    monkeypatch.setattr("hubbub.history.source.BATCH_LINES", 100)
    expected = await undisturbed(other_pool, other_settings, file.read_bytes())
    await kill_at_random(settings, file, 100, times=8)
    await finish(settings, file, 100)
    assert await stored_rows(postgres_settings) == expected
    await check_logs(postgres_settings)


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log does not lie beside the project")
async def test_import_of_a_real_log_killed_repeatedly_stores_the_same_as_an_undisturbed_one(
    settings: Settings,
    postgres_settings: PostgresSettings,
    other_pool: Pool,
    other_settings: PostgresSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubbub.history.source.BATCH_LINES", 2_000)
    expected = await undisturbed(other_pool, other_settings, real_log())
    await kill_at_random(settings, REAL, 2_000, times=4)
    await finish(settings, REAL, 2_000)
    assert await stored_rows(postgres_settings) == expected


async def test_import_is_completed_after_a_kill_of_postgresql(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(conversation(20_000))
    folder = tmp_path / "servers"
    async with Servers(folder) as settings:
        await migrations.up(settings.postgres)
        async with importing(settings, file, 200) as process:
            assert process.stdout is not None
            for _ in range(20):
                await process.stdout.readline()
            kill(folder, "postgresql")
            await process.communicate()
            # These servers are not restarted, so the import fails unless it ended before the kill.
    async with Servers(folder) as settings:
        await finish(settings, file, 200)
        stored = await stored_rows(settings.postgres)
        assert len(stored["messages"]) == file.read_bytes().count(b'"content"')
        await check_logs(settings.postgres)
