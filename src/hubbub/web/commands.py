"""The commands of the protocol: what a client may ask, and what is done for it.

Each command is a frame and a handler. All of them act as the user (`hub.as_user`), which checks every permission.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, TypeVar, get_type_hints
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hubbub import inputs
from hubbub.errors import Conflict, Invalid, NotAMember, Unavailable
from hubbub.models import (
    Message,
    MessageType,
    Page,
    PublicUser,
    ReadReceipt,
    Role,
    Room,
    RoomSummary,
    RoomUser,
    Session,
    Value,
)
from hubbub.services.sessions import key_of
from hubbub.web import frames

if TYPE_CHECKING:
    from hubbub.acting_user import ActingUser
    from hubbub.hub import Hub
    from hubbub.web.connections import GatewayConnection

Handler = Callable[["Call", Any], Awaitable[object]]

MAX_SEARCH_LENGTH: Final = 100
"""No name that can be found is longer."""
ANSWER_BYTES: Final = 512 * 1024
"""An answer with more than one item is not larger. 16 answers may wait for a client that does not read."""
WATCHED_MEMBERS: Final = 200
"""Members of a watched room in the answer to `watch`. Changes come of all of them."""


class Call(msgspec.Struct, frozen=True):
    """The user of a command. `token` is that of the session, if there is one. By HTTP there is no `connection`."""

    hub: Hub
    user_id: UUID
    token: str | None = None
    connection: GatewayConnection | None = None

    @property
    def me(self) -> ActingUser:
        """The hub as the user has it."""
        return self.hub.as_user(self.user_id)


class Command:
    """A command with a name: the type of its frame, and the handler that does it."""

    def __init__(self, handler: Handler, name: str | None = None) -> None:
        """`name` is the tag of its frame by default. Raises: TypeError."""
        self.frame = _frame_of(handler)
        self.name = str(self.frame.__struct_config__.tag) if name is None else name
        self.call = handler
        self._decoder = msgspec.json.Decoder(self.frame)

    def decode(self, text: str | bytes) -> Any:  # noqa: ANN401 - a value of `frame`
        """The frame. Raises: Invalid."""
        return frames.decode(self._decoder, text)


def _frame_of(handler: Handler) -> type[msgspec.Struct]:
    """The type that the second parameter of a handler has. Raises: TypeError."""
    hints = get_type_hints(handler)
    hints.pop("return", None)
    found: object = list(hints.values())[-1] if hints else None
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        raise TypeError("the second parameter of a command must have the type of its frame, a msgspec.Struct")
    return found


# Commands.


class Send(frames.Frame, frozen=True, tag="send"):
    """A message. The client makes its `id`, so that it can repeat the command."""

    room_id: UUID
    content: str
    id: UUID | None = None
    message_type: str = MessageType.TEXT
    reply_to: UUID | None = None
    metadata: dict[str, Any] | None = None


class Edit(frames.Frame, frozen=True, tag="edit"):
    message_id: UUID
    content: str
    room_id: UUID | None = None


class Delete(frames.Frame, frozen=True, tag="delete"):
    message_id: UUID
    room_id: UUID | None = None


class Read(frames.Frame, frozen=True, tag="read"):
    """The user has read the room up to this seq."""

    room_id: UUID
    up_to: int


class Typing(frames.Frame, frozen=True, tag="typing"):
    room_id: UUID
    is_typing: bool


class History(frames.Frame, frozen=True, tag="page"):
    """A page of messages: the newest, or before or after a seq, or around a seq or a message."""

    room_id: UUID
    before: int | None = None
    after: int | None = None
    around: int | UUID | None = None
    limit: int = 50


class Rooms(frames.Frame, frozen=True, tag="rooms"):
    limit: int = 50
    after: str | None = None


class OneRoom(frames.Frame, frozen=True, tag="room"):
    room_id: UUID


class PublicRooms(frames.Frame, frozen=True, tag="public_rooms"):
    prefix: Annotated[str, Meta(max_length=MAX_SEARCH_LENGTH)] = ""
    limit: int = 50
    after: str | None = None


class Members(frames.Frame, frozen=True, tag="members"):
    room_id: UUID
    limit: int = 50
    after: str | None = None


class Create(frames.Frame, frozen=True, tag="create"):
    """A room. The client makes its `id`, so that it can repeat the command."""

    name: str
    id: UUID | None = None
    description: str | None = None
    is_private: bool = False
    metadata: dict[str, Any] | None = None


class Join(frames.Frame, frozen=True, tag="join"):
    room_id: UUID


class Leave(frames.Frame, frozen=True, tag="leave"):
    room_id: UUID


class Invite(frames.Frame, frozen=True, tag="invite"):
    room_id: UUID
    user_id: UUID
    role: Role = Role.MEMBER


class Direct(frames.Frame, frozen=True, tag="direct"):
    user_id: UUID


class Unread(frames.Frame, frozen=True, tag="unread"):
    """The user has not read the room from this seq on."""

    room_id: UUID
    from_seq: int


class Readers(frames.Frame, frozen=True, tag="readers"):
    message_id: UUID
    room_id: UUID | None = None
    limit: int = 50
    after: str | None = None


class UpdateRoom(frames.Frame, frozen=True, tag="update_room"):
    """Change what is given."""

    room_id: UUID
    name: str | None = None
    description: str | None = None
    is_private: bool | None = None
    metadata: dict[str, Any] | UnsetType | None = UNSET


class DeleteRoom(frames.Frame, frozen=True, tag="delete_room"):
    room_id: UUID


class Remove(frames.Frame, frozen=True, tag="remove"):
    room_id: UUID
    user_id: UUID


class SetRole(frames.Frame, frozen=True, tag="set_role"):
    room_id: UUID
    user_id: UUID
    role: Role


class UpdateProfile(frames.Frame, frozen=True, tag="update_profile"):
    """Change what is given. Null clears it."""

    username: str | None = None
    display_name: str | UnsetType | None = UNSET
    avatar_url: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET


class Watch(frames.Frame, frozen=True, tag="watch"):
    """The rooms of whose members the presence is wanted, instead of those before."""

    room_ids: Annotated[list[UUID], Meta(max_length=frames.MAX_WATCHED_ROOMS)]


class Users(frames.Frame, frozen=True, tag="users"):
    """The users with these ids, or those whose name begins with the prefix."""

    prefix: Annotated[str, Meta(max_length=MAX_SEARCH_LENGTH)] | None = None
    user_ids: Annotated[list[UUID], Meta(max_length=inputs.PAGE_LIMIT)] | None = None
    limit: int = 20


class Me(frames.Frame, frozen=True, tag="me"):
    pass


class Sessions(frames.Frame, frozen=True, tag="sessions"):
    pass


class Revoke(frames.Frame, frozen=True, tag="revoke"):
    session_id: str


class Auth(frames.Frame, frozen=True, tag="auth"):
    """A new token, before the old one expires. The connection ends with the session of the newest one."""

    token: frames.Token


# Results.


class ReadUpTo(Value, frozen=True):
    last_read_seq: int


class HistoryPage(Value, frozen=True):
    """A `MessagePage`, with the people who are on it."""

    room_id: UUID
    items: list[Message]
    has_older: bool
    has_newer: bool
    cursor: str | None
    users: list[PublicUser]


class RoomList(Page[RoomSummary], frozen=True):
    """A page of rooms, with the other users of direct rooms and the authors of the newest messages."""

    users: list[PublicUser]


class RoomDetails(RoomSummary, frozen=True):
    """A `RoomSummary`, with the people that it names."""

    users: list[PublicUser] = msgspec.field(default_factory=list)


class ReaderPage(Page[ReadReceipt], frozen=True):
    """A page of the readers of a message, with their users."""

    users: list[PublicUser]


class MemberPage(Page[RoomUser], frozen=True):
    """A page of memberships, with their users."""

    users: list[PublicUser]


class Online(Value, frozen=True):
    """The members who are online."""

    online: list[UUID]


class People(Value, frozen=True):
    """Users. `rest` are the ids that did not fit into the answer: ask for them next."""

    items: list[PublicUser]
    rest: list[UUID] = msgspec.field(default_factory=list)


class SessionList(Value, frozen=True):
    """The sessions of the user. `current` is the id of one's own."""

    items: list[Session]
    current: str | None


class Revoked(Value, frozen=True):
    """Whether there was such a session."""

    revoked: bool


class Renewed(Value, frozen=True):
    """For how many seconds a signed token is valid. None: as long as its session."""

    expires_in_seconds: float | None


# Handlers.


async def send(call: Call, frame: Send) -> Message:
    return await call.me.messages.send(
        frame.room_id,
        frame.content,
        id=frame.id,
        message_type=frame.message_type,
        reply_to=frame.reply_to,
        metadata=frame.metadata,
    )


async def edit(call: Call, frame: Edit) -> Message:
    return await call.me.messages.edit(frame.message_id, frame.content, room_id=frame.room_id)


async def delete(call: Call, frame: Delete) -> Message:
    return await call.me.messages.delete(frame.message_id, room_id=frame.room_id)


async def read(call: Call, frame: Read) -> ReadUpTo:
    return ReadUpTo(await call.me.receipts.mark_read(frame.room_id, up_to=frame.up_to))


async def typing(call: Call, frame: Typing) -> None:
    change = call.me.typing.start if frame.is_typing else call.me.typing.stop
    await change(frame.room_id)


async def page(call: Call, frame: History) -> HistoryPage:
    async def read(limit: int) -> HistoryPage:
        found = await call.me.messages.page(
            frame.room_id, before=frame.before, after=frame.after, around=frame.around, limit=limit
        )
        users = await people(call, (message.user_id for message in found.items))
        return HistoryPage(found.room_id, found.items, found.has_older, found.has_newer, found.cursor, users)

    return await _bounded(read, frame.limit)


async def rooms(call: Call, frame: Rooms) -> RoomList:
    async def read(limit: int) -> RoomList:
        found = await call.me.rooms.list(limit=limit, after=frame.after)
        users = await people(call, chain.from_iterable(map(_people_of, found.items)))
        return RoomList(found.items, found.next, users)

    return await _bounded(read, frame.limit)


class _Items(Protocol):
    @property
    def items(self) -> Sequence[object]: ...


A = TypeVar("A", bound=_Items)


async def _bounded(read: Callable[[int], Awaitable[A]], limit: int) -> A:
    """An answer with at most `limit` items, and with fewer if it has more than `ANSWER_BYTES` otherwise."""
    while True:
        answer = await read(limit)
        size = len(frames.encode(answer))
        if size <= ANSWER_BYTES or len(answer.items) <= 1:
            return answer
        limit = len(answer.items) * ANSWER_BYTES // size or 1


async def room(call: Call, frame: OneRoom) -> RoomDetails:
    found = await call.me.rooms.summary(frame.room_id)
    fields = {name: getattr(found, name) for name in RoomSummary.__struct_fields__}
    return RoomDetails(**fields, users=await people(call, _people_of(found)))


async def public_rooms(call: Call, frame: PublicRooms) -> Page[Room]:
    async def read(limit: int) -> Page[Room]:
        if frame.prefix:
            return await call.me.rooms.search(frame.prefix, limit=limit, after=frame.after)
        return await call.me.rooms.list_public(limit=limit, after=frame.after)

    return await _bounded(read, frame.limit)


async def members(call: Call, frame: Members) -> MemberPage:
    async def read(limit: int) -> MemberPage:
        found = await call.me.room_users.members(frame.room_id, limit=limit, after=frame.after)
        users = await people(call, (member.user_id for member in found.items))
        return MemberPage(found.items, found.next, users)

    return await _bounded(read, frame.limit)


async def create(call: Call, frame: Create) -> Room:
    try:
        return await call.me.rooms.create(
            frame.name,
            id=frame.id,
            description=frame.description,
            is_private=frame.is_private,
            metadata=frame.metadata,
        )
    except Conflict:
        if frame.id is None:
            raise
        with suppress(NotAMember):
            room = await call.me.rooms.get(frame.id)
            if (room.created_by, room.name) == (call.user_id, frame.name):
                return room  # repeated by a client that lost the answer
        raise


async def join(call: Call, frame: Join) -> RoomUser:
    return await call.me.room_users.join(frame.room_id)


async def leave(call: Call, frame: Leave) -> None:
    await call.me.room_users.leave(frame.room_id)


async def invite(call: Call, frame: Invite) -> RoomUser:
    return await call.me.room_users.add(frame.room_id, frame.user_id, frame.role)


async def direct(call: Call, frame: Direct) -> Room:
    return await call.me.rooms.direct(frame.user_id)


async def unread(call: Call, frame: Unread) -> ReadUpTo:
    return ReadUpTo(await call.me.receipts.mark_unread(frame.room_id, from_seq=frame.from_seq))


async def readers(call: Call, frame: Readers) -> ReaderPage:
    async def read(limit: int) -> ReaderPage:
        found = await call.me.receipts.readers(
            frame.message_id, room_id=frame.room_id, limit=limit, after=frame.after
        )
        users = await people(call, (receipt.user_id for receipt in found.items))
        return ReaderPage(found.items, found.next, users)

    return await _bounded(read, frame.limit)


async def update_room(call: Call, frame: UpdateRoom) -> Room:
    return await call.me.rooms.update(
        frame.room_id,
        name=frame.name,
        description=frame.description,
        is_private=frame.is_private,
        metadata=frame.metadata,
    )


async def delete_room(call: Call, frame: DeleteRoom) -> None:
    await call.me.rooms.delete(frame.room_id)


async def remove(call: Call, frame: Remove) -> None:
    await call.me.room_users.remove(frame.room_id, frame.user_id)


async def set_role(call: Call, frame: SetRole) -> RoomUser:
    return await call.me.room_users.set_role(frame.room_id, frame.user_id, frame.role)


async def update_profile(call: Call, frame: UpdateProfile) -> PublicUser:
    changed = await call.me.users.update(
        username=frame.username,
        display_name=frame.display_name,
        avatar_url=frame.avatar_url,
        metadata=frame.metadata,
    )
    return changed.public


async def watch(call: Call, frame: Watch) -> Online:
    pages = [await call.me.room_users.members(room_id, limit=WATCHED_MEMBERS) for room_id in frame.room_ids]
    if call.connection is not None:
        call.connection.watch(frame.room_ids)
    are_online = await call.me.presence.is_online({one.user_id for page in pages for one in page.items})
    if None in are_online.values():
        raise Unavailable("redis", "presence is unknown")
    return Online([user_id for user_id, is_online in are_online.items() if is_online])


async def users(call: Call, frame: Users) -> People:
    if (frame.prefix is None) == (frame.user_ids is None):
        raise Invalid("prefix", "exactly one of prefix and user_ids must be given")
    prefix, ids = frame.prefix, list(dict.fromkeys(frame.user_ids or ()))

    async def read(limit: int) -> People:
        if prefix is not None:
            return People((await call.me.users.search(prefix, limit=limit)).items)
        return People(await people(call, ids[:limit]), ids[limit:])

    return await _bounded(read, frame.limit if prefix is not None else len(ids))


async def me(call: Call, _: Me) -> PublicUser:
    return (await call.me.users.me()).public


async def sessions(call: Call, _: Sessions) -> SessionList:
    current = None if call.token is None else key_of(call.token).id
    return SessionList(await call.me.sessions.list(), current)


async def revoke(call: Call, frame: Revoke) -> Revoked:
    return Revoked(await call.me.sessions.revoke(frame.session_id))


async def auth(call: Call, frame: Auth) -> Renewed:
    connection = call.connection
    if connection is None:
        raise Invalid("type", "must be another command: this one needs a connection")
    identity = await connection.gateway.identify_by(call.hub, frame.token)
    if identity is None or identity.user_id != call.user_id:
        raise Invalid("token", "must be a valid token of the same user")
    await connection.renew(identity)
    return Renewed(identity.expires_in_seconds)


async def people(call: Call, user_ids: Iterable[UUID | None]) -> list[PublicUser]:
    """The users with these ids, without those that are deleted."""
    wanted = {user_id for user_id in user_ids if user_id is not None}
    return list((await call.me.users.get_many(wanted)).values()) if wanted else []


def _people_of(summary: RoomSummary) -> Iterable[UUID | None]:
    last = summary.last_message
    return summary.partner_id, None if last is None else last.user_id


_HANDLERS: Final[tuple[Handler, ...]] = (
    *(send, edit, delete, read, typing, page, rooms, room, public_rooms, members, create, join, leave, invite),
    *(direct, unread, readers, update_room, delete_room, remove, set_role, update_profile, watch, users, me),
    *(sessions, revoke, auth),
)
COMMANDS: Final[Mapping[str, Command]] = {command.name: command for command in map(Command, _HANDLERS)}
"""The commands of hubbub, by name."""
