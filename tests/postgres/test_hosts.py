"""Several hosts: the choice of the host, the switch to another one, and the errors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from commands import execute
from faults.relays import Blackhole
from hubbub import Hub, PostgresSettings, Settings, Unavailable
from hubbub.postgres import Pool, Statement, connect
from hubbub.postgres.connection import Hosts
from hubbub.postgres.pool import LOOK_SECONDS, MAX_LOOK_PAUSE_SECONDS
from ports import free_port
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

pytestmark = pytest.mark.session("PgBouncer is one host")

SLEEP = Statement("test.sleep", bool, "SELECT pg_sleep(0.2) IS NULL AS slept")
SLOW = Statement("test.slow", bool, "SELECT pg_sleep(60) IS NULL AS slept")
ONE = Statement("test.one", int, "SELECT 1 AS one")


class Counting(Blackhole):
    """A relay that counts its connections."""

    accepted = 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        super()._accept(reader, writer)


@pytest.fixture
async def relay(postgres_settings: PostgresSettings) -> AsyncIterator[Counting]:
    async with Counting(postgres_settings.host, postgres_settings.port) as relay:
        yield relay


def at(settings: PostgresSettings, *ports: int) -> PostgresSettings:
    """Settings with these hosts, and a connect timeout so long that a test which waits for one host fails."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return replace(settings, host=hosts, connect_timeout_seconds=2 * HANGS_AFTER_SECONDS)


async def test_frozen_first_host_does_not_hold_up_the_search(postgres_settings: PostgresSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts and does not answer
        settings = at(postgres_settings, frozen.getsockname()[1], postgres_settings.port)
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            connection = await connect(settings)
        assert connection.address.port == postgres_settings.port
        await connection.close()


async def test_host_that_refuses_is_passed_over(postgres_settings: PostgresSettings) -> None:
    connection = await connect(at(postgres_settings, free_port(), postgres_settings.port))
    assert connection.address.port == postgres_settings.port
    await connection.close()


async def test_error_names_all_hosts_with_their_reasons(postgres_settings: PostgresSettings) -> None:
    refusing = free_port()
    await execute(
        postgres_settings, f"ALTER DATABASE {postgres_settings.database} SET default_transaction_read_only = on"
    )
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        silent = frozen.getsockname()[1]
        settings = at(postgres_settings, refusing, silent, postgres_settings.port)
        standby = f"127.0.0.1:{postgres_settings.port}: the server takes no changes"

        async def names_all() -> bool:
            with pytest.raises(Unavailable) as caught:
                await connect(settings, within_seconds=1)
            reason = caught.value.reason
            assert f"127.0.0.1:{refusing}" in reason
            assert f"no connection to 127.0.0.1:{silent} within" in reason
            assert caught.value.retryable
            return standby in reason  # on a busy machine it may be silent for as long

        await until_it_answers(names_all)


async def test_no_host_is_asked_beside_the_primary_once_it_is_known(
    postgres_settings: PostgresSettings, relay: Counting
) -> None:
    settings = at(postgres_settings, free_port(), relay.port)
    hosts = Hosts(settings)
    await (await hosts.connect()).close()
    found = hosts._primary
    assert found is not None
    for _ in range(5):
        connection = await hosts.connect()
        assert connection.address == found
        await connection.close()
    assert relay.accepted == 6


async def test_standby_among_hosts_is_not_used(settings: Settings, postgres_settings: PostgresSettings) -> None:
    await execute(
        postgres_settings, f"ALTER DATABASE {postgres_settings.database} SET default_transaction_read_only = on"
    )
    several = replace(
        settings, postgres=replace(at(settings.postgres, free_port(), postgres_settings.port), deadline_seconds=1)
    )
    hub = Hub(several)
    health = await hub.health(deadline_seconds=20)
    assert not health.ready
    assert "none of 2 hosts is a primary in reach" in str(health.postgres.reason)
    await hub.close()


async def test_statement_on_host_that_hangs_is_run_on_the_new_primary(settings: Settings, relay: Counting) -> None:
    """Once the first host stops answering, callers reach the second host, including those that were waiting."""
    async with Counting(*relay._server) as second:
        assert second._listener is not None
        several = at(settings.postgres, relay.port, second.port)
        async with second.swallowing():
            pool = Pool(several)
            await asyncio.gather(*(pool.fetch_one(SLEEP) for _ in range(4)))
            assert {one.address.port for one in pool._connections.idle} == {relay.port}
        before = second.accepted
        async with relay.swallowing(), asyncio.timeout(HANGS_AFTER_SECONDS):
            assert await asyncio.gather(*(pool.fetch_one(ONE) for _ in range(8))) == [1] * 8
            assert {one.address.port for one in pool._connections.idle} == {second.port}
        assert second.accepted > before
        await pool.close()


async def test_primary_is_looked_for_less_and_less_often_while_it_is_only_slow(
    settings: Settings, relay: Counting
) -> None:
    async with Counting(*relay._server) as second:
        pool = Pool(at(settings.postgres, relay.port, second.port))
        connections = pool._connections
        async with second.swallowing():
            await pool.fetch_one(ONE)
            await connections._looking.close()  # here the test looks for the primary
            slow = asyncio.create_task(pool.fetch_one(SLOW))
            await until(lambda: bool(connections.used))
            pauses = [await connections._look() for _ in range(6)]
            assert relay.accepted == 1 + 5  # the first round only notes the statement
            assert pauses[0] <= LOOK_SECONDS
            assert pauses[-1] >= MAX_LOOK_PAUSE_SECONDS / 2
            slow.cancel()
            await until(lambda: not connections.used)
            assert await connections._look() <= LOOK_SECONDS
        await pool.close()


async def test_connections_to_former_primary_are_ended_when_another_is_found(
    settings: Settings, relay: Counting
) -> None:
    async with Counting(*relay._server) as second:
        pool = Pool(at(settings.postgres, relay.port, second.port))
        async with second.swallowing():  # or it is used if the first takes 0.2 s
            await asyncio.gather(*(pool.fetch_one(SLEEP) for _ in range(4)))
        former = next(iter(pool._connections.idle)).address
        relay.hang_up()
        relay._listener.close()  # type: ignore[union-attr]  # it is listening
        assert await pool.fetch_one(ONE) == 1
        assert {one.address == former for one in pool._connections.idle} == {False}
        await pool.close()
