"""UUIDs as asyncpg itself makes them."""

from __future__ import annotations

from uuid import UUID

from asyncpg.pgproto import pgproto

# A `uuid.UUID` like any other, equal and with the same hash, but made from 16 bytes in 0.08 µs instead of 0.7, and
# sent without a detour: that counts where there are a million of them.
FastUUID = pgproto.UUID


def fast(id: UUID) -> UUID:
    """The same id in that form: its hash, its text and its comparisons then cost a tenth. Worth it on a path that
    looks an id up a dozen times, as a send does."""
    return id if id.__class__ is FastUUID else FastUUID(id.bytes)
