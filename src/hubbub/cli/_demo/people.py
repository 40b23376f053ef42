"""The people of a log as users of hubbub, each nickname one user."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Conflict
from hubbub.history.people import NO_LOGIN, Renamed, accepted, why_refused
from hubbub.repositories import Users


class People:
    """Makes a user for each nickname when it is first met.

    Nicknames that differ by case only, which hubbub takes for one name, are still different people: the later
    one gets a number.
    """

    def __init__(self, users: Users) -> None:
        self._users = users
        self._ids: dict[str, UUID] = {}
        self._numbers = count(1)
        self.renamed: list[Renamed] = []

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, nickname: str) -> bool:
        return nickname in self._ids

    def __getitem__(self, nickname: str) -> UUID:
        return self._ids[nickname]

    @property
    def ids(self) -> list[UUID]:
        return list(self._ids.values())

    def made_an_account(self, nickname: str, user_id: UUID) -> None:
        """Somebody who came by himself."""
        self._ids[nickname] = user_id

    async def meet(self, nickname: str) -> UUID:
        """Make the user of a nickname that was not met before."""
        number = next(self._numbers)
        reason = why_refused(nickname)
        for username in _candidates(nickname if reason is None else accepted(nickname)):
            try:
                user = await self._users.create(f"user-{number:04}@example.org", username, NO_LOGIN)
            except Conflict as error:
                if error.what != "username":
                    raise
                reason = reason or "somebody has it, in this or in another case"
                continue
            break
        if reason is not None:
            self.renamed.append(Renamed(nickname, user.username, reason))
        self._ids[nickname] = user.id
        return user.id


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        ending = f"-{number}"
        yield name[: inputs.USERNAME_LENGTH - len(ending)] + ending
