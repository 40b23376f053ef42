"""The accounts of the chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from msgspec import UNSET, UnsetType
from uuid_utils.compat import uuid7

from hubbub import inputs
from hubbub.commits import MembershipEnded, ProfileUpdated, RoomTouched, UserChanged, UserDeleted
from hubbub.deletions import (
    DELETE_ACCOUNT,
    HIDE_ACCOUNT,
    LEAVE,
    LOCK_ACCOUNT,
    Deletion,
    check_outside_transaction,
    finish,
)
from hubbub.errors import NotFound, Unavailable
from hubbub.models import Concealed, Credentials, User
from hubbub.postgres import Executor, LockNotAvailable, Statement
from hubbub.sql import Repository, by_id, existing, folded, kept, readable, username_key

USER = readable(User)
KEPT = kept("users.id")

ATTEMPTS: Final = 5
"""Bounds how often the deletion of an account is tried again because the user joins a room meanwhile."""


def _hash(field: str, value: str) -> str:
    return Concealed(inputs.text(field, value, longest=inputs.PASSWORD_HASH_LENGTH))


class _JoinedMeanwhile(Exception):
    """There is a membership again, whose end has to be in the log."""


class Users(Repository):
    """Accounts. Email and username are unique without regard to case, and found in any case.

    Emails are compared by `inputs.folded`, usernames by `inputs.same_name`.
    """

    _CREATE = Statement(
        "users.create",
        User,
        f"""
        INSERT INTO users (id, email, username, password_hash, avatar_url, username_key, username_key_of)
        VALUES ($1, $2, $3, $4, $5, $6::text, CASE WHEN $6::text IS NOT NULL THEN $3::varchar END)
        RETURNING {USER}
        """,
    )

    async def create(
        self,
        email: str,
        username: str,
        password_hash: str,
        avatar_url: str | None = None,
        *,
        id: UUID | None = None,
    ) -> User:
        """Create an account. `password_hash` is stored as given: `hub.register` takes a password instead.

        Raises: Conflict (the email or username is taken, in any case, or the id).
        """
        password_hash, username = _hash("password_hash", password_hash), inputs.username(username)
        [user] = await self._executor.fetch_all(
            self._CREATE,
            uuid7() if id is None else inputs.uuid("id", id),
            inputs.email(email),
            username,
            password_hash,
            inputs.url("avatar_url", avatar_url),
            inputs.stored_key(username),
        )
        return user

    _GET = by_id(User, "users", USER)
    _GET_MANY = _GET.many

    async def get(self, user_id: UUID) -> User:
        """The user. Raises: NotFound."""
        user = await self._executor.look_up(self._GET, inputs.uuid("user_id", user_id))
        return existing(user, NotFound, "user", user_id)

    async def get_many(self, user_ids: Iterable[UUID]) -> dict[UUID, User]:
        """The users that exist, by id, in one query per 1,000 ids."""
        return await self._get_many(self._GET_MANY, user_ids, field="user_ids")

    _FIND_BY_EMAIL = Statement(
        "users.find_by_email", User, f"SELECT {USER} FROM users WHERE {folded('email')} = $1 AND {KEPT}"
    )

    async def find_by_email(self, email: str) -> User | None:
        """The user with this email, or None. Theirs differs from it in nothing but case."""
        return await self._executor.fetch_one(self._FIND_BY_EMAIL, inputs.folded(inputs.email(email)))

    _FIND_BY_USERNAME = Statement(
        "users.find_by_username", User, f"SELECT {USER} FROM users WHERE {username_key()} = $1 AND {KEPT}"
    )

    async def find_by_username(self, username: str) -> User | None:
        """The user with this username, or None. All spellings of a name find it (docs/schema.md)."""
        return await self._executor.fetch_one(self._FIND_BY_USERNAME, inputs.same_name(inputs.username(username)))

    _CREDENTIALS = f"SELECT id AS user_id, password_hash FROM users WHERE {KEPT}"
    _CREDENTIALS_BY_EMAIL = Statement(
        "users.credentials_by_email", Credentials, f"{_CREDENTIALS} AND {folded('email')} = $1"
    )
    _CREDENTIALS_BY_USERNAME = Statement(
        "users.credentials_by_username", Credentials, f"{_CREDENTIALS} AND {username_key()} = $1"
    )

    async def find_credentials(self, login: str) -> Credentials | None:
        """The id and password hash of the account with this email or username, or None.

        A login with an @ is an email, because a username has none.
        """
        login = inputs.text("login", login, longest=inputs.EMAIL_LENGTH)
        key = inputs.login_key(login)
        if "@" in login:
            return await self._executor.fetch_one(self._CREDENTIALS_BY_EMAIL, key)
        return await self._executor.fetch_one(self._CREDENTIALS_BY_USERNAME, key)

    _UPDATE_PROFILE = Statement(
        "users.update_profile",
        User,
        f"""
        UPDATE users
        SET email = COALESCE($2, email),
            username = COALESCE($3, username),
            username_key = CASE WHEN $3 IS NULL THEN username_key ELSE $6::text END,
            username_key_of = CASE
                WHEN $3 IS NULL THEN username_key_of
                WHEN $6::text IS NOT NULL THEN $3::varchar
            END,
            avatar_url = CASE WHEN $4::boolean THEN $5 ELSE avatar_url END,
            updated_at = CURRENT_TIMESTAMP
        WHERE id = $1
            AND {KEPT}
        RETURNING {USER}
        """,
        idempotent=True,
    )

    async def update_profile(
        self,
        user_id: UUID,
        *,
        email: str | None = None,
        username: str | None = None,
        avatar_url: str | UnsetType | None = UNSET,
    ) -> User:
        """Change the properties that are given. `avatar_url=None` removes the picture.

        Raises: NotFound, Conflict (the email or username is taken, in any case).
        """
        username = None if username is None else inputs.username(username)
        changed = await self._executor.fetch_one(
            self._UPDATE_PROFILE,
            inputs.uuid("user_id", user_id),
            None if email is None else inputs.email(email),
            username,
            avatar_url is not UNSET,
            None if avatar_url is UNSET else inputs.url("avatar_url", avatar_url),
            None if username is None else inputs.stored_key(username),
        )
        user = existing(changed, NotFound, "user", user_id)
        self._changed(UserChanged(user.id))
        if username is not None or avatar_url is not UNSET:
            self._changed(ProfileUpdated(user.id, user.username, user.avatar_url))
        return user

    _CHANGE_PASSWORD_HASH = Statement(
        "users.change_password_hash",
        User,
        f"UPDATE users SET password_hash = $2, updated_at = CURRENT_TIMESTAMP WHERE id = $1 AND {KEPT}",
        idempotent=True,
    )

    async def change_password_hash(self, user_id: UUID, password_hash: str) -> None:
        """Replace the hash. It leaves the sessions of the user to the caller. Raises: NotFound."""
        user_id, password_hash = inputs.uuid("user_id", user_id), _hash("password_hash", password_hash)
        if not await self._executor.execute(self._CHANGE_PASSWORD_HASH, user_id, password_hash):
            raise NotFound("user", user_id)

    _RENEW_PASSWORD_HASH = Statement(
        "users.renew_password_hash",
        User,
        f"UPDATE users SET password_hash = $2 WHERE id = $1 AND password_hash = $3 AND {KEPT}",
    )

    async def renew_password_hash(self, user_id: UUID, password_hash: str, *, instead_of: str) -> None:
        """Replace the hash with another one of the same password, unless the password was changed meanwhile."""
        password_hash, instead_of = _hash("password_hash", password_hash), _hash("instead_of", instead_of)
        user_id = inputs.uuid("user_id", user_id)
        await self._executor.execute(self._RENEW_PASSWORD_HASH, user_id, password_hash, instead_of)

    _UPDATE_ONLINE_STATUS = Statement(
        "users.update_online_status",
        User,
        f"UPDATE users SET is_online = $2, last_seen = CURRENT_TIMESTAMP WHERE id = $1 AND {KEPT}",
        idempotent=True,
    )

    async def update_online_status(self, user_id: UUID, is_online: bool) -> None:
        """Store that the user came online or went offline, and when. Raises: NotFound."""
        user_id, is_online = inputs.uuid("user_id", user_id), inputs.flag("is_online", is_online)
        if not await self._executor.execute(self._UPDATE_ONLINE_STATUS, user_id, is_online):
            raise NotFound("user", user_id)
        self._changed(UserChanged(user_id))

    # Rows are locked in the order of their ids, so that two processes with users in common cannot lock each other
    # out. A row with that status already is not written, so last_seen is the time of the change.
    _SET_ONLINE_MANY = Statement(
        "users.set_online_many",
        User,
        f"""
        WITH locked AS MATERIALIZED (
            SELECT users.id, changes.is_online
            FROM users
            JOIN unnest($1::uuid[], $2::boolean[]) AS changes (user_id, is_online) ON changes.user_id = users.id
            WHERE users.is_online IS DISTINCT FROM changes.is_online
                AND {KEPT}
            ORDER BY users.id
            FOR NO KEY UPDATE OF users
        )
        UPDATE users
        SET is_online = locked.is_online,
            last_seen = CURRENT_TIMESTAMP
        FROM locked
        WHERE users.id = locked.id
        """,
        idempotent=True,
    )

    async def set_online_many(self, changes: Mapping[UUID, bool]) -> None:
        """Store which users came online and went offline, in one statement. Unknown users are skipped."""
        changes = inputs.mapping("changes", changes)
        users = [inputs.uuid("changes", user_id) for user_id in changes]
        flags = [inputs.flag("changes", is_online) for is_online in changes.values()]
        await self._executor.execute(self._SET_ONLINE_MANY, users, flags)
        for user_id in users:
            self._changed(UserChanged(user_id))

    async def delete(self, user_id: UUID) -> None:
        """Delete the account, its memberships and receipts. Its messages stay, without an author.

        An account with more than 2,000 messages, rooms or the like is gone for all calls at once, and its rows are
        deleted in steps. `Unavailable` at the deadline means that rows are left: the same call, or `hub.maintain`,
        goes on.

        Raises: NotFound, Invalid (such an account, in a transaction).
        """
        user_id, deadline = inputs.uuid("user_id", user_id), self._executor.deadline()
        try:
            for _ in range(ATTEMPTS):
                begun = await self._try_to_delete(user_id, deadline)
                if begun is not None:
                    break
            else:
                raise Unavailable("postgresql", "the user goes on joining rooms")
        finally:
            self._changed(UserChanged(user_id))  # also on a retry: the first attempt may not have reported it
        self._changed(UserDeleted(user_id))
        rooms, is_over = begun
        for room_id in rooms:
            self._changed(MembershipEnded(room_id, user_id))
            self._changed(RoomTouched(room_id))
        if not is_over:
            await finish(self._executor, Deletion(user_id, is_room=False), self._on_commit, deadline=deadline)

    async def _try_to_delete(self, user_id: UUID, deadline: float) -> tuple[list[UUID], bool] | None:
        """The rooms that the user has left by it, and whether nothing of the account is left.

        None, with nothing done, if the user joined a room meanwhile.
        """
        try:
            async with self._executor.transaction(deadline=deadline) as part:
                return await self._delete_in(part, user_id)
        except (_JoinedMeanwhile, LockNotAvailable):
            return None

    async def _delete_in(self, part: Executor, user_id: UUID) -> tuple[list[UUID], bool]:
        is_last, rooms = existing(await part.fetch_one(LEAVE, user_id), NotFound, "user", user_id)
        is_large = existing(await part.fetch_one(LOCK_ACCOUNT, user_id), NotFound, "user", user_id)
        if is_large or not is_last:
            check_outside_transaction(self._executor, "user_id")
            await part.execute(HIDE_ACCOUNT, user_id)
            return rooms, False
        if not await part.execute(DELETE_ACCOUNT, user_id):
            raise _JoinedMeanwhile
        return rooms, True
