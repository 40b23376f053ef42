"""The one interface of whoever measures a hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec

from hubbub.models import ResyncReason

Outcome: TypeAlias = Literal["ok", "refused", "cancelled", "failed"]
"""Of a statement. `refused`: it broke a rule of the schema, as a retry of a send does on purpose. `failed`: the
server would not or did not answer."""

Line: TypeAlias = Literal["postgresql", "redis-commands", "redis-subscriptions"]
"""Of what kind a connection is. There are many of the first, and one at a time of each other."""


class PoolUse(msgspec.Struct, frozen=True):
    """The connections to PostgreSQL at a moment. More than `limit` are never open; who waits has come too late."""

    limit: int
    open: int
    in_use: int
    waiting: int
    """Callers that wait for a connection."""


class Instrumentation:
    """Override what you want to know; what is not overridden does nothing, and neither will what is added later.

    The methods are called in the event loop, by the code that they tell about: they must be quick, and must not
    raise. Nothing that they are given says which room, user or content it is about, so all of it can be a label.
    """

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        """A hub has started. `pool` says how its pool does, whenever it is asked, also once the hub is closed."""

    def unwatch(self, pool: Callable[[], PoolUse]) -> None:
        """The hub that came with this `pool` closes: it is to be counted, and kept, no longer."""

    def queried(self, statement: str, seconds: float, outcome: Outcome) -> None:
        """A statement was run once, in so many seconds on its connection, which end now. Called in the task that
        ran it: what belongs to a trace finds its context there.

        `statement` is its name, such as `messages.page`; BEGIN, COMMIT and the like have their first word. One
        statement may serve many callers that asked at the same time.
        """

    def waited(self, seconds: float) -> None:
        """A caller waited for a connection to PostgreSQL, and got one or not. Who finds one free does not wait."""

    def connected(self, line: Line) -> None:
        """A connection was opened. To Redis, each but the first is one that had been lost."""

    def published(self, number: int, *, is_lost: bool = False) -> None:
        """So many announcements went to Redis, of changed logs or by `hub.realtime`; or did not arrive there."""

    def delivered(self) -> None:
        """A follower was given an event."""

    def fell_behind(self) -> None:
        """A follower did not read its events in time, and reads what follows from PostgreSQL."""

    def resynced(self, reason: ResyncReason) -> None:
        """A follower was told that it cannot go on where it was."""

    def dropped(self) -> None:
        """A listener of `hub.realtime` did not read in time and lost a message, which it is told by a `Gap`."""


SILENT: Final = Instrumentation()
"""Measures nothing."""
