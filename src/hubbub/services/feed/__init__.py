"""Following rooms: every entry of their logs, once and in order, whatever happens to Redis."""

from hubbub.services.feed.feed import Feed
from hubbub.services.feed.followers import Follower

__all__ = ["Feed", "Follower"]
