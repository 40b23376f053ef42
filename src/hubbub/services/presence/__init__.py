"""Who is online: leases in Redis, kept up by heartbeats and swept when nobody keeps them up."""

from hubbub.services.presence.leases import Device
from hubbub.services.presence.presence import Presence

__all__ = ["Device", "Presence"]
