"""The servers: who they are, how near, and that they let nobody in without the password."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from hubbub.cli._demo.figures import Claim, Section, Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.cli.quiet import unreported
from hubbub.errors import Unavailable
from hubbub.postgres import Statement, connect
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes
from hubbub.settings import PostgresSettings, RedisSettings

ROUND_TRIPS: Final = 200
WRONG: Final = "not the password"

_VERSION = Statement("demo.version", str, "SELECT current_setting('server_version') AS version")


async def greet(stage: Stage) -> Section:
    """A round trip to each, many times, and a wrong password for each, once."""
    watch = Stopwatch()
    for _ in range(ROUND_TRIPS):
        with watch.time("ask PostgreSQL"):
            await stage.pool.fetch_one(_VERSION)
    for _ in range(ROUND_TRIPS):
        with watch.time("ask Valkey"):
            await stage.redis.execute("PING")
    locked = Claim("a wrong password is refused")
    locked.holds(await _postgresql_refuses(stage.settings.postgres), "PostgreSQL took a wrong password")
    locked.holds(await _valkey_refuses(stage.settings.redis), "Valkey took a wrong password")
    return Section(title="Ask the servers", figures=watch.figures(), checks=(locked.check(),))


async def _postgresql_refuses(settings: PostgresSettings) -> bool:
    try:
        connection = await connect(replace(settings, password=WRONG))
    except Unavailable as refusal:
        return not refusal.retryable
    await connection.close()
    return False


async def _valkey_refuses(settings: RedisSettings) -> bool:
    connection = Connection(replace(settings, password=WRONG))
    try:
        with unreported():
            await connection.start()
        await connection.execute("PING")
    except Unavailable as refusal:
        return not refusal.retryable
    finally:
        await connection.close()
    return False


async def versions(stage: Stage) -> dict[str, str]:
    """The name of each server and the version that it says it has."""
    told = as_bytes(await stage.redis.execute("INFO", "server")).decode()
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    keeper = "Valkey" if "valkey_version" in lines else "Redis"
    return {
        "PostgreSQL": str(await stage.pool.fetch_one(_VERSION)),
        keeper: lines[f"{keeper.lower()}_version"],
    }
