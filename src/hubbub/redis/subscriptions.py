"""The connection for subscriptions: the server sees each channel once, however many subscribe in this process.

A channel, from the first subscriber to the last:

    wanted --SUBSCRIBE--> unconfirmed --confirmation--> live
      ^                        |                          |
      |   refused, or the connection is lost              | connection lost
      +------------------------+--------------------------+

`Subscriptions` holds which channels are wanted. `SubscriptionProtocol` holds what it has asked the server for, and
each new connection starts with nothing. One step, `reconcile`, sends the difference. So subscribers that come and
go cannot race. Messages go to the subscribers synchronously, in the order in which they arrived.

`SubscriptionConnection` is one such connection. In a cluster there are several, which `sharded.py` adds.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

import hiredis
import msgspec

from hubbub.background import wrong_event_loop
from hubbub.errors import Invalid, Unavailable
from hubbub.forks import forked
from hubbub.instrumentation import SILENT, Instrumentation
from hubbub.redis.connection import INCOMPLETE, NOT_REDIS, UNASKED, Connector, Reconnector, RespProtocol, pack
from hubbub.redis.connector import connector_for
from hubbub.redis.replies import PASSING, ReplyError, to_error
from hubbub.scheduling import EarliestTimer, OncePerTurn, TimeSlice
from hubbub.settings import RedisSettings

logger = logging.getLogger("hubbub.redis")

CHANNELS_PER_COMMAND: Final = 1_000
"""Bounds how long one SUBSCRIBE occupies the server, and how many channels are asked for one by one when the
server refuses one of them."""

CHANNELS_PER_TURN: Final = 2_000
"""Bounds how long the channels of a new connection hold the event loop: for 10 ms, at 5 us each in a cluster."""

MAX_UNREAD_BYTES: Final = 8 * 1024 * 1024
"""Payloads that wait for one reader. A thousand of the longest messages of `hub.realtime` would be 250 MB. Redis
itself keeps as much for a slow subscriber for a minute."""

RETRY_REFUSED_SECONDS: Final = 1
"""The pause after the server refused subscriptions for now, as while a script runs. It bounds what a busy server
gets from each process."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may be missing here. A reader that needs all of them reads them from where they are stored.

    `reconnected`: the connection was replaced, and messages published before may be lost. `overflow`: the
    subscriber was too slow, and the `dropped` oldest messages were discarded.
    """

    reason: Literal["reconnected", "overflow"]
    dropped: int = 0


Received: TypeAlias = bytes | Gap


class Listener(ABC):
    """One subscriber of one channel in this process. The connection calls it synchronously."""

    def __init__(self, channel: bytes, leave: Callable[[Listener], None]) -> None:
        self.channel = channel
        self._leave = leave
        self._ended = self._is_abandoned = False

    @abstractmethod
    def receive(self, received: Received) -> None:
        """Take a message or a Gap. Does nothing once ended."""

    def end(self) -> None:
        """Take note that no more will come."""
        self._ended = True

    def abandon(self) -> None:
        """In a child process: take no more, and refuse to be read."""
        self._ended = self._is_abandoned = True

    def unsubscribe(self) -> None:
        """End the subscription at once. Idempotent."""
        if not self._is_abandoned:
            self._leave(self)
            self.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unsubscribe()


class Subscription(Listener):
    """Iterate over it for the payloads of the channel, as bytes, with a Gap wherever some may be missing.

    At most `buffer` messages, and at most `MAX_UNREAD_BYTES`, wait to be read. Beyond that the oldest are thrown
    away and counted in `dropped`, and a Gap stands in their place. The iteration ends when the subscription or the
    connection is closed. One reader at a time.
    """

    def __init__(
        self,
        channel: bytes,
        leave: Callable[[Listener], None],
        buffer: int,
        on_drop: Callable[[], None] = SILENT.dropped,
    ) -> None:
        super().__init__(channel, leave)
        self._buffer = buffer
        self._on_drop = on_drop
        self._received: deque[Received] = deque()
        self._unread_bytes = 0
        self._gap: Gap | None = None  # stands before the oldest of them
        self._reader: asyncio.Future[None] | None = None
        self.dropped = 0
        """How many messages were thrown away since the subscription began."""

    def receive(self, received: Received) -> None:
        if self._ended:
            return
        if isinstance(received, Gap) and self._received and isinstance(self._received[-1], Gap):
            return
        self._received.append(received)
        if not isinstance(received, Gap):
            self._unread_bytes += len(received)
        while len(self._received) > self._buffer or self._unread_bytes > MAX_UNREAD_BYTES:
            self._drop_oldest()
        self._wake()

    def end(self) -> None:
        super().end()
        self._received.clear()
        self._unread_bytes = 0
        self._gap = None
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        if self._is_abandoned:
            raise forked()
        while not (self._received or self._gap):
            if self._ended:
                raise StopAsyncIteration
            if self._reader is not None:
                raise RuntimeError("a subscription can only have one reader at a time")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self._gap is not None:
            gap, self._gap = self._gap, None
            return gap
        return self._take_oldest()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _take_oldest(self) -> Received:
        oldest = self._received.popleft()
        if not isinstance(oldest, Gap):
            self._unread_bytes -= len(oldest)
        return oldest

    def _drop_oldest(self) -> None:
        oldest = self._take_oldest()
        if not isinstance(oldest, Gap):
            self.dropped += 1
            dropped_before = self._gap.dropped if self._gap is not None else 0
            self._gap = Gap("overflow", dropped_before + 1)
            self._on_drop()
        elif self._gap is None:
            self._gap = oldest


class CallbackSubscription(Listener):
    """Calls `callback` with each payload or Gap, in order, as it arrives. Errors of the callback are logged."""

    def __init__(
        self, channel: bytes, leave: Callable[[Listener], None], callback: Callable[[Received], None]
    ) -> None:
        super().__init__(channel, leave)
        self._callback = callback

    def receive(self, received: Received) -> None:
        if self._ended:
            return
        try:
            self._callback(received)
        except Exception:  # whatever it is, the other subscribers must not suffer for it
            logger.exception("a subscriber of %s raised", self.channel.decode(errors="replace"))


Verb: TypeAlias = Literal["SUBSCRIBE", "UNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE", "PING"]


class SentCommand(NamedTuple):
    """A command whose replies are still to come: one per channel, or one error for all of them."""

    verb: Verb
    channels: deque[bytes]


class SubscriptionProtocol(RespProtocol):
    """Pending commands and incoming messages. Messages are pushes in RESP3, and arrays in RESP2."""

    subscribe: Verb = "SUBSCRIBE"
    unsubscribe: Verb = "UNSUBSCRIBE"
    message = b"message"
    """The first word of a message."""

    def __init__(
        self, transport: asyncio.Transport, reader: hiredis.Reader, connection: SubscriptionConnection
    ) -> None:
        super().__init__(transport, reader, on_writable=connection.reconcile)
        self._connection = connection
        self._sent: deque[SentCommand] = deque()
        self._unconfirmed: Counter[bytes] = Counter()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._pinged_at = 0.0
        self._rest_of_parsing = OncePerTurn(self._parse_on)
        self.asked: set[bytes] = set()
        """The channels that the server will deliver once it has carried out all commands sent."""

    def is_live(self, channel: bytes) -> bool:
        """Whether the server has confirmed the channel, and was not asked to end it since."""
        return channel in self.asked and channel not in self._unconfirmed

    def change(self, *, subscribe: list[bytes], unsubscribe: list[bytes]) -> None:
        """Ask for some channels and give up others, in one write."""
        self.asked.update(subscribe)
        self.asked.difference_update(unsubscribe)
        self._unconfirmed.update(subscribe)
        packed = [self._ask(self.unsubscribe, some) for some in self.in_parts(unsubscribe)]
        packed += [self._ask(self.subscribe, some) for some in self.in_parts(subscribe)]
        self._transport.write(b"".join(packed))

    def in_parts(self, channels: list[bytes]) -> Iterable[list[bytes]]:
        """The channels, by the command in which they are asked for."""
        step = CHANNELS_PER_COMMAND
        return [channels[start : start + step] for start in range(0, len(channels), step)]

    def keep_probing(self, interval_seconds: float, answer_seconds: float) -> None:
        """Send a PING after `interval_seconds` of silence. Drop the connection if it is not answered in time."""
        now = self._loop.time()
        if self.received_at < self._pinged_at:
            if now >= self._pinged_at + answer_seconds:
                self.drop(f"the server was silent for {answer_seconds:g} s after a PING")
                return
            next_look = min(now + interval_seconds, self._pinged_at + answer_seconds)
        elif now < self.received_at + interval_seconds:
            next_look = self.received_at + interval_seconds
        else:
            self._pinged_at = now
            self._transport.write(self._ask("PING", []))
            next_look = now + min(interval_seconds, answer_seconds)
        self._heartbeat = self._loop.call_at(next_look, self.keep_probing, interval_seconds, answer_seconds)

    def parse(self) -> None:
        """Take what the reader holds, or as much as fits into a time slice.

        One read has up to 3,500 confirmations, which take 20 ms, or messages to a thousand followers each. The
        rest comes in the next turns, and the server is not read from until then.
        """
        if self._rest_of_parsing.is_due:
            return
        next_reply = self.reader.gets
        deliver, message = self._connection.deliver, self.message
        time_slice = TimeSlice()
        try:
            while (reply := next_reply()) is not INCOMPLETE:
                if isinstance(reply, list) and reply[0] == message:  # a push is a list too
                    deliver(reply[1], reply[2])
                else:
                    self._take_reply(reply)
                if time_slice.is_due and not self.lost.done():
                    self._transport.pause_reading()
                    self._rest_of_parsing.request()
                    return
        except (hiredis.HiredisError, IndexError):
            self.drop(NOT_REDIS)

    def _parse_on(self) -> None:
        self.received_at = self._loop.time()  # or the server would seem to have been silent since the last read
        self._transport.resume_reading()
        try:
            self.parse()
        except BaseException:  # as the event loop does after an error in `buffer_updated`
            self.drop(NOT_REDIS)
            raise

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._rest_of_parsing.cancel()
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    def _ask(self, verb: Verb, channels: list[bytes]) -> bytes:
        self._sent.append(SentCommand(verb, deque(channels)))
        return pack((verb, *channels))

    def _take_reply(self, reply: Any) -> None:  # noqa: ANN401 - whatever the server sends
        if not self._sent:
            self.drop(UNASKED)
            return
        command = self._sent[0]
        if isinstance(reply, ReplyError):
            self._sent.popleft()
            self._take_refusal(command, reply)
            return
        channel = command.channels.popleft() if command.channels else None
        if not command.channels:
            self._sent.popleft()
        if channel is not None and command.verb == self.subscribe:
            self._confirm(channel)

    def _confirm(self, channel: bytes) -> None:
        self._count_reply(channel)
        # Only the last of several SUBSCRIBEs counts: an UNSUBSCRIBE may follow on an earlier one.
        if self.is_live(channel):
            self._connection.confirmed(channel)

    def _take_refusal(self, command: SentCommand, error: ReplyError) -> None:
        if command.verb != self.subscribe:
            return
        # The server refuses them all because of one of them, and does not say which. A passing error is not about
        # one of the channels: one by one, all would be refused again.
        if len(command.channels) > 1 and error.code not in PASSING:
            for channel in command.channels:
                if channel in self.asked:
                    self._transport.write(self._ask(self.subscribe, [channel]))
                else:
                    self._count_reply(channel)
        elif refused := self._give_up(command):
            self._connection.refused(refused, error)

    def _give_up(self, command: SentCommand) -> list[bytes]:
        """The channels of a refused SUBSCRIBE that no later one asks for. The server will not deliver them."""
        for channel in command.channels:
            self._count_reply(channel)
        given_up = [channel for channel in command.channels if channel not in self._unconfirmed]
        self.asked.difference_update(given_up)
        return given_up

    def _count_reply(self, channel: bytes) -> None:
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] <= 0:
            del self._unconfirmed[channel]


class Channel(msgspec.Struct, eq=False):
    """The subscribers of one channel in this process."""

    listeners: dict[Listener, None] = {}
    unconfirmed: dict[Listener, asyncio.Future[None]] = {}
    """The listeners whose `subscribe` has not returned yet."""


class SubscriptionConnection(Reconnector[SubscriptionProtocol]):
    """One connection for subscriptions. Whenever it is made, it asks its server for the channels in `wanted`.

    A server that refuses for now is asked again until it confirms. After `heartbeat_seconds` of silence the server
    is probed, and has the deadline of the settings to answer.
    """

    wanted: Collection[bytes]

    def __init__(self, settings: RedisSettings, connector: Connector, heartbeat_seconds: float) -> None:
        super().__init__("hubbub-redis-subscriptions", settings, connector)
        self._heartbeat_seconds = heartbeat_seconds
        self._changed: set[bytes] = set()
        self._reconciling = OncePerTurn(self.reconcile)
        self._refused_for_now: set[bytes] = set()
        self._retry_timer = EarliestTimer(self._retry_refused)

    async def close(self) -> None:
        await super().close()
        self._retry_timer.cancel()

    def change(self, name: bytes) -> None:
        """Take note that the channel came into `wanted`, or left it."""
        self._changed.add(name)
        self._reconciling.request()

    def reconcile(self) -> None:
        """Ask the server for the channels that are wanted here, and give up the others."""
        protocol = self._protocol
        if protocol is None or not protocol.writable:
            return  # _on_connected or resume_writing calls again
        changed = list(islice(self._changed, CHANNELS_PER_TURN))
        self._changed.difference_update(changed)
        subscribe = [name for name in changed if name in self.wanted and name not in protocol.asked]
        unsubscribe = [name for name in changed if name not in self.wanted and name in protocol.asked]
        if subscribe or unsubscribe:
            protocol.change(subscribe=subscribe, unsubscribe=unsubscribe)
        if self._changed:
            self._reconciling.request()

    def is_live(self, name: bytes) -> bool:
        """Whether messages on the channel arrive on this connection."""
        return self._protocol is not None and self._protocol.is_live(name)

    def needs_change(self, name: bytes) -> bool:
        """Whether the server was not asked for the channel, or has refused it. A new connection asks by itself."""
        return self._protocol is not None and name not in self._protocol.asked

    def _make_protocol(self, transport: asyncio.Transport, reader: hiredis.Reader) -> SubscriptionProtocol:
        return SubscriptionProtocol(transport, reader, self)

    def _on_connected(self, protocol: SubscriptionProtocol) -> None:
        self._changed = set(self.wanted)
        self.reconcile()
        protocol.keep_probing(self._heartbeat_seconds, self._settings.deadline_seconds)

    @abstractmethod
    def deliver(self, name: bytes, payload: bytes) -> None:
        """Take a message."""

    @abstractmethod
    def confirmed(self, name: bytes) -> None:
        """Take note that messages on the channel arrive from now on."""

    def refused(self, names: list[bytes], error: ReplyError) -> None:
        """Ask for these channels again if the error passes."""
        if error.code in PASSING:
            logger.warning("the server refuses subscriptions for now: %s; retrying", error)
            self._refused_for_now.update(names)
            now = asyncio.get_running_loop().time()
            self._retry_timer.request(now + RETRY_REFUSED_SECONDS, now)
        else:
            logger.error("the server refuses a subscription: %s", error)

    def _retry_refused(self, _: float) -> None:
        self._changed |= self._refused_for_now
        self._refused_for_now.clear()
        self.reconcile()


class Subscriptions(SubscriptionConnection):
    """One connection to Redis for subscriptions, with fan-out in memory.

    After a reconnect all channels are asked for again, and every subscriber gets a Gap. If the new connection is
    to another server, a second one follows once other processes must have left the former one, also for those that
    subscribe in the meantime. Once a server that refused for now confirms, the subscribers that stayed get a Gap.
    """

    def __init__(
        self, settings: RedisSettings, *, heartbeat_seconds: float = 5, instrumentation: Instrumentation = SILENT
    ) -> None:
        super().__init__(settings, connector_for(settings), heartbeat_seconds)
        self._instrumentation = instrumentation
        self._prefix = settings.prefix
        self._channels: dict[bytes, Channel] = {}
        self.wanted = self._channels
        self._on_leave = self._leave  # bound once: a method per listener would lengthen garbage collections
        self._late_until = 0.0
        """Until when other processes may publish at the former server."""
        self._late: list[tuple[float, bytes]] = []
        self._late_timer = EarliestTimer(self._add_late_gaps)

    @property
    def servers(self) -> Collection[SubscriptionConnection]:
        """The connections on which messages are to come."""
        return (self,)

    def connection_of(self, name: bytes) -> SubscriptionConnection:
        """The one on which messages of the channel are to come."""
        return self

    async def close(self) -> None:
        """Close the connection for good. All iterations end. Idempotent."""
        await super().close()
        self._late_timer.cancel()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            for listener in tuple(channel.listeners):
                listener.end()

    def abandon(self) -> None:
        super().abandon()
        for channel in self._channels.values():
            for listener in channel.listeners:
                listener.abandon()

    async def subscribe(self, channel: str, *, buffer: int = 1_000) -> Subscription:
        """Subscribe to a channel by an asynchronous iterator. It gets all that is published after this returned.

        A Gap stands where messages may have been lost. At most `buffer` messages wait unread.

        Raises: Unavailable (the server does not confirm by the deadline or, while there is no connection, within
        the time that connecting may take), Invalid (the channel is empty).
        """
        subscription = self._subscription(channel, buffer)
        await self._confirm(subscription)
        return subscription

    async def subscribe_with(self, channel: str, callback: Callable[[Received], None]) -> CallbackSubscription:
        """As `subscribe`, by a callback that the event loop calls as messages arrive, so it must be quick.

        An error that it raises is logged, and it is called for the next message all the same. Raises: Unavailable,
        Invalid (both as `subscribe`).
        """
        subscription = CallbackSubscription(self._name(channel), self._on_leave, callback)
        await self._confirm(subscription)
        return subscription

    def subscribe_soon(self, channel: str, *, buffer: int = 1_000) -> Subscription:
        """Subscribe without waiting, also while Redis is down. The first Gap shows that the subscription is live.

        For subscribers that read from elsewhere at each Gap. Raises: Unavailable (the login is refused, or the
        connection is closed), Invalid (the channel is empty).
        """
        subscription = self._subscription(channel, buffer)
        self._register(subscription)
        if self.is_live(subscription.channel):
            subscription.receive(Gap("reconnected"))
        return subscription

    def subscribe_soon_with(self, channel: str, callback: Callable[[Received], None]) -> CallbackSubscription:
        """As `subscribe_soon`, by a callback. While the login is refused it receives nothing.

        Raises: Invalid (the channel is empty).
        """
        subscription = CallbackSubscription(self._name(channel), self._on_leave, callback)
        self._add(subscription)
        if self.is_live(subscription.channel):
            subscription.receive(Gap("reconnected"))
        return subscription

    def _subscription(self, channel: str, buffer: int) -> Subscription:
        if buffer < 1:
            raise Invalid("buffer", "must hold at least one message")
        return Subscription(self._name(channel), self._on_leave, buffer, self._instrumentation.dropped)

    def _name(self, channel: str) -> bytes:
        if not channel:
            raise Invalid("channel", "must not be empty")
        try:
            return f"{self._prefix}{channel}".encode()
        except UnicodeEncodeError:
            raise Invalid("channel", "is not valid Unicode text") from None

    async def _confirm(self, listener: Listener) -> None:
        channel = self._register(listener)
        if self.is_live(listener.channel):
            return
        confirmed = channel.unconfirmed[listener] = asyncio.get_running_loop().create_future()
        seconds = self._settings.deadline_seconds
        if not self.connection_of(listener.channel).connected:
            seconds = min(seconds, self._settings.connect_timeout_seconds)
        try:
            async with asyncio.timeout(seconds):
                await confirmed
        except BaseException as error:
            self._leave(listener)
            if not isinstance(error, TimeoutError):
                raise
            if (failure := self.connection_of(listener.channel).failure) is None:
                reason = f"the subscription was not confirmed within {seconds:g} s"
                raise Unavailable("redis", reason) from None
            reason = f"no connection: {failure.reason}"
            raise Unavailable("redis", reason, retryable=failure.retryable) from None
        finally:
            channel.unconfirmed.pop(listener, None)

    def _register(self, listener: Listener) -> Channel:
        failure = self.failure
        if failure is not None and not failure.retryable:
            raise failure.for_another()
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise wrong_event_loop()
        return self._add(listener)

    def _add(self, listener: Listener) -> Channel:
        channel = self._channels.get(listener.channel)
        if channel is None:
            channel = self._channels[listener.channel] = Channel()
        channel.listeners[listener] = None
        if self.needs_change(listener.channel):
            self.change(listener.channel)
        return channel

    def _leave(self, listener: Listener) -> None:
        channel = self._channels.get(listener.channel)
        if channel is None or listener not in channel.listeners:
            return
        del channel.listeners[listener]
        if not channel.listeners:
            del self._channels[listener.channel]
            self.change(listener.channel)

    def _on_connected(self, protocol: SubscriptionProtocol) -> None:
        super()._on_connected(protocol)
        self._instrumentation.connected("redis-subscriptions")
        if seconds := self._connector.late_publishers_seconds:
            self._late_until = asyncio.get_running_loop().time() + seconds

    def expect_late_messages(self, name: bytes, until: float) -> None:
        """Give a Gap to the subscribers of the channel at `until`, in the time of the event loop.

        Before it, other processes may publish at a server from which no more messages come here.
        """
        heappush(self._late, (until, name))
        self._late_timer.request(self._late[0][0], asyncio.get_running_loop().time())

    def _add_late_gaps(self, now: float) -> None:
        for _ in range(min(len(self._late), CHANNELS_PER_TURN)):
            if self._late[0][0] > now:
                break
            _, name = heappop(self._late)
            if self.is_live(name):
                self.confirmed(name)
        if self._late:
            self._late_timer.request(self._late[0][0], now)

    def _on_disconnected(self, failure: Unavailable) -> None:
        if not failure.retryable:
            self.fail(self._channels, failure)

    def deliver(self, name: bytes, payload: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            # A copy: a callback may subscribe or unsubscribe.
            for listener in tuple(channel.listeners):
                listener.receive(payload)

    def confirmed(self, name: bytes) -> None:
        """End the waiting of new subscribers of the channel. The others get a Gap, because it is live again."""
        channel = self._channels.get(name)
        if channel is None:
            return
        if self._late_until > asyncio.get_running_loop().time():
            self.expect_late_messages(name, self._late_until)
        for listener in tuple(channel.listeners):
            confirmed = channel.unconfirmed.pop(listener, None)
            if confirmed is None:
                listener.receive(Gap("reconnected"))
            elif not confirmed.done():
                confirmed.set_result(None)

    def refused(self, names: list[bytes], error: ReplyError) -> None:
        """Fail those that wait for these channels. Ask for them again if the error passes."""
        super().refused(names, error)
        self.fail(names, to_error(error))

    def fail(self, names: Iterable[bytes], error: Unavailable | ReplyError) -> None:
        """Fail those that wait for these channels."""
        for name in names:
            channel = self._channels.get(name)
            if channel is not None:
                for confirmed in channel.unconfirmed.values():
                    if not confirmed.done():
                        confirmed.set_exception(error.for_another() if isinstance(error, Unavailable) else error)
