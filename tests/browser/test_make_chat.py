"""`make chat` as a newcomer runs it: servers of its own, and an address for each of two users."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from browser.chat import EXAMPLE
from waiting import HANGS_AFTER_SECONDS


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
async def test_two_addresses_log_a_browser_in_once_each(tmp_path: Path, end: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        EXAMPLE / "app.py",
        "--no-browser",
        "--port",
        str(port),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        output = ""
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while "Ctrl+C" not in output:
                line = await process.stdout.readline()
                assert line, (await process.communicate())[1].decode()
                output += line.decode()
        links = dict(re.findall(r"^(\w+): (http\S+)$", output, re.MULTILINE))
        assert list(links) == ["ada", "bob"]
        for name, link in links.items():
            async with httpx.AsyncClient() as http:
                entered = await http.get(link)
                assert entered.status_code == 303
                cookie = entered.headers["set-cookie"].partition(";")[0]
                policy = entered.headers["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                me = await http.get(link.partition("/enter")[0] + "/chat/me", headers={"Cookie": cookie})
                assert me.json()["username"] == name
                assert "set-cookie" not in (await http.get(link)).headers
    finally:
        process.send_signal(end)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            _, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
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


async def test_error_of_what_plays_ends_the_chat_and_is_shown(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", FAILS, str(EXAMPLE), str(port)),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert "RuntimeError: the log has ended too early" in errors.decode()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
