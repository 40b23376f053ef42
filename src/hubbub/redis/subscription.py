"""The two ways to hear a channel: as an asynchronous iterator, and by a callback."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from hubbub.instrumentation import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger("hubbub.redis")


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages may have been missed just here: whoever needs all of them reads them from where they are kept.

    `reconnected`: the subscription was made anew, and what was published before is lost. `overflow`: the
    subscriber was too slow, and `dropped` messages, the oldest, were thrown away.
    """

    reason: Literal["reconnected", "overflow"]
    dropped: int = 0


Received: TypeAlias = bytes | Gap


class Listener(ABC):
    """One local subscriber of one channel. It is told synchronously, by the connection."""

    def __init__(self, channel: bytes, leave: Callable[[Listener], None]) -> None:
        self.channel = channel
        self._leave = leave

    @abstractmethod
    def hear(self, heard: Received) -> None:
        """Take a message, or the word that some are missing."""

    @abstractmethod
    def end(self) -> None:
        """Nothing more will come."""

    def unsubscribe(self) -> None:
        """Stop hearing, at once. May be called again."""
        self._leave(self)
        self.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unsubscribe()


class Subscription(Listener):
    """Iterate over it for the payloads of the channel, as bytes, with a Gap wherever some may be missing.

    At most `buffer` messages wait to be read; beyond that the oldest go, are counted in `dropped`, and a Gap
    stands where they were. The iteration ends when the subscription or the connection is closed. One reader
    at a time.
    """

    def __init__(
        self,
        channel: bytes,
        leave: Callable[[Listener], None],
        buffer: int,
        tell_of_drop: Callable[[], None] = SILENT.dropped,
    ) -> None:
        super().__init__(channel, leave)
        self._room = buffer
        self._tell_of_drop = tell_of_drop
        self._heard: deque[Received] = deque()
        self._missing: Gap | None = None  # what stands before the oldest of them
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self.dropped = 0
        """How many messages were thrown away since the subscription began."""

    @property
    def unread(self) -> int:
        """How many messages and Gaps wait to be read."""
        return len(self._heard) + (self._missing is not None)

    def hear(self, heard: Received) -> None:
        if self._ended:
            return
        if isinstance(heard, Gap) and self._heard and isinstance(self._heard[-1], Gap):
            return
        if len(self._heard) >= self._room:
            self._drop_oldest()
        self._heard.append(heard)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._heard.clear()
        self._missing = None
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        while not (self._heard or self._missing):
            if self._ended:
                raise StopAsyncIteration
            await self._wait()
        if self._missing is not None:
            gap, self._missing = self._missing, None
            return gap
        return self._heard.popleft()

    async def _wait(self) -> None:
        if self._reader is not None:
            raise RuntimeError("a subscription has one reader at a time")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _drop_oldest(self) -> None:
        oldest = self._heard.popleft()
        if not isinstance(oldest, Gap):
            self.dropped += 1
            self._tell_of_drop()
            unsaid = self._missing.dropped if self._missing is not None else 0
            self._missing = Gap("overflow", unsaid + 1)
        elif self._missing is None:
            self._missing = oldest


class CallbackSubscription(Listener):
    """Calls `callback` with each payload or Gap, in order, as it arrives; what that raises is logged."""

    def __init__(
        self, channel: bytes, leave: Callable[[Listener], None], callback: Callable[[Received], None]
    ) -> None:
        super().__init__(channel, leave)
        self._callback = callback
        self._ended = False

    def hear(self, heard: Received) -> None:
        if self._ended:
            return
        try:
            self._callback(heard)
        except Exception:  # whatever it is, the other subscribers must not suffer for it
            logger.exception("a subscriber of %s raised", self.channel.decode(errors="replace"))

    def end(self) -> None:
        self._ended = True
