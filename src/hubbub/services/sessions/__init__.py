"""Sessions: logins, in Redis here and in PostgreSQL in `durable.py`.

They are looked up by a token with every request, and end at once when they are revoked. In Redis:

    session:{<tag>}:<id>             the session. The id is the SHA-256 of its token
    session:{<tag>}:user:<user id>   a ZSET of the ids of the user's sessions, scored by when they end, in ms

The tag comes from the user id, and only the tag decides the slot of a cluster, because of the braces. So all keys
of a user are in one slot, and a script may build the names of keys from what it reads.

A session is JSON that other programs can read, with positions that scripts can rely on:

    {"seenAt":1795413600.000,"expiresAt":1795500000.000,"createdAt":1795413600.000,"userId":"...","data":{...}}

Everything before the data has a fixed length, so a script reads and writes it without parsing JSON. (The cjson of
Redis would turn an empty list in the data into an object, and round large numbers.) Times are seconds since 1970.
The user id is outside the data, so nothing in the data can name another user.

A script that ends sessions announces the user on the channel `memberships`, for the feeds that end with a session.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import ClassVar, Final
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.models import Session
from hubbub.redis import NOW, Connection, Reply, Script
from hubbub.redis.replies import as_bool, as_bytes_list, as_int, as_optional_bytes
from hubbub.renamed import Renamed

logger = logging.getLogger("hubbub.sessions")

LIFE_SECONDS: Final = 86_400
"""SESSION_TTL of the original application: 24 hours."""

MAX_LIFE_SECONDS: Final = 366 * 86_400
"""A year. Redis takes no time without an end."""

MAX_PER_USER: Final = 1_000
"""Bounds what `revoke_all` deletes in one script, during which Redis serves no other client."""

SEEN_INTERVAL_SECONDS: Final = 60
"""How often `seen_at` is written at most, so that nearly every lookup only reads."""

MAX_DATA_BYTES: Final = 4_096
"""Session data travel with every lookup."""

NO_KEY: Final = -2
"""The reply of PTTL for a key that does not exist."""

_TOKEN = re.compile("[A-Za-z0-9_-]{47}")
_ID = re.compile("[0-9a-f]{64}")


class SessionKey(msgspec.Struct, frozen=True, gc=False):
    """The key of one session, whose name has the `prefix` of all keys of the user."""

    tag: str
    id: str

    @property
    def prefix(self) -> str:
        return f"session:{{{self.tag}}}:"

    @property
    def name(self) -> str:
        return f"session:{{{self.tag}}}:{self.id}"


def new_token(tag: str) -> str:
    """47 characters that are safe in a URL: the tag, by which the key is found, and 256 random bits."""
    return tag + secrets.token_urlsafe(32)


def tag_of(user_id: UUID) -> str:
    """Four characters: many times more values than a cluster has slots."""
    return urlsafe_b64encode(sha256(user_id.bytes).digest()[:3]).decode()


def key_of(token: object) -> SessionKey:
    """The key under which a session with this token is stored. Redis sees only the SHA-256 of the token."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        token = "0" * 47  # looked up like any other, in equal time, and not found
    return SessionKey(token[:4], sha256(token.encode()).hexdigest())


def index_of(user_id: UUID) -> str:
    return f"session:{{{tag_of(user_id)}}}:user:{user_id}"


class StoredSession(msgspec.Struct, frozen=True, rename="camel", gc=False):
    seen_at: datetime
    expires_at: datetime
    created_at: datetime
    user_id: UUID
    data: dict[str, object]


_decode_stored = msgspec.json.Decoder(StoredSession, strict=False).decode  # not strict: a number may become a time


def decode(value: bytes, session_id: str) -> Session | None:
    try:
        stored = _decode_stored(value)
    except (ValueError, RecursionError):  # ValueError: also of bytes that are not UTF-8
        logger.warning("the value of session %s in Redis is not a session", session_id)
        return None
    return Session(session_id, stored.user_id, stored.data, stored.created_at, stored.seen_at, stored.expires_at)


# Times are in milliseconds. Lua counts from 1, GETRANGE and SETRANGE from 0.
_SHARED: Final = (
    NOW
    + """
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

local function announce_end(user)
    redis.call('PUBLISH', redis_prefix .. 'memberships', '{"from":"sessions","users":["' .. user .. '"]}')
end

local function add_to_index(index, id, ends, expires)
    redis.call('ZADD', index, ends, id)
    if redis.call('PTTL', index) < expires - now then redis.call('PEXPIREAT', index, expires) end
end
"""
)


class SessionService(Renamed):
    """Sessions. Only the client knows its token: Redis, logs and errors contain its SHA-256.

    Each lookup asks Redis, so that no process accepts a session after the call that ended it has returned.

    A session ends `life_seconds` after it was created, whatever happens, and `idle_timeout_seconds` after it was
    last seen. That is written at most once a minute, or once in a tenth of the timeout if that is less, so a
    session may end that much sooner. All times are by the clock of Redis.

    A user has at most `max_per_user` sessions. One more ends the session that would end first.
    """

    _FORMER_NAMES: ClassVar = {"list_sessions": "list"}

    def __init__(
        self,
        connection: Connection,
        *,
        life_seconds: float = LIFE_SECONDS,
        idle_timeout_seconds: float | None = None,
        max_per_user: int = MAX_PER_USER,
    ) -> None:
        """Without an `idle_timeout_seconds` sessions end only by their age."""
        idle = life_seconds if idle_timeout_seconds is None else idle_timeout_seconds
        if not 0.01 <= life_seconds <= MAX_LIFE_SECONDS:
            raise Invalid("life_seconds", f"must be from 0.01 to {MAX_LIFE_SECONDS}")
        if not 0.01 <= idle <= life_seconds:
            raise Invalid("idle_timeout_seconds", "must be from 0.01 up to life_seconds")
        if not 1 <= max_per_user <= 100_000:
            raise Invalid("max_per_user", "must be from 1 to 100000")
        self._connection = connection
        self._life_ms = round(life_seconds * 1000)
        self._idle_ms = round(idle * 1000)
        self._max_per_user = max_per_user
        self._seen_interval_seconds = min(SEEN_INTERVAL_SECONDS, idle / 10)
        self._clock_offset: float | None = None

    async def create_session(self, user_id: UUID, session_data: Mapping[str, object] | None = None) -> str:
        """Create a session and return its token: 47 characters that are safe in URLs and cookies.

        Each lookup returns `session_data`: JSON of at most 4 KiB and 32 levels. Lists of sessions show the text
        in it under "device".

        Raises: NotFound (with durable sessions: no such user).
        """
        user_id = inputs.uuid("user_id", user_id)
        data = _encoded("session_data", {} if session_data is None else session_data)
        token = new_token(tag_of(user_id))
        await self._create(user_id, key_of(token), data)
        return token

    # Returns the time. A user with the maximum of sessions loses those that end first.
    _CREATE = Script(
        keys=("session", "index"),
        args=("id", "prefix", "user", "data", "life", "idle", "maximum"),
        source=_SHARED
        + """
local expires = now + life
local ends = math.min(expires, now + idle)
local seen_and_expires = string.format('"seenAt":%.3f,"expiresAt":%.3f', now / 1000, expires / 1000)
local created = string.format(',"createdAt":%.3f', now / 1000)
local value = '{' .. seen_and_expires .. created .. ',"userId":"' .. user .. '","data":' .. data .. '}'
-- This is first because a server without memory refuses it, but lets a script finish that has begun to write.
redis.call('SET', session, value, 'PX', ends - now)
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local surplus = redis.call('ZCARD', index) - maximum
if surplus >= 0 then
    for _, first_to_end in ipairs(redis.call('ZRANGE', index, 0, surplus)) do
        redis.call('DEL', redis_prefix .. prefix .. first_to_end)
    end
    redis.call('ZREMRANGEBYRANK', index, 0, surplus)
    announce_end(user)
end
add_to_index(index, id, ends, expires)
return now
""",
        reply=as_int,
    )

    async def _create(self, user_id: UUID, key: SessionKey, data: bytes) -> None:
        now = await self._CREATE(
            self._connection,
            keys=(key.name, index_of(user_id)),
            args=(key.id, key.prefix, str(user_id), data, self._life_ms, self._idle_ms, self._max_per_user),
        )
        self._clock_offset = now / 1000 - time.monotonic()

    async def get_session(self, token: str) -> Session | None:
        """The session of the token. None, in equal time, if it ended, never existed or the token is malformed."""
        key = key_of(token)
        value = as_optional_bytes(await self._connection.execute("GET", key.name, writes=False))
        session = None if value is None else decode(value, key.id)
        if session is None or not self._seen_long_ago(session):
            return session
        return session if await self._write_seen(key, session) else None

    async def list(self, user_id: UUID, *, limit: int = inputs.PAGE_LIMIT) -> list[Session]:
        """The `limit` sessions of the user that end last, in the order of `seen_at`, the newest first."""
        found = await self._last_to_end(inputs.uuid("user_id", user_id), inputs.limit(limit))
        return sorted(found, key=lambda session: session.seen_at, reverse=True)

    # Returns ids and values by turns, those that end last first.
    _LIST = Script(
        keys=("index",),
        args=("prefix", "limit"),
        source=_SHARED
        + """
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
local found = {}
-- A value may have been evicted. Its id is removed, and those behind it move up to where the next round begins.
repeat
    local ids = redis.call('ZREVRANGE', index, #found / 2, limit - 1)
    for _, id in ipairs(ids) do
        local value = redis.call('GET', redis_prefix .. prefix .. id)
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

    async def _last_to_end(self, user_id: UUID, limit: int) -> Sequence[Session]:
        prefix = SessionKey(tag_of(user_id), "").prefix
        found = await self._LIST(self._connection, keys=(index_of(user_id),), args=(prefix, limit))
        pairs = zip(found[::2], found[1::2], strict=True)
        sessions = [decode(value, session_id.decode()) for session_id, value in pairs]
        return [session for session in sessions if session is not None]

    async def update_data(self, token: str, data: Mapping[str, object]) -> bool:
        """Replace the session's data, which are limited as in `create_session`. False if there is no such session.

        Neither its user nor its end changes.
        """
        return await self._set_data(key_of(token), _encoded("data", data))

    _UPDATE = Script(
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

    async def _set_data(self, key: SessionKey, data: bytes) -> bool:
        return await self._UPDATE(self._connection, keys=(key.name,), args=(data,))

    async def rotate(self, token: str) -> str | None:
        """Give the session another token, for instance after a login. None if there is no such session.

        The old token stops working in the step in which the new one starts. The data and the end stay, the id
        changes. After an `Unavailable` with `outcome_unknown` neither token may work: let the user log in again.
        """
        old = key_of(token)
        new_one = new_token(old.tag)
        return new_one if await self._rename(old, key_of(new_one)) else None

    _ROTATE = Script(
        keys=("old", "new"),
        args=("old_id", "new_id", "prefix"),
        source=_SHARED
        + """
local found = head(old)
if not found then return false end
local index = redis_prefix .. prefix .. 'user:' .. found.user
redis.call('RENAME', old, new)
redis.call('ZREM', index, old_id)
announce_end(found.user)
add_to_index(index, new_id, now + redis.call('PTTL', new), found.expires)
return true
""",
        reply=as_bool,
    )

    async def _rename(self, old: SessionKey, new: SessionKey) -> bool:
        keys, args = (old.name, new.name), (old.id, new.id, old.prefix)
        return await self._ROTATE(self._connection, keys=keys, args=args)

    async def delete_session(self, token: str) -> None:
        """End the session: log out. Does nothing for a token without one."""
        await self._end(key_of(token))

    async def revoke(self, user_id: UUID, session_id: str) -> bool:
        """End the session with this id. False if the user has no such session."""
        user_id = inputs.uuid("user_id", user_id)
        if not isinstance(session_id, str) or not _ID.fullmatch(session_id):
            return False
        return await self._end(SessionKey(tag_of(user_id), session_id), user_id)

    # With an owner, only a session of that user.
    _END = Script(
        keys=("session",),
        args=("id", "prefix", "owner"),
        source=_SHARED
        + """
local found = head(session)
if not found or (owner ~= '' and owner ~= found.user) then return false end
-- First, because it is refused while its slot of a cluster moves, and the script is sent again.
redis.call('ZREM', redis_prefix .. prefix .. 'user:' .. found.user, id)
redis.call('DEL', session)
announce_end(found.user)
return true
""",
        reply=as_bool,
    )

    async def _end(self, key: SessionKey, owner: UUID | None = None) -> bool:
        args = (key.id, key.prefix, "" if owner is None else str(owner))
        return await self._END(self._connection, keys=(key.name,), args=args)

    async def revoke_all(self, user_id: UUID, *, except_token: str | None = None) -> int:
        """End all sessions of the user except that of `except_token`, and return how many.

        When it has returned, no process accepts any of them. Safe to repeat after an unknown outcome.
        """
        user_id = inputs.uuid("user_id", user_id)
        return await self._end_all(user_id, "" if except_token is None else key_of(except_token).id)

    _END_ALL = Script(
        keys=("index",),
        args=("prefix", "kept_id", "user"),
        source=_SHARED
        + """
local ended, ids, names = 0, {}, {}
local function delete()
    -- All in one DEL, which a cluster refuses as a whole while a slot moves, so that the script can be sent again.
    ended = ended + redis.call('DEL', unpack(names))
    redis.call('ZREM', index, unpack(ids))
    ids, names = {}, {}
end
for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    if id ~= kept_id then
        ids[#ids + 1], names[#names + 1] = id, redis_prefix .. prefix .. id
        if #ids == 1000 then delete() end
    end
end
if #ids > 0 then delete() end
announce_end(user)
return ended
""",
        reply=as_int,
    )

    async def _end_all(self, user_id: UUID, kept_id: str) -> int:
        args = (SessionKey(tag_of(user_id), "").prefix, kept_id, str(user_id))
        return await self._END_ALL(self._connection, keys=(index_of(user_id),), args=args)

    async def _end_rest(self, user_id: UUID, ended: Sequence[str]) -> None:
        """End what was created while the account was deleted. `ended` are the ids of durable sessions."""
        await self.revoke_all(user_id)

    # Returns the time, None without such a session, so a revoked session stays revoked.
    _TOUCH = Script(
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
    add_to_index(index, id, ends, found.expires)
end
return now
""",
        reply=lambda now: None if now is None else as_int(now),
    )

    async def _write_seen(self, key: SessionKey, session: Session) -> bool:
        try:
            now = await self._TOUCH(
                self._connection,
                keys=(key.name, index_of(session.user_id)),
                args=(key.id, self._idle_ms, round(self._seen_interval_seconds * 1000)),
            )
        except Unavailable as error:
            if error.outcome_unknown:
                raise Unavailable("redis", error.reason) from error  # for the caller a lookup changes nothing
            return True  # a server that reads but refuses to write, for instance because its memory is full
        if now is None:
            return False  # it has ended since it was read
        self._clock_offset = now / 1000 - time.monotonic()
        return True

    async def _find_ended(self, names: Sequence[str]) -> dict[str, bool]:
        return await find_ended(self._connection, names)

    def _seen_long_ago(self, session: Session) -> bool:
        """An estimate that spares most lookups the script. It goes by the time that Redis returned last, because
        the clocks of the machines may differ. The script also runs when the clock of Redis must have been set."""
        if self._clock_offset is None:
            return True
        seconds_ago = time.monotonic() + self._clock_offset - session.seen_at.timestamp()
        return not 0 <= seconds_ago < self._seen_interval_seconds


def _encoded(field: str, data: Mapping[str, object]) -> bytes:
    return inputs.json_object(field, data, longest_bytes=MAX_DATA_BYTES)


async def find_ended(connection: Connection, names: Sequence[str]) -> dict[str, bool]:
    """Whether each session has ended, by its key, without those that cannot be looked up at present.

    It does not count as a lookup. Raises: Unavailable (there is one server, and it cannot be reached).
    """
    commands = [("PTTL", name) for name in names]
    lives: Sequence[Reply | BaseException]
    if connection.is_cluster:  # there `execute_many` raises for all if one primary cannot be reached
        asked = [connection.execute(*command, writes=False) for command in commands]
        lives = await asyncio.gather(*asked, return_exceptions=True)
    else:
        lives = await connection.execute_many(commands, writes=False)
    ended: dict[str, bool] = {}
    for name, life in zip(names, lives, strict=True):
        if isinstance(life, Unavailable):
            continue  # unreachable, or refused as by a server that loads its data
        if isinstance(life, BaseException):
            raise life
        ended[name] = life == NO_KEY
    return ended
