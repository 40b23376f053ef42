"""Who is in the rooms that lines speak of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from hubbub.history.forms import AnyLine, Line
from hubbub.history.people import People
from hubbub.history.rooms import Held, room_id_of
from hubbub.models import Role
from hubbub.postgres import Executor, Statement

# Memberships that are remembered, beside those of the batch.
REMEMBERED: Final = 200_000

MEMBERS = Statement(
    "history.members",
    lambda room_id, user_id, role: (room_id, user_id, role),
    """
    SELECT
        room_id,
        user_id,
        role
    FROM room_users
    JOIN unnest($1::uuid[], $2::uuid[]) AS asked (room_id, user_id) USING (room_id, user_id)
    """,
)


@dataclass(slots=True)
class Crowd:
    """Of the users that were `asked` for, the members of a room and their roles, as of `last_seq`."""

    last_seq: int
    roles: dict[UUID, Role] = field(default_factory=dict)
    asked: set[UUID] = field(default_factory=set)


class Members:
    """Remembers who is in a room for as long as its log does not grow: to join and to leave are entries of it."""

    def __init__(self) -> None:
        self._crowds: dict[UUID, Crowd] = {}

    def forget(self) -> None:
        self._crowds.clear()

    async def look_up(
        self, executor: Executor, held: Sequence[Held], lines: Iterable[AnyLine], people: People
    ) -> dict[UUID, Crowd]:
        """The crowds of rooms that are held, as far as the lines speak of them."""
        if sum(len(crowd.asked) for crowd in self._crowds.values()) > REMEMBERED:
            self.forget()
        crowds = {room.id: self._crowd(room) for room in held}
        pairs = _unasked(crowds, lines, people)
        rows = await executor.fetch_all(MEMBERS, [room for room, _ in pairs], [user for _, user in pairs])
        for room_id, user_id in pairs:
            crowds[room_id].asked.add(user_id)
        for room_id, user_id, role in rows:
            crowds[room_id].roles[user_id] = Role(role)
        return crowds

    def _crowd(self, room: Held) -> Crowd:
        crowd = self._crowds.get(room.id)
        if crowd is None or crowd.last_seq != room.last_seq:
            crowd = self._crowds[room.id] = Crowd(room.last_seq)
        return crowd


def _unasked(crowds: dict[UUID, Crowd], lines: Iterable[AnyLine], people: People) -> list[tuple[UUID, UUID]]:
    """Few pairs of room and user among many lines: so they are told apart by their words first."""
    distinct = {
        (line.room_id or line.room, line.user_id or line.user): line for line in lines if isinstance(line, Line)
    }
    pairs: dict[tuple[UUID, UUID], None] = {}
    for line in distinct.values():
        room_id, user_id = room_id_of(line), people[line]
        crowd = crowds.get(room_id)
        if crowd is not None and user_id is not None and user_id not in crowd.asked:
            pairs[room_id, user_id] = None
    return list(pairs)
