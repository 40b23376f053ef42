"""COPY: the quickest way in for many rows at once."""

from __future__ import annotations

from typing import NamedTuple

# The values of its columns, in their order.
Row = tuple[object, ...]


class Copy(NamedTuple):
    """A table, and those of its columns that the rows of a COPY fill, in their order.

    Constraints, foreign keys and indexes hold as for an INSERT, and one bad row refuses all.
    """

    table: str
    columns: tuple[str, ...]
