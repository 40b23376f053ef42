"""The doorbell: what other processes are told when a log has grown. It may be lost, and is kept nowhere.

On `room:` with the id of a room: `{"from": ..., "messages": [...]}`, the new messages in their order. There are
none where something else has happened or it is too much to carry: whoever hears it reads the log.
On `memberships`: `{"from": ..., "users": [...]}`, users who are in a room more than before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid4

from hubbub.events import NOT_AN_EVENT
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.models import Message

if TYPE_CHECKING:
    from hubbub.redis import Connection, Outcome

logger = logging.getLogger("hubbub.feed")

MEMBERSHIPS_CHANNEL: Final = "memberships"

# What one ring carries at most; more is read from the log.
LONGEST_BYTES: Final = 64 * 1024
MOST_MESSAGES: Final = 100
# Rounds of PUBLISH that are under way at a time. While Redis is slow, rings of a room become one.
ROUNDS: Final = 8
DEADLINE_SECONDS: Final = 1.0


def room_channel(room_id: UUID) -> str:
    """Where it is said that the log of this room has grown."""
    return f"room:{room_id}"


class RoomRing(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """That the log of a room has grown, by these messages or by something else."""

    origin: str
    messages: list[Message]


class MembershipRing(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """That these users joined a room."""

    origin: str
    users: list[UUID]


_decode_room = msgspec.json.Decoder(RoomRing).decode
_decode_memberships = msgspec.json.Decoder(MembershipRing).decode


class Doorbell:
    """Rings, for everybody but this process, which knows already."""

    def __init__(self, connection: Connection, instrumentation: Instrumentation = SILENT) -> None:
        self._connection = connection
        self._instrumentation = instrumentation
        self._origin = uuid4().hex[:12]
        self._own = f'{{"from":"{self._origin}"'.encode()
        self._rooms: dict[UUID, list[Message] | None] = {}
        self._users: dict[UUID, None] = {}
        self._rounds = 0
        self._is_due = False

    def ring(self, message: Message) -> None:
        """Say that the message was sent. Neither waits nor raises."""
        waiting = self._rooms.setdefault(message.room_id, [])
        if waiting is not None and len(waiting) < MOST_MESSAGES:
            waiting.append(message)
        else:
            self._rooms[message.room_id] = None
        self._publish_soon()

    def ring_for_more(self, room_id: UUID) -> None:
        """Say that the log of the room has grown by something that has to be read. Neither waits nor raises."""
        self._rooms[room_id] = None
        self._publish_soon()

    def ring_for(self, user_ids: Iterable[UUID]) -> None:
        """Say that these users joined a room. Neither waits nor raises."""
        self._users |= dict.fromkeys(user_ids)
        self._publish_soon()

    def messages_in(self, payload: bytes) -> list[Message] | None:
        """What another process said of a room: its new messages, empty for something else; None from this one."""
        if payload.startswith(self._own):
            return None
        try:
            messages = _decode_room(payload).messages
        except NOT_AN_EVENT:
            return []
        return messages if all(map(_can_be, messages)) else []

    def users_in(self, payload: bytes) -> list[UUID]:
        """The users of whom another process said that they joined a room."""
        if payload.startswith(self._own):
            return []
        try:
            return _decode_memberships(payload).users
        except NOT_AN_EVENT:
            return []

    def _publish_soon(self) -> None:
        if not self._is_due and self._rounds < ROUNDS:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._is_due = False
        rooms, self._rooms = self._rooms, {}
        users, self._users = self._users, {}
        commands = [
            ("PUBLISH", room_channel(room_id), self._payload(messages)) for room_id, messages in rooms.items()
        ]
        if users:
            ring = MembershipRing(self._origin, list(users))
            commands.append(("PUBLISH", MEMBERSHIPS_CHANNEL, msgspec.json.encode(ring)))
        self._rounds += 1
        round_ = self._connection.execute_many(commands, deadline_seconds=DEADLINE_SECONDS)
        round_.add_done_callback(partial(self._rung, len(commands)))

    def _payload(self, messages: list[Message] | None) -> bytes:
        payload = msgspec.json.encode(RoomRing(self._origin, messages or []))
        if len(payload) > LONGEST_BYTES:
            return msgspec.json.encode(RoomRing(self._origin, []))
        return payload

    def _rung(self, rings: int, round_: asyncio.Future[list[Outcome]]) -> None:
        self._rounds -= 1
        error = None if round_.cancelled() else round_.exception()
        if error is not None:
            logger.info("nobody else was told that logs have grown: %s", error)
        self._instrumentation.published(rings, is_lost=error is not None)
        if self._rooms or self._users:
            self._publish_soon()


def _can_be(message: Message) -> bool:
    """Whether a log can hold it: anybody who reaches Redis can ring."""
    return 0 < message.seq < 2**63 and message.created_at.tzinfo is not None
