"""What Redis says of itself, and who is online, types and is logged in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes, as_bytes_list, as_int, as_list
from hubbub.services.presence.leases import BUCKETS as PRESENCE_BUCKETS
from hubbub.services.presence.leases import online_key
from hubbub.services.typing_indicators import BUCKETS as TYPING_BUCKETS
from hubbub.services.typing_indicators import due_key, room_key

ROOMS_A_BUCKET: Final = 50
"""In how many rooms of a bucket those who type are counted."""

SAMPLE: Final = 2_000
"""How many keys are looked at, to tell how many of all are sessions."""

KEYS_A_SCAN: Final = 500


class Server(NamedTuple):
    """`clients` are those beside the one that asks; `memory_limit` is 0 where there is none."""

    name: str
    version: str
    clients: int
    memory: int
    memory_limit: int
    commands: int
    evicted: int
    found: int
    missed: int


class Typing(NamedTuple):
    """`is_more` says that there are rooms which were not looked at."""

    users: int
    rooms: int
    is_more: bool


class Sessions(NamedTuple):
    """`is_exact` is False where they are projected from a part of the keys."""

    number: int
    is_exact: bool


class Live(NamedTuple):
    """`server` is as of before these questions were asked, `afterwards` as of after: they count, too."""

    server: Server
    afterwards: Server
    online: int
    typing: Typing
    sessions: Sessions


async def ask(connection: Connection) -> Live:
    """A few commands, none of which takes long however much there is. Raises `Unavailable`."""
    server = await _server(connection)
    now = await _now(connection)
    online = await _online(connection, now)
    typing = await _typing(connection, now)
    sessions = await _sessions(connection)
    return Live(server, await _server(connection), online, typing, sessions)


async def _server(connection: Connection) -> Server:
    told = as_bytes(await connection.execute("INFO")).decode(errors="replace")
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    name = "Valkey" if "valkey_version" in lines else "Redis"
    return Server(
        name=name,
        version=lines.get(f"{name.lower()}_version", ""),
        clients=int(lines.get("connected_clients", 1)) - 1,
        memory=int(lines.get("used_memory", 0)),
        memory_limit=int(lines.get("maxmemory", 0)),
        commands=int(lines.get("total_commands_processed", 0)),
        evicted=int(lines.get("evicted_keys", 0)),
        found=int(lines.get("keyspace_hits", 0)),
        missed=int(lines.get("keyspace_misses", 0)),
    )


async def _online(connection: Connection, now: int) -> int:
    keys = [online_key(bucket) for bucket in range(PRESENCE_BUCKETS)]
    return sum(await _not_over(connection, keys, now))


async def _typing(connection: Connection, now: int) -> Typing:
    keys = [due_key(bucket) for bucket in range(TYPING_BUCKETS)]
    # One more than are counted, to know whether there are more.
    found = await asyncio.gather(*[connection.execute("ZRANGE", key, 0, ROOMS_A_BUCKET) for key in keys])
    rooms = [as_bytes_list(ids) for ids in found]
    counted = [room_key(UUID(id.decode())) for ids in rooms for id in ids[:ROOMS_A_BUCKET]]
    users = await _not_over(connection, counted, now)
    return Typing(
        users=sum(users),
        rooms=sum(1 for number in users if number),
        is_more=any(len(ids) > ROOMS_A_BUCKET for ids in rooms),
    )


async def _not_over(connection: Connection, keys: Iterable[str], now: int) -> list[int]:
    """How many members of each of these sorted sets have an end, their score, that is still to come.

    The others are those that no process has swept yet: for as long as none runs, nobody does.
    """
    # In one turn of the event loop, these go out in one write.
    counts = await asyncio.gather(*[connection.execute("ZCOUNT", key, f"({now}", "+inf") for key in keys])
    return [as_int(count) for count in counts]


async def _now(connection: Connection) -> int:
    """Redis' clock, by which all ends are kept, in milliseconds."""
    seconds, microseconds = as_bytes_list(await connection.execute("TIME"))
    return int(seconds) * 1000 + int(microseconds) // 1000


async def _sessions(connection: Connection) -> Sessions:
    """All of them where there are few keys, else their share of some keys times all.

    SCAN gives keys in the order of their hashes, so the first ones are as good a sample as any.
    """
    cursor, looked_at, sessions = b"0", 0, 0
    while looked_at < SAMPLE:
        cursor, keys = await _scan(connection, cursor)
        looked_at += len(keys)
        sessions += sum(_is_session(key) for key in keys)
        if cursor == b"0":
            return Sessions(sessions, is_exact=True)
    total = as_int(await connection.execute("DBSIZE"))
    return Sessions(round(sessions / looked_at * total), is_exact=False)


async def _scan(connection: Connection, cursor: bytes) -> tuple[bytes, list[bytes]]:
    following, keys = as_list(await connection.execute("SCAN", cursor, "COUNT", KEYS_A_SCAN))
    return as_bytes(following), as_bytes_list(keys)


def _is_session(key: bytes) -> bool:
    return key.startswith(b"session:{") and b"}:user:" not in key
