"""Lookups by key that travel together, against a query a call, interleaved, on one PostgreSQL and one Valkey.

    python benchmarks/lookups.py [--rounds 5] [--seconds 2]

Starts servers of its own. Every round runs every contender once, so that a noisy moment hits all of them, and a
ratio is taken within a round. `rate` is lookups a second, `cpu_us` this process' processor time for one in
microseconds, which a busy machine disturbs far less. Ratios above 1 speak for the first of the two.

    together   hub.users.get and hub.room_users.get: what waits shares a statement
    plain      the same pool and statement, a query a call
    asyncpg    asyncpg with its own pool of 20, the same statement, rows as they come
    redis      GET and decoding of the cached user, on hubbub's connection
    cache      hub.cache.user: GET and decoding, and all that keeps it right; newest_page: the bytes

A page is the newest 50 messages of one room as JSON; `plain` is a query a call, the rows made models and encoded.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from hubbub import Settings, User, migrations
from hubbub.embedded import Servers
from hubbub.hub import Repositories
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.redis.replies import data
from hubbub.repositories import RoomUsers, Users
from hubbub.services.cache import Cache

PEOPLE = 1_000
CALLERS = (1, 20, 200)

Look = Callable[[UUID], Awaitable[object]]
Figures = dict[tuple[str, int], tuple[float, float]]

decode_user = msgspec.json.Decoder(User).decode


async def measure(look: Look, ids: list[UUID], callers: int, seconds: float) -> tuple[float, float]:
    """Each caller looks one up after another. Gives lookups a second and microseconds of processor for each."""
    done = 0
    began, cpu_began = time.perf_counter(), time.process_time()
    until = began + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            assert await look(ids[number % PEOPLE])
            number += 7
            done += 1

    await asyncio.gather(*(caller(number * 5) for number in range(callers)))
    return done / (time.perf_counter() - began), (time.process_time() - cpu_began) * 1_000_000 / done


async def contenders(settings: Settings, rounds: int, seconds: float) -> list[Figures]:
    pool, connection = Pool(settings.postgres), Connection(settings.redis)
    await pool.open()
    await connection.start()
    hub = Repositories(pool, lambda _: None)
    postgres = settings.postgres
    peer = await asyncpg.create_pool(
        host=postgres.host,
        port=postgres.port,
        user=postgres.user,
        password=postgres.password,
        database=postgres.database,
        min_size=1,
        max_size=postgres.pool_size,
    )
    cache = Cache(
        connection,
        users=hub.users,
        rooms=hub.rooms,
        messages=hub.messages,
        room_users=hub.room_users,
        ttl_seconds=3_600,
        deadline_seconds=5,  # so that a busy machine does not look like a slow server
    )
    ids, room_id = await fill(hub)

    async def redis(user_id: UUID) -> User:
        return decode_user(data(await connection.execute("GET", f"cache:1:user:{user_id}")))

    async def page(_: UUID) -> bytes:
        return msgspec.json.encode(await hub.messages.page(room_id, limit=50))

    looks: dict[str, Look] = {
        "user together": hub.users.get,
        "user plain": lambda user_id: pool.fetch_one(Users._GET, user_id),
        "user asyncpg": lambda user_id: peer.fetchrow(Users._GET.sql, user_id),
        "user redis": redis,
        "user cache": cache.user,
        "page cache": lambda _: cache.newest_page(room_id),
        "page plain": page,
        "membership together": lambda user_id: hub.room_users.get(room_id, user_id),
        "membership plain": lambda user_id: pool.fetch_one(RoomUsers._GET, room_id, user_id),
    }
    for user_id in ids:
        await cache.user(user_id)
    figures: list[Figures] = [{} for _ in range(rounds)]
    for one in figures:
        for callers in CALLERS:
            for name, look in looks.items():
                one[name, callers] = await measure(look, ids, callers, seconds)
    await cache.close()
    await peer.close()
    await connection.close()
    await pool.close()
    return figures


async def fill(hub: Repositories) -> tuple[list[UUID], UUID]:
    people = [await hub.users.create(f"{n}@example.org", f"user-{n}", "no hash") for n in range(PEOPLE)]
    room = await hub.rooms.create("everybody", created_by=people[0].id)
    await hub.room_users.add_many(room.id, [user.id for user in people])
    for number in range(60):
        await hub.messages.send(room.id, people[number].id, f"message {number}")
    return [user.id for user in people], room.id


RATIOS = (
    ("user together", "user plain"),
    ("user together", "user asyncpg"),
    ("user redis", "user together"),
    ("user cache", "user together"),
    ("page cache", "page plain"),
    ("membership together", "membership plain"),
    ("user redis", "membership together"),
)


def spread(values: list[float]) -> str:
    return f"{min(values):10,.2f} {statistics.median(values):12,.2f} {max(values):12,.2f}"


def report(rounds: list[Figures]) -> None:
    print(f"{'':50}{'min':>10} {'median':>12} {'max':>12}")
    for name, callers in rounds[0]:
        rates, costs = zip(*(one[name, callers] for one in rounds), strict=True)
        print(f"{f'{name}, {callers} callers: rate':50}{spread(list(rates))}")
        print(f"{f'{name}, {callers} callers: cpu_us':50}{spread(list(costs))}")
    for callers in CALLERS:
        for ours, theirs in RATIOS:
            pairs = [(one[ours, callers], one[theirs, callers]) for one in rounds]
            label = f"{ours} / {theirs}, {callers}"
            print(f"{label + ': rate':50}{spread([first[0] / second[0] for first, second in pairs])}")
            print(f"{label + ': cpu':50}{spread([second[1] / first[1] for first, second in pairs])}")


async def run(folder: Path, rounds: int, seconds: float) -> list[Figures]:
    async with Servers(folder, fsync=False) as settings:
        await migrations.up(settings.postgres)
        return await contenders(settings, rounds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hubbub-lookups-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user where this runs as root
        report(asyncio.run(run(Path(name) / "servers", arguments.rounds, arguments.seconds)))


if __name__ == "__main__":
    main()
