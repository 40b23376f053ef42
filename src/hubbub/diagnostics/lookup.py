"""Users and rooms as people name them at a terminal or on a page."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, NotFound
from hubbub.hub import Hub
from hubbub.models import User


async def find_user(chat: Hub, user: str) -> User:
    """The user with this id, or else with this email, username or id in another system.

    Raises: NotFound, Invalid (it is a name of one user and the external id of another).
    """

    async def find_by_id(user: str) -> User | None:
        id = inputs.uuid("user", user)
        return (await chat.users.get_many([id])).get(id)

    find_by_name = chat.users.find_by_email if "@" in user else chat.users.find_by_username
    found: list[User] = []
    for finds in ([find_by_id], [find_by_name, chat.users.find_by_external_id]):
        for find in finds:
            with suppress(Invalid):  # it does not have the form of one
                if (one := await find(user)) is not None:
                    found.append(one)
        if found:
            break
    if not found:
        raise NotFound("user", user)
    if len({one.id for one in found}) > 1:
        named, external = found
        raise Invalid("user", f"is a name of {named.id} and the external id of {external.id}: use an id")
    return found[0]


async def find_room(chat: Hub, room: str) -> UUID:
    """The id of the room with this id, or of the public room with this name. Raises: NotFound, Invalid."""
    try:
        return inputs.uuid("room", room)
    except Invalid:  # not an id, so it is a name
        return await chat.history.find(room)
