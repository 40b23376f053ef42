"""Pub/sub: messages for the listeners that a channel has now. They are not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged, TypingChanged, is_own_channel, typing_channel
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis import CallbackSubscription, Connection, Gap, Received, Subscription, Subscriptions
from hubbub.redis.replies import as_int

CHANNEL_BYTES: Final = 512
"""More than ten times the longest channel of hubbub. Bounds what each subscription keeps in memory."""

MESSAGE_BYTES: Final = 256 * 1024
"""Four times the longest content of a message. Redis drops a subscriber for which 8 MiB wait for a minute."""


class RealtimeService:
    """Publishes to channels and listens to them.

    Names of channels are plain text, without special characters. hubbub's own channels, which are `presence`,
    `memberships` and those that begin with `room:` or `typing:`, are refused. An application that lets clients
    choose a channel would otherwise let them read private rooms, and publish in the name of others. `hub.follow`,
    `hub.presence.watch` and `hub.typing.watch` deliver what hubbub publishes on them.
    """

    def __init__(
        self, connection: Connection, subscriptions: Subscriptions, instrumentation: Instrumentation = SILENT
    ) -> None:
        self._instrumentation = instrumentation
        self._connection = connection
        self._subscriptions = subscriptions

    async def publish(self, channel: str, message: str) -> int:
        """Publish a message on the channel. Returns how many connections of listeners Redis gave it to.

        Raises: Invalid (not text, or the channel is empty, longer than 512 bytes of UTF-8 or one of hubbub's own,
        or the message is longer than 256 KiB), Unavailable.
        """
        return await self._publish(_channel(channel), _text("message", message, shortest=0, longest=MESSAGE_BYTES))

    async def _publish(self, channel: str, message: str) -> int:
        try:
            receivers = as_int(await self._connection.execute("PUBLISH", channel, message))
        except Unavailable:
            self._instrumentation.published(1, is_lost=True)
            raise
        self._instrumentation.published(1)
        return receivers

    async def publish_typing_indicator(self, room_id: UUID, user_id: UUID, is_typing: bool) -> None:
        """Publish on `typing:{room_id}` whether the user is typing, without storing it.

        `hub.typing` stores it: it publishes only changes, checks the membership and ends typing that expires.
        Raises: Invalid, Unavailable.
        """
        room_id, user_id = inputs.uuid("room_id", room_id), inputs.uuid("user_id", user_id)
        change = TypingChanged(room_id, user_id, inputs.flag("is_typing", is_typing))
        await self._publish(typing_channel(room_id), change.to_json())

    async def publish_user_presence(self, user_id: UUID, is_online: bool) -> None:
        """Publish on `presence` whether the user is online, without storing it.

        `hub.presence` stores it: it counts devices and publishes only changes. Raises: Invalid, Unavailable.
        """
        change = PresenceChanged(inputs.uuid("user_id", user_id), inputs.flag("is_online", is_online))
        await self._publish(PRESENCE_CHANNEL, change.to_json())

    async def subscribe_to_channel(
        self, channel: str, callback: Callable[[str], None], *, on_gap: Callable[[Gap], None] | None = None
    ) -> CallbackSubscription:
        """Call `callback` with every message from now on. Redis has confirmed when this returns.

        The event loop calls it as messages arrive, in their order, so it must be quick: use `listen` for slow
        work. An error that it raises is logged, and does not affect other listeners. `on_gap` is called when
        messages may have been missed, after a reconnect. `unsubscribe()` of the result, or the end of `async
        with`, ends the subscription. Raises: Invalid (as `publish`), Unavailable (Redis did not confirm in time).
        """
        callback = inputs.callback("callback", callback)
        on_gap = None if on_gap is None else inputs.callback("on_gap", on_gap)

        def receive(received: Received) -> None:
            if not isinstance(received, Gap):
                callback(_decoded(received))
            elif on_gap is not None:
                on_gap(received)

        return await self._subscriptions.subscribe_with(_channel(channel), receive)

    async def listen(self, channel: str, *, buffer: int = 1_000) -> ChannelMessages:
        """Iterate over every message from now on. Redis has confirmed when this returns.

        At most `buffer` messages (1 to 100,000) and 8 MiB wait to be read. Raises: Invalid (as `publish`),
        Unavailable (Redis did not confirm in time).
        """
        channel, buffer = _channel(channel), inputs.limit(buffer, longest=100_000, field="buffer")
        return ChannelMessages(await self._subscriptions.subscribe(channel, buffer=buffer))


class ChannelMessages:
    """The messages of one channel as text, in their order, with a `Gap` wherever some may be missing.

    A reader that is slower than the channel loses the oldest messages. They are counted in `dropped`, and a `Gap`
    with their number stands in their place. Ends when unsubscribed, or when the hub is closed. One reader at a
    time.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @property
    def dropped(self) -> int:
        """How many messages this reader has lost by being slow."""
        return self._subscription.dropped

    def unsubscribe(self) -> None:
        """End the subscription at once. Idempotent."""
        self._subscription.unsubscribe()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str | Gap:
        received = await anext(self._subscription)
        return received if isinstance(received, Gap) else _decoded(received)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unsubscribe()


def _channel(value: object) -> str:
    """The name of a channel of the application."""
    name = _text("channel", value, shortest=1, longest=CHANNEL_BYTES)
    if is_own_channel(name):
        raise Invalid("channel", "must not be a channel of hubbub: presence, memberships, room:... or typing:...")
    return name


def _text(field: str, value: object, *, shortest: int, longest: int) -> str:
    """Text for Redis. Every character is allowed, also NUL and CRLF, because text is sent with its length."""
    if not isinstance(value, str):
        raise Invalid(field, "must be text")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise Invalid(field, "must not contain half of a surrogate pair") from None
    if size < shortest:
        raise Invalid(field, "must not be empty")
    if size > longest:
        raise Invalid(field, f"must have at most {longest} bytes of UTF-8")
    return value


def _decoded(payload: bytes) -> str:
    # Other programs may publish bytes that are not UTF-8. They become surrogates instead of an error.
    return payload.decode(errors="surrogateescape")
