"""Pub/sub: what is said on a channel now is heard by whoever listens now, and kept nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged, TypingChanged, typing_channel
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis import CallbackSubscription, Connection, Gap, Subscription, Subscriptions
from hubbub.redis.replies import as_int

CHANNEL_BYTES: Final = 512
MESSAGE_BYTES: Final = 256 * 1024
"""Four times the content of the longest message. Redis drops a subscriber at 8 MiB that wait for a minute."""


class RealtimeService:
    """Publishes to channels and listens to them, in the seed's form.

    Names of channels are plain text: no character in them is special.
    """

    def __init__(
        self,
        connection: Connection,
        subscriptions: Subscriptions,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        self._instrumentation = instrumentation
        self._connection = connection
        self._subscriptions = subscriptions

    async def publish(self, channel: str, message: str) -> int:
        """Say `message` on the channel; how many connections of listeners Redis handed it to.

        Raises `Invalid` for what is no text, an empty or over-long channel (512 bytes of UTF-8) or an over-long
        message (256 KiB), `Unavailable`.
        """
        name = _text("channel", channel, shortest=1, longest=CHANNEL_BYTES)
        data = _text("message", message, shortest=0, longest=MESSAGE_BYTES)
        try:
            heard_by = as_int(await self._connection.execute("PUBLISH", name, data))
        except Unavailable:
            self._instrumentation.published(1, is_lost=True)
            raise
        self._instrumentation.published(1)
        return heard_by

    async def publish_typing_indicator(self, room_id: UUID, user_id: UUID, is_typing: bool) -> None:
        """Say on `typing:{room_id}` that the user types or not, and keep no account of it.

        `hub.typing` does: it publishes changes alone, checks the membership and lets typing fade. Raises
        `Invalid`, `Unavailable`.
        """
        change = TypingChanged(
            inputs.uuid("room_id", room_id),
            inputs.uuid("user_id", user_id),
            inputs.flag("is_typing", is_typing),
        )
        await self.publish(typing_channel(change.room_id), change.to_json())

    async def publish_user_presence(self, user_id: UUID, is_online: bool) -> None:
        """Say on `presence` that the user is online or not, and keep no account of it.

        `hub.presence` does: it counts devices and publishes changes alone. Raises `Invalid`, `Unavailable`.
        """
        change = PresenceChanged(inputs.uuid("user_id", user_id), inputs.flag("is_online", is_online))
        await self.publish(PRESENCE_CHANNEL, change.to_json())

    async def subscribe_to_channel(
        self,
        channel: str,
        callback: Callable[[str], None],
        *,
        on_gap: Callable[[Gap], None] | None = None,
    ) -> CallbackSubscription:
        """Call `callback` with every message from now on: when this returns, Redis has confirmed.

        The event loop calls it as messages arrive, in their order, so it must be quick; what takes time belongs
        into `listen`. What it raises is logged and hurts no other listener. `on_gap` is told when messages may
        have been missed, after a reconnect. `unsubscribe()` of what is returned, or the end of `async with`, ends
        it. Raises `Invalid`, `Unavailable` when there is no confirmation in time.
        """
        callback = inputs.callback("callback", callback)
        on_gap = None if on_gap is None else inputs.callback("on_gap", on_gap)

        def hear(heard: bytes | Gap) -> None:
            if not isinstance(heard, Gap):
                callback(_decoded(heard))
            elif on_gap is not None:
                on_gap(heard)

        name = _text("channel", channel, shortest=1, longest=CHANNEL_BYTES)
        return await self._subscriptions.subscribe_with(name, hear)

    async def listen(self, channel: str, *, buffer: int = 1_000) -> Messages:
        """Every message from now on, to iterate over: when this returns, Redis has confirmed.

        At most `buffer` messages wait to be read (1 to 100,000). Raises as `subscribe_to_channel` does.
        """
        name = _text("channel", channel, shortest=1, longest=CHANNEL_BYTES)
        room = inputs.limit(buffer, longest=100_000, field="buffer")
        return Messages(await self._subscriptions.subscribe(name, buffer=room))


class Messages:
    """The messages of one channel as text, in their order, with a `Gap` wherever some may be missing.

    A reader that is slower than the channel loses the oldest: they are counted in `dropped`, and a `Gap` that
    says how many stands in their place. Ends when unsubscribed, or when the hub is closed. One reader at a time.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def dropped(self) -> int:
        """How many messages this reader has lost by being slow."""
        return self._subscription.dropped

    def unsubscribe(self) -> None:
        """Stop listening, at once. Idempotent."""
        self._subscription.unsubscribe()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | Gap:
        heard = await anext(self._subscription)
        return heard if isinstance(heard, Gap) else _decoded(heard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unsubscribe()


def _text(field: str, value: object, *, shortest: int, longest: int) -> str:
    """Text as Redis takes it. Every character is allowed, also NUL and CRLF: it travels with its length."""
    if not isinstance(value, str):
        raise Invalid(field, "must be text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Invalid(field, "must not hold half of a surrogate pair") from None
    if size < shortest:
        raise Invalid(field, "must not be empty")
    if size > longest:
        raise Invalid(field, f"must have at most {longest} bytes of UTF-8")
    return value


def _decoded(payload: bytes) -> str:
    # Others may publish what is no UTF-8. As surrogates the bytes are still there, and nobody stumbles.
    return payload.decode(errors="surrogateescape")
