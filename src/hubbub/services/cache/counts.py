"""How the cache does, in figures that only grow."""

from __future__ import annotations

import msgspec


class Counts(msgspec.Struct):
    """Since this process started.

    `hits`: answered by Redis. `misses`: asked of PostgreSQL and kept, unless a change came between: those are also
    counted as `overtaken`. `bypasses`: asked of PostgreSQL without a look at Redis or without keeping the answer.
    `failed_invalidations`: attempts to tell Redis of changes that failed and are made again.
    """

    hits: int = 0
    misses: int = 0
    overtaken: int = 0
    bypasses: int = 0
    failed_invalidations: int = 0
