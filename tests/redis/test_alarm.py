from __future__ import annotations

import asyncio

from hubbub.redis.alarm import TICK_SECONDS, Alarm


async def test_it_rings_once_at_the_earliest_time_and_not_before() -> None:
    rung: list[float] = []
    alarm = Alarm(rung.append)
    now = asyncio.get_running_loop().time()
    for seconds in (0.2, 0.05, 0.3):
        alarm.ring_by(now + seconds, now)
    await asyncio.sleep(0.4)
    assert len(rung) == 1
    assert rung[0] >= now + 0.05


async def test_a_time_that_has_passed_rings_after_a_tick() -> None:
    rung: list[float] = []
    alarm = Alarm(rung.append)
    now = asyncio.get_running_loop().time()
    alarm.ring_by(now - 1, now)
    assert alarm.at == now + TICK_SECONDS
    await asyncio.sleep(0.1)
    assert len(rung) == 1


async def test_a_stopped_alarm_is_silent_until_it_is_asked_again() -> None:
    rung: list[float] = []
    alarm = Alarm(rung.append)
    now = asyncio.get_running_loop().time()
    alarm.ring_by(now, now)
    alarm.stop()
    await asyncio.sleep(0.05)
    assert rung == []
    alarm.ring_by(now, now + 0.05)
    await asyncio.sleep(0.1)
    assert len(rung) == 1
