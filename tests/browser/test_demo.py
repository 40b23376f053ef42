"""`hubbub demo --serve`: the reference chat, in which a log is replayed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from browser.commands import serving
from waiting import HANGS_AFTER_SECONDS, until_it_answers


async def test_two_visitors_see_the_log_continue(tmp_path: Path) -> None:
    command = ("-m", "hubbub", "demo", "--serve", "--no-browser", "--folder", tmp_path)
    async with serving(tmp_path, *command, end=signal.SIGTERM) as links:
        assert list(links) == ["visitor", "visitor-2"]
        link = links["visitor"]
        async with httpx.AsyncClient(timeout=HANGS_AFTER_SECONDS) as http:
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
    assert os.listdir(tmp_path) == []  # noqa: PTH208
