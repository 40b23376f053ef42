"""What is read often, kept in Redis for a moment and forgotten with the change that makes it old."""

from hubbub.services.cache.cache import Cache
from hubbub.services.cache.counts import Counts

__all__ = ["Cache", "Counts"]
