"""All cells, in the order in which they run. A cell yields one or more comparisons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from benchmarks import followers, gateway, growth, history, imports, lookups, pages, pubsub, sends, sessions
from benchmarks.context import Context
from benchmarks.measuring import Comparison, Pace

Cell = Callable[[Context, Pace], AsyncIterator[Comparison]]

CELLS: dict[str, Cell] = {
    "sends": sends.many_rooms,
    "one-room": sends.one_room,
    "one-sender": sends.one_sender,
    "slow-disk": sends.slow_disk,
    "lookups": lookups.lookups,
    "pages": pages.pages,
    "sessions": sessions.sessions,
    "pubsub": pubsub.pubsub,
    "followers": followers.delivery,
    "idle-followers": followers.idle,
    "gateway": gateway.gateway,
    "gateway-life": gateway.gateway_life,
    "history": history.history,
    "import": imports.imports,
    "growth": growth.growth,
}
