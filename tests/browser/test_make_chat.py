"""`make chat` as a newcomer runs it: servers of its own, and an address for each of two users."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from browser.chat import EXAMPLE
from browser.commands import serving, start
from ports import free_port
from waiting import HANGS_AFTER_SECONDS


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
async def test_two_addresses_log_a_browser_in_once_each(tmp_path: Path, end: signal.Signals) -> None:
    async with serving(tmp_path, EXAMPLE / "app.py", "--no-browser", end=end) as links:
        assert list(links) == ["ada", "bob"]
        for name, link in links.items():
            async with httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS) as http:
                entered = await http.get(link)
                assert entered.status_code == 303
                cookie = entered.headers["set-cookie"].partition(";")[0]
                policy = entered.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                me = await http.get(link.partition("/enter")[0] + "/chat/me", headers={"Cookie": cookie})
                assert me.json()["username"] == name
                assert "set-cookie" not in (await http.get(link)).headers
    assert [name for name in os.listdir(tmp_path) if name.startswith("hubbub-chat-")] == []  # noqa: PTH208


FAILS = """
import asyncio
import sys

sys.path.insert(0, sys.argv[1])
import app


async def play(hub):
    raise RuntimeError("the log has ended too early")


asyncio.run(app.main(int(sys.argv[2]), opens=False, play=play))
"""


async def test_error_of_the_replay_ends_the_chat_and_is_shown(tmp_path: Path) -> None:
    process = await start(tmp_path, "-c", FAILS, EXAMPLE, free_port())
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "RuntimeError: the log has ended too early" in errors.decode()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
