"""The user of deploy/redis-user.conf has exactly the rights that the code needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hubbub
from hubbub import Unavailable
from hubbub.redis import Connection, ReplyError
from redis_server import Server
from rights import as_redis_user, make_redis_users, user_line, words_of_nodes

SOURCES = Path(hubbub.__file__).parent
IN_SERVICES = re.compile(r"""redis\.call\('([A-Z]+)'|execute\(\s*"([A-Z]+)"|(?<!normalize)\(\s*"([A-Z]{3,})",""")
VERBS = re.compile(r'^    (?:un)?subscribe(?:: Verb)? = "([A-Z]+)"', re.MULTILINE)
IN_REDIS = re.compile(
    r"""(?:(?:self|connection)\.(?:execute|_ask)|await execute|asked\.execute)\(\s*"([A-Z]+)\""""
)

HANDSHAKE = {"hello", "auth", "select", "ping", "client|setname", "role", "cluster|slots"}
"""The commands that open a connection, and the probe of a silent subscription."""

ELSEWHERE = {"asking"}
"""The command that a connection to a cluster sends before a command whose slot is moving."""


def used() -> set[str]:
    """The commands in the sources of the library. `hubbub demo`, `top` and `doctor` need additional ones."""
    found: set[str] = set()
    for folder, pattern in (("services", IN_SERVICES), ("redis", IN_REDIS)):
        for source in (SOURCES / folder).rglob("*.py"):
            text = source.read_text()
            for groups in (*pattern.finditer(text), *VERBS.finditer(text)):
                found.update(command.lower() for command in groups.groups() if command)
    return found


def test_user_has_exactly_the_commands_that_the_code_runs() -> None:
    allowed = {word[1:] for word in user_line() if word.startswith("+")}
    of_nodes = {word.removeprefix("+") for word in words_of_nodes()}
    assert allowed == used() - {"cluster"} - of_nodes | HANDSHAKE | ELSEWHERE
    assert of_nodes - used() == {"spublish"}  # replaces PUBLISH
    assert "-@all" in user_line()


def test_user_is_limited_to_its_keys_and_channels() -> None:
    words = user_line()
    assert words.index("resetkeys") < min(words.index(word) for word in words if word.startswith("~"))
    assert words.index("resetchannels") < min(words.index(word) for word in words if word.startswith("&"))
    assert {"~*", "&*", "allkeys", "allchannels", "nopass"}.isdisjoint(words)


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "secret"),
        ("SET", "sessions", "1"),
        ("RENAME", "session:{a}:b", "elsewhere"),
        ("EVAL", "return redis.call('GET', 'secret')", 0),
        ("EVAL", "return redis.call('CONFIG', 'GET', '*')", 0),
        ("EVAL", "return redis.call('KEYS', '*')", 0),
        ("PUBLISH", "news", "x"),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("FLUSHALL",),
        ("CONFIG", "GET", "requirepass"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MONITOR",),
        ("DEBUG", "SLEEP", 0),
        ("REPLICAOF", "NO", "ONE"),
        ("MODULE", "LIST"),
        ("SHUTDOWN",),
    ],
    ids=lambda words: " ".join(str(word) for word in words[:2]),
)
async def test_user_is_refused(server: Server, words: tuple[str | int, ...]) -> None:
    await make_redis_users(server.settings)
    connection = Connection(as_redis_user(server.settings))
    await connection.start()
    try:
        with pytest.raises((Unavailable, ReplyError), match=r"NOPERM|not allowed|permission|ACL|can't"):
            await connection.execute(*words)
    finally:
        await connection.close()
