"""The machine of the figures and its load, without host names and paths."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.context import Context, connect, redis_info
from benchmarks.peers import node

PACKAGES = ("hubbub", "asyncpg", "uvloop", "redis", "hiredis", "SQLAlchemy", "msgspec")


class Machine(msgspec.Struct):
    cores: int
    processor: str
    memory_gib: float
    system: str
    versions: dict[str, str]

    def line(self) -> str:
        versions = self.versions
        servers = f"PostgreSQL {versions['PostgreSQL']}, Valkey {versions['Valkey']}"
        node = f", Node.js {versions['Node.js'].removeprefix('v')}" if "Node.js" in versions else ""
        return (
            f"{self.cores} cores of an {self.processor}, {self.memory_gib:.0f} GiB, {self.system}, {servers}, "
            f"Python {versions['Python']}{node}"
        )


class Run(msgspec.Struct):
    """Cells that were measured together, and the load of the machine meanwhile."""

    began: str
    """The time in UTC, to the minute."""
    took_seconds: float
    fdatasync_us: float | None
    """The median time of a flush of an 8 KiB page to the disk of the servers, before the run."""
    load_before: float | None
    load_after: float | None
    """The load average of a minute after the run, which is mostly the load of the run itself."""
    others_cores: float | None
    """The mean number of cores that other programs kept busy. This and the fields above are None for a run that
    did not record them."""
    cells: list[str]


class Watch:
    """Watches the machine during a run."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._began = datetime.now(UTC)
        self._load = os.getloadavg()[0]
        self._fdatasync_us = fdatasync_us(context.folder)
        self._since, self._busy = time.perf_counter(), self._others_seconds()

    def run(self, cells: list[str]) -> Run:
        elapsed = time.perf_counter() - self._since
        return Run(
            began=self._began.isoformat(sep=" ", timespec="minutes").removesuffix("+00:00"),
            took_seconds=round(elapsed, 1),
            fdatasync_us=round(self._fdatasync_us, 1),
            load_before=round(self._load, 2),
            load_after=round(os.getloadavg()[0], 2),
            others_cores=round(max(0.0, (self._others_seconds() - self._busy) / elapsed), 3),
            cells=cells,
        )

    def _others_seconds(self) -> float:
        """The processor time of all programs except this one, its children and the servers."""
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _waiting, irq, softirq = (int(field) for field in fields[:7])
        everything = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        ours = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return (
            everything
            - sum(used.ru_utime + used.ru_stime for used in ours)
            - sum(self._context.servers_cpu_seconds().values())
        )


def fdatasync_us(folder: Path, times: int = 200) -> float:
    """The median time of a flush after an overwrite of 8 KiB, as PostgreSQL flushes its log."""
    with (folder / "flushed").open("wb", buffering=0) as file:
        file.write(bytes(8_192 * times))
        os.fsync(file.fileno())
        found = []
        for number in range(times):
            os.pwrite(file.fileno(), b"x" * 8_192, 8_192 * number)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1_000_000


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
    )


async def _postgresql(context: Context) -> str:
    connection = await connect(context.settings.postgres)
    try:
        return str(await connection.fetchval("SHOW server_version")).partition(" ")[0]
    finally:
        await connection.close()


async def _valkey(context: Context) -> str:
    about = await redis_info(context.settings)
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
