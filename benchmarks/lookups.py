"""Users and memberships by key, 200 callers at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from benchmarks.contenders import python
from benchmarks.context import PEOPLE, ROOMS, USERS, Context
from benchmarks.measuring import Comparison, Pace
from benchmarks.peers import drivers
from benchmarks.peers.drivers import asyncpg_loop
from benchmarks.peers.node import beside_original, node
from hubbub import Hub

CALLERS = 200


def user(hub: Hub, number: int) -> Awaitable[object]:
    return hub.users.get(USERS[number % PEOPLE])


def membership(hub: Hub, number: int) -> Awaitable[object]:
    return hub.room_users.get(ROOMS[number % PEOPLE], USERS[number % PEOPLE])


async def lookups(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Concurrent calls that share a query, compared with one query per call."""
    yield await beside_original(
        context,
        pace,
        "lookups-user",
        f"lookups of a user, {CALLERS} callers",
        step=user,
        original=node("user", CALLERS, original=True),
        callers=CALLERS,
        at_least=7.0,
    )
    asyncpg = python(asyncpg_loop, sql=drivers.MEMBERSHIP, arguments=drivers.membership, callers=CALLERS)
    yield await beside_original(
        context,
        pace,
        "lookups-membership",
        f"lookups of a membership, {CALLERS} callers",
        step=membership,
        original=node("membership", CALLERS, original=True),
        callers=CALLERS,
        at_least=7.0,
        others={"asyncpg": asyncpg},
    )
