"""A statement: SQL with a name and the model that one row of it makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)

_WRITES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM)\b")


class Statement(Generic[T_co]):
    """SQL as it is sent, what it is called in figures, and what its rows become.

    `model` is called with the columns of a row in the order in which the SQL names them. Being values at module
    level, all statements can be found: the tests prepare each one against the migrated schema, and compare its
    columns with the fields of its model and its placeholders with every call.
    """

    __slots__ = ("model", "name", "repeatable", "sql", "writes")

    def __init__(self, name: str, model: Callable[..., T_co], sql: str, *, idempotent: bool = False) -> None:
        """`idempotent` says of a writing statement that running it twice is the same as running it once."""
        self.name = name
        self.model = model
        self.sql = sql
        self.writes = _WRITES.search(sql) is not None
        self.repeatable = idempotent or not self.writes

    def __repr__(self) -> str:
        return f"Statement({self.name})"


def count_of(tag: str) -> int:
    """The number of rows in a command tag such as `UPDATE 3` or `INSERT 0 3`."""
    return int(tag.rpartition(" ")[2])
