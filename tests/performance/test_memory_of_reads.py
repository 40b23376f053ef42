"""Reads of PostgreSQL's answers reuse memory that the process already has."""

from __future__ import annotations

import subprocess
import sys

from hubbub import Settings

PAGES = 200

PROGRAM = f"""
import asyncio, resource
import hubbub

async def main():
    async with hubbub.open() as hub:
        ada = await hub.users.create("ada@example.org", "ada", "!")
        room = await hub.rooms.create("engine-room", created_by=ada.id)
        await hub.messages.send_many(room.id, ada.id, [hubbub.NewMessage("x" * 300) for _ in range(50)])
        for _ in range({PAGES}):
            await hub.messages.page_json(room.id, limit=50)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range({PAGES}):
            await hub.messages.page_json(room.id, limit=50)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

asyncio.run(main())
"""


def test_reads_of_pages_map_no_memory(settings: Settings) -> None:
    """In its own process, because earlier frees matter. A read of such a page into new memory has eight faults."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=settings.to_env() | {"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) < PAGES
