"""The users that lines refer to: found or created. A nickname that is not a valid username gets one."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Conflict, Invalid
from hubbub.history.lines import KEPT_LENGTH, AnyLine, Line, RoomLine, UserLine, derive_user_id, metadata_of
from hubbub.postgres import Executor, Statement
from hubbub.sql import folded, not_deleted, username_key

NO_LOGIN: Final = "!"
"""Not a bcrypt hash: no password opens an imported account until one is set."""

NO_EMAIL: Final = "import.invalid"
"""The domain of the addresses of users without one. It can never exist, so no mail is sent there (RFC 2606)."""

REMEMBERED_USERS: Final = 200_000
"""How many users a long import keeps in memory. Beyond it all are forgotten, and found again when named."""


class Renamed(NamedTuple):
    """A nickname that is not a valid or free username, and the username that it got."""

    nickname: str
    username: str
    reason: str


def why_refused(nickname: str) -> str | None:
    """Why hubbub does not accept this username, None if it does."""
    try:
        inputs.username(nickname)
    except Invalid as error:
        return error.reason
    return None


def accepted(nickname: str) -> str:
    """The valid username that is closest to a refused nickname."""
    name = "".join(letter if letter.isprintable() and letter != "@" else "_" for letter in nickname)
    name = name.strip()[: inputs.USERNAME_LENGTH].strip() or "nameless"
    while why_refused(name) is not None:  # only the composed form can be longer than what was cut
        name = name[:-1].strip() or "nameless"
    return name


def marked(nickname: str, mark: str) -> str:
    """The closest valid username with eight digits of a hash of `mark` at its end: the same one each time."""
    ending = f"-{sha256(mark.encode()).hexdigest()[:8]}"
    return accepted(nickname)[: inputs.USERNAME_LENGTH - len(ending)].rstrip() + ending


# How a line refers to a user: by id, or else by nickname. A long nickname is replaced by its hash.
UserKey = UUID | str | bytes


def key_of(line: Line) -> UserKey:
    """How the line refers to its user. Empty if it has none."""
    key = line.user_id or line.user or ""
    return key if isinstance(key, UUID) or len(key) <= KEPT_LENGTH else sha256(key.encode()).digest()


class LineUser(NamedTuple):
    """A user that a line refers to: the account that is created if there is none, and its username."""

    key: UserKey
    account: UserLine
    username: str
    renamed: Renamed | None


FIND = Statement(
    "history.find_users",
    lambda ordinal, user_id: (ordinal, user_id),
    f"""
    SELECT
        wanted.ordinal,
        COALESCE(by_id.id, by_external_id.id, by_email.id, by_name.id) AS user_id
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
        WITH ORDINALITY AS wanted (id, email, username, external_id, ordinal)
    LEFT JOIN users AS by_id ON by_id.id = wanted.id AND {not_deleted("by_id.id")}
    LEFT JOIN users AS by_external_id ON by_external_id.external_id COLLATE "C" = wanted.external_id
    LEFT JOIN users AS by_email ON {folded("by_email.email")} = wanted.email
    LEFT JOIN users AS by_name ON {username_key("by_name")} = wanted.username
    WHERE COALESCE(by_id.id, by_external_id.id, by_email.id, by_name.id) IS NOT NULL
    """,
)

# In the order of the ids, so that two imports that create the same users wait for each other without a deadlock.
CREATE = Statement(
    "history.create_users",
    lambda id: id,
    """
    INSERT INTO users (
        id, email, username, password_hash, avatar_url, created_at, updated_at, username_key, username_key_of,
        display_name, display_name_key, metadata, kind, external_id
    )
    SELECT
        id, email, username, $6, avatar_url, at, at, key, CASE WHEN key IS NOT NULL THEN username END,
        display_name, display_name_key, metadata::jsonb, kind, external_id
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $7::text[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[]
    ) AS new (
        id, email, username, avatar_url, at, key, display_name, display_name_key, metadata, kind, external_id
    )
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
    """,
)


HIDDEN = Statement(
    "history.hidden_users",
    lambda id: id,
    "SELECT id FROM hubbub_deletions WHERE id = ANY($1::uuid[])",
)


class LineUsers:
    """The users that the lines of a file mean. To be forgotten when a transaction that created some failed."""

    def __init__(self) -> None:
        self._ids: dict[UserKey, UUID] = {}
        # Of accounts that have another id in this database. Only the line of the account shows that, so they stay.
        self._aliases: dict[UserKey, UUID] = {}

    def forget(self) -> None:
        """Have all users looked up again."""
        self._ids = dict(self._aliases)

    def __getitem__(self, line: Line) -> UUID | None:
        """The user of a line. None if it has none, or only the id of a deleted account."""
        return self._ids.get(key_of(line))

    def find(self, key: UserKey) -> UUID | None:
        """The user of this key, as far as lines have referred to it."""
        return self._ids.get(key)

    async def find_or_create(self, executor: Executor, lines: Iterable[AnyLine]) -> list[LineUser]:
        """Find the users of these lines and create the missing ones; returns those that it created.

        Users that the lines refer to by id alone are found only.

        Raises: Conflict (a user can be neither found nor created).
        """
        if len(self._ids) > REMEMBERED_USERS:
            self.forget()
        users, ids = self._wanted(lines)
        created, others = await self._create(executor, await self._find(executor, users))
        # The others were created by another transaction just now, or their username is taken.
        others = [_under_another_name(one) for one in await self._find(executor, others)]
        renamed, others = await self._create(executor, others)
        # Those left have to be accounts whose deletion is not finished: their lines have no user.
        left = [one.account.id for one in others]
        if left and len(await executor.fetch_all(HIDDEN, left)) < len(left):
            raise Conflict("username")
        unknown = [id for id in ids if self.find(id) is None]
        absent = [None] * len(unknown)
        for ordinal, user_id in await executor.fetch_all(FIND, unknown, absent, absent, absent):
            self._ids[unknown[ordinal - 1]] = user_id
        return created + renamed

    def _wanted(self, lines: Iterable[AnyLine]) -> tuple[list[LineUser], set[UUID]]:
        """The users that can be created from these lines, and the ids of the others."""
        users: dict[UserKey, LineUser] = {}
        ids: set[UUID | None] = {None}
        for line in lines:
            if isinstance(line, UserLine):
                users[line.id] = _line_user(line.id, line)
            elif isinstance(line, RoomLine):
                ids |= {line.created_by, *(line.direct or ())}
            elif line.user is None:
                ids.add(line.user_id)
            else:
                key = key_of(line)
                if key not in users and self.find(key) is None:
                    id = line.user_id or derive_user_id(line.user)
                    account = UserLine(at=line.at, id=id, user=line.user, email=f"{id.hex}@{NO_EMAIL}")
                    users[key] = _line_user(key, account)
        return list(users.values()), {id for id in ids if id is not None}

    async def _find(self, executor: Executor, users: list[LineUser]) -> list[LineUser]:
        """Remember the users that exist; returns the others."""
        accounts = [one.account for one in users]
        emails = [None if one.email is None else inputs.folded(one.email) for one in accounts]
        names = [None if isinstance(one.key, UUID) else inputs.same_name(one.username) for one in users]
        external_ids = [one.external_id for one in accounts]
        found = await executor.fetch_all(FIND, [one.id for one in accounts], emails, names, external_ids)
        for ordinal, user_id in found:
            self._remember(users[ordinal - 1], user_id)
        ordinals = {ordinal for ordinal, _ in found}
        return [one for ordinal, one in enumerate(users, 1) if ordinal not in ordinals]

    async def _create(self, executor: Executor, users: list[LineUser]) -> tuple[list[LineUser], list[LineUser]]:
        """The users that could be created, and the others."""
        if not users:
            return [], []
        accounts = [one.account for one in users]
        shown = [one.display_name for one in accounts]
        new_ids = await executor.fetch_all(
            CREATE,
            [one.id for one in accounts],
            [one.email for one in accounts],
            [one.username for one in users],
            [one.avatar_url for one in accounts],
            [one.at for one in accounts],
            NO_LOGIN,
            [inputs.stored_key(one.username) for one in users],
            shown,
            [None if name is None else inputs.search_key(name) for name in shown],
            [metadata_of(one) for one in accounts],
            [one.user_kind for one in accounts],
            [one.external_id for one in accounts],
        )
        new = set(new_ids)
        created = [one for one in users if one.account.id in new]
        for one in created:
            self._remember(one, one.account.id)
        return created, [one for one in users if one.account.id not in new]

    def _remember(self, user: LineUser, user_id: UUID) -> None:
        self._ids[user.key] = user_id
        if isinstance(user.key, UUID) and user.key != user_id:
            self._aliases[user.key] = user_id


def _line_user(key: UserKey, account: UserLine) -> LineUser:
    nickname = account.user
    reason = why_refused(nickname)
    if reason is None:
        return LineUser(key, account, inputs.username(nickname), renamed=None)
    username = marked(nickname, nickname)
    return LineUser(key, account, username, Renamed(nickname, username, reason))


def _under_another_name(user: LineUser) -> LineUser:
    username = marked(user.username, str(user.account.id))
    renamed = Renamed(user.username, username, "another user has this username, in this or another spelling")
    return user._replace(username=username, renamed=user.renamed or renamed)
