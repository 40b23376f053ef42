"""The log of a room as it grows in memory, and its members with it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.history.forms import ChangeLine, MemberLine
from hubbub.history.members import Crowd
from hubbub.history.rooms import Held
from hubbub.models import Role
from hubbub.postgres import Row


class Membership(NamedTuple):
    """A membership that a batch makes. `read` of None: all that is imported counts as read."""

    joined_at: datetime
    role: Role
    joined_seq: int
    read: int | None
    last_read_message_id: UUID | None = None

    @classmethod
    def of(cls, line: MemberLine) -> Membership:
        return cls(line.at, line.role, line.joined_seq, line.last_read_seq, line.last_read_message_id)


class RoomLog:
    """The log of one room, and its members as far as the batch speaks of them.

    `made`, `gone`, `roles` and `states` are what becomes of memberships, `changed` what becomes of the room, and
    `events` the rows of entries that are no messages.
    """

    __slots__ = (
        *("began", "changed", "crowd", "events", "gone", "hex", "id", "is_direct", "last_seq"),
        *("made", "members", "roles", "states"),
    )

    def __init__(self, held: Held, crowd: Crowd) -> None:
        self.id = held.id
        self.hex = held.id.hex
        self.is_direct = held.is_direct
        self.began = self.last_seq = held.last_seq
        self.crowd = crowd
        self.members = crowd.roles
        self.events: list[Row] = []
        self.made: dict[UUID, Membership] = {}
        self.gone: set[UUID] = set()
        self.roles: dict[UUID, Role] = {}
        self.states: dict[UUID, Membership] = {}
        self.changed: ChangeLine | None = None

    @property
    def has_grown(self) -> bool:
        return self.last_seq > self.began

    def check_next(self, seq: int) -> None:
        """Raises `Invalid` where this cannot be the number of the next entry."""
        if seq <= self.last_seq:
            raise Invalid("seq", f"something else is entry {seq:,} of the room")
        if seq > self.last_seq + 1:
            raise Invalid("seq", f"{seq:,} cannot follow {self.last_seq:,}, the last entry of the room")

    def append(
        self,
        kind: str,
        at: datetime,
        user_id: UUID | None,
        *,
        about: UUID | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> None:
        """An entry that is no message."""
        self.last_seq += 1
        said = msgspec.json.encode(payload or {}).decode()
        self.events.append((self.id, self.last_seq, kind, about, user_id, said, at))

    def let_in(self, user_id: UUID, at: datetime, role: Role, *, read: int | None) -> None:
        self.members[user_id] = role
        self.made[user_id] = Membership(at, role, self.last_seq, read)

    def let_go(self, user_id: UUID) -> None:
        del self.members[user_id]
        if self.made.pop(user_id, None) is None:
            self.gone.add(user_id)
            self.roles.pop(user_id, None)
            self.states.pop(user_id, None)

    def give(self, user_id: UUID, role: Role) -> None:
        self.members[user_id] = role
        if user_id in self.made:
            self.made[user_id] = self.made[user_id]._replace(role=role)
        else:
            self.roles[user_id] = role

    def restore(self, user_id: UUID, membership: Membership) -> None:
        """A membership as it was elsewhere."""
        if user_id in self.members and user_id not in self.made:
            self.states[user_id] = membership
        else:
            self.members[user_id] = membership.role
            self.made[user_id] = membership
