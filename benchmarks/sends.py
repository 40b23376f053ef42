"""Durable sends: membership checked, seq taken under the room's lock, message inserted, committed on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks import limits
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Load, Pace, Step, Target, compare, loop_of
from benchmarks.peers import node
from benchmarks.peers.drivers import bare_asyncpg, psycopg3
from benchmarks.peers.node import CONTENT
from benchmarks.peers.orm import sqlalchemy
from hubbub import Hub

# The targets by number of senders, as ratios to the rate of the original stack.
AIMS = {20: 2.5, 200: 5.5, 2_000: 8.0}

ORIGINAL = "original, named"
PLAIN = "original, plain"
STRICT = "original, strict"

COMMIT_DELAY_US = 2_000

PGBENCH = """
\\set n random(1, 1000)
WITH pair AS (
    SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(:n::integer), 12, '0'))::uuid AS id
), head AS (
    UPDATE rooms
    SET last_seq = last_seq + 1
    FROM pair
    WHERE rooms.id = pair.id
        AND EXISTS (SELECT 1 FROM room_users WHERE room_id = pair.id AND user_id = pair.id)
    RETURNING pair.id, last_seq
)
INSERT INTO messages (room_id, seq, user_id, content, message_type)
SELECT id, last_seq, id, '{content}', 'text'
FROM head
RETURNING id, room_id, seq, user_id, content, message_type, is_edited, created_at, updated_at;
"""


def step_of(hub: Hub) -> Step:
    return lambda number: hub.messages.send(ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT)


@asynccontextmanager
async def original_stack(context: Context, callers: int, *, plain: bool = False) -> AsyncIterator[dict[str, Load]]:
    """The original stack on the original schema, and doing hubbub's work on hubbub's schema."""
    if node.missing():
        yield {}
        return
    async with (
        node.node(context, context.original) as original,
        node.node(context, context.settings.postgres) as strict,
    ):
        loads = {ORIGINAL: original.load("send, named", callers), STRICT: strict.load("send, strict", callers)}
        yield loads | ({PLAIN: original.load("send, plain", callers)} if plain else {})


def skipped() -> dict[str, str]:
    reason = node.missing()
    return {ORIGINAL: reason} if reason else {}


async def many_rooms(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Senders in 1,000 rooms: 20, 200 and 2,000."""
    for callers, aim in AIMS.items():
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(Hub(context.settings))
            originals = await stack.enter_async_context(original_stack(context, callers, plain=callers == 200))
            asyncpg = await stack.enter_async_context(bare_asyncpg(context.settings.postgres))
            copy = await stack.enter_async_context(limits.copier(context.settings.postgres))
            contenders = {
                "hubbub": loop_of(step_of(hub), callers),
                **originals,
                "asyncpg": loop_of(asyncpg["send"], callers),
            }
            if callers == 200:
                psycopg = await stack.enter_async_context(psycopg3(context.settings.postgres))
                orm = await stack.enter_async_context(sqlalchemy(context.settings.postgres))
                contenders["psycopg"] = loop_of(psycopg["send"], callers)
                contenders["SQLAlchemy"] = loop_of(orm["send"], callers)
                if limits.find("pgbench"):
                    script = PGBENCH.format(content=CONTENT)
                    contenders["pgbench"] = limits.pgbench(context, "send", script, clients=20)
            contenders["COPY"] = loop_of(copy, callers)
            yield await compare(
                f"sends-{callers}",
                f"durable sends, {callers:,} senders in 1,000 rooms",
                contenders,
                pace,
                targets=[
                    Target("rate", aim, ORIGINAL),
                    Target("p99_ms", 3.0, ORIGINAL),
                    Target("rate", 0.6, "COPY"),
                ],
                skipped=skipped() | (limits.missing("pgbench") if callers == 200 else {}),
            )


async def one_room(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """200 senders in one room, which all need its lock."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        asyncpg = await stack.enter_async_context(bare_asyncpg(context.settings.postgres))

        async def send(number: int) -> None:
            await hub.messages.send(ROOMS[0], USERS[number % PEOPLE], CONTENT)

        contenders = {
            "hubbub": loop_of(send, 200),
            "one statement a message": loop_of(asyncpg["send, one room"], 200),
        }
        if not node.missing():
            strict = await stack.enter_async_context(node.node(context, context.settings.postgres))
            contenders[STRICT] = strict.load("send, one room", 200)
        yield await compare(
            "sends-one-room",
            "durable sends, 200 senders in one room",
            contenders,
            pace,
            targets=[Target("rate", 15, "one statement a message"), Target("rate", 15, STRICT)],
            skipped=skipped(),
        )


async def one_sender(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """A single sender: the cost of a send that shares nothing."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Hub(context.settings))
        originals = await stack.enter_async_context(original_stack(context, 1))
        bare = await stack.enter_async_context(bare_asyncpg(context.original))
        strict = await stack.enter_async_context(bare_asyncpg(context.settings.postgres))
        yield await compare(
            "sends-1",
            "durable sends, one sender",
            {
                "hubbub": loop_of(step_of(hub), 1),
                **originals,
                "bare INSERT, asyncpg": loop_of(bare["insert"], 1),
                "asyncpg": loop_of(strict["send"], 1),
            },
            pace,
            targets=[Target("p50_ms", 1 / 1.2, "bare INSERT, asyncpg"), Target("p50_ms", 1.0, ORIGINAL)],
            skipped=skipped(),
        )


async def slow_disk(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Each flush of the write-ahead log takes 2 ms longer, as on a disk across a network."""
    database = context.settings.postgres.database
    for name in (database, context.original.database):
        await context.as_superuser(
            f"ALTER DATABASE {name} SET commit_delay = {COMMIT_DELAY_US}",
            f"ALTER DATABASE {name} SET commit_siblings = 0",
        )
    try:
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(Hub(context.settings))
            originals = await stack.enter_async_context(original_stack(context, 200))
            yield await compare(
                "sends-slow-disk",
                "durable sends, 200 senders, flush of the log 2 ms slower",
                {"hubbub": loop_of(step_of(hub), 200), **originals},
                pace,
                targets=[Target("rate", 4, ORIGINAL)],
                skipped=skipped(),
            )
    finally:
        for name in (database, context.original.database):
            await context.as_superuser(f"ALTER DATABASE {name} RESET ALL")
