"""Users and memberships by key, 200 callers at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks import limits
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace, Target, compare, loop_of
from benchmarks.peers import node
from benchmarks.peers.drivers import bare_asyncpg, psycopg3
from benchmarks.peers.orm import sqlalchemy
from hubbub import Hub

CALLERS = 200
ORIGINAL = "original, named"

PGBENCH = """
\\set n random(1, 1000)
SELECT id, email, username, avatar_url, is_online, last_seen, created_at, updated_at
FROM users
WHERE id = ('00000000-0000-7000-8000-' || lpad(to_hex(:n::integer), 12, '0'))::uuid;
"""


async def lookups(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Concurrent calls that share a query, against one query per call."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        asyncpg = await stack.enter_async_context(bare_asyncpg(context.settings.postgres))
        psycopg = await stack.enter_async_context(psycopg3(context.settings.postgres))
        orm = await stack.enter_async_context(sqlalchemy(context.settings.postgres))
        original = (
            None if node.missing() else await stack.enter_async_context(node.node(context, context.original))
        )
        ours = {
            "user": lambda number: hub.users.get(USERS[number % PEOPLE]),
            "membership": lambda number: hub.room_users.get(ROOMS[number % PEOPLE], USERS[number % PEOPLE]),
        }
        for kind, step in ours.items():
            contenders = {"hubbub": loop_of(step, CALLERS)}
            if original:
                contenders[ORIGINAL] = original.load(kind, CALLERS)
            contenders["asyncpg"] = loop_of(asyncpg[kind], CALLERS)
            contenders["psycopg"] = loop_of(psycopg[kind], CALLERS)
            contenders["SQLAlchemy"] = loop_of(orm[kind], CALLERS)
            skipped = {ORIGINAL: reason} if (reason := node.missing()) else {}
            if kind == "user":
                contenders["hubbub, cached"] = loop_of(
                    lambda number: hub.cache.user(USERS[number % PEOPLE]), CALLERS
                )
                skipped |= limits.missing("pgbench")
                if limits.find("pgbench"):
                    contenders["pgbench"] = limits.pgbench(context, "user", PGBENCH, clients=20)
            yield await compare(
                f"lookups-{kind}",
                f"lookups of a {kind}, {CALLERS} callers",
                contenders,
                pace,
                targets=[Target("rate", 6, ORIGINAL), Target("rate", 8, "asyncpg")],
                skipped=skipped,
            )
