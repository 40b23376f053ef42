"""`hubbub demo --serve`: the reference chat, in which a log goes on by itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx

from waiting import HANGS_AFTER_SECONDS, until_it_answers


async def test_log_goes_on_before_the_eyes_of_two_visitors(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = ("-m", "hubbub", "demo", "--serve", "--no-browser", "--port", str(port), "--folder", tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
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
        links = dict(re.findall(r"^(\S+): (http\S+)$", output, re.MULTILINE))
        assert list(links) == ["visitor", "visitor-2"]
        link = links["visitor"]
        async with httpx.AsyncClient() as http:
            cookie = (await http.get(link)).headers["set-cookie"].partition(";")[0]
            address, headers = link.partition("/enter")[0] + "/chat/rooms", {"Cookie": cookie}

            async def rooms() -> list[dict[str, Any]]:
                items: list[dict[str, Any]] = (await http.get(address, headers=headers)).json()["items"]
                return items

            heads = {one["room"]["id"]: one["room"]["last_seq"] for one in await rooms()}
            assert len(heads) > 1

            async def has_new_message() -> bool:
                return any(
                    one["room"]["last_seq"] > heads[one["room"]["id"]] and one["last_message"]
                    for one in await rooms()
                )

            await until_it_answers(has_new_message)
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            _, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
