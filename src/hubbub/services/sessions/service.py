"""Sessions in Redis: looked up by a token with every request, and ended at once when they are revoked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.redis.replies import as_optional_bytes
from hubbub.services.sessions import scripts, stored
from hubbub.services.sessions.place import Place, index_of, is_session_id, new_token, place_of, tag_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from hubbub.models import Session
    from hubbub.redis import Connection

LIFE_SECONDS: Final = 86_400
"""SESSION_TTL of the seed: 24 hours."""

LONGEST_LIFE_SECONDS: Final = 366 * 86_400
MOST_PER_USER: Final = 1_000
SEEN_INTERVAL_SECONDS: Final = 60


class SessionService:
    """Sessions. A token is known to its client alone: Redis, logs and errors hear of its SHA-256.

    Nothing is remembered in the process. A lookup asks Redis each time, so that no session is accepted once the
    call that ended it has returned, in any process.

    A session ends `life_seconds` after it was created, whatever happens, and `idle_timeout_seconds` after it was
    last seen. That it was seen is written once a minute at most (or a tenth of the timeout, if that is less), so
    it may end that much sooner after its last lookup. All times are by the clock of Redis.

    A user has at most `most_per_user` sessions: one more ends the one that would end first. Every method raises
    `Unavailable` when Redis is.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        life_seconds: float = LIFE_SECONDS,
        idle_timeout_seconds: float | None = None,
        most_per_user: int = MOST_PER_USER,
    ) -> None:
        """Without an `idle_timeout_seconds` nothing but their age ends sessions. Raises `Invalid`."""
        idle = life_seconds if idle_timeout_seconds is None else idle_timeout_seconds
        if not 0.01 <= life_seconds <= LONGEST_LIFE_SECONDS:
            raise Invalid("life_seconds", f"must be from 0.01 to {LONGEST_LIFE_SECONDS}")
        if not 0.01 <= idle <= life_seconds:
            raise Invalid("idle_timeout_seconds", "must be from 0.01 up to life_seconds")
        if not 1 <= most_per_user <= 100_000:
            raise Invalid("most_per_user", "must be from 1 to 100000")
        self._connection = connection
        self._life = round(life_seconds * 1000)
        self._idle = round(idle * 1000)
        self._most_per_user = most_per_user
        self._seen_interval_seconds = min(SEEN_INTERVAL_SECONDS, idle / 10)
        self._clock_offset: float | None = None

    async def create_session(self, user_id: UUID, session_data: Mapping[str, object] | None = None) -> str:
        """A new session; gives its token, 47 characters that are safe in URLs and cookies.

        `session_data` comes back with each lookup. A text in it under "device" is shown in lists. Raises
        `Invalid` for what is not JSON, for more than 4 KiB of it and for more than 32 levels.
        """
        user_id = inputs.uuid("user_id", user_id)
        data = stored.encode("session_data", {} if session_data is None else session_data)
        token = new_token(tag_of(user_id))
        place = place_of(token)
        now = await scripts.CREATE(
            self._connection,
            keys=(place.key, index_of(user_id)),
            args=(place.id, place.prefix, str(user_id), data, self._life, self._idle, self._most_per_user),
        )
        self._set_clock(now)
        return token

    async def get_session(self, token: str) -> Session | None:
        """The session of the token; None when it ended, never was, or the token is malformed, in equal time."""
        place = place_of(token)
        value = as_optional_bytes(await self._connection.execute("GET", place.key, writes=False))
        session = stored.read(value, place.id)
        if session is None or not self._seen_long_ago(session):
            return session
        return session if await self._note_seen(place, session) else None

    async def list_sessions(self, user_id: UUID, *, limit: int = inputs.PAGE_LIMIT) -> list[Session]:
        """At most `limit` sessions of the user, those that end last; of these the one seen last stands first."""
        user_id = inputs.uuid("user_id", user_id)
        limit = inputs.limit(limit)
        prefix = Place(tag_of(user_id), "").prefix
        found = await scripts.LIST(self._connection, keys=(index_of(user_id),), args=(prefix, limit))
        pairs = zip(found[::2], found[1::2], strict=True)
        sessions = [stored.read(value, session_id.decode()) for session_id, value in pairs]
        return sorted(filter(None, sessions), key=lambda session: session.seen_at, reverse=True)

    async def update_data(self, token: str, data: Mapping[str, object]) -> bool:
        """Put `data` in the place of the session's; False when there is no such session.

        Changes neither whose it is nor when it ends. Raises `Invalid` as `create_session` does.
        """
        encoded = stored.encode("data", data)
        return await scripts.UPDATE(self._connection, keys=(place_of(token).key,), args=(encoded,))

    async def rotate(self, token: str) -> str | None:
        """Give the session another token, for instance after a login; None when there is no such session.

        The old token is dead at the moment the new one lives. Data and the time of the end stay; the id changes.
        When `Unavailable` says that the outcome is unknown, neither token may work: let the user log in again.
        """
        old = place_of(token)
        new_one = new_token(old.tag)
        new = place_of(new_one)
        rotated = await scripts.ROTATE(
            self._connection, keys=(old.key, new.key), args=(old.id, new.id, old.prefix)
        )
        return new_one if rotated else None

    async def delete_session(self, token: str) -> None:
        """End the session: log out. Does nothing for a token without one."""
        place = place_of(token)
        await scripts.END(self._connection, keys=(place.key,), args=(place.id, place.prefix, ""))

    async def revoke(self, user_id: UUID, session_id: str) -> bool:
        """End the session of this user that has this id; False when the user has none such."""
        user_id = inputs.uuid("user_id", user_id)
        if not is_session_id(session_id):
            return False
        place = Place(tag_of(user_id), session_id)
        return await scripts.END(self._connection, keys=(place.key,), args=(place.id, place.prefix, str(user_id)))

    async def revoke_all(self, user_id: UUID, *, except_token: str | None = None) -> int:
        """End all sessions of the user, but for that of `except_token`; gives how many.

        When it returns none of them is accepted any more, in any process. May be repeated when the outcome is
        unknown.
        """
        user_id = inputs.uuid("user_id", user_id)
        prefix = Place(tag_of(user_id), "").prefix
        kept_id = "" if except_token is None else place_of(except_token).id
        return await scripts.END_ALL(self._connection, keys=(index_of(user_id),), args=(prefix, kept_id))

    async def _note_seen(self, place: Place, session: Session) -> bool:
        """False when the session has ended since it was read."""
        try:
            now = await scripts.TOUCH(
                self._connection,
                keys=(place.key, index_of(session.user_id)),
                args=(place.id, self._idle, round(self._seen_interval_seconds * 1000)),
            )
        except Unavailable as error:
            if error.outcome_unknown:
                raise Unavailable("redis", error.reason) from error  # to the caller it is a question
            return True  # a server that still reads but writes no more, being full for instance
        if now is None:
            return False
        self._set_clock(now)
        return True

    def _seen_long_ago(self, session: Session) -> bool:
        """A guess that spares a script on most lookups; the script looks at Redis' clock itself.

        The clocks of the machines may differ by more than the interval, so the guess goes by what Redis last
        said. Before it said anything, and when it must have been set since, the script is asked.
        """
        if self._clock_offset is None:
            return True
        seconds_ago = time.monotonic() + self._clock_offset - session.seen_at.timestamp()
        return not 0 <= seconds_ago < self._seen_interval_seconds

    def _set_clock(self, now: int) -> None:
        self._clock_offset = now / 1000 - time.monotonic()
