from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub import Settings
from hubbub.errors import Invalid, Unavailable
from hubbub.models import RateLimitResult
from hubbub.redis import Connection
from hubbub.redis.replies import as_bytes, as_bytes_list, as_int
from hubbub.services.rate_limits import RateLimits
from redis_server import Server, binaries
from waiting import until_it_answers

SLOWLY = 1 / 3600  # tokens per second: none is added during a test


@pytest.fixture
def limits(connection: Connection) -> RateLimits:
    return RateLimits(connection)


@pytest.fixture
def ada() -> str:
    return f"{uuid4()}@example.org"


def bucket(name: str, key: str) -> str:
    return f"limit:{name}:{sha256(key.encode()).hexdigest()}"


async def test_burst_up_to_the_capacity_passes_and_the_next_is_refused(limits: RateLimits, ada: str) -> None:
    verdicts = [await limits.take("send", ada, capacity=3, refill_per_second=SLOWLY) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0, 0]
    assert [verdict.retry_after_seconds for verdict in verdicts[:3]] == [0, 0, 0]
    assert all(3500 < verdict.retry_after_seconds <= 3600 for verdict in verdicts[3:])
    assert not any(verdict.degraded for verdict in verdicts)


async def test_retry_after_the_returned_seconds_passes(limits: RateLimits, ada: str) -> None:
    async def take() -> RateLimitResult:
        return await limits.take("send", ada, capacity=2, refill_per_second=20)

    while (refused := await take()).allowed:
        pass
    assert 0 < refused.retry_after_seconds <= 0.05
    await asyncio.sleep(refused.retry_after_seconds)
    assert (await take()).allowed


async def test_refusal_takes_no_tokens(limits: RateLimits, connection: Connection, ada: str) -> None:
    assert (await limits.take("send", ada, capacity=1, refill_per_second=SLOWLY)).allowed
    before = await connection.execute("GET", bucket("send", ada))
    for _ in range(10):
        assert not (await limits.take("send", ada, capacity=1, refill_per_second=SLOWLY)).allowed
    assert await connection.execute("GET", bucket("send", ada)) == before


async def test_cost_takes_that_many_tokens(limits: RateLimits, ada: str) -> None:
    async def take(cost: int) -> RateLimitResult:
        return await limits.take("upload", ada, capacity=10, refill_per_second=SLOWLY, cost=cost)

    assert (await take(7)).remaining == 3
    too_much = await take(5)
    assert not too_much.allowed
    assert too_much.remaining == 3
    assert 3600 < too_much.retry_after_seconds <= 7200
    assert (await take(3)).remaining == 0


async def test_each_name_and_key_has_its_own_bucket(limits: RateLimits, ada: str) -> None:
    for name, key in [("send", ada), ("read", ada), ("send", ada + "x"), ("send", "")]:
        await limits.take(name, key or str(uuid4()), capacity=1, refill_per_second=SLOWLY)
    assert not (await limits.take("send", ada, capacity=1, refill_per_second=SLOWLY)).allowed
    assert not (await limits.take("read", ada, capacity=1, refill_per_second=SLOWLY)).allowed


async def test_processes_share_one_bucket(servers: Settings, limits: RateLimits, ada: str) -> None:
    other = Connection(servers.redis)
    await other.start()
    both = [limits, RateLimits(other)]
    verdicts = await asyncio.gather(
        *(both[n % 2].take("send", ada, capacity=50, refill_per_second=SLOWLY) for n in range(300))
    )
    await other.close()
    assert sum(verdict.allowed for verdict in verdicts) == 50


async def test_refill_bounds_the_rate_in_the_long_run(limits: RateLimits, ada: str) -> None:
    """Measured by the clock of Redis. The bucket holds one token and gets 100 per second."""
    loop = asyncio.get_running_loop()
    allowed = 0
    started = loop.time()
    while loop.time() < started + 0.5 or allowed < 2:  # on a busy machine a call may take as long
        allowed += (await limits.take("send", ada, capacity=1, refill_per_second=100)).allowed
    assert allowed <= (loop.time() - started) * 100 + 2


async def test_full_bucket_has_no_key_in_redis(limits: RateLimits, connection: Connection, ada: str) -> None:
    await limits.take("send", ada, capacity=10, refill_per_second=0.01)
    assert 90_000 < as_int(await connection.execute("PTTL", bucket("send", ada))) <= 100_001
    await limits.take("read", ada, capacity=10, refill_per_second=100)

    async def is_gone() -> bool:
        return await connection.execute("EXISTS", bucket("read", ada)) == 0

    await until_it_answers(is_gone)


async def test_keys_in_redis_contain_no_email_and_no_address(
    limits: RateLimits, connection: Connection, ada: str
) -> None:
    for key in (ada, "192.0.2.7", "a\r\nb*", "\ud800", "x" * 1_000_000):
        await limits.take("login", key, capacity=5, refill_per_second=1)
    found = as_bytes_list(await connection.execute("KEYS", "*"))
    assert len(found) == 5
    assert all(len(key) == len(bucket("login", "")) for key in found)


async def test_lowered_capacity_applies_at_once(limits: RateLimits, ada: str) -> None:
    for _ in range(100):
        await limits.take("send", ada, capacity=100, refill_per_second=SLOWLY)
    refused = await limits.take("send", ada, capacity=2, refill_per_second=SLOWLY)
    assert not refused.allowed
    assert refused.retry_after_seconds <= 3600


@pytest.mark.parametrize(
    "stored", ["99999999999999", "inf", "nan", "1e400", "-inf", "-1", "", "not a number", "0x7fffffffffffffff"]
)
async def test_bucket_with_any_time_locks_out_for_one_refill_at_most(
    limits: RateLimits, connection: Connection, ada: str, stored: str
) -> None:
    """The clock may have been set back. The test advances the clock by moving the stored time back."""

    async def take() -> RateLimitResult:
        return await limits.take("send", ada, capacity=5, refill_per_second=1 / 60, cost=5)

    await connection.execute("SET", bucket("send", ada), stored, "PX", 2**40)
    verdict = await take()
    assert verdict.retry_after_seconds <= 300
    if not verdict.allowed:
        assert as_int(await connection.execute("PTTL", bucket("send", ada))) <= 300_001
        full_at = float(as_bytes(await connection.execute("GET", bucket("send", ada))))
        passed = str(full_at - 1000 * verdict.retry_after_seconds)
        await connection.execute("SET", bucket("send", ada), passed, "PX", 600_000)
        assert (await take()).allowed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, print_blob=True)
@given(steps_ms=st.lists(st.integers(-(2**41), 2**41), min_size=1, max_size=6))
async def test_no_steps_of_the_clock_lock_out_for_longer_than_one_refill(
    limits: RateLimits, connection: Connection, steps_ms: list[int]
) -> None:
    """A clock that is set back makes the stored time later, and one that is set ahead makes it earlier."""
    key = str(uuid4())

    async def take() -> RateLimitResult:
        return await limits.take("send", key, capacity=5, refill_per_second=1 / 60, cost=5)

    async def set_back(by_ms: float) -> None:
        full_at = float(as_bytes(await connection.execute("GET", bucket("send", key))))
        await connection.execute("SET", bucket("send", key), str(full_at + by_ms), "PX", 2**42)

    assert (await take()).allowed
    for by_ms in steps_ms:
        await set_back(by_ms)
        refused = await take()
        assert refused.retry_after_seconds <= 300
        if not refused.allowed:  # wait for the returned time
            await set_back(-1000 * refused.retry_after_seconds)
            assert (await take()).allowed


async def test_retry_after_the_returned_seconds_passes_also_after_the_capacity_was_lowered(
    limits: RateLimits, ada: str
) -> None:
    assert (await limits.take("send", ada, capacity=60, refill_per_second=10, cost=60)).allowed
    refused = await limits.take("send", ada, capacity=2, refill_per_second=10)
    assert 0 < refused.retry_after_seconds <= 0.1
    await asyncio.sleep(refused.retry_after_seconds)
    assert (await limits.take("send", ada, capacity=2, refill_per_second=10)).allowed


@pytest.mark.parametrize("capacity", [1, 7, 1_000_000_000])
@pytest.mark.parametrize("rate", [1 / 3600, 0.1, 1 / 3, 10, 1e6, 1e300])
async def test_any_rate_allows_its_capacity(limits: RateLimits, capacity: int, rate: float) -> None:
    if capacity / rate > 366 * 86_400:
        with pytest.raises(Invalid, match="within a year"):
            await limits.take("send", str(uuid4()), capacity=capacity, refill_per_second=rate)
        return
    key = str(uuid4())
    first = await limits.take("send", key, capacity=capacity, refill_per_second=rate, cost=capacity)
    assert first == RateLimitResult(allowed=True, remaining=0, retry_after_seconds=0)
    second = await limits.take("send", key, capacity=capacity, refill_per_second=rate, cost=capacity)
    assert second.retry_after_seconds <= capacity / rate + 0.001


BAD: list[tuple[str, dict[str, object]]] = [
    ("name", {"name": ""}), ("name", {"name": "a:b"}), ("name", {"name": "A"}), ("name", {"name": "x" * 51}),
    ("name", {"name": "a\n"}), ("name", {"name": None}), ("key", {"key": None}), ("key", {"key": b"x"}),
    ("capacity", {"capacity": 0}), ("capacity", {"capacity": -1}), ("capacity", {"capacity": 1.5}),
    ("capacity", {"capacity": True}), ("capacity", {"capacity": 10**10}), ("cost", {"cost": 0}),
    ("cost", {"cost": 6}), ("cost", {"cost": -1}), ("cost", {"cost": 0.5}), ("cost", {"cost": True}),
    ("refill_per_second", {"refill_per_second": 0}), ("refill_per_second", {"refill_per_second": -1}),
    ("refill_per_second", {"refill_per_second": math.nan}), ("refill_per_second", {"refill_per_second": math.inf}),
    ("refill_per_second", {"refill_per_second": 1e-300}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "bad"), BAD, ids=range(len(BAD)))
async def test_invalid_limit_is_refused(limits: RateLimits, field: str, bad: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "send", "key": "ada", "capacity": 5, "refill_per_second": 1.0}
    with pytest.raises(Invalid) as refusal:
        await limits.take(**(good | bad))  # type: ignore[arg-type]  # as in a configuration
    assert refusal.value.field == field


async def test_flushed_scripts_do_not_stop_limits(limits: RateLimits, connection: Connection, ada: str) -> None:
    await limits.take("send", ada, capacity=2, refill_per_second=SLOWLY)
    await connection.execute("SCRIPT", "FLUSH")
    assert (await limits.take("send", ada, capacity=2, refill_per_second=SLOWLY)).remaining == 0


@pytest.fixture(params=binaries(), ids=lambda binary: binary.name)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(request.param, tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def test_limit_without_redis_raises_or_fails_open_until_redis_is_back(server: Server, ada: str) -> None:
    connection = Connection(replace(server.settings, deadline_seconds=0.5))
    await connection.start()
    limits = RateLimits(connection)

    async def take(*, fail_open: bool) -> RateLimitResult:
        return await limits.take("send", ada, capacity=1, refill_per_second=SLOWLY, fail_open=fail_open)

    server.freeze()
    with pytest.raises(Unavailable):
        await take(fail_open=False)
    assert await take(fail_open=True) == RateLimitResult(True, 0, 0, degraded=True)
    server.thaw()
    server.kill()
    with pytest.raises(Unavailable):
        await take(fail_open=False)
    assert await take(fail_open=True) == RateLimitResult(True, 0, 0, degraded=True)
    server.start()

    async def is_back() -> bool:
        return not (await take(fail_open=True)).degraded

    await until_it_answers(is_back)
    assert not (await take(fail_open=True)).allowed
    await connection.close()
