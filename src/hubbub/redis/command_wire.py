"""The wire of the connection for commands: many calls in one write, replies matched in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hiredis import HiredisError, PushNotification

from hubbub.redis.refusals import DEMOTED, ReplyError
from hubbub.redis.wire import INCOMPLETE, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubbub.redis.call import Call


class CommandWire(Wire):
    """Redis answers in the order of asking, so the n-th reply belongs to the n-th call written."""

    def __init__(self, on_writable: Callable[[], None]) -> None:
        super().__init__(on_writable)
        self._last_answered = 0
        self.written: deque[Call] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nothing is likely to join what is asked next.

        After several replies at once their callers will ask again in this turn of the loop, to go together.
        """
        return not self.written and self._last_answered <= 1

    def send(self, calls: list[Call]) -> None:
        """All calls in one write. A pipeline is there once for each of its replies."""
        if not self.written:
            self.heard_at = self._loop.time()  # silence counts from the first question, not from the last answer
        self.written.extend(calls)
        self.write(b"".join([call.packed for call in dict.fromkeys(calls)]))

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        written = self.written
        waited = len(written)
        next_reply = self.reader.gets
        demoted = False
        try:
            self.reader.feed(data)
            while (reply := next_reply()) is not INCOMPLETE:
                if reply.__class__ is PushNotification:  # a server may tell more than it was asked
                    continue
                written.popleft().answer(reply)
                if reply.__class__ is ReplyError and reply.code == DEMOTED:
                    demoted = True
        except HiredisError:
            self.drop("the server does not speak the Redis protocol")
        except IndexError:
            self.drop("the server replied without being asked")
        self._last_answered = waited - len(written)
        if demoted:
            self.drop("the server has become a replica")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        reason = self.lost.result().reason
        while self.written:
            self.written.popleft().leave_unanswered(reason)
