"""The steps that touch more than one key. Each runs as a whole or not at all, by the clock of Redis.

Sessions are found through the list of their user and users through their session, so a script makes names of keys
out of what it reads. All are in the slot of the keys that it was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubbub.redis import Script
from hubbub.redis.replies import as_bool, as_bytes_list, as_int

if TYPE_CHECKING:
    from hubbub.redis import Reply


def _integer_or_none(reply: Reply) -> int | None:
    return None if reply is None else as_int(reply)


# `now` is in milliseconds. Lua counts from 1, GETRANGE and SETRANGE from 0.
_SHARED = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function head(session)
    local text = redis.call('GETRANGE', session, 0, 133)
    if text == '' then return nil end
    return {
        text = text,
        seen = math.floor(string.sub(text, 11, 24) * 1000 + 0.5),
        expires = math.floor(string.sub(text, 38, 51) * 1000 + 0.5),
        user = string.sub(text, 90, 125),
    }
end

local function enlist(index, id, ends, expires)
    redis.call('ZADD', index, ends, id)
    if redis.call('PTTL', index) < expires - now then redis.call('PEXPIREAT', index, expires) end
end
"""

CREATE = Script(
    keys=("session", "index"),
    args=("id", "prefix", "user", "data", "life", "idle", "most"),
    source=_SHARED
    + """
local expires = now + life
local ends = math.min(expires, now + idle)
local seen_and_expires = string.format('"seenAt":%.3f,"expiresAt":%.3f', now / 1000, expires / 1000)
local created = string.format(',"createdAt":%.3f', now / 1000)
local value = '{' .. seen_and_expires .. created .. ',"userId":"' .. user .. '","data":' .. data .. '}'
-- First: a server that is full refuses it, and what a script has begun it lets end.
redis.call('SET', session, value, 'PX', ends - now)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local surplus = redis.call('ZCARD', index) - most
if surplus >= 0 then
    for _, first_to_end in ipairs(redis.call('ZRANGE', index, 0, surplus)) do
        redis.call('DEL', prefix .. first_to_end)
    end
    redis.call('ZREMRANGEBYRANK', index, 0, surplus)
end
enlist(index, id, ends, expires)
return now
""",
    reply=as_int,
)
"""Gives the time on Redis' clock. The user's sessions that end first make room for one above the `most`."""

TOUCH = Script(
    keys=("session", "index"),
    args=("id", "idle", "interval"),
    source=_SHARED
    + """
local found = head(session)
if not found then return false end
if now - found.seen >= tonumber(interval) or now < found.seen then
    local ends = math.min(found.expires, now + idle)
    redis.call('SETRANGE', session, 10, string.format('%.3f', now / 1000))
    redis.call('PEXPIREAT', session, ends)
    enlist(index, id, ends, found.expires)
end
return now
""",
    reply=_integer_or_none,
)
"""Gives the time on Redis' clock, None without such a session: one that was revoked stays so."""

UPDATE = Script(
    keys=("session",),
    args=("data",),
    source=_SHARED
    + """
local found = head(session)
if not found then return false end
redis.call('SET', session, found.text .. data .. '}', 'KEEPTTL')
return true
""",
    reply=as_bool,
)

ROTATE = Script(
    keys=("old", "new"),
    args=("old_id", "new_id", "prefix"),
    source=_SHARED
    + """
local found = head(old)
if not found then return false end
local index = prefix .. 'user:' .. found.user
redis.call('RENAME', old, new)
redis.call('ZREM', index, old_id)
enlist(index, new_id, now + redis.call('PTTL', new), found.expires)
return true
""",
    reply=as_bool,
)

END = Script(
    keys=("session",),
    args=("id", "prefix", "owner"),
    source=_SHARED
    + """
local found = head(session)
if not found or (owner ~= '' and owner ~= found.user) then return false end
redis.call('DEL', session)
redis.call('ZREM', prefix .. 'user:' .. found.user, id)
return true
""",
    reply=as_bool,
)
"""With an owner, only a session of theirs."""

END_ALL = Script(
    keys=("index",),
    args=("prefix", "kept_id"),
    source="""
local ended = 0
for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    if id ~= kept_id then
        ended = ended + redis.call('DEL', prefix .. id)
        redis.call('ZREM', index, id)
    end
end
return ended
""",
    reply=as_int,
)

LIST = Script(
    keys=("index",),
    args=("prefix", "limit"),
    source=_SHARED
    + """
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local found = {}
-- A value may have been evicted. Its id goes, and those behind move up to where the next round begins.
repeat
    local ids = redis.call('ZREVRANGE', index, #found / 2, limit - 1)
    for _, id in ipairs(ids) do
        local value = redis.call('GET', prefix .. id)
        if value then
            found[#found + 1] = id
            found[#found + 1] = value
        else
            redis.call('ZREM', index, id)
        end
    end
until #ids == 0
return found
""",
    reply=as_bytes_list,
    writes=False,
)
"""Gives ids and values by turns, those that end last first."""
