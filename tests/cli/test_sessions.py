from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import uuid4

import pytest

from hubbub import Hub, Settings, User
from hubbub.services.sessions import key_of


class Said(NamedTuple):
    """What the command said, and with which status it ended."""

    status: int | None
    out: str
    error: str


Run = Callable[..., Awaitable[Said]]


@pytest.fixture
def run(settings: Settings) -> Run:
    """`hubbub sessions ...` in a process of its own, with the servers of the test."""

    async def run(*words: str) -> Said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", "sessions", *words, env=os.environ | settings.to_env(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        return Said(process.returncode, out.decode(), error.decode())

    return run


async def test_the_list_shows_devices_but_no_token(run: Run, hub: Hub, ada: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id, {"device": device}) for device in ("phone", "tv")]
    for user in ("ada", "ADA@example.org", str(ada.id)):
        said = await run("list", user)
        assert (said.status, said.error) == (0, "")
        assert len(said.out.splitlines()) == 2
        for token, device in zip(tokens, ("phone", "tv"), strict=True):
            assert token not in said.out
            [line] = [line for line in said.out.splitlines() if device in line]
            assert key_of(token).id.startswith(line.split()[0])


async def test_one_session_is_ended_by_the_start_of_its_id_or_all_of_it(run: Run, hub: Hub, ada: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(3)]
    ids = [key_of(token).id for token in tokens]
    assert await run("revoke", "ada", ids[0][:12]) == (0, f"ended {ids[0][:12]}\n", "")
    assert await run("revoke", "ada", ids[1]) == (0, f"ended {ids[1][:12]}\n", "")
    assert [await hub.sessions.get_session(token) is None for token in tokens] == [True, True, False]


async def test_an_id_that_fits_none_or_several_ends_none(run: Run, hub: Hub, ada: User, bob: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(2)]
    bobs = await hub.sessions.create_session(bob.id)
    for session, reason in [
        ("", "2 sessions start with"),
        ("xyz", "there is no session of that id"),
        ("0" * 64, "there is no session"),
        (key_of(bobs).id, "there is no session"),
        (tokens[0], "there is no session"),
    ]:
        said = await run("revoke", "ada", "--", session)  # a token may begin with a dash
        assert said.status == 1
        assert reason in said.error
        assert "Traceback" not in said.error
        assert tokens[0] not in said.error
    assert all([await hub.sessions.get_session(token) for token in (*tokens, bobs)])


async def test_all_sessions_of_one_user_are_ended(run: Run, hub: Hub, ada: User, bob: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(5)]
    bobs = await hub.sessions.create_session(bob.id)
    assert await run("revoke-all", "ada@example.org") == (0, "ended 5 sessions\n", "")
    assert not any([await hub.sessions.get_session(token) for token in tokens])
    assert await hub.sessions.get_session(bobs) is not None
    assert (await run("revoke-all", "ada")).out == "ended 0 sessions\n"
    assert (await run("list", "ada")).out == "no sessions\n"


async def test_who_is_nobody_is_said_to_be_nobody(run: Run, hub: Hub) -> None:
    for words in (("list", "nobody"), ("revoke", "nobody@example.org", "0" * 12), ("revoke-all", str(uuid4()))):
        said = await run(*words)
        assert said.status == 1
        assert f"there is no user {words[1]}" in said.error
        assert "Traceback" not in said.error


async def test_what_a_client_says_of_its_device_does_not_reach_the_terminal_as_it_is(
    run: Run, hub: Hub, ada: User
) -> None:
    for device in ("\x1b[2J\x1b]0;owned\x07", "a\nb\rc", "\u202egpj.exe", "x" * 3_000, ["a", {"b": 1}], None):
        await hub.sessions.create_session(ada.id, {"device": device})
    said = await run("list", "ada")
    lines = said.out.removesuffix("\n").split("\n")
    assert len(lines) == 6
    assert all(line.isprintable() and len(line) < 140 for line in lines)
