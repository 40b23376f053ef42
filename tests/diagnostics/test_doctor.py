from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from time import time

import pytest

from diagnostics.sections import meanings, result_of, severities
from hubbub import Settings, migrations
from hubbub.diagnostics import doctor
from hubbub.diagnostics.doctor import Both
from hubbub.diagnostics.report import Section
from hubbub.migrations import HEAD
from hubbub.postgres import Pool
from hubbub.redis import Connection, Subscriptions
from redis_server import PASSWORD, Server
from waiting import HANGS_AFTER_SECONDS


@asynccontextmanager
async def reached(settings: Settings) -> AsyncIterator[Both]:
    pool = Pool(settings.postgres)
    connection, subscriptions = Connection(settings.redis), Subscriptions(settings.redis)
    await connection.start()
    await subscriptions.start()
    try:
        yield Both(pool, connection, subscriptions)
    finally:
        await subscriptions.close()
        await connection.close()
        await pool.close()


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "USUAL_COST", 4)
    monkeypatch.setattr(doctor, "CHEAP_SECONDS", 0.0)


async def look(settings: Settings) -> Section:
    async with reached(settings) as both:
        return await doctor.check_together(both)


async def test_message_is_received_and_a_follower_starts(both: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DELIVERY_SECONDS", HANGS_AFTER_SECONDS)  # later is a finding on a busy machine
    section = await look(both)
    assert section.out_of_reach is None
    assert [result.findings for result in section.checks] == [()] * len(doctor.CHECKS)
    assert result_of(section, "together.delivery").summary.startswith("received after")
    assert result_of(section, "together.follower").summary.startswith("started after")


async def test_checks_leave_no_key_and_no_channel_behind(both: Settings) -> None:
    await look(both)
    async with reached(both) as after:
        assert after.connection is not None
        assert await after.connection.execute("DBSIZE") == 0
        assert await after.connection.execute("PUBSUB", "CHANNELS") == []


async def test_clock_skew_is_a_warning(both: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "time", lambda: time() - 10)
    section = await look(both)
    assert severities(section, "together.clocks") == ["warning"]
    assert "ahead of that of this machine" in meanings(section, "together.clocks")


@pytest.mark.parametrize(("seconds", "advice"), [(0.01, "cost=5"), (0.2, ""), (0.9, "cost=3")])
async def test_cheap_or_expensive_hashes_are_reported_with_another_cost(
    both: Settings, monkeypatch: pytest.MonkeyPatch, seconds: float, advice: str
) -> None:
    monkeypatch.setattr(doctor, "CHEAP_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "_hash_seconds", lambda cost: seconds)
    section = await look(both)
    assert severities(section, "together.passwords") == (["warning"] if advice else [])
    assert advice in meanings(section, "together.passwords")


async def test_login_that_may_not_publish_is_an_error(both: Settings, servers_of: Callable[..., Server]) -> None:
    server = servers_of(f"user mute on >{PASSWORD} ~* resetchannels +@all")
    mute = replace(both, redis=replace(server.settings, username="mute", deadline_seconds=2))
    section = await look(mute)
    assert severities(section, "together.delivery") == ["error"]
    assert "deploy/redis-user.conf" in meanings(section, "together.delivery")


async def test_message_published_on_another_server_is_an_error(
    both: Settings, servers_of: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DELIVERY_SECONDS", 0.3)
    other = Subscriptions(servers_of().settings)
    await other.start()
    try:
        async with reached(both) as reach:
            section = await doctor.check_together(reach._replace(subscriptions=other))
    finally:
        await other.close()
    assert severities(section, "together.delivery") == ["error"]
    assert "more than one server" in meanings(section, "together.delivery")


async def test_follower_is_skipped_without_the_newest_schema(both: Settings) -> None:
    await migrations.down(both.postgres, "-1")
    assert result_of(await look(both), "together.follower").skipped == f"the database is not at {HEAD}"


async def test_checks_that_need_a_missing_server_are_skipped(both: Settings) -> None:
    async with reached(both) as reach:
        section = await doctor.check_together(reach._replace(pool=None))
        assert result_of(section, "together.delivery").skipped is None
        assert result_of(section, "together.follower").skipped == "it needs both servers"
        section = await doctor.check_together(reach._replace(pool=None, connection=None))
        assert result_of(section, "together.clocks").skipped == "no server is in reach"
        assert result_of(section, "together.delivery").skipped == "Redis is out of reach"
