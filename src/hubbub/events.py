"""What happens in a chat, one type an event.

The channels and the JSON keys of what travels through Redis are those of the seed, so that a program in another
language can take part: `{"userId": ..., "isOnline": ...}` on `presence`, and `{"userId": ..., "isTyping": ...}` on
`typing:` with the id of the room. Keys that are not known are skipped.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

PRESENCE_CHANNEL: Final = "presence"

# What a payload can do to the decoder: bad JSON or other types, bytes that are no UTF-8, lists in lists in lists.
NOT_AN_EVENT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def typing_channel(room_id: UUID) -> str:
    """Where starts and stops of typing in this room are published."""
    return f"typing:{room_id}"


class PresenceChanged(msgspec.Struct, frozen=True, rename="camel"):
    """A user came online, with the first of their devices, or went offline, with the last."""

    user_id: UUID
    is_online: bool

    def to_json(self) -> str:
        """The payload on the channel."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, payload: bytes) -> PresenceChanged | None:
        """The event in a payload, None for one that is something else."""
        try:
            return msgspec.json.decode(payload, type=cls)
        except NOT_AN_EVENT:
            return None


class TypingChanged(msgspec.Struct, frozen=True):
    """A member of the room started typing, or stopped."""

    room_id: UUID
    user_id: UUID
    is_typing: bool

    def to_json(self) -> str:
        """The payload on the channel, whose name says the room."""
        return msgspec.json.encode(_Typing(self.user_id, self.is_typing)).decode()

    @classmethod
    def from_json(cls, room_id: UUID, payload: bytes) -> TypingChanged | None:
        """The event in a payload from the channel of this room, None for one that is something else."""
        try:
            typing = msgspec.json.decode(payload, type=_Typing)
        except NOT_AN_EVENT:
            return None
        return cls(room_id, typing.user_id, typing.is_typing)


class _Typing(msgspec.Struct, frozen=True, rename="camel"):
    user_id: UUID
    is_typing: bool
