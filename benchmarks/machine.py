"""The machine and the versions behind the figures, without host names and paths."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.context import Context, connect
from benchmarks.peers import node
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes

PACKAGES = ("hubbub", "asyncpg", "redis", "hiredis", "psycopg", "SQLAlchemy", "broadcaster", "msgspec")


class Machine(msgspec.Struct):
    cores: int
    processor: str
    memory_gib: float
    system: str
    versions: dict[str, str]
    day: str

    def line(self) -> str:
        return (
            f"{self.cores} cores of {self.processor}, {self.memory_gib:.0f} GiB, {self.system}, "
            f"PostgreSQL {self.versions['PostgreSQL']}, Python {self.versions['Python']}, {self.day}"
        )


async def describe(context: Context) -> Machine:
    versions = {
        "Python": platform.python_version(),
        "PostgreSQL": await _postgresql(context),
        "Valkey": await _valkey(context),
        **{name: version(name) for name in PACKAGES},
        **_node_versions(),
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_processor(),
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        versions=versions,
        day=datetime.now(UTC).date().isoformat(),
    )


async def _postgresql(context: Context) -> str:
    connection = await connect(context.settings.postgres)
    try:
        return str(await connection.fetchval("SHOW server_version")).partition(" ")[0]
    finally:
        await connection.close()


async def _valkey(context: Context) -> str:
    connection = Connection(context.settings.redis)
    await connection.start()
    try:
        lines = as_bytes(await connection.execute("INFO", "server")).decode().splitlines()
    finally:
        await connection.close()
    about = dict(line.split(":", 1) for line in lines if ":" in line)
    return about.get("valkey_version") or about["redis_version"]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _node_versions() -> dict[str, str]:
    if node.missing():
        return {}
    found = {"Node.js": subprocess.run(["node", "--version"], capture_output=True, check=True, text=True).stdout}
    for name in ("pg", "ioredis"):
        about = msgspec.json.decode((node.node_modules() / name / "package.json").read_bytes())
        found[name] = about["version"]
    return {name: number.strip() for name, number in found.items()}
