"""Counts the resources of each operation of one caller, in its own process: `python counting.py` prints JSON.

statements      sent to PostgreSQL
commands        sent to Redis, with those after a commit
buffers         blocks of PostgreSQL that the statements touch, by EXPLAIN (ANALYZE, BUFFERS)
allocated       bytes at the peak of the operation above those before it, by tracemalloc
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import statistics
import sys
import tracemalloc
from asyncio import selector_events
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hubbub
from hubbub import Hub
from hubbub.postgres import Statement
from hubbub.postgres.connection import Connection

TIMES = 20
SETTLED_SECONDS = 0.06
"""By then the events after a commit are sent, including those that are sent at most every 50 ms."""
PAGE = 50
COMMAND = re.compile(rb"(?:^|\r\n)\*\d+\r\n\$")
VERSION = Statement("version", int, "SELECT current_setting('server_version_num')::integer / 10000")

Operation = Callable[[], Awaitable[object]]
Counts = dict[str, dict[str, int]]


class Counting:
    """The counts of this process until now."""

    statements = 0
    commands = 0
    buffers = 0
    explains = False


async def _count(connection: Connection, query: str, args: tuple[object, ...]) -> None:
    """Count a statement, and its buffers if requested. Changes by EXPLAIN ANALYZE are rolled back."""
    Counting.statements += 1
    if not Counting.explains:
        return
    transaction = connection.transaction()
    await transaction.start()
    try:
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *args)
    finally:
        await transaction.rollback()
    top = json.loads(plan)[0]["Plan"]
    Counting.buffers += top["Shared Hit Blocks"] + top["Shared Read Blocks"]


def _counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(connection: Connection, query: str, *args: object) -> Any:  # noqa: ANN401
        await _count(connection, query, args)
        return await method(connection, query, *args)

    return call


class Socket(socket.socket):
    """Counts the commands that are sent to Redis. The number of system calls would depend on the machine."""

    def send(self, data: Any, *args: Any) -> int:  # noqa: ANN401
        Counting.commands += len(COMMAND.findall(data))
        return super().send(data, *args)


@asynccontextmanager
async def operations(hub: Hub) -> AsyncIterator[dict[str, Operation]]:
    """The operations by name. Each call does the same work."""
    ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    bob = await hub.users.create("bob@example.org", "bob", "not a hash")
    users = [await hub.users.create(f"u{n}@example.org", f"u{n}", "not a hash") for n in range(4 * TIMES)]
    room, other = [await hub.rooms.create(name, created_by=ada.id) for name in ("engine-room", "boiler-room")]
    await hub.room_users.add(room.id, bob.id)
    for _ in range(3):
        await hub.messages.send_many(other.id, ada.id, [hubbub.NewMessage("x" * 100) for _ in range(PAGE)])
    sent = [await hub.messages.send(room.id, ada.id, "x" * 100) for _ in range(4 * TIMES)]
    token = await hub.sessions.create_session(ada.id, {"device": "phone"})
    seqs, joining, contents = iter(sent), iter(users), iter(range(10_000))
    yield {
        "send": lambda: hub.messages.send(room.id, ada.id, "x" * 100),
        "edit": lambda: hub.messages.edit(sent[0].id, f"other content {next(contents):06}", by=ada.id),
        "join": lambda: hub.room_users.add(other.id, next(joining).id),
        "mark read": lambda: hub.receipts.mark_read(room.id, bob.id, up_to=next(seqs).seq),
        "page": lambda: hub.messages.page(other.id, limit=PAGE),
        "page as JSON": lambda: hub.messages.page_json(other.id, limit=PAGE),
        "room list": lambda: hub.rooms.list_for(ada.id),
        "unread counts": lambda: hub.receipts.unread_counts(bob.id),
        "user": lambda: hub.users.get(ada.id),
        "membership": lambda: hub.room_users.get(room.id, ada.id),
        "session": lambda: hub.sessions.get_session(token),
        "publish": lambda: hub.realtime.publish("news", "x" * 100),
    }


async def count(operation: Operation) -> dict[str, int]:
    for _ in range(TIMES):  # prepares statements and fills caches
        await operation()
    statements, commands = [], []
    for _ in range(TIMES // 4):
        before = Counting.statements, Counting.commands
        await operation()
        await asyncio.sleep(SETTLED_SECONDS)
        statements.append(Counting.statements - before[0])
        commands.append(Counting.commands - before[1])
    # The most frequent count, because background tasks of the process may also send something.
    found = {"statements": statistics.mode(statements), "commands": statistics.mode(commands)}
    found["allocated"] = await _allocated(operation)
    Counting.explains, Counting.buffers = True, 0
    for _ in range(TIMES // 2):
        await operation()
    Counting.explains = False
    found["buffers"] = round(Counting.buffers / (TIMES // 2))
    return found


async def _allocated(operation: Operation) -> int:
    found = []
    gc.collect()
    gc.disable()
    tracemalloc.start()
    for _ in range(TIMES // 2):
        await asyncio.sleep(SETTLED_SECONDS)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        await operation()
        _, peak = tracemalloc.get_traced_memory()
        found.append(peak - before)
    tracemalloc.stop()
    gc.enable()
    return round(statistics.median(found))


async def main() -> None:
    # asyncio allocates 256 KiB for each read, which would hide everything else.
    selector_events._SelectorTransport.max_size = 4_096  # type: ignore[attr-defined]
    socket.socket = Socket  # type: ignore[misc]
    for name in ("fetch", "fetchrow"):
        setattr(Connection, name, _counted(getattr(Connection, name)))
    async with hubbub.open() as hub, operations(hub) as operations_of_hub:
        counts = {name: await count(operation) for name, operation in operations_of_hub.items()}
        version = await hub._pool.fetch_one(VERSION)
    found = {
        "postgresql": version,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "operations": counts,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
