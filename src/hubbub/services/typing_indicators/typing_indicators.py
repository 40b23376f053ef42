"""Who is typing in a room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from uuid import UUID

from hubbub import inputs
from hubbub.commits import Commits, MembershipEnded, MessagesSent
from hubbub.errors import Invalid, NotAMember
from hubbub.events import TypingChanged, typing_channel
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.services.typing_indicators.fading import Fading
from hubbub.services.typing_indicators.scripts import (
    KEEP_MS,
    START,
    WHO_TYPES,
    bucket_of,
    due_key,
    hint_key,
    room_key,
)
from hubbub.services.typing_indicators.stopping import Stopping, rooms_of, stop_now


class TypingIndicators:
    """A member who starts typing in a room types until they stop, or until nothing was heard of it for a while.

    A start and a stop are published once each, on the channel `typing:{room_id}`, in the step in which Redis notes
    them; a refresh publishes nothing. A stop that nobody asked for is published by whichever process sees the time
    run out, up to a second late.
    """

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        is_member: Callable[[UUID, UUID], Awaitable[bool]],
        *,
        ttl_seconds: float = 6,
        fade_seconds: float = 1,
    ) -> None:
        """`is_member(room_id, user_id)` says who may type in a room; `fade_seconds` is how often to look."""
        if min(ttl_seconds, fade_seconds) <= 0:
            raise Invalid("ttl_seconds, fade_seconds", "must be above zero")
        self._connection = connection
        self._subscriptions = subscriptions
        self._is_member = is_member
        self._ttl_ms = round(ttl_seconds * 1000)
        self._fading = Fading(connection, every_seconds=fade_seconds)
        self._stopping = Stopping(connection)

    def register(self, commits: Commits) -> None:
        """Stop, from now on, the typing of the author of a message and of a member who left."""
        commits.on(MessagesSent, self._stop_authors)
        commits.on(MembershipEnded, lambda change: self.stop_soon(change.room_id, change.user_id))

    def _stop_authors(self, change: MessagesSent) -> None:
        for message in change.messages:
            if message.user_id is not None:
                self.stop_soon(message.room_id, message.user_id)

    def start_tasks(self) -> None:
        """Begin to look for what has faded, and to tell of what was stopped. A second start does nothing."""
        self._fading.start()
        self._stopping.start()

    async def close(self) -> None:
        """End the tasks. Whoever types fades, by another process or by the next. Idempotent."""
        await self._fading.close()
        await self._stopping.close()

    async def start(self, room_id: UUID, user_id: UUID) -> bool:
        """The user types, or goes on typing: call it every few seconds. True when the others were told.

        Raises `NotAMember`, `Invalid`, `Unavailable`.
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        if not await self._is_member(room_id, user_id):
            raise NotAMember(room_id, user_id)
        is_new = await self._note(room_id, user_id)
        # Leaving stops it. Had the user left since the first look, that stop may have come before this start.
        if is_new and not await self._is_member(room_id, user_id):
            await self.stop(room_id, user_id)
            raise NotAMember(room_id, user_id)
        return is_new

    async def stop(self, room_id: UUID, user_id: UUID) -> bool:
        """The user types no longer. True when the others were told. Raises `Invalid`, `Unavailable`."""
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        return await stop_now(self._connection, [(room_id, user_id)]) == 1

    def stop_soon(self, room_id: UUID, user_id: UUID) -> None:
        """As `stop`, but without waiting and without an error: for after a message was sent or a member left.

        Many of them are one step to Redis. While it is down they are let go, and typing fades.
        """
        self._stopping.add(inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id))

    async def stop_everywhere(self, user_id: UUID) -> int:
        """Stop in all rooms. How many it were. Raises `Invalid`, `Unavailable`."""
        rooms = await rooms_of(self._connection, [inputs.uuid("user_id", user_id)])
        return await stop_now(self._connection, rooms)

    def stop_everywhere_soon(self, user_id: UUID) -> None:
        """As `stop_everywhere`, but as `stop_soon` does: for after the user has disconnected."""
        self._stopping.add_everywhere(inputs.uuid("user_id", user_id))

    async def who_types(self, room_id: UUID) -> list[UUID]:
        """The users that type in the room now. Raises `Invalid`, `Unavailable`."""
        return await WHO_TYPES(self._connection, keys=(room_key(inputs.uuid("room_id", room_id)),))

    async def watch(self, room_id: UUID, *, buffer: int = 1_000) -> AsyncGenerator[TypingChanged | Gap, None]:
        """Starts and stops in the room as they happen, for as long as it is iterated over.

        The first thing is a `Gap`, as soon as Redis has confirmed, and another one comes wherever some may have
        been missed: ask `who_types` then. Who may watch is the caller's to decide. Raises `Invalid`,
        `Unavailable` when the hub is not open.
        """
        room_id = inputs.uuid("room_id", room_id)
        room = inputs.limit(buffer, longest=100_000, field="buffer")
        async with self._subscriptions.subscribe_soon(typing_channel(room_id), buffer=room) as payloads:
            async for heard in payloads:
                change = heard if isinstance(heard, Gap) else TypingChanged.from_json(room_id, heard)
                if change is not None:
                    yield change

    async def _note(self, room_id: UUID, user_id: UUID) -> bool:
        hint = hint_key(user_id)
        hinted = self._connection.execute_many([("SADD", hint, str(room_id)), ("PEXPIRE", hint, 2 * self._ttl_ms)])
        _, is_new = await asyncio.gather(
            hinted,
            START(
                self._connection,
                keys=(due_key(bucket_of(room_id)), room_key(room_id)),
                args=(str(room_id), str(user_id), self._ttl_ms, KEEP_MS),
            ),
        )
        return is_new
