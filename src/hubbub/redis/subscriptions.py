"""The connection for subscriptions: however many subscribe here, the server knows each channel once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from hubbub.errors import Invalid, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.line import Line
from hubbub.redis.refusals import PASSING, meaning
from hubbub.redis.subscription import CallbackSubscription, Gap, Listener, Received, Subscription
from hubbub.redis.subscription_wire import SubscriptionWire
from hubbub.scheduling import EarliestTimer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubbub.redis.refusals import ReplyError
    from hubbub.settings import RedisSettings

logger = logging.getLogger("hubbub.redis")

ASK_AGAIN_SECONDS: Final = 1
"""How long the server is left alone after it refused subscriptions for the moment, as while a script runs."""


class Topic:
    """One channel with somebody here who wants to hear it."""

    __slots__ = ("awaited", "listeners")

    def __init__(self) -> None:
        self.listeners: dict[Listener, None] = {}
        self.awaited: dict[Listener, asyncio.Future[None]] = {}
        """Those whose `subscribe` has not returned yet."""


class Subscriptions:
    """One connection to Redis for subscriptions, with fan-out in memory.

    What is wanted changes at once and without waiting; one step, `_reconcile`, then tells the server the
    difference to what it was last asked. So subscribers that come and go cannot race, and a thousand
    subscribers of a channel are one to Redis. After a reconnect all channels are asked for again and every
    subscriber gets a Gap. A server that refuses for the moment is asked again until it confirms, and subscribers
    who stayed get a Gap then. When nothing was heard for `heartbeat_seconds` the server is probed, and it has the
    deadline of the settings to show life.
    """

    def __init__(
        self,
        settings: RedisSettings,
        *,
        heartbeat_seconds: float = 5,
        instrumentation: Instrumentation = SILENT,
    ) -> None:
        self._settings = settings
        self._instrumentation = instrumentation
        self._heartbeat_seconds = heartbeat_seconds
        self._line: Line[SubscriptionWire] = Line(
            "hubbub-redis-subscriptions",
            settings,
            self._make_wire,
            on_up=self._came_up,
            on_down=self._went_down,
        )
        self._topics: dict[bytes, Topic] = {}
        self._changed: set[bytes] = set()
        self._reconcile_is_due = False
        self._refused_for_now: set[bytes] = set()
        self._ask_again_at = EarliestTimer(self._ask_again)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. One that froze counts until its silence was noticed."""
        return self._line.wire is not None

    @property
    def trouble(self) -> Unavailable | None:
        """Why there is no connection, None while there is one. Not retryable: a wrong login, or closed."""
        return self._line.trouble

    async def start(self) -> None:
        """Connect. Returns after the first attempt and does not raise for its failure: more attempts follow.

        Raises Unavailable once closed.
        """
        await self._line.start()

    async def close(self) -> None:
        """Give up the connection; all iterations end. May be called again."""
        await self._line.close()
        self._ask_again_at.cancel()
        topics, self._topics = self._topics, {}
        for topic in topics.values():
            for listener in tuple(topic.listeners):
                listener.end()

    async def subscribe(self, channel: str, *, buffer: int = 1_000) -> Subscription:
        """Hear a channel as an asynchronous iterator. What is published after this returned is heard.

        At most `buffer` messages wait unread. Raises Unavailable when the server does not confirm by the
        deadline or, while there is no connection, within the time that connecting may take; Invalid for an
        empty channel.
        """
        subscription = self._subscription(channel, buffer)
        await self._enter(subscription)
        return subscription

    async def subscribe_with(self, channel: str, callback: Callable[[Received], None]) -> CallbackSubscription:
        """Hear a channel by a callback, called in the event loop as messages arrive, so it must be quick.

        A callback that raises is logged and goes on being called. Otherwise as `subscribe`.
        """
        subscription = CallbackSubscription(_name(channel), self._leave, callback)
        await self._enter(subscription)
        return subscription

    def subscribe_soon(self, channel: str, *, buffer: int = 1_000) -> Subscription:
        """Hear a channel from some time on, also while Redis is down: the first Gap says when it is heard.

        For subscribers that read from elsewhere at each Gap. Raises Invalid for an empty channel, Unavailable
        when the login is refused or the connection closed.
        """
        subscription = self._subscription(channel, buffer)
        self._register(subscription)
        if self._is_live(subscription.channel):
            subscription.hear(Gap("reconnected"))
        return subscription

    def subscribe_soon_with(self, channel: str, callback: Callable[[Received], None]) -> CallbackSubscription:
        """As `subscribe_soon`, by a callback as for `subscribe_with`, and without a refusal: while the login is
        refused it hears nothing.

        Raises Invalid for an empty channel.
        """
        subscription = CallbackSubscription(_name(channel), self._leave, callback)
        self._add(subscription)
        if self._is_live(subscription.channel):
            subscription.hear(Gap("reconnected"))
        return subscription

    def _subscription(self, channel: str, buffer: int) -> Subscription:
        if buffer < 1:
            raise Invalid("buffer", "must hold at least one message")
        return Subscription(_name(channel), self._leave, buffer, self._instrumentation.dropped)

    async def _enter(self, listener: Listener) -> None:
        topic = self._register(listener)
        if self._is_live(listener.channel):
            return
        confirmed = topic.awaited[listener] = asyncio.get_running_loop().create_future()
        seconds = self._settings.deadline_seconds
        if not self.connected:
            seconds = min(seconds, self._settings.connect_timeout_seconds)
        try:
            async with asyncio.timeout(seconds):
                await confirmed
        except TimeoutError:
            self._leave(listener)
            raise self._unconfirmed(seconds) from None
        except BaseException:
            self._leave(listener)
            raise
        finally:
            topic.awaited.pop(listener, None)

    def _unconfirmed(self, seconds: float) -> Unavailable:
        trouble = self._line.trouble
        if trouble is not None:
            return Unavailable("redis", f"no connection: {trouble.reason}", retryable=trouble.retryable)
        return Unavailable("redis", f"the subscription was not confirmed within {seconds:g} s")

    def _register(self, listener: Listener) -> Topic:
        trouble = self._line.trouble
        if trouble is not None and not trouble.retryable:
            raise Unavailable("redis", trouble.reason, retryable=False)
        return self._add(listener)

    def _add(self, listener: Listener) -> Topic:
        topic = self._topics.get(listener.channel)
        if topic is None:
            topic = self._topics[listener.channel] = Topic()
        topic.listeners[listener] = None
        wire = self._line.wire
        if wire is not None and listener.channel not in wire.asked:  # it is new, or was refused
            self._change(listener.channel)
        return topic

    def _leave(self, listener: Listener) -> None:
        topic = self._topics.get(listener.channel)
        if topic is None or listener not in topic.listeners:
            return
        del topic.listeners[listener]
        if not topic.listeners:
            del self._topics[listener.channel]
            self._change(listener.channel)

    def _change(self, channel: bytes) -> None:
        self._changed.add(channel)
        if not self._reconcile_is_due:
            self._reconcile_is_due = True
            asyncio.get_running_loop().call_soon(self._reconcile)

    def _reconcile(self) -> None:
        """Bring what the server was asked for in line with what is wanted here."""
        self._reconcile_is_due = False
        wire = self._line.wire
        if wire is None or not wire.writable:
            return  # _came_up or resume_writing calls again
        subscribe = [name for name in self._changed if name in self._topics and name not in wire.asked]
        unsubscribe = [name for name in self._changed if name not in self._topics and name in wire.asked]
        self._changed.clear()
        if subscribe or unsubscribe:
            wire.change(subscribe=subscribe, unsubscribe=unsubscribe)

    def _make_wire(self) -> SubscriptionWire:
        return SubscriptionWire(
            self._reconcile, on_message=self._deliver, on_live=self._went_live, on_refused=self._were_refused
        )

    def _came_up(self, wire: SubscriptionWire) -> None:
        self._changed = set(self._topics)
        self._reconcile()
        wire.keep_probing(self._heartbeat_seconds, self._settings.deadline_seconds)
        self._instrumentation.connected("redis-subscriptions")  # last: it may raise, though it must not

    def _went_down(self, trouble: Unavailable) -> None:
        if trouble.retryable:
            return
        for topic in self._topics.values():
            for confirmed in topic.awaited.values():
                _fail(confirmed, Unavailable("redis", trouble.reason, retryable=False))

    def _deliver(self, channel: bytes, payload: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is not None:
            # A copy: a callback may subscribe or unsubscribe.
            for listener in tuple(topic.listeners):
                listener.hear(payload)

    def _went_live(self, channel: bytes) -> None:
        topic = self._topics.get(channel)
        if topic is None:
            return
        for listener in tuple(topic.listeners):
            confirmed = topic.awaited.pop(listener, None)
            if confirmed is None:
                listener.hear(Gap("reconnected"))
            elif not confirmed.done():
                confirmed.set_result(None)

    def _were_refused(self, channels: list[bytes], error: ReplyError) -> None:
        if error.code in PASSING:
            logger.warning("the server refuses subscriptions for now: %s; asking again", error)
            self._refused_for_now.update(channels)
            now = asyncio.get_running_loop().time()
            self._ask_again_at.request(now + ASK_AGAIN_SECONDS, now)
        else:
            logger.error("the server refuses a subscription: %s", error)
        for channel in channels:
            topic = self._topics.get(channel)
            if topic is not None:
                for confirmed in topic.awaited.values():
                    _fail(confirmed, meaning(error))

    def _ask_again(self, _: float) -> None:
        self._changed |= self._refused_for_now
        self._refused_for_now.clear()
        self._reconcile()

    def _is_live(self, channel: bytes) -> bool:
        wire = self._line.wire
        return wire is not None and wire.is_live(channel)


def _name(channel: str) -> bytes:
    if not channel:
        raise Invalid("channel", "must not be empty")
    try:
        return channel.encode()
    except UnicodeEncodeError:
        raise Invalid("channel", "is not valid Unicode text") from None


def _fail(confirmed: asyncio.Future[None], error: Exception) -> None:
    if not confirmed.done():
        confirmed.set_exception(error)
