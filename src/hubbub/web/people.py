"""Users as other people see them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hubbub.models import User, Value

if TYPE_CHECKING:
    from hubbub.hub import Hub


class PublicUser(Value, frozen=True):
    """A user without the email."""

    id: UUID
    username: str
    display_name: str | None
    avatar_url: str | None
    is_online: bool
    last_seen: datetime | None
    metadata: Mapping[str, Any] | None = None


def public(user: User) -> PublicUser:
    return PublicUser(user.id, user.username, None, user.avatar_url, user.is_online, user.last_seen)


async def find(hub: Hub, username: str) -> list[PublicUser]:
    found = await hub.users.find_by_username(username)
    return [] if found is None else [public(found)]
