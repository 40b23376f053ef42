"""Sorted sets of users or rooms by the time at which they expire, in buckets: those of presence and of typing.

Each service sweeps its sets in a loop of its own, because only that of presence follows the clock of Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from hubbub.errors import Unavailable
from hubbub.redis.commands import NOW, Connection, Script
from hubbub.redis.replies import Part, Reply, ReplyError, as_bytes_list, as_int, as_list

T = TypeVar("T")

IDLE_SWEEP_SECONDS: Final = 3.0
"""The pause between sweeps while a set is empty. With both services and the PING of the subscriptions, an idle
process sends less than a command per second."""

BUCKETS: Final = 16
"""A constant, not a setting, because all processes have to use the same keys."""


def bucket_of(id: UUID) -> int:
    """The bucket of a user or room. All keys of a script are in one bucket, which is one hash slot."""
    return id.int % BUCKETS


def by_bucket(items: Iterable[T], id_of: Callable[[T], UUID]) -> dict[int, list[T]]:
    buckets: dict[int, list[T]] = {}
    for item in items:
        buckets.setdefault(bucket_of(id_of(item)), []).append(item)
    return buckets


class Due(NamedTuple):
    """A sorted set of members by the time at which they are due, by the clock of its server."""

    at_ms: int
    size: int
    members: list[bytes]
    """The members that are due, as bytes, because a member that is not an id has to be removed, too."""


def _found(reply: Reply) -> list[Due | ReplyError]:
    at_ms, *sets = as_list(reply)
    return [found if isinstance(found, ReplyError) else _due(as_int(at_ms), *as_list(found)) for found in sets]


def _due(at_ms: int, size: Reply, members: Reply) -> Due:
    return Due(at_ms, as_int(size), as_bytes_list(members))


_FIND_DUE: Final = Script(
    keys=("*sets",),
    args=("at_most", "longest_ms"),
    source=NOW
    + """
local found = {now}
for _, set in ipairs(KEYS) do
    local size = redis.pcall('ZCARD', set)
    if type(size) == 'number' then
        local due = {}
        if size > 0 then
            due = redis.call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', 0, at_most)
            if tonumber(redis.call('ZREVRANGE', set, 0, 0, 'WITHSCORES')[2]) > now + longest_ms then
                local latest = redis.call('ZREVRANGE', set, 0, at_most - 1, 'WITHSCORES')
                for i = 1, #latest, 2 do
                    if tonumber(latest[i + 1]) > now + longest_ms then due[#due + 1] = latest[i] end
                end
            end
        end
        size = {size, due}
    end
    found[#found + 1] = size
end
return found
""",
    reply=_found,
    writes=False,
)


async def find_due(
    connection: Connection, keys: Sequence[Part], *, at_most: int, longest_ms: int
) -> list[Due | ReplyError | Unavailable]:
    """The members of these sorted sets that are due, up to `at_most` of each, or the error of a set.

    No score is set further ahead than `longest_ms`. A higher score was set before the clock of Redis went back,
    and is due as well. There is one script for all sets, so that an idle process sends one command instead of one
    per set. In a cluster each key may be at another node.
    """
    args = (at_most, longest_ms)
    if not connection.is_cluster:
        return [*await _find_due(connection, tuple(keys), args)]
    found = await asyncio.gather(*[_find_due(connection, (key,), args) for key in keys])
    return [due for [due] in found]


async def _find_due(
    connection: Connection, keys: tuple[Part, ...], args: tuple[int, int]
) -> Sequence[Due | ReplyError | Unavailable]:
    try:
        return await _FIND_DUE(connection, keys=keys, args=args)
    except (Unavailable, ReplyError) as error:  # a ReplyError of one key is about that key alone
        return [error] * len(keys)


def is_any_left(found: Iterable[Due | ReplyError | Unavailable]) -> bool:
    """Whether a set has members, or may have: one that cannot be read counts."""
    return any(isinstance(due, Exception) or due.size for due in found)


def log_refusal(logger: logging.Logger, error: Unavailable | ReplyError) -> None:
    """Log a refusal: another program wrote a key, or a script has an error. The connection logs outages."""
    if isinstance(error, ReplyError):
        logger.error("Redis refused a script: %s", error)
