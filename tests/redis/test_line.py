from __future__ import annotations

import asyncio

import pytest

from hubbub.instrumentation import Instrumentation, Line
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.redis.line import pause_seconds
from redis_server import Server
from reports import reports
from waiting import until


class Broken(Instrumentation):
    def connected(self, line: Line) -> None:
        raise ZeroDivisionError(line)


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.05), (2, 0.1), (10, 0.5), (40, 2), (1_000, 2)])
def test_the_pause_grows_with_each_attempt_up_to_two_seconds(attempt: int, longest: float) -> None:
    pauses = [pause_seconds(attempt) for _ in range(200)]
    assert longest / 2 <= min(pauses)
    assert max(pauses) <= longest
    assert max(pauses) > min(pauses)


async def test_a_line_closes_at_any_moment_of_its_dialling(server: Server) -> None:
    """redis-py swallows a cancellation that meets the end of one of its waits: once in ten handshakes or so."""
    for turns in range(120):
        connection = Connection(server.settings)
        starting = asyncio.create_task(connection.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await connection.close()
        await asyncio.gather(starting, return_exceptions=True)


async def test_what_measures_connections_may_raise_and_is_reported_and_costs_nothing_else(server: Server) -> None:
    connection = Connection(server.settings, instrumentation=Broken())
    subscriptions = Subscriptions(server.settings, instrumentation=Broken())
    with reports() as reported:
        async with asyncio.timeout(30):
            await asyncio.gather(connection.start(), subscriptions.start())
            room = await subscriptions.subscribe("room")
            server.kill()
            await until(lambda: not (connection.connected or subscriptions.connected))
            early = connection.execute_many([("PING",), ("PING",)])
            server.start()
            assert await early == [b"PONG", b"PONG"]
            assert await anext(room) == Gap("reconnected")
            await connection.execute("PUBLISH", "room", "still here")
            assert await anext(room) == b"still here"
            await asyncio.gather(connection.close(), subscriptions.close())
    assert sorted(str(one["exception"]) for one in reported) == [
        "redis-commands",
        "redis-commands",
        "redis-subscriptions",
        "redis-subscriptions",
    ]
