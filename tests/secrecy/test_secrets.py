"""Passwords and tokens appear in no log, error or output of a server, program or command that uses them."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGABRT
from uuid import UUID

import pytest

from hubbub import Hub, HubbubError, Settings
from hubbub.passwords import MIN_COST, Passwords
from hubbub.redis import Connection
from hubbub.redis.connection import connect as connect_to_redis
from secrecy.conftest import statements_seen, superuser_of
from services.monitored import monitored

PASSWORD, NEW_PASSWORD, GUESS = "kept-pass-ἀ-1", "kept-pass-2", "kept-guess-3"
WRONG_LOGIN = "kept-server-login-4"
TOO_LONG = "kept-too-long-5" * 10


async def _refused(action: object) -> str:
    """The traceback of a program that does not catch the error, or an empty text."""
    try:
        await action  # type: ignore[misc]  # all of them are awaitable
    except HubbubError as error:
        return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    return ""


async def _live(settings: Settings) -> tuple[list[str], str]:
    """Use every operation that takes a secret. Returns the tokens that were created, and all errors and reprs."""
    output = ""
    async with Hub(settings, passwords=Passwords(cost=MIN_COST)) as hub:
        ada = await hub.register("ada@example.org", "ada", PASSWORD)
        output += await _refused(hub.register("bob@example.org", "bob", TOO_LONG))
        output += await _refused(hub.register("ada@example.org", "ada", NEW_PASSWORD))
        assert await hub.authenticate("ada", PASSWORD, address="192.0.2.1") == ada
        assert await hub.authenticate("ada", GUESS) is None
        tokens = [await hub.sessions.create_session(ada.id, {"device": "phone"}) for _ in range(3)]
        session = await hub.sessions.get_session(tokens[0])
        rotated = await hub.sessions.rotate(tokens[0])
        assert rotated is not None
        tokens.append(rotated)
        await hub.sessions.update_data(rotated, {"device": "tv"})
        await hub.sessions.delete_session(tokens[1])
        output += repr(session) + repr(await hub.sessions.list(ada.id)) + repr(hub) + repr(hub.settings)
        output += repr(await hub.users.find_credentials("ada"))
        await hub.change_password(ada.id, NEW_PASSWORD, keep_token=rotated)
        output += await _refused(hub.sessions.get_session(f"{tokens[0]}\ud800"))
        output += await _refused(hub.change_password(ada.id, TOO_LONG))
        await hub.sessions.revoke_all(ada.id)
        await hub.delete_account(ada.id)
    for server in ("postgres", "redis"):
        wrong = replace(settings, **{server: replace(getattr(settings, server), password=WRONG_LOGIN)})
        output += await _refused(Hub(wrong).start()) + repr(wrong)
        hub = Hub(wrong)
        with suppress(HubbubError):
            await hub.start()
            output += await _refused(hub.sessions.create_session(ada.id))
        await hub.close()
    return tokens, output


async def test_password_and_token_appear_in_no_server_log_or_error(
    talkative: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # asyncpg and hiredis log nothing. asyncio in debug mode logs the repr of slow callbacks.
    connection = Connection(talkative.redis)
    await connection.start()
    async with (
        monitored(talkative.redis, connection) as commands,
        statements_seen(superuser_of(talkative, folder)) as seen,
    ):
        tokens, output = await _live(talkative)
    await connection.close()
    written = {
        "the log of PostgreSQL, with plans": (folder / "postgresql.log").read_text(errors="replace"),
        "pg_stat_activity and pg_stat_statements": "\n".join(seen),
        "the log of Redis": (folder / "valkey.log").read_text(errors="replace"),
        "MONITOR": commands.decode(errors="replace"),
        "logging": caplog.text,
        "errors and reprs": output,
    }
    logins = [str(talkative.postgres.password), str(talkative.redis.password), WRONG_LOGIN]
    secrets = [PASSWORD, NEW_PASSWORD, GUESS, TOO_LONG, *logins, *tokens]
    assert [(where, secret) for where, text in written.items() for secret in secrets if secret in text] == []
    # The logs do contain these calls: hashes are sent to PostgreSQL, digests to Redis.
    log = written["the log of PostgreSQL, with plans"]
    assert "$2b$" in log
    assert "Query Text: " in log
    assert "Insert on public.users" in log
    assert "INSERT INTO public.users" in written["pg_stat_activity and pg_stat_statements"]
    assert "session:{" in written["MONITOR"]


SCRUBBED = {"password", "passwd", "secret", "token", "auth", "credentials", "session", "api_key"}
"""Names of variables whose values are removed by default by the scrubbers of error trackers."""


def _shown(error: BaseException) -> list[tuple[str, str, str]]:
    """The locals in the frames of an error and of its causes: the place, the name and the `repr` of each."""
    shown, links = [], [error]
    for link in links:
        for behind in (link.__cause__, link.__context__):
            if behind is not None and behind not in links:
                links.append(behind)
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if not frame.f_code.co_filename.startswith(str(Path(__file__).parents[1])):
                shown += [
                    (frame.f_code.co_qualname, name, repr(value))
                    for name, value in frame.f_locals.items()
                    if name not in SCRUBBED
                ]
    return shown


async def test_locals_of_a_traceback_hold_a_secret_only_under_a_name_that_scrubbers_know(
    settings: Settings,
) -> None:
    async with Hub(settings, passwords=Passwords(cost=MIN_COST)) as hub:
        ada = await hub.register("ada@example.org", "ada", PASSWORD)
        stored = await hub.users.find_credentials("ada")
        assert stored is not None
        token = await hub.sessions.create_session(ada.id)
        hashed = stored.password_hash
        late = Passwords(cost=MIN_COST, deadline_seconds=0.0001)
        actions = [
            hub.register("bob@example.org", "bob", TOO_LONG),
            hub.register("ada@example.org", "ada", GUESS),
            hub.register("bob@example.org", "ada", GUESS),
            hub.change_password(UUID(int=1), GUESS),
            hub.change_password(ada.id, TOO_LONG),
            hub.users.create("ada@example.org", "ada", hashed),
            hub.users.change_password_hash(UUID(int=1), hashed),
            late.hash(GUESS),
            late.verify(GUESS, hashed),
            hub.sessions.update_data(token, {"nested": object()}),
        ]
        shown = [await _locals_of(action) for action in actions]
        await late.close()
    after_close = [
        hub.register("eve@example.org", "eve", GUESS),
        hub.authenticate("ada", GUESS),
        hub.users.create("eve@example.org", "eve", hashed),
        hub.users.renew_password_hash(ada.id, hashed, instead_of=hashed),
        hub.sessions.get_session(token),
        hub.sessions.rotate(token),
    ]
    shown += [await _locals_of(action) for action in after_close]
    wrong = Settings(
        postgres=replace(settings.postgres, password=WRONG_LOGIN),
        redis=replace(settings.redis, password=WRONG_LOGIN),
    )
    shown.append(await _locals_of(Hub(wrong).start()))
    shown.append(await _locals_of(connect_to_redis(wrong.redis, wrong.redis.host, wrong.redis.port, "test")))
    secrets = [TOO_LONG, GUESS, WRONG_LOGIN, hashed, token]
    assert [(where, name) for of_one in shown for where, name, text in of_one for s in secrets if s in text] == []


async def _locals_of(action: Awaitable[object]) -> list[tuple[str, str, str]]:
    with pytest.raises(HubbubError) as refusal:
        await action
    return _shown(refusal.value)


COMMANDS = (
    ["status"],
    ["migrate", "status"],
    ["migrate", "grant", "nobody-here"],
    ["sessions", "list", "ada"],
    ["top", "--no-such-option"],
)
ENVIRONMENTS = {
    "refused": {"DB_PASSWORD": WRONG_LOGIN, "REDIS_PASSWORD": WRONG_LOGIN},
    "malformed": {
        "DATABASE_URL": f"postgresql://chat:{WRONG_LOGIN}@[bad/x",
        "REDIS_URL": f"redis://:{WRONG_LOGIN}@:x",
    },
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_commands_print_no_password(
    servers: Settings, tmp_path: Path, command: list[str], environment: str
) -> None:
    variables = {**servers.to_env(), **ENVIRONMENTS[environment]}
    ran = await asyncio.to_thread(_run, ["-m", "hubbub", *command], variables, tmp_path)
    assert WRONG_LOGIN not in ran
    assert str(servers.postgres.password) not in ran


@pytest.mark.parametrize("environment", ENVIRONMENTS)
async def test_traceback_of_a_program_has_no_password(servers: Settings, tmp_path: Path, environment: str) -> None:
    program = """
import asyncio, hubbub
async def main():
    async with hubbub.open() as hub:
        await hub.sessions.get_session("kept-token")
asyncio.run(main())
"""
    variables = {**servers.to_env(), **ENVIRONMENTS[environment]}
    ran = await asyncio.to_thread(_run, ["-X", "dev", "-c", program], variables, tmp_path)
    assert "Traceback" in ran
    assert WRONG_LOGIN not in ran


@pytest.fixture
def no_core() -> Iterator[None]:
    """Core dumps contain the memory of a process with its secrets. The system has to disable them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.usefixtures("no_core")
def test_dump_of_an_aborted_command_has_no_password(servers: Settings, tmp_path: Path) -> None:
    """The command waits for a server that does not answer, with the password in memory."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = replace(servers, postgres=replace(servers.postgres, port=mute.getsockname()[1]))
        mute.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "hubbub", "migrate", "status"],
            env=settings.to_env(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                with mute.accept()[0]:
                    process.send_signal(SIGABRT)
                    output, _ = process.communicate(timeout=60)
            finally:
                process.kill()
    assert "Fatal Python error: Aborted" in output
    assert str(servers.postgres.password) not in output
    assert str(servers.redis.password) not in output


def _run(arguments: list[str], variables: dict[str, str], folder: Path) -> str:
    """The whole output of the program."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout + ran.stderr
