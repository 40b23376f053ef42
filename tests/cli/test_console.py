"""`hubbub console`: a process of its own, its address, and the hosts that it refuses."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cli.running import run, started
from hubbub import PostgresSettings, Settings
from waiting import HANGS_AFTER_SECONDS


async def test_printed_address_opens_the_page_once_it_is_known(
    servers: Settings, postgres_settings: PostgresSettings, tmp_path: Path
) -> None:
    settings = replace(servers, postgres=postgres_settings)
    async with started(settings, tmp_path, "console", "--port", "0") as (line, process):
        assert line.startswith("open http://127.0.0.1:")
        address = line.split()[1]
        origin, _, token = address.partition("/?token=")
        async with httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS, follow_redirects=True) as http:
            assert (await http.get(origin)).status_code == 403
            page = await http.get(address)
            assert (page.status_code, str(page.url)) == (200, f"{origin}/")
            assert 'data-changes="no"' in page.text
            assert (await http.get(f"{origin}/figures")).json()["postgresql"]["error"] is None
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            out, error = await process.communicate()
        assert b"Traceback" not in error
        assert token.encode() not in out + error


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "chat.example.org"])
async def test_host_that_other_machines_reach_is_refused(settings: Settings, host: str) -> None:
    refused = await run(settings, "console", "--host", host)
    assert refused.status == 2
    assert "--allow-remote" in refused.error
