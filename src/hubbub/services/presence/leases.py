"""The leases of this process, and the one task that tells Redis of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final
from uuid import UUID, uuid4

import msgspec

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.events import PRESENCE_CHANNEL
from hubbub.redis import Connection, Part, ReplyError
from hubbub.services.presence.scripts import (
    BUCKETS,
    KEEP_MS,
    SETTLE,
    bucket_of,
    leases_key,
    log_refusal,
    online_key,
)

CHUNK: Final = 200
"""Leases a script: about 1 ms of Redis' one thread, behind which everybody else waits."""

RETRY_SECONDS: Final = 0.25


class Device(msgspec.Struct, frozen=True):
    """A connection of a user: `lease` is its own id, `name` what `online` was told that the device is."""

    lease: UUID
    name: str | None


class Lease:
    """A claim that a user is online, for one connection. It holds until it is given up or not renewed."""

    __slots__ = ("bucket", "ends_at", "user_id", "word")

    def __init__(self, user_id: UUID, device: str | None) -> None:
        self.user_id = user_id
        self.bucket = bucket_of(user_id)
        self.word = f"{uuid4().hex}:{device or ''}".encode()
        self.ends_at = 0.0
        """By the event loop's clock: Redis has forgotten the lease by then at the latest."""


def device_of(word: bytes) -> Device:
    """What the word of a lease, as Redis keeps it, says."""
    lease, _, name = word.decode(errors="replace").partition(":")
    return Device(UUID(lease), name or None)


class Leases:
    """What this process holds, and what of it Redis has still to be told.

    One task tells everything, one script at a time, so nothing overtakes: a heartbeat that was sent before a
    lease was given up cannot arrive behind it and bring the lease back. A heartbeat renews all leases of a bucket;
    the buckets take turns over the interval, and with what is new: a rush of people who come does not hold the
    heartbeats up.

    `on_transition` is told who may have come online.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        heartbeat_seconds: float,
        grace_seconds: float,
        on_transition: Callable[[Iterable[UUID]], None],
    ) -> None:
        self._connection = connection
        self._heartbeat_seconds = heartbeat_seconds
        self._lease_seconds = 2 * heartbeat_seconds
        self._grace_seconds = grace_seconds
        self._on_transition = on_transition
        self._held: list[dict[Lease, None]] = [{} for _ in range(BUCKETS)]
        self._news: dict[int, dict[Lease, None]] = {}
        self._waiting: dict[Lease, asyncio.Future[None]] = {}
        self._beats_at = [0.0] * BUCKETS
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send heartbeats. A second start does nothing."""
        if self._task is not None:
            return
        now = asyncio.get_running_loop().time()
        self._beats_at = [now + self._heartbeat_seconds * place / BUCKETS for place in range(BUCKETS)]
        self._task = asyncio.create_task(self._keep(), name="hubbub-presence-leases")

    async def close(self) -> None:
        """Give up all leases; those that Redis cannot be told of end by themselves. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        answered = True
        for bucket, held in enumerate(self._held):
            given_up = [*held, *self._news.pop(bucket, {})]
            held.clear()
            answered = answered and await self._settle_all(bucket, given_up)
        self._answer(list(self._waiting))

    async def take(self, lease: Lease) -> None:
        """Hold the lease from now on. Returns once Redis knows, or cannot be reached."""
        if self._task is None:
            raise Unavailable("hub", "presence is not running", retryable=False)
        self._held[lease.bucket][lease] = None
        await self._tell(lease)

    async def give_up(self, lease: Lease) -> None:
        """Hold the lease no longer. Returns once Redis knows, or cannot be reached."""
        if lease in self._held[lease.bucket]:
            del self._held[lease.bucket][lease]
            await self._tell(lease)

    def renew_soon(self, bucket: int) -> None:
        """Redis may have lost this bucket: do not wait for the next heartbeat."""
        if self._held[bucket]:
            self._beats_at[bucket] = asyncio.get_running_loop().time()
            self._wake.set()

    async def _tell(self, lease: Lease) -> None:
        self._news.setdefault(lease.bucket, {})[lease] = None
        self._wake.set()
        if not self._connection.connected:
            return  # nobody waits for an outage: it is told when that is over
        told = self._waiting.get(lease)
        if told is None or told.done():
            told = self._waiting[lease] = asyncio.get_running_loop().create_future()
        await told

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            is_told = await self._tell_news()
            has_beaten = await self._beat()
            if is_told and has_beaten:
                await self._rest()
            else:
                await asyncio.sleep(RETRY_SECONDS)

    async def _tell_news(self) -> bool:
        """What is new in the bucket that has waited longest, as far as it fits into one script."""
        if not self._news:
            return True
        bucket = next(iter(self._news))
        news = self._news.pop(bucket)
        leases = list(islice(news, CHUNK))
        for lease in leases:
            del news[lease]
        if news:
            self._news[bucket] = news
        return await self._settle(bucket, leases)

    async def _beat(self) -> bool:
        """The heartbeat of one bucket, if one is due."""
        now = asyncio.get_running_loop().time()
        bucket = self._beats_at.index(min(self._beats_at))
        if self._beats_at[bucket] > now:
            return True
        self._beats_at[bucket] = now + self._heartbeat_seconds
        return await self._settle_all(bucket, list(self._held[bucket]))

    async def _rest(self) -> None:
        pause_seconds = min(self._beats_at) - asyncio.get_running_loop().time()
        if self._news or pause_seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_seconds):
                await self._wake.wait()

    async def _settle_all(self, bucket: int, leases: Sequence[Lease]) -> bool:
        for start in range(0, len(leases), CHUNK):
            if not await self._settle(bucket, leases[start : start + CHUNK]):
                return False
        return True

    async def _settle(self, bucket: int, leases: Collection[Lease]) -> bool:
        """Tell Redis how it stands with these leases of a bucket. False when that failed; it is told again."""
        if not leases:
            return True
        came: list[UUID] | None = None
        try:
            with ReportErrors("telling Redis of leases"):
                came = await self._ask(bucket, leases)
        finally:
            if came is None:
                self._tell_again(bucket, leases)  # by `close`, where this was cancelled
            self._answer(leases)
        # Where no answer came it may have happened all the same.
        self._on_transition([lease.user_id for lease in leases] if came is None else came)
        return came is not None

    async def _ask(self, bucket: int, leases: Collection[Lease]) -> list[UUID] | None:
        """Who has come online by it, None where Redis did not say."""
        try:
            return await self._send(bucket, leases)
        except Unavailable:
            return None  # the connection has logged the outage
        except ReplyError as error:
            log_refusal(error)
            return None

    async def _send(self, bucket: int, leases: Collection[Lease]) -> list[UUID]:
        held = self._held[bucket]
        ends_at = asyncio.get_running_loop().time() + 2 * self._lease_seconds  # one of them for being late
        changes: list[Part] = []
        for lease in leases:
            is_held = lease in held
            changes += (str(lease.user_id), lease.word, int(is_held))
            if is_held:
                lease.ends_at = ends_at
        return await SETTLE(
            self._connection,
            keys=(online_key(bucket), *[leases_key(lease.user_id) for lease in leases]),
            args=(
                PRESENCE_CHANNEL,
                round(self._lease_seconds * 1000),
                round(self._grace_seconds * 1000),
                KEEP_MS,
                *changes,
            ),
        )

    def _tell_again(self, bucket: int, leases: Iterable[Lease]) -> None:
        now = asyncio.get_running_loop().time()
        self._beats_at[bucket] = now  # behind the buckets that are late already
        for lease in leases:
            # Bounds what is kept during an outage: a lease that has ended need not be given up.
            if lease not in self._held[bucket] and lease.ends_at > now:
                self._news.setdefault(bucket, {})[lease] = None

    def _answer(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            told = self._waiting.pop(lease, None)
            if told is not None and not told.done():
                told.set_result(None)
