"""How much the tests of faults do: a little in the ordinary suite, all of it with FAULTS=full (`make faults`)."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    seeds: int
    """How often PostgreSQL is killed under load, each time in another chat."""
    messages: int
    """Messages of a chat in which PostgreSQL is killed, or answers are lost."""
    fault_seconds: float
    """How long a server is away."""
    followers: int
    """Processes that follow while a server is away."""
    stalled: int
    """Messages that come while a follower reads nothing."""
    cancelled: int
    """Calls that are cancelled."""
    crowd: int
    """Processes that open at once."""
    patience: float
    """How many times longer than promised things may take, because the machine does others besides."""


IS_FULL = os.environ.get("FAULTS") == "full"
SCALE = (
    Scale(
        seeds=5,
        messages=4_000,
        fault_seconds=4,
        followers=2,
        stalled=50_000,
        cancelled=1_000,
        crowd=200,
        patience=1,
    )
    if IS_FULL
    else Scale(
        seeds=1,
        messages=500,
        fault_seconds=0.5,
        followers=1,
        stalled=6_000,
        cancelled=200,
        crowd=30,
        patience=5,
    )
)
