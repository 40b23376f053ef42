"""Sessions in rows of PostgreSQL, which decide. Most lookups find a copy in Redis and do not ask PostgreSQL.

    session:{<tag>}:row:<id>    a copy, up to 5 s after its row was asked for; for 60 s empty: ask PostgreSQL

    lookup --copy--> the session               change of the row: COMMIT --> empty copy --> the call returns
       |                                                                 |
       +--no copy, or empty--> row --> copy, if there is none            +--Redis does not answer--> 5 s pass

Redis may lose its last writes when it fails over or is restored, and then has copies of sessions that were ended.
So a copy expires 5 s after the read of its row began, and a process accepts no copy that may be older than its
connection: for 5 s after each connect it reads PostgreSQL. Copies expire by the clock of Redis, and rows by that
of PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import Final
from uuid import UUID

import msgspec

from hubbub.errors import Unavailable, once_committed
from hubbub.models import Session
from hubbub.postgres import Executor, Lookup, Statement
from hubbub.redis import Connection
from hubbub.redis.replies import as_optional_bytes
from hubbub.services.sessions import SessionKey, SessionService, StoredSession, decode, key_of, tag_of

COPY_TTL_SECONDS: Final = 5.0
"""How long a copy lives after the read of its row began. A process that reaches another Redis may accept an ended
session for this long."""

EMPTY_SECONDS: Final = 60.0
"""How long an empty copy blocks other copies: longer than a lookup may take from its row to its copy."""

ASK_REDIS_SECONDS: Final = 0.25
"""How long a lookup waits for Redis before it reads the row."""

EMPTY_WITHIN_SECONDS: Final = 1.0
"""How long a call that ends sessions waits for Redis, before it waits for the end of the copies."""


class _Row(msgspec.Struct, frozen=True, gc=False):
    session: Session
    ends_in_seconds: float
    seen_seconds_ago: float


def _session(  # noqa: PLR0917 - the columns of `_SESSION`
    id: bytes, user_id: UUID, data: str, created_at: datetime, seen_at: datetime, expires_at: datetime
) -> Session:
    return Session(id.hex(), user_id, msgspec.json.decode(data), created_at, seen_at, expires_at)


def _row(  # noqa: PLR0917 - these, and two more
    id: bytes,
    user_id: UUID,
    data: str,
    created_at: datetime,
    seen_at: datetime,
    expires_at: datetime,
    ends_in_seconds: float,
    seen_seconds_ago: float,
) -> _Row:
    session = _session(id, user_id, data, created_at, seen_at, expires_at)
    return _Row(session, ends_in_seconds, seen_seconds_ago)


def _hex(id: bytes) -> str:
    return id.hex()


def _ended(id: bytes, lived: bool) -> tuple[str, bool]:
    return id.hex(), lived


def _user(user_id: UUID) -> UUID:
    return user_id


_SESSION: Final = "id, user_id, data::text AS data, created_at, seen_at, expires_at"
_FOUND: Final = f"""
        SELECT
            {_SESSION},
            extract(epoch FROM ends_at - CURRENT_TIMESTAMP)::float8 AS ends_in_seconds,
            extract(epoch FROM CURRENT_TIMESTAMP - seen_at)::float8 AS seen_seconds_ago
        FROM hubbub_sessions
        WHERE ends_at > CURRENT_TIMESTAMP
"""

_LIVING = Statement(
    "sessions.living",
    _hex,
    """
    SELECT id
    FROM hubbub_sessions
    WHERE id = ANY($1::bytea[])
        AND ends_at > CURRENT_TIMESTAMP
    """,
)


class DurableSessions(SessionService):
    """`SessionService` with its sessions in PostgreSQL. `create_session` raises NotFound for an unknown user.

    No process accepts a session after the call that ended it has returned, also if Redis loses its data. A process
    that still reaches a former Redis, which the others do not, may for 5 s.
    """

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        *,
        life_seconds: float,
        idle_timeout_seconds: float | None = None,
    ) -> None:
        super().__init__(connection, life_seconds=life_seconds, idle_timeout_seconds=idle_timeout_seconds)
        self._executor = executor

    _INSERT = Statement(
        "sessions.create",
        _user,
        """
        INSERT INTO hubbub_sessions (id, user_id, expires_at, ends_at, data)
        VALUES (
            $1,
            $2,
            CURRENT_TIMESTAMP + $3::float8 * interval '1 second',
            CURRENT_TIMESTAMP + $4::float8 * interval '1 second',
            $5::text::json
        )
        RETURNING user_id
        """,
    )
    # Not to be sent again after a lost answer: it would not find the ids any more.
    _END_SURPLUS = Statement(
        "sessions.end_surplus",
        _hex,
        """
        DELETE FROM hubbub_sessions
        WHERE id IN (
            SELECT id
            FROM hubbub_sessions
            WHERE user_id = $1
            ORDER BY ends_at DESC, id
            OFFSET $2
        )
        RETURNING id
        """,
    )

    async def _create(self, user_id: UUID, key: SessionKey, data: bytes) -> None:
        id, life, idle = bytes.fromhex(key.id), self._life_ms / 1000, self._idle_ms / 1000
        await self._executor.fetch_all(self._INSERT, id, user_id, life, idle, data.decode())
        with once_committed():
            surplus = await self._executor.fetch_all(self._END_SURPLUS, user_id, self._max_per_user)
            if surplus:
                await self._empty(user_id, surplus)

    _GET = Lookup(
        "sessions.get",
        _row,
        f"{_FOUND} AND id = $1",
        many=Statement("sessions.get_many", _row, f"{_FOUND} AND id = ANY($1::bytea[])"),
        key_of_args=bytes.hex,
        key_of_row=lambda row: row.session.id,
    )
    _SEE = Statement(
        "sessions.see",
        _session,
        f"""
        UPDATE hubbub_sessions
        SET seen_at = CURRENT_TIMESTAMP,
            ends_at = LEAST(expires_at, CURRENT_TIMESTAMP + $2::float8 * interval '1 second')
        WHERE id = $1
            AND ends_at > CURRENT_TIMESTAMP
        RETURNING {_SESSION}
        """,
        idempotent=True,
    )

    async def get_session(self, token: str) -> Session | None:
        """As of `SessionService`."""
        loop = asyncio.get_running_loop()
        key, since = key_of(token), loop.time()
        name, id = _copy_of(key), bytes.fromhex(key.id)
        if since - self._connection.connected_at > COPY_TTL_SECONDS:
            with suppress(Unavailable):
                ask = self._connection.execute("GET", name, deadline_seconds=ASK_REDIS_SECONDS, writes=False)
                copy = as_optional_bytes(await ask)
                # A newer connection may have answered.
                if copy and since - self._connection.connected_at > COPY_TTL_SECONDS:
                    return decode(copy, key.id)
        row = await self._executor.look_up(self._GET, id)
        if row is None:
            return None
        session: Session | None = row.session
        if row.seen_seconds_ago >= self._seen_interval_seconds:
            session = await self._executor.fetch_one(self._SEE, id, self._idle_ms / 1000)
        elif self._connection.connected_at < inf:
            await self._copy(name, row, loop.time() - since)
        return session

    async def _copy(self, name: str, row: _Row, age_seconds: float) -> None:
        """Store the row, whose read began `age_seconds` ago. A row older than 5 s is not stored."""
        # A lookup that finds it prolongs nothing, so it ends before the row is to note the next one.
        not_seen = self._seen_interval_seconds - row.seen_seconds_ago
        longest = min(COPY_TTL_SECONDS - ASK_REDIS_SECONDS, not_seen, row.ends_in_seconds)
        session, milliseconds = row.session, round((longest - age_seconds) * 1000)
        if milliseconds < 1:
            return
        times = (session.seen_at, session.expires_at, session.created_at)
        value = msgspec.json.encode(StoredSession(*times, session.user_id, dict(session.data)))
        with suppress(Unavailable):
            await self._connection.execute(
                "SET", name, value, "PX", milliseconds, "NX", deadline_seconds=ASK_REDIS_SECONDS
            )

    _LIST_ROWS = Statement(
        "sessions.list",
        _session,
        f"""
        SELECT {_SESSION}
        FROM hubbub_sessions
        WHERE user_id = $1
            AND ends_at > CURRENT_TIMESTAMP
        ORDER BY ends_at DESC, id
        LIMIT $2
        """,
    )

    async def _last_to_end(self, user_id: UUID, limit: int) -> Sequence[Session]:
        return await self._executor.fetch_all(self._LIST_ROWS, user_id, limit)

    _SET_DATA = Statement(
        "sessions.set_data",
        _user,
        """
        UPDATE hubbub_sessions
        SET data = $2::text::json
        WHERE id = $1
            AND ends_at > CURRENT_TIMESTAMP
        RETURNING user_id
        """,
        idempotent=True,
    )

    async def _set_data(self, key: SessionKey, data: bytes) -> bool:
        user_id = await self._executor.fetch_one(self._SET_DATA, bytes.fromhex(key.id), data.decode())
        return await self._empty_one(user_id, key)

    _SET_ID = Statement(
        "sessions.set_id",
        _user,
        """
        UPDATE hubbub_sessions
        SET id = $2
        WHERE id = $1
            AND ends_at > CURRENT_TIMESTAMP
        RETURNING user_id
        """,
    )

    async def _rename(self, old: SessionKey, new: SessionKey) -> bool:
        old_id, new_id = bytes.fromhex(old.id), bytes.fromhex(new.id)
        user_id = await self._executor.fetch_one(self._SET_ID, old_id, new_id)
        return await self._empty_one(user_id, old)

    # The row stays for a minute, until `hub.maintain`, so that a repetition empties the copy that a lost answer
    # left.
    _END_ROW = Statement(
        "sessions.end",
        _user,
        """
        UPDATE hubbub_sessions
        SET ends_at = '-infinity',
            seen_at = CURRENT_TIMESTAMP
        WHERE id = $1
            AND user_id = COALESCE($2::uuid, user_id)
        RETURNING user_id
        """,
        idempotent=True,
    )

    async def _end(self, key: SessionKey, owner: UUID | None = None) -> bool:
        user_id = await self._executor.fetch_one(self._END_ROW, bytes.fromhex(key.id), owner)
        return await self._empty_one(user_id, key)

    # By the user alone: `rotate` changes the id of a row while this waits for it.
    _END_ALL_ROWS = Statement(
        "sessions.end_all",
        _ended,
        """
        UPDATE hubbub_sessions
        SET ends_at = '-infinity',
            seen_at = CASE WHEN ends_at > CURRENT_TIMESTAMP THEN CURRENT_TIMESTAMP ELSE seen_at END
        WHERE user_id = $1
            AND id <> $2
        RETURNING id, seen_at = CURRENT_TIMESTAMP AS lived
        """,
        idempotent=True,
    )

    async def _end_all(self, user_id: UUID, kept_id: str) -> int:
        ended = await self._executor.fetch_all(self._END_ALL_ROWS, user_id, bytes.fromhex(kept_id))
        await self._empty(user_id, [id for id, _ in ended])
        return sum(lived for _, lived in ended)

    async def _end_rest(self, user_id: UUID, ended: Sequence[str]) -> None:
        rest = await self._executor.fetch_all(self._END_ALL_ROWS, user_id, b"")
        await self._empty(user_id, [*ended, *(id for id, _ in rest)])

    async def _find_ended(self, names: Sequence[str]) -> dict[str, bool]:
        """Whether each session has ended, by its key of `SessionService`. Raises: Unavailable."""
        ids = {name: name.rpartition(":")[2] for name in names}
        living = set(await self._executor.fetch_all(_LIVING, [bytes.fromhex(id) for id in ids.values()]))
        return {name: id not in living for name, id in ids.items()}

    async def _empty_one(self, user_id: UUID | None, key: SessionKey) -> bool:
        if user_id is None:
            return False
        await self._empty(user_id, [key.id])
        return True

    async def _empty(self, user_id: UUID, ids: Iterable[str]) -> None:
        """Have each process ask for these rows, and its feeds for the sessions of the user.

        Returns once no copy of before is believed, whatever Redis does.
        """
        tag, milliseconds = tag_of(user_id), round(EMPTY_SECONDS * 1000)
        commands = [("SET", _copy_of(SessionKey(tag, id)), b"", "PX", milliseconds) for id in ids]
        announcement = msgspec.json.encode({"from": "sessions", "users": [str(user_id)]})
        try:
            outcomes = await self._connection.execute_many(
                [*commands, ("PUBLISH", "memberships", announcement)], deadline_seconds=EMPTY_WITHIN_SECONDS
            )
            is_known = not any(isinstance(outcome, Exception) for outcome in outcomes)
        except Unavailable:
            is_known = False
        if not is_known and commands:
            # Also the copy of a lookup that read its row before.
            await asyncio.sleep(COPY_TTL_SECONDS)


def _copy_of(key: SessionKey) -> str:
    return f"{key.prefix}row:{key.id}"
