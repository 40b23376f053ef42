"""What operators ask: figures of the chat and of its servers, problems with remedies, users and rooms by name."""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, NotFound
from hubbub.history import derive_user_id
from hubbub.hub import Hub
from hubbub.models import User


async def find_user(chat: Hub, user: str) -> User:
    """The user with this id, or else with this email, username or id in another system.

    Raises: NotFound, Invalid (it is a name of one user and the external id of another).
    """

    with suppress(Invalid):  # not an id
        id = inputs.uuid("user", user)
        if (by_id := (await chat.users.get_many([id])).get(id)) is not None:
            return by_id
    find_by_name = chat.users.find_by_email if "@" in user else chat.users.find_by_username
    found: list[User] = []
    for find in (find_by_name, chat.users.find_by_external_id):
        with suppress(Invalid):  # it does not have the form of one
            if (one := await find(user)) is not None:
                found.append(one)
    if not found:
        raise NotFound("user", user)
    if found[0].id != found[-1].id:
        reason = f"is a name of {found[0].id} and the external id of {found[1].id}: use an id"
        raise Invalid("user", reason)
    return found[0]


async def find_imported_user(chat: Hub, nickname: str) -> UUID:
    """The id of the user that the lines of an imported log mean by this nickname.

    A nickname in another form, as with a decomposed letter, means the user with it as their username.
    """
    derived = derive_user_id(nickname)
    found = (await chat.users.get_many([derived])).get(derived) or await chat.users.find_by_username(nickname)
    return derived if found is None else found.id


async def find_room(chat: Hub, room: str) -> UUID:
    """The id of the room with this id, or of the public room with this name. Raises: NotFound, Invalid."""
    try:
        return inputs.uuid("room", room)
    except Invalid:  # not an id, so it is a name
        return await chat.history.find(room)
