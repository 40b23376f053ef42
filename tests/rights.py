"""The application of the tests: a role and a Redis user with exactly the rights in the documentation."""

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
    """The superuser that made the cluster of the servers in this folder."""
    password = json.loads((folder / "passwords.json").read_text())["postgresql_superuser"]
    return replace(owner, user="postgres", database="postgres", password=password)


# From PostgreSQL 16 on. The tests log in thousands of times. The 4,096 rounds of a password took half of the
# client's processor time for a connection.
CHEAP = "SELECT set_config(name, '1', false) FROM pg_settings WHERE name = 'scram_iterations'"


def role() -> list[str]:
    """The statements that create the role. `hubbub migrate grant` follows them."""
    return [CHEAP, f"CREATE ROLE {quoted(ROLE)} LOGIN PASSWORD '{PASSWORD}'"]


def cheap_login(settings: PostgresSettings) -> list[str]:
    """The statements that let this role log in with the same password in one round instead of 4,096."""
    return [CHEAP, f"ALTER ROLE {quoted(settings.user)} PASSWORD '{settings.password}'"]


def in_a_copy(database: str) -> list[str]:
    """Grants that a copy of a granted database lacks. Only rights on tables are copied with it."""
    target = GrantTarget(database, "public", "nobody", exists=True, is_superuser=False, is_owner=False)
    return [sql for sql in grant_statements(target, ROLE) if " DATABASE " in sql]


def as_role(owner: PostgresSettings) -> PostgresSettings:
    return replace(owner, user=ROLE, password=PASSWORD)


def user_line() -> list[str]:
    """The rule of the Redis user in the file of deploy, after `user`, with a password."""
    [line] = [line for line in REDIS_USER.read_text().splitlines() if line.startswith("user ")]
    return line.replace("PASSWORD_SHA256", sha256(PASSWORD.encode()).hexdigest()).split()[1:]


def words_of_nodes() -> list[str]:
    """The additional words of that file for a cluster node with sharded pub/sub."""
    [line] = [line for line in REDIS_USER.read_text().splitlines() if "+spublish" in line]
    return line.removeprefix("#").split()


INSPECTING = ("+keys", "+exists", "+type", "+dbsize", "+echo", "+rpush", "+script", "+client", "+pubsub")
"""Additional commands that tests of one service send on its connection."""

REDIS_USERS = {
    "hubbub": (),
    "inspecting": INSPECTING,
    "on-any-channel": (*INSPECTING, "&*"),
}
"""Additional rights of each Redis user. The tests of a whole hub run as the first one."""


async def make_redis_users(settings: RedisSettings) -> None:
    connection = Connection(settings)
    await connection.start()
    _, *rules = user_line()
    for name, others in REDIS_USERS.items():
        await connection.execute("ACL", "SETUSER", name, *rules, *others)
    await connection.close()


def as_redis_user(settings: RedisSettings, name: str = "hubbub") -> RedisSettings:
    return replace(settings, username=name, password=PASSWORD)
