"""The wire of the connection for subscriptions: what the server was asked for, and what it sends."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from hiredis import HiredisError

from hubbub.redis.refusals import PASSING, ReplyError
from hubbub.redis.wire import INCOMPLETE, Wire, pack

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

CHANNELS_A_COMMAND: Final = 1_000


@dataclass(slots=True)
class Question:
    """A command whose answer is still to come: one word for each channel, or one error for all of them."""

    verb: Literal["SUBSCRIBE", "UNSUBSCRIBE", "PING"]
    channels: deque[bytes]


class SubscriptionWire(Wire):
    """Speaks RESP3, where messages are pushes, and RESP2, where they are arrays: to it they look alike."""

    def __init__(
        self,
        on_writable: Callable[[], None],
        *,
        on_message: Callable[[bytes, bytes], None],
        on_live: Callable[[bytes], None],
        on_refused: Callable[[list[bytes], ReplyError], None],
    ) -> None:
        super().__init__(on_writable)
        self._on_message = on_message
        self._on_live = on_live
        self._on_refused = on_refused
        self._questions: deque[Question] = deque()
        self._unconfirmed: Counter[bytes] = Counter()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._pinged_at = 0.0
        self.asked: set[bytes] = set()
        """The channels that the server will deliver once it has worked through what was sent."""

    def is_live(self, channel: bytes) -> bool:
        """Whether the server has confirmed, and was not told otherwise since."""
        return channel in self.asked and channel not in self._unconfirmed

    def change(self, *, subscribe: list[bytes], unsubscribe: list[bytes]) -> None:
        """Ask for some channels and give up others, in one write."""
        self.asked.update(subscribe)
        self.asked.difference_update(unsubscribe)
        self._unconfirmed.update(subscribe)
        packed = [self._ask("UNSUBSCRIBE", some) for some in _in_parts(unsubscribe)]
        packed += [self._ask("SUBSCRIBE", some) for some in _in_parts(subscribe)]
        self.write(b"".join(packed))

    def keep_probing(self, every_seconds: float, patience_seconds: float) -> None:
        """Ask for a sign of life whenever there was none for a while, and drop the connection without one."""
        now = self._loop.time()
        if self.heard_at < self._pinged_at:
            if now >= self._pinged_at + patience_seconds:
                self.drop(f"the server was silent for {patience_seconds:g} s after a PING")
                return
            next_look = min(now + every_seconds, self._pinged_at + patience_seconds)
        elif now < self.heard_at + every_seconds:
            next_look = self.heard_at + every_seconds
        else:
            self._pinged_at = now
            self.write(self._ask("PING", []))
            next_look = now + min(every_seconds, patience_seconds)
        self._heartbeat = self._loop.call_at(next_look, self.keep_probing, every_seconds, patience_seconds)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        next_reply = self.reader.gets
        on_message = self._on_message
        try:
            self.reader.feed(data)
            while (reply := next_reply()) is not INCOMPLETE:
                if isinstance(reply, list) and reply[0] == b"message":  # a push is a list too
                    on_message(reply[1], reply[2])
                else:
                    self._answered(reply)
        except (HiredisError, IndexError):
            self.drop("the server does not speak the Redis protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    def _ask(self, verb: Literal["SUBSCRIBE", "UNSUBSCRIBE", "PING"], channels: list[bytes]) -> bytes:
        self._questions.append(Question(verb, deque(channels)))
        return pack((verb, *channels))

    def _answered(self, reply: Any) -> None:  # noqa: ANN401 - whatever the server sends
        if not self._questions:
            self.drop("the server replied without being asked")
            return
        question = self._questions[0]
        if isinstance(reply, ReplyError):
            self._questions.popleft()
            self._refused(question, reply)
            return
        channel = question.channels.popleft() if question.channels else None
        if not question.channels:
            self._questions.popleft()
        if channel is not None and question.verb == "SUBSCRIBE":
            self._confirmed(channel)

    def _confirmed(self, channel: bytes) -> None:
        self._settle(channel)
        # Only the last of several SUBSCRIBEs counts: an UNSUBSCRIBE may follow on an earlier one.
        if self.is_live(channel):
            self._on_live(channel)

    def _refused(self, question: Question, error: ReplyError) -> None:
        if question.verb != "SUBSCRIBE":
            return
        # What passes has to do with none of them: one by one they would all be refused again.
        if len(question.channels) > 1 and error.code not in PASSING:
            self._ask_one_by_one(question.channels)
            return
        for channel in question.channels:
            self._settle(channel)
        refused = [channel for channel in question.channels if channel not in self._unconfirmed]
        self.asked.difference_update(refused)
        if refused:
            self._on_refused(refused, error)

    def _ask_one_by_one(self, channels: deque[bytes]) -> None:
        """The server refuses them all for one of them and does not say which."""
        for channel in channels:
            if channel in self.asked:
                self.write(self._ask("SUBSCRIBE", [channel]))
            else:  # given up since
                self._settle(channel)

    def _settle(self, channel: bytes) -> None:
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] <= 0:
            del self._unconfirmed[channel]


def _in_parts(channels: list[bytes]) -> list[list[bytes]]:
    return [channels[start : start + CHANNELS_A_COMMAND] for start in range(0, len(channels), CHANNELS_A_COMMAND)]
