"""Session lookups: hub.sessions.get_session against GET and json.loads on redis-py's asyncio client, interleaved.

    python benchmarks/sessions.py [--rounds 15] [--seconds 1]

Starts servers of its own. Every round runs every contender once, so that a noisy moment hits all of them; ratios
are taken within a round, and above 1 they speak for hubbub. `rate` is lookups a second, `cpu_us` this process'
processor time for one in microseconds, which a busy machine disturbs far less. All look up the same sessions.

    hubbub     get_session: a Session, with its times and ids as values; refused if it has ended
    bare       GET on hubbub's connection, the bytes as they come
    redis-py   its client as it comes, GET and json.loads: a dict of text, as in the seed
    pooled     the same on its own waiting pool, with that one's default of 50 connections
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import redis.asyncio

from hubbub.embedded import Servers
from hubbub.redis import Connection
from hubbub.services.sessions import SessionService
from hubbub.services.sessions.place import place_of
from hubbub.settings import RedisSettings

SESSIONS = 1_000
CALLERS = (1, 200)
DATA = {"device": "phone", "roles": ["member"], "ip": "192.0.2.1"}

Look = Callable[[str], Awaitable[object]]
Figures = dict[tuple[str, int], tuple[float, float]]


async def measure(look: Look, names: list[str], callers: int, seconds: float) -> tuple[float, float]:
    """Each caller looks one up after another. Gives lookups a second and microseconds of processor for each."""
    done = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    until = began + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            assert await look(names[number % SESSIONS])
            number += 7
            done += 1

    await asyncio.gather(*(caller(number * 5) for number in range(callers)))
    return done / (time.perf_counter() - began), (time.process_time() - cpu_began) * 1_000_000 / done


async def contenders(settings: RedisSettings, rounds: int, seconds: float) -> list[Figures]:
    connection = Connection(settings)
    await connection.start()
    sessions = SessionService(connection)
    tokens = [await sessions.create_session(uuid4(), DATA) for _ in range(SESSIONS)]
    keys = [place_of(token).key for token in tokens]
    client = redis.asyncio.Redis(
        host=settings.host,
        port=settings.port,
        password=settings.password,
        max_connections=max(CALLERS),  # at its limit of 100 it raises
    )
    pool = redis.asyncio.BlockingConnectionPool(
        host=settings.host, port=settings.port, password=settings.password, timeout=None
    )
    pooled = redis.asyncio.Redis.from_pool(pool)

    async def redis_py(key: str) -> object:
        return json.loads(await client.get(key))

    async def redis_py_pooled(key: str) -> object:
        return json.loads(await pooled.get(key))

    looks: dict[str, tuple[Look, list[str]]] = {
        "hubbub": (sessions.get_session, tokens),
        "bare": (lambda key: connection.execute("GET", key), keys),
        "redis-py": (redis_py, keys),
        "pooled": (redis_py_pooled, keys),
    }
    figures: list[Figures] = [{} for _ in range(rounds)]
    for callers in CALLERS:
        for look, names in looks.values():  # with connections opened, and compilers done, before it counts
            await measure(look, names, callers, seconds / 2)
        for one in figures:
            for name, (look, names) in looks.items():
                one[name, callers] = await measure(look, names, callers, seconds)
    await pooled.aclose()
    await client.aclose()
    await connection.close()
    return figures


def spread(values: list[float]) -> str:
    return f"{min(values):10,.2f} {statistics.median(values):12,.2f} {max(values):12,.2f}"


def report(rounds: list[Figures]) -> None:
    print(f"{'':44}{'min':>10} {'median':>12} {'max':>12}")
    for name, callers in rounds[0]:
        rates, costs = zip(*(one[name, callers] for one in rounds), strict=True)
        print(f"{f'{name}, {callers} callers: rate':44}{spread(list(rates))}")
        print(f"{f'{name}, {callers} callers: cpu_us':44}{spread(list(costs))}")
    for callers in CALLERS:
        for peer in ("redis-py", "pooled"):
            pairs = [(one["hubbub", callers], one[peer, callers]) for one in rounds]
            label = f"hubbub / {peer}, {callers}"
            print(f"{label + ': rate':44}{spread([ours[0] / theirs[0] for ours, theirs in pairs])}")
            print(f"{label + ': cpu':44}{spread([theirs[1] / ours[1] for ours, theirs in pairs])}")


async def run(folder: Path, rounds: int, seconds: float) -> list[Figures]:
    async with Servers(folder, fsync=False) as settings:
        return await contenders(settings.redis, rounds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hubbub-sessions-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user where this runs as root
        report(asyncio.run(run(Path(name) / "servers", arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    main()
