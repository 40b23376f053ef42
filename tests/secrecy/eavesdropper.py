"""Listens to a whole run of the suite, and at its end looks through all that was said for the secrets in use.

Each process of the run (pytest-xdist) has servers of its own, and looks through what was said there and by them:

- every record that is logged below `hubbub`, from DEBUG on, and what else reaches the root logger; with tracebacks
- every error of hubbub's, also of those that a test expects
- what tests print, and what is printed beside them
- the logs of all servers in the folder of the run, that of PostgreSQL with the parameters of what failed
- the last commands of the suite's Redis

Session tokens have a mark in them, where they would be random. Passwords are noted as they are hashed or checked.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hubbub import HubbubError, Passwords, PostgresSettings, RedisSettings
from hubbub.postgres import connect
from hubbub.redis import Connection, Part, Reply
from redis_server import PASSWORD as OF_OTHER_SERVERS
from rights import PASSWORD as OF_THE_APPLICATION

MARK = "-Never-told-"

SHORTEST = 8
"""Characters of a password, of which half differ. A shorter one, or `xxxxxxxx`, may be found by chance."""

REMEMBERED = 20_000
"""Commands of Redis; of each the first 128 bytes of the first 32 arguments."""

WRITE_PARAMETERS = ("ALTER SYSTEM SET log_parameter_max_length_on_error = -1", "SELECT pg_reload_conf()")
WITHOUT_SECRETS = "tests/injection/"
"""There one and the same text is the password and every other argument."""

LOGS = ("*.log", "*.errors", "log")


class Eavesdropper(logging.Handler):
    """What may not be said, by what it is, and what was said, by where."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets = {
            MARK: "a session token",
            OF_THE_APPLICATION: "the password of the application",
            OF_OTHER_SERVERS: "the password of a test's own Redis",
        }
        self._said: dict[str, set[str]] = {}

    def keep(self, secret: object, name: str) -> None:
        """From now on, and in what was said before."""
        if isinstance(secret, str) and len(secret) >= SHORTEST and len(set(secret)) >= SHORTEST // 2:
            self._secrets.setdefault(secret, name)

    def hear(self, where: str, text: str) -> None:
        self._said.setdefault(where, set()).add(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(f"the logger {record.name}", self.format(record))

    def read(self, folder: Path) -> None:
        """The logs and the passwords of servers, whose folders lie somewhere in this one."""
        for passwords in folder.rglob("passwords.json"):
            for name, password in json.loads(passwords.read_text()).items():
                self.keep(password, f"the password `{name}` of {passwords.parent.name}")
        for pattern in LOGS:
            for log in folder.rglob(pattern):
                self.hear(str(log.relative_to(folder)), log.read_text(errors="replace"))

    @asynccontextmanager
    async def over(self, redis: RedisSettings, administrator: PostgresSettings) -> AsyncIterator[None]:
        """Have the servers remember what they are asked in the block. Redis is heard at its end; PostgreSQL writes
        the parameters of what fails into its log."""
        postgres = await connect(administrator)
        for command in WRITE_PARAMETERS:
            await postgres.execute(command)
        await postgres.close()
        await _ask(redis, ("CONFIG", "SET", "slowlog-max-len", REMEMBERED))
        await _ask(redis, ("CONFIG", "SET", "slowlog-log-slower-than", 0))
        yield
        # Over a connection of its own: one from the beginning may be among those that a test has ended.
        self.hear("the commands of Redis", str(await _ask(redis, ("SLOWLOG", "GET", REMEMBERED))))

    def told(self) -> list[str]:
        """Which secret stands where, by names alone."""
        return sorted(
            {
                f"{name}, in {where}"
                for where, texts in self._said.items()
                for said in ["\n".join(texts)]
                for secret, name in self._secrets.items()
                if secret in said
            }
        )


async def _ask(redis: RedisSettings, command: tuple[Part, ...]) -> Reply:
    connection = Connection(redis)
    await connection.start()
    try:
        return await connection.execute(*command, deadline_seconds=60)
    finally:
        await connection.close()


EAVESDROPPER = pytest.StashKey[Eavesdropper]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[EAVESDROPPER] = Eavesdropper()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for title, text in report.sections:
        item.config.stash[EAVESDROPPER].hear(f"{title} of {item.nodeid}", text)
    return report


@pytest.fixture(scope="session", autouse=True)
def eavesdropper(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eavesdropper]:
    """Set up before all else and torn down after it, when the servers have stopped: the last test of a run in
    which something was told ends in an error."""
    eavesdropper = pytestconfig.stash[EAVESDROPPER]
    with pytest.MonkeyPatch.context() as patch:
        _mark_tokens(patch)
        _note_passwords(patch, eavesdropper)
        _hear_errors(patch, eavesdropper)
        logging.getLogger().addHandler(eavesdropper)
        logging.getLogger("hubbub").setLevel(logging.DEBUG)
        yield eavesdropper
        logging.getLogger("hubbub").setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(eavesdropper)
    eavesdropper.read(tmp_path_factory.getbasetemp())
    if told := eavesdropper.told():
        pytest.fail("\n".join(["this run has told", *told]), pytrace=False)


def _mark_tokens(patch: pytest.MonkeyPatch) -> None:
    original = secrets.token_urlsafe

    def marked(nbytes: int | None = None) -> str:
        return original(nbytes)[: -len(MARK)] + MARK

    patch.setattr(secrets, "token_urlsafe", marked)


def _note_passwords(patch: pytest.MonkeyPatch, eavesdropper: Eavesdropper) -> None:
    hash_, verify = Passwords.hash, Passwords.verify

    def note(password: str, name: str) -> None:
        if not os.environ.get("PYTEST_CURRENT_TEST", "").startswith(WITHOUT_SECRETS):
            eavesdropper.keep(password, name)

    async def noted_hash(self: Passwords, password: str) -> str:
        note(password, "a password that was hashed")
        return await hash_(self, password)

    async def noted_verify(self: Passwords, password: str, password_hash: str | None) -> bool:
        note(password, "a password that was checked")
        return await verify(self, password, password_hash)

    patch.setattr(Passwords, "hash", noted_hash)
    patch.setattr(Passwords, "verify", noted_verify)


def _hear_errors(patch: pytest.MonkeyPatch, eavesdropper: Eavesdropper) -> None:
    def heard(self: HubbubError, *args: object) -> None:
        Exception.__init__(self, *args)
        eavesdropper.hear(f"an error, {type(self).__name__}", repr(args))

    patch.setattr(HubbubError, "__init__", heard)
