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


class Output(NamedTuple):
    """The output of the command and its exit status."""

    status: int | None
    out: str
    error: str


Run = Callable[..., Awaitable[Output]]


@pytest.fixture
def run(settings: Settings) -> Run:
    """`hubbub sessions ...` in a process of its own, with the servers of the test."""

    async def run(*words: str) -> Output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hubbub", "sessions", *words, env=os.environ | settings.to_env(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        return Output(process.returncode, out.decode(), error.decode())

    return run


async def test_list_shows_devices_and_no_token(run: Run, hub: Hub, ada: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id, {"device": device}) for device in ("phone", "tv")]
    for user in ("ada", "ADA@example.org", str(ada.id)):
        output = await run("list", user)
        assert (output.status, output.error) == (0, "")
        assert len(output.out.splitlines()) == 2
        for token, device in zip(tokens, ("phone", "tv"), strict=True):
            assert token not in output.out
            [line] = [line for line in output.out.splitlines() if device in line]
            assert key_of(token).id.startswith(line.split()[0])


async def test_revoke_ends_the_session_with_that_id_or_start_of_id(run: Run, hub: Hub, ada: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(3)]
    ids = [key_of(token).id for token in tokens]
    assert await run("revoke", "ada", ids[0][:12]) == (0, f"ended {ids[0][:12]}\n", "")
    assert await run("revoke", "ada", ids[1]) == (0, f"ended {ids[1][:12]}\n", "")
    assert [await hub.sessions.get_session(token) is None for token in tokens] == [True, True, False]


async def test_revoke_refuses_an_id_of_no_or_of_several_sessions(run: Run, hub: Hub, ada: User, bob: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(2)]
    bobs = await hub.sessions.create_session(bob.id)
    for session, reason in [
        ("", "2 sessions start with"),
        ("xyz", "there is no session of that id"),
        ("0" * 64, "there is no session"),
        (key_of(bobs).id, "there is no session"),
        (tokens[0], "there is no session"),
    ]:
        output = await run("revoke", "ada", "--", session)  # a token may begin with a dash
        assert output.status == 1
        assert reason in output.error
        assert "Traceback" not in output.error
        assert tokens[0] not in output.error
    assert all([await hub.sessions.get_session(token) for token in (*tokens, bobs)])


async def test_revoke_all_ends_the_sessions_of_one_user(run: Run, hub: Hub, ada: User, bob: User) -> None:
    tokens = [await hub.sessions.create_session(ada.id) for _ in range(5)]
    bobs = await hub.sessions.create_session(bob.id)
    assert await run("revoke-all", "ada@example.org") == (0, "ended 5 sessions\n", "")
    assert not any([await hub.sessions.get_session(token) for token in tokens])
    assert await hub.sessions.get_session(bobs) is not None
    assert (await run("revoke-all", "ada")).out == "ended 0 sessions\n"
    assert (await run("list", "ada")).out == "no sessions\n"


async def test_unknown_user_is_an_error_without_a_traceback(run: Run, hub: Hub) -> None:
    for words in (
        ("list", "stranger"),
        ("revoke", "stranger@example.org", "0" * 12),
        ("revoke-all", str(uuid4())),
    ):
        output = await run(*words)
        assert output.status == 1
        assert f"there is no user {words[1]}" in output.error
        assert "Traceback" not in output.error


async def test_control_characters_in_a_device_name_are_replaced(run: Run, hub: Hub, ada: User) -> None:
    for device in ("\x1b[2J\x1b]0;owned\x07", "a\nb\rc", "\u202egpj.exe", "x" * 3_000, ["a", {"b": 1}], None):
        await hub.sessions.create_session(ada.id, {"device": device})
    output = await run("list", "ada")
    lines = output.out.removesuffix("\n").split("\n")
    assert len(lines) == 6
    assert all(line.isprintable() and len(line) < 140 for line in lines)
