"""Presence: which users are online. Leases in Redis, renewed by heartbeats, swept when they are not."""

from hubbub.services.presence.leases import Device
from hubbub.services.presence.presence import Presence

__all__ = ["Device", "Presence"]
