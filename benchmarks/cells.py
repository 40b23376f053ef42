"""All cells, in the order in which they run. A cell yields one or more comparisons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from benchmarks import (
    changes,
    followers,
    gateway,
    growth,
    history,
    imports,
    lookups,
    pages,
    pubsub,
    sends,
    sessions,
)
from benchmarks.context import Context
from benchmarks.measuring import Comparison, Pace

Cell = Callable[[Context, Pace], AsyncIterator[Comparison]]

CELLS: dict[str, Cell] = {
    **{f"sends-{callers}": sends.many_rooms(callers) for callers in sends.AIMS},
    "sends-one-room": sends.one_room,
    "sends-1": sends.one_sender,
    "edits": changes.edits,
    "marks": changes.marks,
    "lookups": lookups.lookups,
    "pages": pages.pages,
    "replica": pages.replica,
    "lists": pages.lists,
    "sessions": sessions.sessions,
    "sessions-cluster": sessions.cluster,
    "pubsub": pubsub.pubsub,
    "followers": followers.delivery,
    "idle-followers": followers.idle,
    "changes": followers.changes,
    "joins": changes.joins,  # after lists and followers: afterwards each user has up to a thousand rooms
    "history": history.history,
    "import": imports.imports,
    "growth": growth.growth,
    "gateway": gateway.gateway,
    "gateway-life": gateway.gateway_life,
}
LONG = {"gateway", "gateway-life"}
"""They take six minutes together, and run only if they are named."""
