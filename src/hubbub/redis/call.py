"""One command from the moment it is asked for until its caller has an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from hubbub.errors import Unavailable
from hubbub.redis.refusals import ReplyError, meaning

if TYPE_CHECKING:
    import asyncio

    from hubbub.redis.replies import Reply

Outcome: TypeAlias = "Reply | ReplyError | Unavailable"
"""What became of one command of a pipeline."""


class Call(msgspec.Struct, eq=False, gc=False):
    """A command and the future of the caller that waits for its reply.

    The future is done early when the caller gives up. The reply comes all the same and is thrown away, so
    that the replies behind it go to whom they belong. There is one for each command: a struct that the garbage
    collector leaves alone, as whatever leads back to it ends with the answer, takes half as long to make.
    """

    future: asyncio.Future[Any]
    packed: bytes
    since: float
    deadline: float
    writes: bool

    def answer(self, reply: Reply | ReplyError) -> None:
        """Give the caller what the server replied."""
        future = self.future
        if future.done():
            return
        if isinstance(reply, ReplyError):
            future.set_exception(meaning(reply))
        else:
            future.set_result(reply)

    def leave_unanswered(self, reason: str) -> None:
        """It was sent, and nobody knows what became of it."""
        self.fail(Unavailable("redis", reason, outcome_unknown=self.writes))

    def fail(self, error: Unavailable) -> None:
        """Give the caller an error instead of a reply."""
        if not self.future.done():
            self.future.set_exception(error)


class Pipeline(Call, eq=False, gc=False):
    """Commands that go out together, with one future for what becomes of them all: a reply of each."""

    steps: int
    outcomes: list[Outcome] = []

    def answer(self, reply: Reply | ReplyError) -> None:
        """Add to the outcomes; with the last one the caller has its answer."""
        self.outcomes.append(meaning(reply) if isinstance(reply, ReplyError) else reply)
        if len(self.outcomes) == self.steps and not self.future.done():
            self.future.set_result(self.outcomes)
