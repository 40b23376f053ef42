"""The leases of presence in Redis: tasks of each process send its own, another ends those not renewed by any.

Users are divided into buckets, so that all keys of a script are in one hash slot and each script is short.

    presence:{b7}:online      a ZSET of the users that are online, scored by when they go offline unless a lease is
                              renewed, in ms of Redis' clock. A user in it is online. An event is published in the
                              step in which a user is added or removed
    presence:{b7}:user:<id>   a ZSET of the leases of a user, scored by when the lease ends. A member is
                              "<id>:<ms>:<device>": a lease ends at most that many ms after its last renewal

A user, as `online` has it:

    (absent) --first lease: published--> online --last lease gone--> grace --swept: published--> (absent)
                                           ^                          |
                                           +--- another lease in it --+
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID, uuid4

from hubbub.background import BackgroundTask, ReportErrors, jittered
from hubbub.errors import Unavailable
from hubbub.events import PRESENCE_CHANNEL
from hubbub.models import Value
from hubbub.redis import NOW, Connection, Part, ReplyError, Script
from hubbub.redis.expiring_sets import (
    BUCKETS,
    IDLE_SWEEP_SECONDS,
    Due,
    bucket_of,
    find_due,
    is_any_left,
    log_refusal,
)
from hubbub.redis.replies import as_ids
from hubbub.scheduling import take

logger = logging.getLogger("hubbub.presence")

KEEP_MS: Final = 7 * 24 * 3600 * 1000
"""How long the keys last when no process is left to sweep them."""

LEASES_PER_SCRIPT: Final = 200
"""About 1 ms of the one thread of Redis, during which it serves no other client."""

USERS_PER_SWEEP: Final = 500
"""Bounds a script that ends presence, as above. The rest is swept in the next round."""

LEASE_RETRY_SECONDS: Final = 0.25
"""The pause before leases are sent again that Redis has not acknowledged. It is a part of any useful heartbeat."""


def online_key(bucket: int) -> str:
    return f"presence:{{b{bucket}}}:online"


def leases_key(user_id: UUID) -> str:
    return _leases_key(bucket_of(user_id), str(user_id))


def _leases_key(bucket: int, user: str) -> str:
    return f"presence:{{b{bucket}}}:user:{user}"


LATEST_END: Final = """
local function latest_end(leases)
    local latest = redis.pcall('ZREVRANGE', leases, 0, 0, 'WITHSCORES')[2]
    if latest and latest - now > tonumber(lease_ms) then
        local ahead = redis.call('ZRANGEBYSCORE', leases, '(' .. (now + lease_ms), '+inf', 'WITHSCORES')
        for i = 1, #ahead, 2 do
            local longest = now + (ahead[i]:match('^%x+:(%d+):') or lease_ms)
            if tonumber(ahead[i + 1]) > longest then redis.call('ZADD', leases, longest, ahead[i]) end
        end
        latest = redis.call('ZREVRANGE', leases, 0, 0, 'WITHSCORES')[2]
    end
    if latest then redis.call('PEXPIREAT', leases, latest) end
    return tonumber(latest)
end
"""
"""When the last of a user's leases ends, nil without one or where another program wrote the key.

A lease that ends later than if it was renewed now is from before the clock of Redis went back, and is shortened.
Each has its own length, because processes with different `Options` run side by side while an application is
updated."""


class Device(Value, frozen=True):
    """A connection of a user. `lease` is its id, `name` the `device` argument of `online`."""

    lease: UUID
    name: str | None

    @classmethod
    def _from_member(cls, member: bytes) -> Device:
        lease, *_, name = member.decode(errors="replace").split(":", 2)
        return cls(UUID(lease), name or None)


class Lease:
    """The claim of one connection that a user is online. It holds until it is released or not renewed."""

    __slots__ = ("bucket", "device", "ends_at", "id", "user_id")

    def __init__(self, user_id: UUID, device: str | None) -> None:
        self.user_id = user_id
        self.bucket = bucket_of(user_id)
        self.id = uuid4()
        self.device = device
        self.ends_at = 0.0
        """In the time of the event loop: Redis has ended the lease by then at the latest."""


class Leases:
    """The leases that this process holds, and the tasks that send their changes and renewals to Redis.

    The task of a bucket runs one script at a time, so that no change overtakes another. A heartbeat that was sent
    before a lease was released cannot arrive after it and restore the lease. A heartbeat renews all leases of a
    bucket. Those of the buckets are spread over the interval. They alternate with changes, so that many users who
    connect at once do not delay the heartbeats. Buckets do not wait for each other: in a cluster they are on
    several servers, and one of them may not answer.

    `on_transition` is called with the users that may have come online.
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
        self._changed: list[dict[Lease, None]] = [{} for _ in range(BUCKETS)]
        self._acknowledgements: dict[Lease, asyncio.Future[None]] = {}
        self._heartbeats_at = [0.0] * BUCKETS
        self.tasks = [
            BackgroundTask(
                "sending leases", partial(self._send_due, bucket), finish=partial(self._release_all, bucket)
            )
            for bucket in range(BUCKETS)
        ]

    def start(self) -> None:
        """Begin to send heartbeats. A second start does nothing."""
        now = asyncio.get_running_loop().time()
        for bucket, task in enumerate(self.tasks):
            if not task.is_running:
                self._heartbeats_at[bucket] = now + self._heartbeat_seconds * bucket / BUCKETS
                task.start()

    async def close(self) -> None:
        """Release all leases. Idempotent."""
        await asyncio.gather(*[task.close() for task in self.tasks])

    async def acquire(self, lease: Lease) -> None:
        """Hold the lease from now on. Returns when Redis has acknowledged it, or cannot be reached.

        Raises: Unavailable (in another process or event loop than that of the tasks).
        """
        self.tasks[lease.bucket].check("presence")
        self._held[lease.bucket][lease] = None
        await self._send_soon(lease)

    async def release(self, lease: Lease) -> None:
        """Stop holding the lease. Returns when Redis has acknowledged it, or cannot be reached."""
        if lease in self._held[lease.bucket]:
            del self._held[lease.bucket][lease]
            await self._send_soon(lease)

    @property
    def is_holding(self) -> bool:
        """Whether this process holds a lease."""
        return any(self._held)

    def renew_soon(self, bucket: int) -> None:
        """Do not wait for the next heartbeat of this bucket. Redis may have lost it."""
        if self._held[bucket]:
            self._heartbeats_at[bucket] = asyncio.get_running_loop().time()
            self.tasks[bucket].wake()

    async def _send_soon(self, lease: Lease) -> None:
        self._changed[lease.bucket][lease] = None
        self.tasks[lease.bucket].wake()
        if not self._connection.connected:
            return  # callers do not wait for the end of an outage; the change is sent then
        acknowledged = self._acknowledgements.get(lease)
        if acknowledged is None or acknowledged.done():
            acknowledged = self._acknowledgements[lease] = asyncio.get_running_loop().create_future()
        await acknowledged

    async def _send_due(self, bucket: int) -> float | None:
        is_changed = await self._send_changes(bucket)
        is_renewed = await self._send_heartbeat(bucket)
        if not (is_changed and is_renewed):
            await asyncio.sleep(LEASE_RETRY_SECONDS)
            if not self._connection.connected:
                # Nor do callers wait whose changes have not had their turn.
                _acknowledge(self._take_acknowledgements(self._changed[bucket]))
            return None
        if self._changed[bucket]:
            return None
        return max(0.0, self._heartbeats_at[bucket] - asyncio.get_running_loop().time())

    async def _send_changes(self, bucket: int) -> bool:
        """Send as many changes as fit into one script."""
        return await self._send(bucket, take(self._changed[bucket], LEASES_PER_SCRIPT))

    async def _send_heartbeat(self, bucket: int) -> bool:
        now = asyncio.get_running_loop().time()
        if self._heartbeats_at[bucket] > now:
            return True
        self._heartbeats_at[bucket] = now + self._heartbeat_seconds
        return await self._send_all(bucket, list(self._held[bucket]))

    async def _release_all(self, bucket: int) -> None:
        """Release all leases of a bucket. Those that Redis does not acknowledge end by themselves."""
        released = [*self._held[bucket], *self._changed[bucket]]
        self._held[bucket].clear()
        self._changed[bucket].clear()
        await self._send_all(bucket, released)
        _acknowledge(self._take_acknowledgements(released))

    def _take_acknowledgements(self, leases: Iterable[Lease]) -> list[asyncio.Future[None] | None]:
        return [self._acknowledgements.pop(lease, None) for lease in leases]

    async def _send_all(self, bucket: int, leases: Sequence[Lease]) -> bool:
        for start in range(0, len(leases), LEASES_PER_SCRIPT):
            if not await self._send(bucket, leases[start : start + LEASES_PER_SCRIPT]):
                return False
        return True

    async def _send(self, bucket: int, leases: Collection[Lease]) -> bool:
        """Send whether these leases of a bucket are held. False if it failed, and they are sent again."""
        if not leases:
            return True
        came: list[UUID] | None = None
        # Only of what is sent here: a lease may be released while a heartbeat with it is in flight.
        waiting = self._take_acknowledgements(leases)
        try:
            with ReportErrors("sending leases"):
                came = await self._update(bucket, leases)
        finally:
            if came is None:
                self._send_again(bucket, leases)  # in `_release_all`, if this was cancelled
            _acknowledge(waiting)
        # Without a reply the script may have run all the same.
        self._on_transition([lease.user_id for lease in leases] if came is None else came)
        return came is not None

    # Renew or release leases. A change is three arguments: user, lease, and 1 if it is held, 0 if it was released.
    # The key of the user's leases is at the same position in `leases`. Returns the users that came online by it.
    _UPDATE = Script(
        keys=("online", "*leases"),
        args=("channel", "lease_ms", "grace_ms", "keep_ms", "*changes"),
        source=NOW
        + LATEST_END
        + """
    local came = {}
    for i = 2, #KEYS do
        local leases = KEYS[i]
        local user, lease, is_held = unpack(ARGV, 3 * i - 1, 3 * i + 1)
        local due
        if is_held == '1' then
            due = now + lease_ms
            redis.call('ZADD', leases, due, lease)
        elseif redis.call('ZREM', leases, lease) == 1 then
            due = now + grace_ms
        end
        if due then
            redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
            due = math.max(due, latest_end(leases) or due)
            if is_held ~= '1' then
                redis.call('ZADD', online, 'XX', due, user)
            elseif redis.call('ZADD', online, due, user) == 1 then
                redis.call('PUBLISH', redis_prefix .. channel, '{"userId":"' .. user .. '","isOnline":true}')
                came[#came + 1] = user
            end
        end
    end
    redis.call('PEXPIRE', online, keep_ms)
    return came
    """,
        reply=as_ids,
    )

    async def _update(self, bucket: int, leases: Collection[Lease]) -> list[UUID] | None:
        """The users that came online by it, None without a reply."""
        lease_ms, grace_ms = round(self._lease_seconds * 1000), round(self._grace_seconds * 1000)
        held = self._held[bucket]
        ends_at = asyncio.get_running_loop().time() + 2 * self._lease_seconds  # twice, as it may arrive late
        changes: list[Part] = []
        for lease in leases:
            is_held = lease in held
            member = f"{lease.id.hex}:{lease_ms}:{lease.device or ''}"
            changes += (str(lease.user_id), member, int(is_held))
            if is_held:
                lease.ends_at = ends_at
        try:
            return await self._UPDATE(
                self._connection,
                keys=(online_key(bucket), *[leases_key(lease.user_id) for lease in leases]),
                args=(PRESENCE_CHANNEL, lease_ms, grace_ms, KEEP_MS, *changes),
            )
        except (Unavailable, ReplyError) as error:
            log_refusal(logger, error)
            return None

    def _send_again(self, bucket: int, leases: Iterable[Lease]) -> None:
        now = asyncio.get_running_loop().time()
        self._heartbeats_at[bucket] = now
        for lease in leases:
            # A lease that has ended needs no release. This bounds the changes that wait during an outage.
            if lease not in self._held[bucket] and lease.ends_at > now:
                self._changed[bucket][lease] = None


def _acknowledge(waiting: Iterable[asyncio.Future[None] | None]) -> None:
    for acknowledged in waiting:
        if acknowledged is not None and not acknowledged.done():
            acknowledged.set_result(None)


class Sweeper:
    """Ends the presence of users whose process died, or who left and did not come back in the grace time.

    All processes sweep all buckets. Redis decides which users go offline, and publishes that once. After an outage
    of Redis, or when its clock has gone ahead, every lease seems to have ended, because no process could renew it.
    So no user is swept for one heartbeat afterwards, in which the living processes renew their leases.

    While no user is online, it looks less often. A user who comes online wakes the sweeper of their own process.
    If that process is killed, the lease lasts two heartbeats, and another process has looked again by then.

    `on_transition` is called with the users that may have gone offline, `on_empty` with each bucket without a user
    that is online. `holds_leases` returns whether this process holds any.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        every_seconds: float,
        heartbeat_seconds: float,
        on_transition: Callable[[Iterable[UUID]], None],
        on_empty: Callable[[int], None],
        holds_leases: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._every_seconds = every_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._lease_ms = round(2 * heartbeat_seconds * 1000)
        self._on_transition = on_transition
        self._on_empty = on_empty
        self._holds_leases = holds_leases
        # Of each bucket, because those of a cluster are on several servers.
        self._sweeps_again_at = [0.0] * BUCKETS
        self._clock_offsets: list[float | None] = [None] * BUCKETS
        self._is_idle = False
        self.task = BackgroundTask("sweeping presence", self._sweep_all)

    def end_idling(self) -> None:
        """A user may be online from now on."""
        if self._is_idle:
            self._is_idle = False
            self.task.wake()

    async def _sweep_all(self) -> float:
        self._is_idle = False
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        keys = [online_key(bucket) for bucket in range(BUCKETS)]
        found = await find_due(self._connection, keys, at_most=USERS_PER_SWEEP, longest_ms=self._lease_ms)
        now = clock()
        is_late = now - asked_at > self._heartbeat_seconds / 2
        for bucket, due in enumerate(found):
            if isinstance(due, ReplyError):
                log_refusal(logger, due)
                continue
            if isinstance(due, Unavailable) or self._has_gone_ahead(bucket, due.at_ms / 1000 - now) or is_late:
                self._sweeps_again_at[bucket] = now + self._heartbeat_seconds
            if isinstance(due, Due):
                with ReportErrors("sweeping presence"):
                    await self._sweep(bucket, due)
        self._is_idle = not is_any_left(found) and not self._holds_leases()
        if self._is_idle:
            return max(self._every_seconds, min(2 * self._heartbeat_seconds, IDLE_SWEEP_SECONDS))
        return jittered(self._every_seconds)

    def _has_gone_ahead(self, bucket: int, offset: float) -> bool:
        """Whether the clock of Redis has gone ahead of that of this process since the last sweep."""
        before, self._clock_offsets[bucket] = self._clock_offsets[bucket], offset
        return before is not None and offset - before > self._heartbeat_seconds / 2

    async def _sweep(self, bucket: int, found: Due) -> None:
        if not found.size:
            self._on_empty(bucket)
        clock = asyncio.get_running_loop().time
        if found.members and clock() >= self._sweeps_again_at[bucket]:
            try:
                await self._end(bucket, found.members)
            except Unavailable:
                self._sweeps_again_at[bucket] = clock() + self._heartbeat_seconds
            except ReplyError as error:
                log_refusal(logger, error)

    # Returns the users that were still due: each is returned to one caller only. Their leases have ended, too. The
    # key of a user's leases is at the same position in `leases`. A user who seems to be online for longer than a
    # lease lasts is online until the last of their leases ends.
    _END_DUE = Script(
        keys=("online", "*leases"),
        args=("channel", "lease_ms", "*users"),
        source=NOW
        + LATEST_END
        + """
    local went = {}
    for i = 2, #KEYS do
        local user = ARGV[i + 1]
        local due = tonumber(redis.call('ZSCORE', online, user) or 'inf')
        if due <= now then
            redis.call('ZREM', online, user)
            redis.call('DEL', KEYS[i])
            redis.call('PUBLISH', redis_prefix .. channel, '{"userId":"' .. user .. '","isOnline":false}')
            went[#went + 1] = user
        elseif due - now > tonumber(lease_ms) then
            redis.call('ZADD', online, 'XX', latest_end(KEYS[i]) or now + lease_ms, user)
        end
    end
    return went
    """,
        reply=as_ids,
    )

    async def _end(self, bucket: int, due: list[bytes]) -> None:
        went = as_ids([*due])  # without a reply the script may have run all the same
        keys = (online_key(bucket), *[_leases_key(bucket, user.decode(errors="replace")) for user in due])
        try:
            went = await self._END_DUE(self._connection, keys=keys, args=(PRESENCE_CHANNEL, self._lease_ms, *due))
        finally:
            self._on_transition(went)
