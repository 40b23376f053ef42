"""What the steps of the demo share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hubbub.cli._demo.chatlog import ChatLog
from hubbub.cli._demo.ledger import Ledger
from hubbub.cli._demo.people import People
from hubbub.hub import Hub
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.settings import Settings


@dataclass(slots=True, kw_only=True)
class Stage:
    """The hub on its servers, what is to be played on it, and the account of what has been.

    `pool` and `redis` are for the checks' own questions, beside the hub. `tell` says what is going on to whoever
    watches.
    """

    settings: Settings
    hub: Hub
    pool: Pool
    redis: Connection
    log: ChatLog
    users: int
    tell: Callable[[str], None]
    people: People
    ledger: Ledger = field(default_factory=Ledger)
