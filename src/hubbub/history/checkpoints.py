"""How far files were imported: notes in `hubbub_imports`."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from hubbub.postgres import Statement


class Checkpoint(NamedTuple):
    """So many lines of some file were imported, and this is the SHA-256 of all of them."""

    digest: bytes
    lines: int

    def counted_as_read(self) -> Checkpoint:
        """Not only imported: members were told, too, that they have read all of it."""
        return Checkpoint(sha256(self.digest + b"read").digest(), self.lines)


CHECKPOINTS = Statement(
    "history.checkpoints",
    Checkpoint,
    """
    SELECT
        digest,
        lines
    FROM hubbub_imports
    WHERE lines > $1
        AND lines <= $2
    """,
)

CHECK = Statement(
    "history.check",
    int,
    """
    INSERT INTO hubbub_imports (digest, lines)
    VALUES ($1, $2)
    """,
)
