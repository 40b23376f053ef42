"""The accounts of the chat."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from msgspec import UNSET, UnsetType
from uuid_utils.compat import uuid7

from hubbub import inputs
from hubbub.commits import ProfileUpdated, UserChanged, UserDeleted
from hubbub.deletions import (
    DELETE_ACCOUNT,
    END_SESSIONS,
    FORGET_PRESENCE,
    HIDE,
    HIDE_ACCOUNT,
    LEAVE,
    LOCK_ACCOUNT,
    OF_SEVERAL_NODES,
    Deletion,
    check_outside_transaction,
    finish,
    report_left,
)
from hubbub.errors import NotFound, Unavailable
from hubbub.models import Credentials, Page, PublicUser, Secret, User, UserKind
from hubbub.postgres import Executor, LockNotAvailable, OpenTransaction, Statement, key_of_account, key_of_value
from hubbub.repository import Cursor, Repository
from hubbub.sql import by_id, columns, folded, not_deleted, readable, require, username_key, with_presence

USER = readable(User)
PUBLIC_USER = readable(PublicUser)
KEPT = not_deleted("users.id")

DELETE_ATTEMPTS: Final = 5
"""How often the deletion of an account is tried when the user joins a room meanwhile, and how often when other
transactions are in its way. Outside a transaction, an account whose user has joined rooms at all attempts but the
last is then hidden, and joins none. Otherwise a user who goes on joining rooms could not be deleted."""


_COLUMNS: Final = (
    *("id", "email", "username", "password_hash", "avatar_url", "display_name", "metadata", "kind", "external_id"),
    *("username_key", "username_key_of", "display_name_key"),
)
_VALUES: Final = (
    *("$1", "$2", "$3", "$4", "$5", "$6", "$7::jsonb", "$8", "$9"),
    *("$10::text", "CASE WHEN $10::text IS NOT NULL THEN $3::varchar END", "$11"),
)
_INSERT: Final = f"INSERT INTO users ({', '.join(_COLUMNS)})"


def _hash(field: str, value: str) -> str:
    return Secret(inputs.text(field, value, longest=inputs.PASSWORD_HASH_LENGTH))


def _search_key(display_name: str | None) -> str | None:
    return None if display_name is None else inputs.search_key(display_name)


def _found_by(field: str, expression: str) -> Statement[User]:
    sql = f"SELECT {USER} FROM users WHERE {expression} = $1 AND {KEPT}"
    return Statement(f"users.find_by_{field}", User, sql, distributed=with_presence(sql))


def _unique(
    *, email: str | None, username: str | None, external_id: str | None, id: UUID | None = None
) -> list[Hashable]:
    """The keys of the values that no other account can store, as the indexes compare them."""
    values = {
        "users.email": email and inputs.folded(email),
        "users.username": username and inputs.same_name(username),
        "users.external_id": external_id,
        "users.id": id,
    }
    return [key_of_value(column, value) for column, value in values.items() if value is not None]


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
        {_INSERT}
        VALUES ({", ".join(_VALUES)})
        RETURNING {USER}
        """,
    )

    async def create(
        self,
        email: str | None,
        username: str,
        password_hash: str | None,
        avatar_url: str | None = None,
        *,
        display_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kind: UserKind | str = UserKind.PERSON,
        external_id: str | int | UUID | None = None,
        id: UUID | None = None,
    ) -> User:
        """Create an account. `password_hash` is stored as given: `hub.register` takes a password instead.

        An account without a hash, such as that of a bot, has no password that matches. `display_name` is a name to
        show, of 1 to 100 characters, which others may have too. `metadata` is a JSON object of at most 8 KiB.
        `external_id` is as in `upsert`.

        Raises: Conflict (the email or username is taken, in any case, or the external_id or id).
        """
        password_hash = None if password_hash is None else _hash("password_hash", password_hash)
        username, display_name = inputs.username(username), inputs.display_name(display_name)
        email = None if email is None else inputs.email(email)
        external_id = None if external_id is None else inputs.external_id(external_id)
        user_id = uuid7() if id is None else inputs.uuid("id", id)
        values = _unique(email=email, username=username, external_id=external_id, id=user_id)
        await self._check_not_locked(*values)
        [user] = await self._executor.fetch_all(
            self._CREATE,
            user_id,
            email,
            username,
            password_hash,
            inputs.url("avatar_url", avatar_url),
            display_name,
            inputs.metadata(metadata),
            inputs.user_kind(kind),
            external_id,
            inputs.stored_key(username),
            _search_key(display_name),
        )
        self._note_locked(values)
        return user

    async def create_anonymous(
        self, *, display_name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> User:
        """Create an account for a visitor, without email and password. Its username is like guest-5f0c81d3a94e.

        The application deletes it by `delete` when it is no longer needed. hubbub does not.
        """
        id = uuid7()
        username = f"guest-{id.hex[-12:]}"
        return await self.create(
            None, username, None, display_name=display_name, metadata=metadata, kind=UserKind.ANONYMOUS, id=id
        )

    # Callers that find no account take turns, by a lock that ends with the transaction. The next one then meets
    # the new account by its external_id, and not by its username, whose index the server may look at first.
    _UPSERT = Statement(
        "users.upsert",
        User,
        f"""
        WITH found AS MATERIALIZED (
            SELECT {USER}
            FROM users
            WHERE external_id COLLATE "C" = $9
                AND {KEPT}
        ), locked AS MATERIALIZED (
            SELECT pg_advisory_xact_lock(hashtextextended('hubbub ' || $9::text, 0)) AS nothing
            WHERE NOT EXISTS (SELECT 1 FROM found)
        ), made AS (
            {_INSERT}
            SELECT {", ".join(_VALUES)}
            FROM locked
            ON CONFLICT (external_id COLLATE "C") WHERE external_id IS NOT NULL
                DO UPDATE SET external_id = EXCLUDED.external_id
            RETURNING {USER}
        )
        SELECT {columns(User)}
        FROM found
        UNION ALL
        SELECT {columns(User)}
        FROM made
        """,
        idempotent=True,
    )

    async def upsert(
        self,
        *,
        external_id: str | int | UUID,
        username: str,
        display_name: str | None = None,
        email: str | None = None,
        avatar_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kind: UserKind | str = UserKind.PERSON,
    ) -> User:
        """The account of another system's user. If there is none, it is created, by the same statement.

        `external_id` is the id there, in any form of up to 255 characters: `42`, `google-oauth2|1`, a UUID.
        Concurrent calls return the same account. An account that exists is returned as it is, because its
        owner may have changed it since (`update_profile`). No password matches the account until one is set.

        Raises: Conflict (the email or username is taken by another account, which has no or another external_id).
        """
        username, display_name = inputs.username(username), inputs.display_name(display_name)
        email = None if email is None else inputs.email(email)
        external_id, new_id = inputs.external_id(external_id), uuid7()
        values = _unique(email=email, username=username, external_id=external_id)
        if not self._executor.locked_by_caller().isdisjoint(values):  # an account that exists takes no value
            found = await self.find_by_external_id(external_id)
            if found is not None:
                return found
            await self._check_not_locked(*values)
        [user] = await self._executor.fetch_all(
            self._UPSERT,
            new_id,
            email,
            username,
            None,
            inputs.url("avatar_url", avatar_url),
            display_name,
            inputs.metadata(metadata),
            inputs.user_kind(kind),
            external_id,
            inputs.stored_key(username),
            _search_key(display_name),
        )
        if user.id == new_id:
            self._note_locked(values)
        return await self._with_presence(user)

    async def _with_presence(self, user: User) -> User:
        """The user of a change, which where rooms are distributed does not read the presence."""
        if not self._executor.is_distributed:
            return user
        with self._after_steps(1):
            return await self._executor.fetch_one(self._GET, user.id) or user

    _GET = by_id(User, "users")
    _GET_MANY = _GET.many

    async def get(self, user_id: UUID) -> User:
        """The user. Raises: NotFound."""
        user = await self._executor.look_up(self._GET, inputs.uuid("user_id", user_id))
        return require(user, NotFound, "user", user_id)

    async def get_many(self, user_ids: Iterable[UUID]) -> dict[UUID, User]:
        """The users that exist, by id, in one query per 1,000 ids."""
        return await self._get_many(self._GET_MANY, user_ids, field="user_ids")

    _FIND_BY_EMAIL = _found_by("email", folded("email"))

    async def find_by_email(self, email: str) -> User | None:
        """The user with this email, or None. The stored email may differ in case."""
        return await self._executor.fetch_one(self._FIND_BY_EMAIL, inputs.folded(inputs.email(email)))

    _FIND_BY_USERNAME = _found_by("username", username_key())

    async def find_by_username(self, username: str) -> User | None:
        """The user with this username, or None. All spellings of a name find it (docs/schema.md)."""
        return await self._executor.fetch_one(self._FIND_BY_USERNAME, inputs.same_name(inputs.username(username)))

    _FIND_BY_EXTERNAL_ID = _found_by("external_id", 'external_id COLLATE "C"')

    async def find_by_external_id(self, external_id: str | int | UUID) -> User | None:
        """The user with this id in another system, or None."""
        return await self._executor.fetch_one(self._FIND_BY_EXTERNAL_ID, inputs.external_id(external_id))

    # The index of usernames has no id, and needs none, because they are unique. A user who is found by the
    # username is not found again by the display name.
    _SEARCH_CURSOR = Cursor("users", tuple[str, UUID])
    _SEARCH_SQL = f"""
        SELECT
            found.key,
            {columns(PublicUser, "found")}
        FROM (
            (
                SELECT
                    {username_key()} AS key,
                    {PUBLIC_USER}
                FROM users
                WHERE ({username_key()}, id) > ($2, $3)
                    AND {username_key()} < $4
                    AND {KEPT}
                ORDER BY {username_key()}
                LIMIT $5
            )
            UNION ALL
            (
                SELECT
                    display_name_key COLLATE "C" AS key,
                    {PUBLIC_USER}
                FROM users
                WHERE (display_name_key COLLATE "C", id) > ($2, $3)
                    AND display_name_key COLLATE "C" < $4
                    AND NOT ({username_key()} >= $1 AND {username_key()} < $4)
                    AND {KEPT}
                ORDER BY display_name_key COLLATE "C", id
                LIMIT $5
            )
        ) AS found
        WHERE $6::uuid IS NULL
            OR EXISTS (SELECT 1 FROM users WHERE users.id = $6 AND {not_deleted("$6")})
        ORDER BY found.key, found.id
        LIMIT $5
        """
    _SEARCH = Statement(
        "users.search",
        lambda key, *user: (key, PublicUser.of_row(*user)),
        _SEARCH_SQL,
        distributed=with_presence(_SEARCH_SQL),
    )

    async def search(
        self, prefix: str, *, limit: int = 20, after: str | None = None, as_user: UUID | None = None
    ) -> Page[PublicUser]:
        """The users whose username or display name starts with `prefix`, in any spelling (docs/schema.md).

        They are ordered by the name that was found. `limit` is 1 to 200; `after` is the `next` of the previous
        page. With `as_user` the page is empty for an account that is deleted.
        """
        (key, end), limit, viewer = inputs.name_prefix(prefix), inputs.limit(limit), inputs.viewer(as_user)
        first, user_id = (key, UUID(int=0)) if after is None else self._SEARCH_CURSOR.decode(None, after)
        found = await self._executor.fetch_all(self._SEARCH, key, max(key, first), user_id, end, limit + 1, viewer)
        page = self._SEARCH_CURSOR.page(None, found, limit, lambda row: (row[0], row[1].id))
        return Page([user for _, user in page.items], page.next)

    _CREDENTIALS = f"SELECT id AS user_id, password_hash FROM users WHERE password_hash IS NOT NULL AND {KEPT}"
    _CREDENTIALS_BY_EMAIL = Statement(
        "users.credentials_by_email", Credentials, f"{_CREDENTIALS} AND {folded('email')} = $1"
    )
    _CREDENTIALS_BY_USERNAME = Statement(
        "users.credentials_by_username", Credentials, f"{_CREDENTIALS} AND {username_key()} = $1"
    )

    async def find_credentials(self, login: str) -> Credentials | None:
        """The id and password hash of the account with this email or username. None without either.

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
            display_name = CASE WHEN $7::boolean THEN $8 ELSE display_name END,
            display_name_key = CASE WHEN $7::boolean THEN $9 ELSE display_name_key END,
            metadata = CASE WHEN $10::boolean THEN $11::jsonb ELSE metadata END,
            external_id = CASE WHEN $12::boolean THEN $13 ELSE external_id END,
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
        display_name: str | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
        external_id: str | int | UUID | UnsetType | None = UNSET,
    ) -> User:
        """Change the properties that are given. `avatar_url=None` removes the picture, and so on.

        `metadata` replaces all of the former. With `external_id` the account is that of another system's user, who
        `upsert` then finds: let only the owner of both connect them.

        Raises: NotFound, Conflict (the email or username is taken, in any case, or the external_id).
        """
        user_id = inputs.uuid("user_id", user_id)
        username = None if username is None else inputs.username(username)
        name = None if display_name is UNSET else inputs.display_name(display_name)
        email = None if email is None else inputs.email(email)
        connected = None if external_id in (UNSET, None) else inputs.external_id(external_id)
        values = _unique(email=email, username=username, external_id=connected)
        await self._check_not_locked(key_of_account(user_id), *values)
        changed = await self._executor.fetch_one(
            self._UPDATE_PROFILE,
            user_id,
            email,
            username,
            avatar_url is not UNSET,
            None if avatar_url is UNSET else inputs.url("avatar_url", avatar_url),
            None if username is None else inputs.stored_key(username),
            display_name is not UNSET,
            name,
            _search_key(name),
            metadata is not UNSET,
            None if metadata is UNSET else inputs.metadata(metadata),
            external_id is not UNSET,
            connected,
        )
        user = require(changed, NotFound, "user", user_id)
        self._note_locked(values)
        self._changed(UserChanged(user.id))
        if username is not None or not avatar_url is display_name is metadata is UNSET:
            self._changed(
                ProfileUpdated(user.id, user.username, user.avatar_url, user.display_name, user.metadata)
            )
        return await self._with_presence(user)

    _CHANGE_PASSWORD_HASH = Statement(
        "users.change_password_hash",
        User,
        f"UPDATE users SET password_hash = $2, updated_at = CURRENT_TIMESTAMP WHERE id = $1 AND {KEPT}",
        idempotent=True,
    )

    async def change_password_hash(self, user_id: UUID, password_hash: str) -> None:
        """Replace the hash. It does not end the user's sessions. Raises: NotFound."""
        user_id, password_hash = inputs.uuid("user_id", user_id), _hash("password_hash", password_hash)
        await self._check_not_locked(key_of_account(user_id))
        if not await self._executor.execute(self._CHANGE_PASSWORD_HASH, user_id, password_hash):
            raise NotFound("user", user_id)
        self._executor.note_locked(key_of_account(user_id))

    _RENEW_PASSWORD_HASH = Statement(
        "users.renew_password_hash",
        User,
        f"UPDATE users SET password_hash = $2 WHERE id = $1 AND password_hash = $3 AND {KEPT}",
    )

    async def renew_password_hash(self, user_id: UUID, password_hash: str, *, instead_of: str) -> None:
        """Replace the hash with another one of the same password, unless the password was changed meanwhile.

        It also does nothing while a transaction of the same task has changed the account.
        """
        password_hash, instead_of = _hash("password_hash", password_hash), _hash("instead_of", instead_of)
        user_id = inputs.uuid("user_id", user_id)
        if not self._is_locked_by_caller(user_id):
            await self._executor.execute(self._RENEW_PASSWORD_HASH, user_id, password_hash, instead_of)

    def _is_locked_by_caller(self, user_id: UUID) -> bool:
        """Whether a transaction of the same task may have locked the account."""
        return key_of_account(user_id) in self._executor.locked_by_caller()

    _UPDATE_ONLINE_STATUS = Statement(
        "users.update_online_status",
        User,
        f"UPDATE users SET is_online = $2, last_seen = CURRENT_TIMESTAMP WHERE id = $1 AND {KEPT}",
        idempotent=True,
        distributed="""
        INSERT INTO hubbub_presence (user_id, is_online, last_seen)
        VALUES ($1, $2, CURRENT_TIMESTAMP)
        ON CONFLICT (user_id) DO UPDATE SET is_online = EXCLUDED.is_online, last_seen = EXCLUDED.last_seen
        """,
    )

    async def update_online_status(self, user_id: UUID, is_online: bool) -> None:
        """Store that the user came online or went offline, and when. Raises: NotFound."""
        user_id, is_online = inputs.uuid("user_id", user_id), inputs.flag("is_online", is_online)
        await self._check_not_locked(key_of_account(user_id))
        if self._executor.is_distributed:
            await self.get(user_id)  # it raises NotFound
        if not await self._executor.execute(self._UPDATE_ONLINE_STATUS, user_id, is_online):
            raise NotFound("user", user_id)
        self._changed(UserChanged(user_id))

    # Rows are locked in the order of their ids, so that two processes with users in common cannot deadlock. A
    # row with that status already is not written, so last_seen is the time of the change.
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
        distributed=f"""
        INSERT INTO hubbub_presence (user_id, is_online, last_seen)
        SELECT changes.user_id, changes.is_online, CURRENT_TIMESTAMP
        FROM unnest($1::uuid[], $2::boolean[]) AS changes (user_id, is_online)
        JOIN users ON users.id = changes.user_id
        WHERE {KEPT}
        ORDER BY changes.user_id
        ON CONFLICT (user_id) DO UPDATE
            SET is_online = EXCLUDED.is_online,
                last_seen = EXCLUDED.last_seen
            WHERE hubbub_presence.is_online IS DISTINCT FROM EXCLUDED.is_online
        """,
    )

    async def set_online_many(self, changes: Mapping[UUID, bool]) -> None:
        """Store which users came online and went offline, in one statement. Unknown users are skipped."""
        changes = inputs.mapping("changes", changes)
        users = [inputs.uuid("changes", user_id) for user_id in changes]
        flags = [inputs.flag("changes", is_online) for is_online in changes.values()]
        await self._check_not_locked(*map(key_of_account, users))
        count = await self._executor.execute(self._SET_ONLINE_MANY, users, flags)
        for user_id in users:
            self._changed(UserChanged(user_id), locks=count > 0)

    async def delete(self, user_id: UUID) -> None:
        """Delete the account, its memberships and receipts. Its messages stay, without an author.

        An account with more than 2,000 messages, rooms or the like is gone for all calls at once, and its rows are
        deleted in steps. `Unavailable` at the deadline means that rows are left: the same call, or `hub.maintain`,
        goes on.

        Raises: NotFound, Invalid (such an account, in a transaction).
        """
        await self._delete(user_id, [])

    async def _delete(self, user_id: UUID, ended: list[str]) -> None:
        """As `delete`. `ended` gets the ids of the durable sessions that end with the account."""
        user_id, deadline = inputs.uuid("user_id", user_id), self._executor.deadline()
        await self._check_deletable(user_id)
        begun = None
        try:
            begun = await self._begin_to_delete(user_id, deadline, ended)
        finally:  # also on a retry: the first attempt may not have reported it
            self._changed(UserChanged(user_id), locks=begun is not None)
        self._changed(UserDeleted(user_id))
        rooms, is_over = begun
        await report_left(rooms, user_id, self._changed)
        if not is_over:
            deletion = Deletion(user_id, is_room=False)
            await finish(self._executor, deletion, self._on_commit, deadline=deadline, ended=ended)

    # The rooms whose rows are changed when the account is deleted.
    _ROOMS_AMONG = Statement(
        "users.rooms_among",
        lambda id: id,
        """
        SELECT id
        FROM rooms
        WHERE id = ANY($2::uuid[])
            AND (
                created_by = $1
                OR EXISTS (SELECT 1 FROM room_users WHERE room_id = rooms.id AND user_id = $1)
            )
        """,
    )

    async def _check_deletable(self, user_id: UUID) -> None:
        """Refuse the deletion if it would wait for a transaction of the same task. Raises: Invalid."""
        user_id = inputs.uuid("user_id", user_id)
        locked = [key for key in self._executor.locked_by_caller() if isinstance(key, UUID)]
        rooms = await self._executor.fetch_all(self._ROOMS_AMONG, user_id, locked) if locked else []
        await self._check_not_locked(*rooms, of=user_id)

    async def _begin_to_delete(self, user_id: UUID, deadline: float, ended: list[str]) -> tuple[list[UUID], bool]:
        """The rooms that the user has left by it, and whether nothing of the account is left."""
        joined = conflicts = 0
        while True:
            hides = joined == DELETE_ATTEMPTS - 1 and not isinstance(self._executor, OpenTransaction)
            try:
                async with self._executor.transaction(deadline=deadline) as part:
                    return await self._delete_in(part, user_id, ended, hides=hides)
            except _JoinedMeanwhile:
                joined += 1
                if joined == DELETE_ATTEMPTS:
                    raise Unavailable("postgresql", "the user keeps joining rooms") from None
            except LockNotAvailable:
                conflicts += 1
                if conflicts == DELETE_ATTEMPTS:
                    raise

    async def _delete_in(
        self, part: Executor, user_id: UUID, ended: list[str], *, hides: bool
    ) -> tuple[list[UUID], bool]:
        """With `hides` the account is hidden in any case. Raises: _JoinedMeanwhile, LockNotAvailable."""
        if part.is_distributed:  # one room per step, and a transaction for each
            require(await part.fetch_one(LOCK_ACCOUNT, user_id), NotFound, "user", user_id)
            check_outside_transaction(self._executor, "user_id", OF_SEVERAL_NODES)
            await part.execute(HIDE, user_id, False)
            await part.execute(HIDE_ACCOUNT, user_id)
            await part.execute(FORGET_PRESENCE, user_id)
            return [], False
        is_last, rooms = require(await part.fetch_one(LEAVE, user_id), NotFound, "user", user_id)
        is_large = require(await part.fetch_one(LOCK_ACCOUNT, user_id), NotFound, "user", user_id)
        if is_large or not is_last or hides:
            check_outside_transaction(self._executor, "user_id")
            await part.execute(HIDE_ACCOUNT, user_id)
            return rooms, False
        ended += await part.fetch_all(END_SESSIONS, user_id)
        if not await part.execute(DELETE_ACCOUNT, user_id):
            raise _JoinedMeanwhile
        return rooms, True
