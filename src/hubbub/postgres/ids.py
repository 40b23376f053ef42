"""UUIDs as asyncpg itself makes them."""

from __future__ import annotations

from asyncpg.pgproto import pgproto

# A `uuid.UUID` like any other, equal and with the same hash, but made from 16 bytes in 0.08 µs instead of 0.7, and
# sent without a detour: that counts where there are a million of them.
FastUUID = pgproto.UUID
