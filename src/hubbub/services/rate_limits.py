"""Rate limits that all processes share."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.models import RateLimitResult
from hubbub.redis import Connection, Script
from hubbub.redis.replies import as_int, as_list

MAX_CAPACITY: Final = 1_000_000_000
"""Far below 2 to the power of 53, up to which the numbers of Lua are exact."""

MAX_FILL_SECONDS: Final = 366 * 86_400
"""Bounds how long a key stays in Redis."""

FAIL_OPEN_SECONDS: Final = 0.5
"""How long a caller with `fail_open` waits for Redis: a user hardly notices it in front of a request."""

_NAME = re.compile("[a-z0-9_.-]{1,50}")


# The bucket is stored as the time at which it will be full. The tokens missing now are the time until then, times
# the rate. A full bucket needs no key. A bucket that is more than empty, as after its capacity was lowered or the
# clock was set back, is stored as empty, also by a refusal: a later call would find it more than empty again.
_TAKE = Script(
    keys=("bucket",),
    args=("capacity", "per_second", "cost"),
    source="""
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local per_ms = per_second / 1000
local latest = now + capacity / per_ms
local full_at = tonumber(redis.call('GET', bucket) or 0) or 0
if not (full_at <= latest) then
    full_at = latest
    redis.call('SET', bucket, string.format('%.3f', full_at), 'PX', math.ceil(full_at - now) + 1)
end
local tokens = capacity - math.max(full_at - now, 0) * per_ms
local left = tokens - cost
if left < -1e-6 then return {0, math.floor(tokens), math.ceil(-left / per_ms)} end
full_at = now + (capacity - left) / per_ms
redis.call('SET', bucket, string.format('%.3f', full_at), 'PX', math.ceil(full_at - now) + 1)
return {1, math.floor(left + 1e-6), 0}
""",
    reply=as_list,
)


class RateLimits:
    """Token buckets in Redis.

    A bucket holds up to `capacity` tokens, which bounds a burst, and gets `refill_per_second` more, which bounds
    the rate in the long run. Its key `limit:<name>:<SHA-256>` does not contain an address in clear text, and
    expires when the bucket is full.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def take(
        self,
        name: str,
        key: str,
        *,
        capacity: int,
        refill_per_second: float,
        cost: int = 1,
        fail_open: bool = False,
    ) -> RateLimitResult:
        """Take `cost` tokens from the bucket of `key` under `name`, or none if it has too few.

        `name` is the action (1 to 50 of a-z, 0-9, dot, dash, underscore). `key` is the subject of the limit,
        such as a user or an address, and may be any text. With `fail_open`, the action is allowed while Redis is
        unavailable, after half a second and marked as `degraded`. Raises: Invalid (a rate that is not possible),
        Unavailable (without `fail_open`).
        """
        _check(name, key, capacity, refill_per_second, cost)
        inputs.flag("fail_open", fail_open)
        bucket = f"limit:{name}:{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"
        try:
            reply = await _TAKE(
                self._connection,
                keys=(bucket,),
                args=(capacity, refill_per_second, cost),
                deadline_seconds=FAIL_OPEN_SECONDS if fail_open else None,
            )
        except Unavailable as error:
            if not fail_open or error.service == "hub":  # then the caller is in another process or event loop
                raise
            return RateLimitResult(allowed=True, remaining=0, retry_after_seconds=0, degraded=True)
        allowed, remaining, retry_after_ms = map(as_int, reply)
        return RateLimitResult(allowed == 1, remaining, retry_after_ms / 1000)


def _check(name: str, key: str, capacity: int, refill_per_second: float, cost: int) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Invalid("name", "must have 1 to 50 characters: a-z, 0-9, dot, dash or underscore")
    if not isinstance(key, str):
        raise Invalid("key", "must be text")
    inputs.limit(capacity, longest=MAX_CAPACITY, field="capacity")
    if capacity / inputs.positive("refill_per_second", refill_per_second) > MAX_FILL_SECONDS:
        raise Invalid("refill_per_second", "must fill the bucket within a year")
    inputs.limit(cost, longest=capacity, field="cost")
