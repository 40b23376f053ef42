"""The slots of a Redis Cluster, and the channels that have one."""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

SLOTS: Final = 16_384

_ROOM: Final = "room:"
_LENGTH: Final = len(_ROOM) + 36


def slot_of(key: bytes) -> int:
    """The hash slot of a key, by the part within its first braces if there is one."""
    start = key.find(b"{")
    if start >= 0 and (end := key.find(b"}", start)) > start + 1:
        key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def has_slot(channel: str) -> bool:
    """Whether the channel is that of a room, and so has a slot where the servers have sharded pub/sub.

    Scripts publish on the other channels, each in the slot of its keys.
    """
    return channel.startswith(_ROOM) and len(channel) == _LENGTH
