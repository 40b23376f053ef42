"""The operations of a hub as one of its users, with the rights that docs/permissions.md lists.

Each check is part of the statement that reads or changes, so no membership ends between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from hubbub import inputs
from hubbub.errors import Invalid, NotFound
from hubbub.events import LogPage
from hubbub.models import (
    Message,
    MessagePage,
    MessageType,
    NewMessage,
    Page,
    PublicUser,
    ReadReceipt,
    Role,
    Room,
    RoomSummary,
    RoomUser,
    Session,
    User,
)
from hubbub.renamed import Renamed
from hubbub.repositories import Messages, ReadReceipts, Rooms, RoomUsers, Users
from hubbub.repositories.messages.pages import PageAnchor
from hubbub.services.feed import Follower
from hubbub.services.presence import Device, Presence
from hubbub.services.sessions import SessionService
from hubbub.services.typing_indicators import TypingIndicators
from hubbub.sql import require


class UserMessages:
    """The messages of the rooms that the user is a member of."""

    def __init__(self, messages: Messages, user_id: UUID) -> None:
        self._all = messages
        self._user_id = user_id

    async def send(
        self,
        room_id: UUID,
        content: str,
        *,
        message_type: MessageType | str = MessageType.TEXT,
        id: UUID | None = None,
        reply_to: UUID | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> Message:
        """As `hub.messages.send`. Raises: NotAMember, NotFound, Conflict."""
        return await self._all.send(
            room_id,
            self._user_id,
            content,
            message_type=message_type,
            id=id,
            reply_to=reply_to,
            metadata=metadata,
        )

    async def send_many(self, room_id: UUID, drafts: Iterable[NewMessage]) -> list[Message]:
        """As `hub.messages.send_many`. Raises: NotAMember, NotFound, Conflict."""
        return await self._all.send_many(room_id, self._user_id, drafts)

    async def edit(self, message_id: UUID, content: str, *, room_id: UUID | None = None) -> Message:
        """As `hub.messages.edit`. Raises: NotFound, NotAMember, Forbidden, Invalid (the message is deleted)."""
        return await self._all.edit(message_id, content, by=self._user_id, room_id=room_id)

    async def delete(self, message_id: UUID, *, room_id: UUID | None = None) -> Message:
        """As `hub.messages.delete`. Raises: NotFound, NotAMember, Forbidden."""
        return await self._all.delete(message_id, by=self._user_id, room_id=room_id)

    async def get(self, message_id: UUID, *, room_id: UUID | None = None) -> Message:
        """As `hub.messages.get`. Raises: NotFound, NotAMember."""
        return await self._all.get(message_id, room_id=room_id, as_user=self._user_id)

    async def page(
        self,
        room_id: UUID,
        *,
        before: PageAnchor | None = None,
        after: PageAnchor | None = None,
        around: PageAnchor | UUID | None = None,
        limit: int = 50,
    ) -> MessagePage:
        """As `hub.messages.page`. Raises: NotAMember, NotFound (no such message)."""
        return await self._all.page(
            room_id, before=before, after=after, around=around, limit=limit, as_user=self._user_id
        )

    async def page_json(
        self,
        room_id: UUID,
        *,
        before: PageAnchor | None = None,
        after: PageAnchor | None = None,
        around: PageAnchor | UUID | None = None,
        limit: int = 50,
    ) -> bytes:
        """As `hub.messages.page_json`. Raises: NotAMember, NotFound (no such message)."""
        return await self._all.page_json(
            room_id, before=before, after=after, around=around, limit=limit, as_user=self._user_id
        )

    async def since(self, room_id: UUID, cursor: str | None, *, limit: int = 200) -> LogPage:
        """As `hub.messages.since`. Raises: NotAMember."""
        return await self._all.since(room_id, cursor, limit=limit, as_user=self._user_id)


class UserRooms:
    """The rooms of the user, and the public ones."""

    def __init__(self, rooms: Rooms, users: Users, user_id: UUID) -> None:
        self._all = rooms
        self._users = users
        self._user_id = user_id

    async def create(
        self,
        name: str,
        *,
        description: str | None = None,
        is_private: bool = False,
        keeps_receipts: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: UUID | None = None,
    ) -> Room:
        """As `hub.rooms.create`. The user becomes its admin. Raises: NotFound (a deleted account), Conflict."""
        return await self._all.create(
            name,
            created_by=self._user_id,
            description=description,
            is_private=is_private,
            keeps_receipts=keeps_receipts,
            metadata=metadata,
            id=id,
        )

    async def get(self, room_id: UUID) -> Room:
        """As `hub.rooms.get`, for a room of the user or a public one. Raises: NotAMember."""
        return await self._all.get(room_id, as_user=self._user_id)

    async def list(self, *, limit: int = 50, after: str | None = None, unread_cap: int = 100) -> Page[RoomSummary]:
        """As `hub.rooms.list_for`. Raises: NotFound (the account is deleted)."""
        page = await self._all.list_for(self._user_id, limit=limit, after=after, unread_cap=unread_cap)
        if not page.items:
            await self._users.get(self._user_id)
        return page

    async def list_json(self, *, limit: int = 50, after: str | None = None, unread_cap: int = 100) -> bytes:
        """As `list`, as JSON in UTF-8. Raises: NotFound (the account is deleted)."""
        return msgspec.json.encode(await self.list(limit=limit, after=after, unread_cap=unread_cap))

    async def list_public(self, *, limit: int = 50, after: str | None = None) -> Page[Room]:
        """As `hub.rooms.public`. Raises: NotFound (the account is deleted)."""
        page = await self._all.public(limit=limit, after=after, as_user=self._user_id)
        if not page.items:
            await self._users.get(self._user_id)
        return page

    async def search(self, prefix: str, *, limit: int = 20, after: str | None = None) -> Page[Room]:
        """As `hub.rooms.search`. Raises: NotFound (the account is deleted)."""
        page = await self._all.search(prefix, limit=limit, after=after, as_user=self._user_id)
        if not page.items:
            await self._users.get(self._user_id)
        return page

    async def summary(self, room_id: UUID, *, unread_cap: int = 100) -> RoomSummary:
        """As `hub.rooms.summary`. Raises: NotAMember."""
        return await self._all.summary(room_id, self._user_id, unread_cap=unread_cap)

    async def update(
        self,
        room_id: UUID,
        *,
        name: str | None = None,
        description: str | None = None,
        is_private: bool | None = None,
        keeps_receipts: bool | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
    ) -> Room:
        """As `hub.rooms.update`. Raises: NotAMember, Forbidden."""
        return await self._all.update(
            room_id,
            name=name,
            description=description,
            is_private=is_private,
            keeps_receipts=keeps_receipts,
            metadata=metadata,
            as_user=self._user_id,
        )

    async def delete(self, room_id: UUID) -> None:
        """As `hub.rooms.delete`. Raises: NotAMember (also when it is deleted), Forbidden."""
        await self._all.delete(room_id, as_user=self._user_id)

    async def direct(self, other_user_id: UUID) -> Room:
        """As `hub.rooms.direct`. Raises: Invalid (the user's own id), NotFound."""
        if (other := inputs.uuid("other_user_id", other_user_id)) == self._user_id:
            raise Invalid("other_user_id", "must be another user")
        return await self._all.direct(self._user_id, other, as_user=self._user_id)


class UserMemberships:
    """The members of the user's rooms, and the user's own membership."""

    def __init__(self, room_users: RoomUsers, user_id: UUID) -> None:
        self._all = room_users
        self._user_id = user_id

    async def join(self, room_id: UUID) -> RoomUser:
        """Join a public room. A second join changes nothing. Raises: NotAMember (a private room, or none)."""
        return await self._all.add(room_id, self._user_id, as_user=self._user_id)

    async def leave(self, room_id: UUID) -> bool:
        """As `hub.room_users.remove`. Raises: Forbidden (of a direct room, or the last admin)."""
        return await self._all.remove(room_id, self._user_id, as_user=self._user_id)

    async def add(self, room_id: UUID, user_id: UUID, role: Role | str = Role.MEMBER) -> RoomUser:
        """As `hub.room_users.add`. Raises: NotAMember, Forbidden, NotFound (no such user)."""
        return await self._all.add(room_id, user_id, role, as_user=self._user_id)

    async def remove(self, room_id: UUID, user_id: UUID) -> bool:
        """As `hub.room_users.remove`. Raises: NotAMember, Forbidden."""
        return await self._all.remove(room_id, user_id, as_user=self._user_id)

    async def set_role(self, room_id: UUID, user_id: UUID, role: Role | str) -> RoomUser:
        """As `hub.room_users.set_role`. Raises: NotAMember, Forbidden."""
        return await self._all.set_role(room_id, user_id, role, as_user=self._user_id)

    async def update(self, room_id: UUID, *, metadata: Mapping[str, Any] | None) -> RoomUser:
        """As `hub.room_users.update`, of the user's own membership. Raises: NotAMember."""
        return await self._all.update(room_id, self._user_id, metadata=metadata)

    async def get(self, room_id: UUID) -> RoomUser:
        """The user's own membership. Raises: NotAMember."""
        return await self._all.get(room_id, self._user_id)

    async def members(self, room_id: UUID, *, limit: int = 50, after: str | None = None) -> Page[RoomUser]:
        """As `hub.room_users.members`. Raises: NotAMember."""
        return await self._all.members(room_id, limit=limit, after=after, as_user=self._user_id)

    async def member_counts(self, room_ids: Iterable[UUID], *, cap: int = 1_000) -> dict[UUID, int]:
        """As `hub.room_users.member_counts`, for the rooms of the user and public ones. Raises: nothing else."""
        return await self._all.member_counts(room_ids, cap=cap, as_user=self._user_id)


class UserReceipts(Renamed):
    """The read marks of the user, and the members who have read a message."""

    _FORMER_NAMES: ClassVar = {"who_read": "readers"}

    def __init__(self, receipts: ReadReceipts, users: Users, user_id: UUID) -> None:
        self._all = receipts
        self._users = users
        self._user_id = user_id

    async def mark_read(self, room_id: UUID, *, up_to: int) -> int:
        """As `hub.receipts.mark_read`. Raises: NotAMember."""
        return await self._all.mark_read(room_id, self._user_id, up_to=up_to)

    async def mark_unread(self, room_id: UUID, *, from_seq: int) -> int:
        """As `hub.receipts.mark_unread`. Raises: NotAMember."""
        return await self._all.mark_unread(room_id, self._user_id, from_seq=from_seq)

    async def unread_count(self, room_id: UUID, *, cap: int = 100) -> int:
        """As `hub.receipts.unread_count`. Raises: NotAMember."""
        return await self._all.unread_count(room_id, self._user_id, cap=cap)

    async def unread_counts(self, *, cap: int = 100) -> dict[UUID, int]:
        """As `hub.receipts.unread_counts`. Raises: NotFound (the account is deleted)."""
        counts = await self._all.unread_counts(self._user_id, cap=cap)
        if not counts:
            await self._users.get(self._user_id)
        return counts

    async def readers(
        self, message_id: UUID, *, room_id: UUID | None = None, limit: int = 50, after: str | None = None
    ) -> Page[ReadReceipt]:
        """As `hub.receipts.readers`. Raises: NotFound, NotAMember."""
        return await self._all.readers(
            message_id, room_id=room_id, limit=limit, after=after, as_user=self._user_id
        )


class UserDirectory:
    """The user's own account, and other users as all may see them: without an email."""

    def __init__(self, users: Users, user_id: UUID) -> None:
        self._all = users
        self._user_id = user_id

    async def me(self) -> User:
        """The user's own account. Raises: NotFound (it is deleted)."""
        return await self._all.get(self._user_id)

    async def update(
        self,
        *,
        username: str | None = None,
        avatar_url: str | UnsetType | None = UNSET,
        display_name: str | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
    ) -> User:
        """As `hub.users.update_profile`, without the email, which the application has to verify.

        Raises: NotFound (the account is deleted), Conflict.
        """
        return await self._all.update_profile(
            self._user_id,
            username=username,
            avatar_url=avatar_url,
            display_name=display_name,
            metadata=metadata,
        )

    async def get(self, user_id: UUID) -> PublicUser:
        """The user. Raises: NotFound (no such user, or the user's own account is deleted)."""
        user_id = inputs.uuid("user_id", user_id)
        users = await self.get_many([user_id])
        return require(users.get(user_id), NotFound, "user", user_id)

    async def get_many(self, user_ids: Iterable[UUID]) -> dict[UUID, PublicUser]:
        """The users that exist, by id. Raises: NotFound (the user's own account is deleted)."""
        requested = inputs.uuids("user_ids", user_ids)
        users = await self._all.get_many({*requested, self._user_id})
        require(users.get(self._user_id), NotFound, "user", self._user_id)
        return {id: user.public for id, user in users.items() if id in requested}

    async def search(self, prefix: str, *, limit: int = 20, after: str | None = None) -> Page[PublicUser]:
        """As `hub.users.search`. Raises: NotFound (the account is deleted)."""
        page = await self._all.search(prefix, limit=limit, after=after, as_user=self._user_id)
        if not page.items:
            await self._all.get(self._user_id)
        return page


class UserSessions:
    """The user's own sessions."""

    def __init__(self, sessions: SessionService, user_id: UUID) -> None:
        self._all = sessions
        self._user_id = user_id

    async def list(self, *, limit: int = 200) -> list[Session]:
        """As `hub.sessions.list`. Raises: nothing else."""
        return await self._all.list(self._user_id, limit=limit)

    async def revoke(self, session_id: str) -> bool:
        """As `hub.sessions.revoke`: False for the session of another user. Raises: nothing else."""
        return await self._all.revoke(self._user_id, session_id)

    async def revoke_all(self, *, except_token: str | None = None) -> int:
        """As `hub.sessions.revoke_all`. Raises: nothing else."""
        return await self._all.revoke_all(self._user_id, except_token=except_token)


class UserTyping(Renamed):
    """Typing in the user's rooms. It is stored in Redis, so the membership is looked up first."""

    _FORMER_NAMES: ClassVar = {"who_types": "typing_users"}

    def __init__(self, typing: TypingIndicators, room_users: RoomUsers, user_id: UUID) -> None:
        self._all = typing
        self._room_users = room_users
        self._user_id = user_id

    async def start(self, room_id: UUID) -> bool:
        """As `hub.typing.start`. Raises: NotAMember."""
        return await self._all.start(room_id, self._user_id)

    async def stop(self, room_id: UUID) -> bool:
        """As `hub.typing.stop`. Raises: nothing else."""
        return await self._all.stop(room_id, self._user_id)

    async def typing_users(self, room_id: UUID) -> list[UUID]:
        """As `hub.typing.typing_users`. Raises: NotAMember."""
        await self._room_users.get(room_id, self._user_id)
        return await self._all.typing_users(room_id)


class UserPresence:
    """The user's own presence, and whether other users are online, which all users may know."""

    def __init__(self, presence: Presence, user_id: UUID) -> None:
        self._all = presence
        self._user_id = user_id

    def online(self, device: str | None = None) -> AbstractAsyncContextManager[None]:
        """As `hub.presence.online`. Raises: nothing else."""
        return self._all.online(self._user_id, device)

    async def devices(self) -> list[Device]:
        """As `hub.presence.devices`, of the user. Raises: nothing else."""
        return await self._all.devices(self._user_id)

    async def is_online(self, user_ids: Iterable[UUID]) -> dict[UUID, bool | None]:
        """As `hub.presence.is_online`. Raises: nothing else."""
        return await self._all.is_online(user_ids)


class ActingUser:
    """The operations of a hub as one user. Its parts are those of the hub, without the arguments that name a user
    who acts.

    It does no I/O and holds no connection, so make one per request. All other operations are for the application
    only.

    A user who is not a member of the room gets `NotAMember`, also when there is no such room. `Forbidden` is for
    what a member may not do. An account that is deleted is a member of no room.
    """

    def __init__(
        self,
        user_id: UUID,
        *,
        users: Users,
        rooms: Rooms,
        room_users: RoomUsers,
        messages: Messages,
        receipts: ReadReceipts,
        sessions: SessionService,
        typing: TypingIndicators,
        presence: Presence,
        follow: Callable[..., Follower],
    ) -> None:
        """`hub.as_user` makes one."""
        self._user_id = user_id
        self._users = UserDirectory(users, user_id)
        self._rooms = UserRooms(rooms, users, user_id)
        self._room_users = UserMemberships(room_users, user_id)
        self._messages = UserMessages(messages, user_id)
        self._receipts = UserReceipts(receipts, users, user_id)
        self._sessions = UserSessions(sessions, user_id)
        self._typing = UserTyping(typing, room_users, user_id)
        self._presence = UserPresence(presence, user_id)
        self._follow = follow

    @property
    def user_id(self) -> UUID:
        """The user who acts."""
        return self._user_id

    @property
    def messages(self) -> UserMessages:
        """Messages: send, edit and delete them, pages of a room, and its log since a cursor."""
        return self._messages

    @property
    def rooms(self) -> UserRooms:
        """Rooms: create, list, change and delete them, and the direct room with another user."""
        return self._rooms

    @property
    def room_users(self) -> UserMemberships:
        """Memberships: join and leave, add and remove members, and their roles."""
        return self._room_users

    @property
    def receipts(self) -> UserReceipts:
        """Read state: mark as read or unread, unread counts, and the readers of a message."""
        return self._receipts

    @property
    def users(self) -> UserDirectory:
        """The user's own account, and other users without their emails."""
        return self._users

    @property
    def sessions(self) -> UserSessions:
        """The user's own sessions: list and revoke them."""
        return self._sessions

    @property
    def typing(self) -> UserTyping:
        """The users who are typing in a room."""
        return self._typing

    @property
    def presence(self) -> UserPresence:
        """The user's own presence, and which users are online."""
        return self._presence

    def follow(
        self,
        *,
        after: Mapping[UUID, str | None] | None = None,
        rooms: Iterable[UUID] | None = None,
        buffer: int = 1_000,
        typing: bool = False,
        presence: bool | Iterable[UUID] = False,
        read_marks: bool = False,
        profiles: bool = False,
        token: str | None = None,
        complete: bool = False,
    ) -> Follower:
        """As `hub.follow`. Raises: Invalid (such as the cursor of another room), NotAMember (on entering)."""
        return self._follow(
            self._user_id,
            after=after,
            rooms=rooms,
            buffer=buffer,
            typing=typing,
            presence=presence,
            read_marks=read_marks,
            profiles=profiles,
            token=token,
            complete=complete,
        )
