"""The users that lines speak of: found, or made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Conflict
from hubbub.history.forms import AnyLine, Line, UserLine
from hubbub.history.identities import derive_user_id, email_of
from hubbub.history.nicknames import NO_LOGIN, Renamed, marked, refusal
from hubbub.postgres import Executor, Statement

# What a line calls a user by: an id, or else a nickname.
Key = UUID | str

# So many are remembered; then all are forgotten, and found again when they are met.
REMEMBERED: Final = 200_000


class Person(NamedTuple):
    """Somebody a line speaks of. `is_known_by_name`: it is the user of this name, in any case, who is meant."""

    key: Key
    id: UUID
    email: str
    username: str
    avatar_url: str | None
    at: datetime
    is_known_by_name: bool
    renamed: Renamed | None


class _Found(NamedTuple):
    place: int
    user_id: UUID


FIND = Statement(
    "history.find_users",
    _Found,
    """
    SELECT
        asked.place,
        COALESCE(by_id.id, by_email.id, by_name.id) AS user_id
    FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS asked (id, email, username, place)
    LEFT JOIN users AS by_id ON by_id.id = asked.id
    LEFT JOIN users AS by_email ON lower(by_email.email) = lower(asked.email)
    LEFT JOIN users AS by_name ON lower(by_name.username) = lower(asked.username)
    WHERE COALESCE(by_id.id, by_email.id, by_name.id) IS NOT NULL
    """,
)

# In one order, so that two imports which make the same users wait for each other and are not locked out.
MAKE = Statement(
    "history.make_users",
    lambda id: id,
    """
    INSERT INTO users (id, email, username, password_hash, avatar_url, created_at, updated_at)
    SELECT id, email, username, $4, avatar_url, at, at
    FROM unnest($1::uuid[], $2::text[], $3::text[], $5::text[], $6::timestamptz[])
        AS person (id, email, username, avatar_url, at)
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
    """,
)


class People:
    """Whom the lines of a file mean. To be forgotten when a transaction that made users is rolled back."""

    def __init__(self) -> None:
        self._ids: dict[Key, UUID] = {}
        # Of accounts that are here under another id. No later line says so again, so these stay.
        self._aliases: dict[Key, UUID] = {}

    def forget(self) -> None:
        self._ids = dict(self._aliases)

    def __getitem__(self, line: Line) -> UUID | None:
        """The user of a line. None where it has none, or only the id of an account that is gone."""
        return self._ids.get(line.user_id or line.user or "")

    def find(self, key: Key) -> UUID | None:
        return self._ids.get(key)

    async def meet(self, executor: Executor, lines: Iterable[AnyLine], others: Iterable[UUID]) -> list[Person]:
        """Find the users of these lines and make those whom nobody knows; returns whom it made.

        `others` are ids that are looked for only.
        """
        if len(self._ids) > REMEMBERED:
            self.forget()
        persons = self._persons(lines)
        missing = await self._find(executor, persons.values())
        made = await self._make(executor, missing)
        missing = await self._find(executor, [one for one in missing if one not in made])
        again = await self._make(executor, [_under_another_name(one) for one in missing])
        if len(again) < len(missing):
            raise Conflict("username")
        unknown = [id for id in others if self.find(id) is None]
        for found in await executor.fetch_all(FIND, unknown, [None] * len(unknown), [None] * len(unknown)):
            self._ids[unknown[found.place - 1]] = found.user_id
        return made + again

    def _persons(self, lines: Iterable[AnyLine]) -> dict[Key, Person]:
        persons: dict[Key, Person] = {}
        for line in lines:
            if isinstance(line, UserLine):
                persons[line.id] = _person(line.id, line.id, line.user, line.at, line)
            elif isinstance(line, Line) and line.user is not None:
                key = line.user_id or line.user
                if key not in persons and self.find(key) is None:
                    persons[key] = _person(
                        key, line.user_id or derive_user_id(line.user), line.user, line.at, None
                    )
        return persons

    async def _find(self, executor: Executor, persons: Iterable[Person]) -> list[Person]:
        """Remembers who is found; returns who is not."""
        asked = list(persons)
        names = [one.username if one.is_known_by_name else None for one in asked]
        found = await executor.fetch_all(FIND, [one.id for one in asked], [one.email for one in asked], names)
        for place, user_id in found:
            self._remember(asked[place - 1], user_id)
        places = {one.place for one in found}
        return [one for place, one in enumerate(asked, 1) if place not in places]

    def _remember(self, person: Person, user_id: UUID) -> None:
        self._ids[person.key] = user_id
        if isinstance(person.key, UUID) and person.key != user_id:
            self._aliases[person.key] = user_id

    async def _make(self, executor: Executor, persons: list[Person]) -> list[Person]:
        if not persons:
            return []
        ids = set(
            await executor.fetch_all(
                MAKE,
                [one.id for one in persons],
                [one.email for one in persons],
                [one.username for one in persons],
                NO_LOGIN,
                [one.avatar_url for one in persons],
                [one.at for one in persons],
            )
        )
        made = [one for one in persons if one.id in ids]
        for one in made:
            self._remember(one, one.id)
        return made


def _person(key: Key, id: UUID, nickname: str, at: datetime, account: UserLine | None) -> Person:
    reason = refusal(nickname)
    username = inputs.username(nickname) if reason is None else marked(nickname, nickname)
    return Person(
        key,
        id,
        email_of(id) if account is None else account.email,
        username,
        None if account is None else account.avatar_url,
        at,
        is_known_by_name=not isinstance(key, UUID),
        renamed=None if reason is None else Renamed(nickname, username, reason),
    )


def _under_another_name(person: Person) -> Person:
    username = marked(person.username, str(person.id))
    renamed = Renamed(person.username, username, "somebody has it, in this or in another case")
    return person._replace(username=username, renamed=person.renamed or renamed)
