"""What the fixtures of the pytest plugin are made of (docs/testing.md): servers, databases, an empty Redis."""

from hubbub.testing.databases import Template
from hubbub.testing.keyspace import empty
from hubbub.testing.servers import serving

__all__ = ["Template", "empty", "serving"]
