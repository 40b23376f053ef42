"""What Redis does for typing indicators, each script in one step.

Rooms are divided into buckets, so that a room and the list of what is due are in one hash slot.

    typing:{b7}:room:<id>   a ZSET of those who type in the room: the score is when it fades, in ms of Redis' clock
    typing:{b7}:due         a ZSET of rooms with somebody who types: the score is when the first of them fades
    typing:user:<id>        a SET of rooms where the user may be typing. A hint for `stop_everywhere`, which stops
                            only what goes on; it is not changed in one step with the rest
"""

from __future__ import annotations

import logging
from typing import Final
from uuid import UUID

from hubbub.redis import ReplyError, Script
from hubbub.redis.replies import as_bool, as_bytes_list, as_ids, as_int

logger = logging.getLogger("hubbub.typing")

BUCKETS: Final = 16
"""A constant and no setting: all processes have to look in the same place."""

KEEP_MS: Final = 3600 * 1000
"""How long what has faded waits for a process that says so."""


def bucket_of(room_id: UUID) -> int:
    """The bucket of a room."""
    return room_id.int % BUCKETS


def due_key(bucket: int) -> str:
    """The key of the rooms where something is due to fade."""
    return f"typing:{{b{bucket}}}:due"


def room_key(room_id: UUID) -> str:
    """The key of those who type in a room."""
    return room_key_in(bucket_of(room_id), str(room_id))


def room_key_in(bucket: int, room: str) -> str:
    """The key of those who type in a room of the bucket."""
    return f"typing:{{b{bucket}}}:room:{room}"


def hint_key(user_id: UUID) -> str:
    """The key of the rooms where a user may be typing."""
    return f"typing:user:{user_id}"


def log_refusal(error: ReplyError) -> None:
    """A key is not what it should be: somebody else wrote to it, or a script is wrong."""
    logger.error("Redis refuses a script of typing: %s", error)


_NOW: Final = """
    local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# Everybody in the room's ZSET was published as typing and not yet as having stopped.
_PUBLISH_AND_PLAN: Final = """
    local function publish(room_id, user, is_typing)
        redis.call('PUBLISH', 'typing:' .. room_id, '{"userId":"' .. user .. '","isTyping":' .. is_typing .. '}')
    end
    local function plan(room, room_id)
        local first = redis.call('ZRANGE', room, 0, 0, 'WITHSCORES')[2]
        if first then
            redis.call('ZADD', due, first, room_id)
        else
            redis.call('ZREM', due, room_id)
        end
    end
"""

START = Script(
    keys=("due", "room"),
    args=("room_id", "user", "ttl_ms", "keep_ms"),
    source=_NOW
    + _PUBLISH_AND_PLAN
    + """
    local is_new = redis.call('ZADD', room, now + ttl_ms, user) == 1
    if is_new then
        publish(room_id, user, 'true')
    end
    plan(room, room_id)
    redis.call('PEXPIRE', room, keep_ms)
    redis.call('PEXPIRE', due, keep_ms)
    return is_new
    """,
    reply=as_bool,
)
"""Start or go on. True when the user was not typing before."""

STOP = Script(
    keys=("due", "*rooms"),
    args=("*rooms_and_users",),
    source=_PUBLISH_AND_PLAN
    + """
    local stopped = 0
    for i = 2, #KEYS do
        local room = KEYS[i]
        local room_id, user = ARGV[2 * i - 3], ARGV[2 * i - 2]
        if redis.call('ZREM', room, user) == 1 then
            publish(room_id, user, 'false')
            plan(room, room_id)
            stopped = stopped + 1
        end
    end
    return stopped
    """,
    reply=as_int,
)
"""Stop in some rooms, each given by its key and by two words: its id and the user. Gives how many did type."""

FIND_DUE = Script(
    keys=("due",),
    args=("at_most",),
    source=_NOW + "return redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, at_most)",
    reply=as_bytes_list,
    writes=False,
)
"""The rooms where somebody is due to fade: as they stand there, so that what is no id goes too."""

FADE = Script(
    keys=("due", "*rooms"),
    args=("*room_ids",),
    source=_NOW
    + _PUBLISH_AND_PLAN
    + """
    for i = 2, #KEYS do
        local room, room_id = KEYS[i], ARGV[i - 1]
        for _, user in ipairs(redis.call('ZRANGEBYSCORE', room, '-inf', now)) do
            redis.call('ZREM', room, user)
            publish(room_id, user, 'false')
        end
        plan(room, room_id)
    end
    return #KEYS - 1
    """,
    reply=as_int,
)
"""Let everybody in these rooms stop whose time is over."""

WHO_TYPES = Script(
    keys=("room",),
    source=_NOW + "return redis.call('ZRANGEBYSCORE', room, '(' .. now, '+inf')",
    reply=as_ids,
    writes=False,
)
"""The users that type in a room and have not faded."""
