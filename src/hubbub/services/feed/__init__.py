"""Following rooms: every entry of their logs, in order, each once, whatever becomes of Redis."""

from hubbub.services.feed.feed import Feed
from hubbub.services.feed.follower import Follower

__all__ = ["Feed", "Follower"]
