"""The application of the tests: a role and a user with no more rights than the documents tell to give them."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from hubbub import PostgresSettings, RedisSettings
from hubbub.migrations.grants import GrantTarget, grant_statements, quoted
from hubbub.redis import Connection

ROLE = 'the application\'s "role"'
PASSWORD = "of-the-application"
REDIS_USER = Path(__file__).parents[1] / "deploy" / "redis-user.conf"


def superuser(owner: PostgresSettings, folder: Path) -> PostgresSettings:
    """The one who made the cluster of the servers in this folder."""
    password = json.loads((folder / "passwords.json").read_text())["postgresql_superuser"]
    return replace(owner, user="postgres", database="postgres", password=password)


def role() -> list[str]:
    """The statements that make the role, for which `hubbub migrate grant` is then run."""
    return [f"CREATE ROLE {quoted(ROLE)} LOGIN PASSWORD '{PASSWORD}'"]


def in_a_copy(database: str) -> list[str]:
    """What a copy of a granted database lacks: the rights on tables are copied, those on the database are not."""
    target = GrantTarget(database, "public", "nobody", exists=True, is_superuser=False, is_owner=False)
    return [sql for sql in grant_statements(target, ROLE) if " DATABASE " in sql]


def as_role(owner: PostgresSettings) -> PostgresSettings:
    return replace(owner, user=ROLE, password=PASSWORD)


def user_line() -> list[str]:
    """The words of the file that makes the Redis user, after `user`, with a password."""
    [line] = [line for line in REDIS_USER.read_text().splitlines() if line.startswith("user ")]
    return line.replace("PASSWORD_SHA256", sha256(PASSWORD.encode()).hexdigest()).split()[1:]


def words_of_nodes() -> list[str]:
    """Those of the same file for a node of a cluster that has sharded pub/sub."""
    [line] = [line for line in REDIS_USER.read_text().splitlines() if "+spublish" in line]
    return line.removeprefix("#").split()


INSPECTING = ("+keys", "+exists", "+type", "+dbsize", "+echo", "+rpush", "+script", "+client", "+pubsub")
"""Other commands that tests of one service send on its connection."""

REDIS_USERS = {
    "hubbub": (),
    "inspecting": INSPECTING,
    "on-any-channel": (*INSPECTING, "&*"),
}
"""What each may do besides what the file gives it. As the first the tests of a whole hub run."""


async def make_redis_users(settings: RedisSettings) -> None:
    connection = Connection(settings)
    await connection.start()
    _, *rules = user_line()
    for name, others in REDIS_USERS.items():
        await connection.execute("ACL", "SETUSER", name, *rules, *others)
    await connection.close()


def as_redis_user(settings: RedisSettings, name: str = "hubbub") -> RedisSettings:
    return replace(settings, username=name, password=PASSWORD)
