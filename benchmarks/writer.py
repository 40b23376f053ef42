"""Sends that share statements against one statement per message, interleaved, on one PostgreSQL.

    python benchmarks/writer.py [--rounds 5] [--seconds 2] [--no-fsync]

Starts its own server. Every round runs each contender once, so that a noisy moment affects all of them, and a
ratio is taken within a round. `rate` is in messages per second, `p50_ms` and `p99_ms` are the time of a send.
Ratios are above 1 if the writer is better.

    writer   hub.messages.send: concurrent sends share a statement and a commit
    each     the same without the writer, one statement per message, on a pool of the same size
    insert   for one sender: a bare INSERT with asyncpg, without membership and seq

    spread   each message into another of 1,000 rooms
    hot      all senders in one room
    repeats  as spread, with every seventh message sent twice
    shared   as spread, in 100 rooms, with half of the senders on another writer and pool, as in two processes
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from hubbub import Settings, migrations
from hubbub.embedded import Servers
from hubbub.hub import Repositories
from hubbub.postgres import Pool, connect
from hubbub.repositories import MessageWriter

ROOMS = 1_000
CONTENT = "a message of the length that people write when they chat, neither short nor long"

Send = Callable[[UUID, UUID], Awaitable[object]]  # takes the ids of the room and of the message


class Load(NamedTuple):
    """`rooms` and `pools` are numbers; every `repeat`-th message is sent again."""

    name: str
    senders: int
    rooms: int = ROOMS
    repeat: int = 0
    pools: int = 1


LOADS = (
    Load("spread", 1),
    Load("spread", 20),
    Load("spread", 200),
    Load("spread", 2_000),
    Load("hot", 200, rooms=1),
    Load("repeats", 20, repeat=7),
    Load("repeats", 200, repeat=7),
    Load("shared", 200, rooms=100, pools=2),
)


class Figures(NamedTuple):
    rate: float
    p50_ms: float
    p99_ms: float


Round = dict[tuple[str, Load], Figures]


async def measure(sends: list[Send], rooms: list[UUID], load: Load, seconds: float) -> Figures:
    """Each sender sends one message after another."""
    times: list[float] = []
    numbers = count()
    began = time.perf_counter()
    until = began + seconds

    async def timed(send: Send, room_id: UUID, id: UUID) -> None:
        start = time.perf_counter()
        await send(room_id, id)
        times.append((time.perf_counter() - start) * 1_000)

    async def sender(send: Send) -> None:
        while time.perf_counter() < until:
            number, id = next(numbers), uuid7()
            await timed(send, rooms[number * 7 % load.rooms], id)
            if load.repeat and number % load.repeat == 0:
                await timed(send, rooms[number * 7 % load.rooms], id)

    await asyncio.gather(*(sender(sends[number % load.pools]) for number in range(load.senders)))
    rate = len(times) / (time.perf_counter() - began)
    times.sort()
    return Figures(rate, times[len(times) // 2], times[len(times) * 99 // 100])


def with_writer(pool: Pool, user_id: UUID) -> Send:
    writer = MessageWriter(pool, lambda _: None, deadline_seconds=60)
    messages = Repositories(pool, lambda _: None, writer).messages
    return lambda room_id, id: messages.send(room_id, user_id, CONTENT, id=id)


def without_writer(pool: Pool, user_id: UUID) -> Send:
    messages = Repositories(pool, lambda _: None).messages
    return lambda room_id, id: messages.send(room_id, user_id, CONTENT, id=id)


CONTENDERS = {"writer": with_writer, "each": without_writer}

BARE_INSERT = """
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type)
    VALUES ($1, $2, $3, $4, $5, 'text')
"""


async def fill(pool: Pool) -> tuple[list[UUID], UUID]:
    hub = Repositories(pool, lambda _: None)
    ada = await hub.users.create("ada@example.org", "ada", "no hash")
    rooms = [(await hub.rooms.create(f"room {number}", created_by=ada.id)).id for number in range(ROOMS)]
    return rooms, ada.id


async def rounds(settings: Settings, times: int, seconds: float) -> list[Round]:
    async with AsyncExitStack() as stack:
        pools = [Pool(settings.postgres) for _ in range(2)]
        for pool in pools:
            await pool.open()
            stack.push_async_callback(pool.close)
        bare = await connect(settings.postgres)
        stack.push_async_callback(bare.close)
        rooms, ada = await fill(pools[0])
        contenders = {name: [make(pool, ada) for pool in pools] for name, make in CONTENDERS.items()}
        seqs = count(1_000_000_000)  # above all seqs of the logs

        async def insert(room_id: UUID, id: UUID) -> object:
            return await bare.execute(BARE_INSERT, id, room_id, next(seqs), ada, CONTENT)

        found: list[Round] = [{} for _ in range(times)]
        for one in found:
            for load in LOADS:
                for name, sends in contenders.items():
                    one[name, load] = await measure(sends, rooms, load, seconds)
                if load.senders == 1:
                    one["insert", load] = await measure([insert], rooms, load, seconds)
        return found


def spread(values: list[float]) -> str:
    return f"{min(values):10,.2f} {statistics.median(values):12,.2f} {max(values):12,.2f}"


def report(found: list[Round]) -> None:
    print(f"{'':50}{'min':>10} {'median':>12} {'max':>12}")
    for name, load in found[0]:
        for index, figure in enumerate(Figures._fields):
            label = f"{name}, {load.name}, {load.senders} senders: {figure}"
            print(f"{label:50}{spread([one[name, load][index] for one in found])}")
    for name, load in found[0]:
        if name != "writer":
            pairs = [(one["writer", load], one[name, load]) for one in found]
            label = f"writer / {name}, {load.name}, {load.senders}"
            print(f"{label + ': rate':50}{spread([ours.rate / theirs.rate for ours, theirs in pairs])}")
            print(f"{label + ': p50':50}{spread([theirs.p50_ms / ours.p50_ms for ours, theirs in pairs])}")
            print(f"{label + ': p99':50}{spread([theirs.p99_ms / ours.p99_ms for ours, theirs in pairs])}")


async def run(folder: Path, times: int, seconds: float, *, fsync: bool) -> list[Round]:
    async with Servers(folder, fsync=fsync) as settings:
        await migrations.up(settings.postgres)
        return await rounds(settings, times, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--no-fsync", action="store_true", help="run the server without fsync")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hubbub-writer-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user if this runs as root
        folder = Path(name) / "servers"
        report(asyncio.run(run(folder, arguments.rounds, arguments.seconds, fsync=not arguments.no_fsync)))


if __name__ == "__main__":
    main()
