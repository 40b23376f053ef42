"""What Redis does for presence, each script in one step.

Users are divided into buckets, so that all keys of a script are in one hash slot and each script is short.
A bucket has

    presence:{b7}:online        a ZSET of the users that are online: the score is when they go offline unless they
                                are heard of again, in ms of Redis' clock. Being in it is being online: an event is
                                published when a user enters it and when a user leaves it, in that same step.
    presence:{b7}:user:<id>     a ZSET of the leases of a user: the score is when the lease ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final, TypeVar
from uuid import UUID

from hubbub.redis import Reply, ReplyError, Script
from hubbub.redis.replies import as_bytes, as_bytes_list, as_ids, as_int, as_list

logger = logging.getLogger("hubbub.presence")

T = TypeVar("T")

BUCKETS: Final = 16
"""A constant and no setting: all processes have to look in the same place."""

KEEP_MS: Final = 7 * 24 * 3600 * 1000
"""How long the state waits, untouched, for a process that comes and sweeps it."""


def bucket_of(user_id: UUID) -> int:
    """The bucket of a user."""
    return user_id.int % BUCKETS


def by_bucket(items: Collection[T], user_of: Callable[[T], UUID], *, at_most: int) -> list[tuple[int, list[T]]]:
    """The items by the bucket of their user, at most so many a part."""
    buckets: dict[int, list[T]] = {}
    for item in items:
        buckets.setdefault(bucket_of(user_of(item)), []).append(item)
    return [
        (bucket, part[start : start + at_most])
        for bucket, part in buckets.items()
        for start in range(0, len(part), at_most)
    ]


def online_key(bucket: int) -> str:
    """The key of those who are online."""
    return f"presence:{{b{bucket}}}:online"


def leases_key(user_id: UUID) -> str:
    """The key of a user's leases."""
    return f"presence:{{b{bucket_of(user_id)}}}:user:{user_id}"


def log_refusal(error: ReplyError) -> None:
    """A key is not what it should be: somebody else wrote to it, or a script is wrong."""
    logger.error("Redis refuses a script of presence: %s", error)


# Redis' clock and no other: the processes' clocks differ.
_NOW: Final = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

SETTLE = Script(
    keys=("online", "*leases"),
    args=("channel", "lease_ms", "grace_ms", "keep_ms", "*changes"),
    source=_NOW
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
            local latest = redis.call('ZREVRANGE', leases, 0, 0, 'WITHSCORES')[2]
            if latest then
                redis.call('PEXPIREAT', leases, latest)
                due = math.max(due, latest)
            end
            if is_held ~= '1' then
                redis.call('ZADD', online, 'XX', due, user)
            elseif redis.call('ZADD', online, due, user) == 1 then
                redis.call('PUBLISH', channel, '{"userId":"' .. user .. '","isOnline":true}')
                came[#came + 1] = user
            end
        end
    end
    redis.call('PEXPIRE', online, keep_ms)
    return came
    """,
    reply=as_ids,
)
"""Renew or end leases. A change is three words: user, lease, 1 if it is held and 0 if it was given up; its key
stands at the same place among the `leases`. Gives the users that have come online by it."""


def _count_and_members(reply: Reply) -> tuple[int, list[bytes]]:
    count, members = as_list(reply)
    return as_int(count), as_bytes_list(members)


FIND_DUE = Script(
    keys=("online",),
    args=("at_most",),
    source=_NOW
    + """
    local due = redis.call('ZRANGEBYSCORE', online, '-inf', now, 'LIMIT', 0, at_most)
    return {redis.call('ZCARD', online), due}
    """,
    reply=_count_and_members,
    writes=False,
)
"""How many are online, and who of them is due to go offline: as they stand there, so that no stray stays."""

END_DUE = Script(
    keys=("online",),
    args=("channel", "*users"),
    source=_NOW
    + """
    local went = {}
    for i = 2, #ARGV do
        local user = ARGV[i]
        local due = tonumber(redis.call('ZSCORE', online, user) or 'inf')
        if due <= now then
            redis.call('ZREM', online, user)
            redis.call('PUBLISH', channel, '{"userId":"' .. user .. '","isOnline":false}')
            went[#went + 1] = user
        end
    end
    return went
    """,
    reply=as_ids,
)
"""Let those users go offline that are still due. Gives the ones that did: each is given to one caller only."""


def _flags(reply: Reply) -> list[bool]:
    return [as_int(flag) == 1 for flag in as_list(reply)]


ARE_ONLINE = Script(
    keys=("online",),
    args=("*users",),
    source="""
    local flags = {}
    for i, user in ipairs(ARGV) do
        flags[i] = redis.call('ZSCORE', online, user) and 1 or 0
    end
    return flags
    """,
    reply=_flags,
    writes=False,
)
"""For each of the users, whether they are online."""


LEASES_OF = Script(
    keys=("leases",),
    source=_NOW + "return redis.call('ZRANGEBYSCORE', leases, '(' .. now, '+inf')",
    reply=lambda reply: [as_bytes(lease) for lease in as_list(reply)],
    writes=False,
)
"""The leases of a user that have not ended."""
