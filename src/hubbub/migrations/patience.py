"""How long a migration waits for others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a migration waits for others, and lets others wait for it. All in seconds.

    `lock_timeout_seconds`: how long a statement waits for the lock on a table. Whoever wants the table meanwhile
    queues behind it, so this is also the longest that a waiting migration holds up the application.
    `locks_seconds`: how long one revision goes on trying after its first refusal, with growing pauses.
    `turn_seconds`: how long to wait while another process migrates the same database.
    """

    lock_timeout_seconds: float = 2
    locks_seconds: float = 60
    turn_seconds: float = 600
