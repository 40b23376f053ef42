"""Users and rooms as people name them at a terminal or on a page."""

from __future__ import annotations

from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, NotFound
from hubbub.hub import Hub
from hubbub.models import User


async def find_user(chat: Hub, user: str) -> User:
    """The user with this id, email or username. Raises: NotFound."""
    try:
        return await chat.users.get(inputs.uuid("user", user))
    except Invalid:  # not an id, so it is a name or an address
        found = await (chat.users.find_by_email(user) if "@" in user else chat.users.find_by_username(user))
    if found is None:
        raise NotFound("user", user)
    return found


async def find_room(chat: Hub, room: str) -> UUID:
    """The id of the room with this id, or of the public room with this name. Raises: NotFound, Invalid."""
    try:
        return inputs.uuid("room", room)
    except Invalid:  # not an id, so it is a name
        return await chat.history.find(room)
