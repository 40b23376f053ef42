"""SQL as values, the models that its rows become, and the interface on which repositories run it.

Also UUIDs as asyncpg makes them.

A database with distributed rooms has the functions of functions.sql. The name of one in the database ends with a
digest of its definition. Two versions of hubbub therefore use separate functions, and no function is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

from asyncpg.pgproto import pgproto

from hubbub.errors import Unavailable
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


FUNCTIONS_FILE: Final = Path(__file__).with_name("functions.sql")

DIGEST_DIGITS: Final = 8
"""Hexadecimal digits of the digest at the end of the name of a function. A name is of 63 characters at most."""

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
    for made in _DEFINITION.finditer(FUNCTIONS_FILE.read_text(encoding="utf-8")):
        digest = sha256(made["rest"].encode()).hexdigest()[:DIGEST_DIGITS]
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


def key_of_account(user_id: UUID) -> Hashable:
    """The key of the row of an account for `Executor.note_locked`. Other changes have the id as an argument."""
    return "account", user_id


def key_of_value(column: str, value: object) -> Hashable:
    """The key of a unique value, for `Executor.note_locked`. Others wait for the COMMIT to store it."""
    return column, str(value)


class Executor(Protocol):
    """Runs statements. Every method raises the errors of `hubbub.errors` and ends by its deadline.

    Deadlines are times of the event loop. An operation of several statements calls `deadline()` once and passes
    the result to each of them. It then ends as soon as an operation of one statement.
    """

    @property
    def is_distributed(self) -> bool:
        """Whether the rooms are distributed over several nodes. A statement then locks rows of one room only."""
        ...

    def deadline(self) -> float:
        """The time by which a call that starts now has to end."""
        ...

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        """Every row, as a model."""
        ...

    async def fetch_one(self, statement: Statement[T], *args: object, deadline: float | None = None) -> T | None:
        """The first row as a model, or None if there is none."""
        ...

    def look_up(self, lookup: Lookup[T], *key: object) -> Awaitable[T | None]:
        """The row of the key, or None. On a pool, concurrent lookups of one kind share a statement."""
        ...

    def fetch_shared(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        """Every row. On a pool, concurrent calls with the same arguments share a statement.

        The statement begins after the call, so the rows are at least as recent as the call. All callers get the
        same list and must not change it.
        """
        ...

    def fetch_shared_by_each(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> Awaitable[list[T]]:
        """As `fetch_shared`, for calls that differ in the last argument: the statement gets an array of these.

        A call without a last argument, None, shares with its equals, and the statement gets NULL.
        """
        ...

    async def execute(self, statement: Statement[T], *args: object) -> int:
        """Run the statement. Returns the number of rows that it changed."""
        ...

    async def fetch_in_savepoint(
        self, statement: Statement[T], *args: object, deadline: float | None = None
    ) -> list[T]:
        """As `fetch_all`. In a transaction it runs in a savepoint, so that this can go on after an error."""
        ...

    def transaction(self, *, deadline: float | None = None) -> AbstractAsyncContextManager[Executor]:
        """All or nothing: a transaction on a pool, a savepoint in a transaction. The deadline is for the block."""
        ...

    def note_locked(self, key: Hashable) -> None:
        """Note that a row was changed or a unique value was stored, which is locked until the COMMIT.

        The key of a room is its id, that of a membership a pair of ids, and that of an account `key_of_account`.
        That of a value is `key_of_value`.
        """
        ...

    def locked_by_caller(self) -> Set[Hashable]:
        """The rows that transactions of the same task have locked, and may have freed since."""
        ...

    async def check_not_locked_by_caller(self, *keys: Hashable) -> None:
        """Refuse a change of one of these rows that would wait for a transaction of the same task.

        It is needed only while `locked_by_caller` returns rows. Raises: Invalid.
        """
        ...

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` once the changes made so far are durable. It is never called if they are rolled back."""
        ...


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
