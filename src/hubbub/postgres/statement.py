"""SQL as values, and the models that its rows become. Also UUIDs as asyncpg makes them.

A database with distributed rooms has the functions of functions.sql. The name of one in the database ends with a
digest of its definition. Two versions of hubbub therefore use separate functions, and no function is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from asyncpg.pgproto import pgproto

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.scheduling import TimeSlice

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TABLES: Final = (
    *("users", "rooms", "messages", "room_users", "message_read_receipts", "room_events"),
    *("hubbub_imports", "hubbub_deletions", "hubbub_consumers", "hubbub_sessions"),
    *("hubbub_presence", "hubbub_schema_version"),
)
"""The tables of hubbub. Statements name them without their schema, which `Statement.in_layout` puts in front."""

# `(?!\.)` because in `IS DISTINCT FROM rooms.name` a table's name stands for its row.
_TABLE = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE|USING) ({'|'.join(TABLES)}|hubbub_\w+(?=\())\b(?!\.)")
_LOCKS_ROOM = re.compile(r"\b(UPDATE|DELETE FROM) rooms\b")
_WRITING: Final = ("INSERT INTO", "UPDATE", "DELETE FROM")


ROWS_PER_STEP: Final = 500
"""Rows that become models without a pause. A row takes 0.3 to 10 us."""

NOT_SUPPORTED: Final = ""
"""The form of a statement that cannot run where rooms are distributed."""

_DISTRIBUTED: Final = " distributed"  # no name of a schema has a space


def distributed_layout(schema: str) -> str:
    """The key of `Statement.in_layout` where rooms are distributed. Elsewhere it is the schema."""
    return schema + _DISTRIBUTED


def schema_of(layout: str) -> str:
    return layout.removesuffix(_DISTRIBUTED)


def not_supported(what: str) -> Unavailable:
    """The error of what cannot be done where rooms are distributed."""
    reason = f"{what} is not possible where rooms are distributed over several nodes (docs/scale.md)"
    return Unavailable("postgresql", reason, retryable=False)


FILE: Final = Path(__file__).with_name("functions.sql")

DIGITS: Final = 8
"""Of the digest, in the name."""

_DEFINITION: Final = re.compile(
    r"^CREATE OR REPLACE FUNCTION (?P<name>hubbub_\w+)(?P<rest>\(.*?^\$\$);$", re.DOTALL | re.MULTILINE
)
_CALL: Final = re.compile(r"\bhubbub_\w+(?=\()")


class Function(NamedTuple):
    """A function: its name in the database, and the rest of its definition, from the parameters on."""

    name: str
    definition: str


@cache
def functions() -> dict[str, Function]:
    """All functions, by the names that statements call them by."""
    found: dict[str, Function] = {}
    for made in _DEFINITION.finditer(FILE.read_text(encoding="utf-8")):
        digest = sha256(made["rest"].encode()).hexdigest()[:DIGITS]
        found[made["name"]] = Function(f"{made['name']}_{digest}", made["rest"])
    return found


def with_names_in_database(sql: str) -> str:
    """The SQL of a statement, with the names that its functions have in the database."""
    return _CALL.sub(lambda call: functions()[call[0]].name, sql)


class _SqlByLayout(dict[str, str]):
    """The SQL of a statement for each layout that was asked for."""

    def __init__(self, name: str, sql: str, distributed: str) -> None:
        self._name = name
        self._sql = sql
        self._distributed = distributed

    def __missing__(self, layout: str) -> str:
        schema = schema_of(layout)
        sql = self._sql
        if schema != layout:
            if self._distributed == NOT_SUPPORTED:
                raise not_supported(self._name)
            sql = with_names_in_database(self._distributed)
        sql = _TABLE.sub(rf"\1 {schema}.\2", sql).replace("current_schema()", f"'{schema}'")
        self[layout] = sql
        return sql


class Statement(Generic[T_co]):
    """SQL with its name in metrics and the model of its rows.

    `in_layout` is the SQL with the schema in front of each table, because a pooler may hand out sessions with any
    search path. In the SQL as it is written, `current_schema()` stands for the name of that schema. A layout is
    the schema, and whether its rooms are distributed over several nodes. `distributed` is the SQL for these.

    `model` is called with the columns of a row, in the order in which the SQL names them. Statements are values at
    module level, so the tests can find them all. They prepare each one against the migrated schema, and compare
    its columns with the fields of its model and its placeholders with every call.
    """

    __slots__ = (
        "build",
        "distributed",
        "in_layout",
        "is_built_in_slices",
        "locks_room",
        "model",
        "name",
        "repeatable",
        "sql",
        "writes",
    )

    def __init__(
        self,
        name: str,
        model: Callable[..., T_co],
        sql: str,
        *,
        idempotent: bool = False,
        build: Callable[[Sequence[Any]], list[T_co]] | None = None,
        distributed: str | None = None,
    ) -> None:
        """`idempotent` is for a writing statement: running it twice is the same as running it once. `build` makes
        models of all rows at once; without it, `model` does of each. `distributed` is another form for distributed
        rooms, with the same parameters and columns, or `NOT_SUPPORTED`.
        """
        self.name = name
        self.model = model
        self.build: Callable[[Sequence[Any]], list[T_co]]
        self.build = build or getattr(model, "of_rows", None) or partial(_build, model)
        self.is_built_in_slices = build is None
        """Whether the models of many rows may be made in several calls of `build`."""
        self.sql = sql
        self.distributed = sql if distributed is None else distributed
        self.in_layout: Mapping[str, str] = _SqlByLayout(name, sql, self.distributed)
        self.writes = any(verb in sql for verb in _WRITING)
        self.locks_room = self.writes and _LOCKS_ROOM.search(sql) is not None
        """Whether it changes the row of a room, which stays locked until the COMMIT."""
        self.repeatable = idempotent or not self.writes

    async def build_in_slices(self, rows: Sequence[Any]) -> list[T_co]:
        """As `build`, for more rows than `ROWS_PER_STEP`. Other tasks run meanwhile."""
        if not self.is_built_in_slices:
            return self.build(rows)
        models: list[T_co] = []
        time_slice = TimeSlice()
        for start in range(0, len(rows), ROWS_PER_STEP):
            models += self.build(rows[start : start + ROWS_PER_STEP])
            await time_slice.pause_if_due()
        return models

    def __repr__(self) -> str:
        return f"Statement({self.name})"


def _build(model: Callable[..., T], rows: Sequence[Any]) -> list[T]:
    return [model(*row) for row in rows]


class Lookup(Statement[T]):
    """A statement that finds the row of one key, beside a second one, `many`, that finds the rows of many keys.

    The placeholders of the statement make up the key. `many` has as many placeholders, each of them an array. The
    n-th items of all arrays are the n-th key. `key_of_args` and `key_of_row` give the key of a call and of a row
    in a form that is fast to compare: the `int` of a UUID, not the UUID. With `has_room` the key names the room,
    so that the row is on one node where rooms are distributed.
    """

    __slots__ = ("has_room", "key_of_args", "key_of_row", "many")

    def __init__(
        self,
        name: str,
        model: Callable[..., T],
        sql: str,
        *,
        many: Statement[T],
        key_of_args: Callable[..., Hashable],
        key_of_row: Callable[[T], Hashable],
        has_room: bool = False,
        distributed: str | None = None,
    ) -> None:
        super().__init__(name, model, sql, distributed=distributed)
        self.has_room = has_room
        self.many = many
        self.key_of_args = key_of_args
        self.key_of_row = key_of_row


Row = tuple[object, ...]
"""The values of one row of a COPY, in the order of its columns."""


class Copy(NamedTuple):
    """A table and the columns that a COPY fills. COPY is the fastest way to insert many rows.

    Constraints, foreign keys and indexes apply as for an INSERT. One refused row refuses all of them.
    """

    table: str
    columns: tuple[str, ...]


def count_of(tag: str) -> int:
    """The number of rows in a command tag such as `UPDATE 3` or `INSERT 0 3`; 0 for one such as `CREATE TABLE`."""
    count = tag.rpartition(" ")[2]
    return int(count) if count.isdecimal() else 0


_LONGEST_SQL: Final = 1024 * 1024
_FIRST_WORDS = re.compile(
    r"(?:\s|--[^\n]*|/\*.*?\*/)*+(?P<command>[a-z]+)(?:\s+(?P<scope>[a-z]+))?", re.DOTALL | re.IGNORECASE
)
_OF_TRANSACTIONS = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
_OF_SESSIONS = {"SET", "RESET", "DISCARD", "LISTEN", "UNLISTEN", "PREPARE", "DEALLOCATE"}
_SCOPES = {"LOCAL", "TRANSACTION", "CONSTRAINTS"}


def check_sql(sql: object) -> None:
    """Check a statement of the application's own, for a transaction of hubbub's.

    The block ends the transaction, and the session belongs to other callers afterwards. So the commands that end
    the one or change the other are refused.

    Raises: Invalid.
    """
    words = _FIRST_WORDS.match(inputs.text("sql", sql, longest=_LONGEST_SQL))
    if words is None:
        return
    command, scope = words["command"].upper(), (words["scope"] or "").upper()
    if command in _OF_TRANSACTIONS:
        reason = f"must not be {command}: the block ends the transaction, and `savepoint` makes savepoints"
        raise Invalid("sql", reason)
    if command in _OF_SESSIONS and not (command == "SET" and scope in _SCOPES):
        reason = f"must not be {command}, which outlives the transaction: use SET LOCAL for a setting"
        raise Invalid("sql", reason)


FastUUID = pgproto.UUID
"""A subclass of `uuid.UUID`, equal to it and with the same hash. It is made from 16 bytes in 0.08 µs instead of
0.7, and sent without a conversion. That counts for a million of them."""


def as_fast_uuid(id: UUID) -> UUID:
    """The same id as a `FastUUID`, whose hash, text and comparisons cost a tenth.

    It pays off where an id is looked up a dozen times, as in a send.
    """
    return id if id.__class__ is FastUUID else FastUUID(id.bytes)


_VERSION_AND_VARIANT: Final = 0xF << 76 | 0b11 << 62


def uuid_of(version: int, bits: int) -> UUID:
    """A `FastUUID` of these 128 bits, except for the six that are its version and variant."""
    return FastUUID((bits & ~_VERSION_AND_VARIANT | version << 76 | 0b10 << 62).to_bytes(16))
