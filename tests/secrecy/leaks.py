"""Collects the texts of a whole test run, and at its end searches them for the secrets that were used.

Each process of the run (pytest-xdist) has servers of its own, and searches its own texts:

- every log record below `hubbub` from DEBUG on, and all other records of the root logger, with tracebacks
- every error of hubbub, including those that a test expects
- the output of the tests, and of the code that they call
- the logs of all servers in the folder of the run, PostgreSQL's with the parameters of failed statements
- the last commands of the Redis of the suite

Session tokens contain a mark instead of some of their random characters. Passwords are collected when they are
hashed or checked.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hubbub import HubbubError, Passwords, PostgresSettings, RedisSettings
from hubbub.postgres import connect
from hubbub.redis import Connection, Part, Reply
from redis_server import PASSWORD as OF_OTHER_SERVERS
from rights import PASSWORD as OF_THE_APPLICATION

MARK = "-Never-told-"

SHORTEST = 8
"""Characters of a password, half of which differ. A shorter one, or `xxxxxxxx`, could be found by chance."""

COMMANDS_KEPT = 20_000
"""The number of recorded Redis commands. Each has the first 128 bytes of its first 32 arguments."""

WRITE_PARAMETERS = ("ALTER SYSTEM SET log_parameter_max_length_on_error = -1", "SELECT pg_reload_conf()")
WITHOUT_SECRETS = "tests/injection/"
"""Tests in which one text is both the password and every other argument."""

LOGS = ("*.log", "*.errors", "log")


class LeakSearch(logging.Handler):
    """The secrets by kind, and the texts by source."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets = {
            MARK: "a session token",
            OF_THE_APPLICATION: "the password of the application",
            OF_OTHER_SERVERS: "the password of a test's own Redis",
        }
        self._texts: dict[str, set[str]] = {}

    def add_secret(self, secret: object, name: str) -> None:
        """Search for this secret, including in earlier texts."""
        if isinstance(secret, str) and len(secret) >= SHORTEST and len(set(secret)) >= SHORTEST // 2:
            self._secrets.setdefault(secret, name)

    def add_text(self, where: str, text: str) -> None:
        self._texts.setdefault(where, set()).add(text)

    def emit(self, record: logging.LogRecord) -> None:
        self.add_text(f"the logger {record.name}", self.format(record))

    def read(self, folder: Path) -> None:
        """Add the logs and passwords of the servers with folders in this one."""
        for passwords in folder.rglob("passwords.json"):
            for name, password in json.loads(passwords.read_text()).items():
                self.add_secret(password, f"the password `{name}` of {passwords.parent.name}")
        for pattern in LOGS:
            for log in folder.rglob(pattern):
                self.add_text(str(log.relative_to(folder)), log.read_text(errors="replace"))

    @asynccontextmanager
    async def recording(self, redis: RedisSettings, administrator: PostgresSettings) -> AsyncIterator[None]:
        """Let the servers record the commands in the block. Those of Redis are added at its end. PostgreSQL writes
        the parameters of failed statements into its log."""
        postgres = await connect(administrator)
        for command in WRITE_PARAMETERS:
            await postgres.execute(command)
        await postgres.close()
        await _ask(redis, ("CONFIG", "SET", "slowlog-max-len", COMMANDS_KEPT))
        await _ask(redis, ("CONFIG", "SET", "slowlog-log-slower-than", 0))
        yield
        # On a new connection, because a test may have ended an earlier one.
        self.add_text("the commands of Redis", str(await _ask(redis, ("SLOWLOG", "GET", COMMANDS_KEPT))))

    def leaks(self) -> list[str]:
        """The places where secrets were found. The secrets are named, not shown."""
        return sorted(
            {
                f"{name}, in {where}"
                for where, texts in self._texts.items()
                for text in ["\n".join(texts)]
                for secret, name in self._secrets.items()
                if secret in text
            }
        )


async def _ask(redis: RedisSettings, command: tuple[Part, ...]) -> Reply:
    connection = Connection(redis)
    await connection.start()
    try:
        return await connection.execute(*command, deadline_seconds=60)
    finally:
        await connection.close()


LEAK_SEARCH = pytest.StashKey[LeakSearch]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEAK_SEARCH] = LeakSearch()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for title, text in report.sections:
        item.config.stash[LEAK_SEARCH].add_text(f"{title} of {item.nodeid}", text)
    return report


@pytest.fixture(scope="session", autouse=True)
def leak_search(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeakSearch]:
    """Set up first and torn down last, when the servers have stopped. If a secret was found, the last test of the
    run ends with an error."""
    leak_search = pytestconfig.stash[LEAK_SEARCH]
    with pytest.MonkeyPatch.context() as patch:
        _mark_tokens(patch)
        _collect_passwords(patch, leak_search)
        _collect_errors(patch, leak_search)
        logging.getLogger().addHandler(leak_search)
        logging.getLogger("hubbub").setLevel(logging.DEBUG)
        yield leak_search
        logging.getLogger("hubbub").setLevel(logging.NOTSET)
        logging.getLogger().removeHandler(leak_search)
    leak_search.read(tmp_path_factory.getbasetemp())
    if leaks := leak_search.leaks():
        pytest.fail("\n".join(["this run has leaked", *leaks]), pytrace=False)


def _mark_tokens(patch: pytest.MonkeyPatch) -> None:
    original = secrets.token_urlsafe

    def marked(nbytes: int | None = None) -> str:
        return original(nbytes)[: -len(MARK)] + MARK

    patch.setattr(secrets, "token_urlsafe", marked)


def _collect_passwords(patch: pytest.MonkeyPatch, leak_search: LeakSearch) -> None:
    hash_, verify = Passwords.hash, Passwords.verify

    def collect(password: str, name: str) -> None:
        if not os.environ.get("PYTEST_CURRENT_TEST", "").startswith(WITHOUT_SECRETS):
            leak_search.add_secret(password, name)

    async def collecting_hash(self: Passwords, password: str, **options: Any) -> str:  # noqa: ANN401
        collect(password, "a password that was hashed")
        return await hash_(self, password, **options)

    async def collecting_verify(
        self: Passwords,
        password: str,
        password_hash: str | None,
        **options: Any,  # noqa: ANN401
    ) -> bool:
        collect(password, "a password that was checked")
        return await verify(self, password, password_hash, **options)

    patch.setattr(Passwords, "hash", collecting_hash)
    patch.setattr(Passwords, "verify", collecting_verify)


def _collect_errors(patch: pytest.MonkeyPatch, leak_search: LeakSearch) -> None:
    def collected(self: HubbubError, *args: object) -> None:
        Exception.__init__(self, *args)
        leak_search.add_text(f"an error, {type(self).__name__}", repr(args))

    patch.setattr(HubbubError, "__init__", collected)
