"""What repositories share: reports of changes, the columns of a model, a row by its id, an entry of a log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TypeVar, get_args, get_type_hints

import msgspec

from hubbub.commits import Change, OnCommit, ignore
from hubbub.events import Logged, Payload
from hubbub.models import Message, Room, User
from hubbub.postgres import Executor, Lookup, Statement


class Repository:
    """Runs statements on an executor, and reports each change after its COMMIT."""

    def __init__(self, executor: Executor, on_commit: OnCommit = ignore) -> None:
        self._executor = executor
        self._on_commit = on_commit

    def _changed(self, change: Change) -> None:
        self._executor.after_commit(lambda: self._on_commit(change))


T = TypeVar("T")
M = TypeVar("M", Message, Room, User)  # of the tables whose key is `id`


def columns(model: type[msgspec.Struct], table: str = "", computed: Mapping[str, str] | None = None) -> str:
    """The columns of a model, one a line, in the order of its fields: for SELECT and RETURNING.

    They belong to `table`, if it is given. `computed` has expressions for fields that are not columns.
    """
    prefix = f"{table}." if table else ""
    computed = computed or {}
    lines = (
        f"{computed[field]} AS {field}" if field in computed else f"{prefix}{field}"
        for field in model.__struct_fields__
    )
    return ",\n".join(f"    {line}" for line in lines).lstrip()


FIRST_TIME: Final = "'0001-01-01 00:00:00+00'::timestamptz"
LAST_TIME: Final = "'9999-12-31 23:59:59.999999+00'::timestamptz"


def representable(time: str) -> str:
    """A time as Python can hold it: the first or the last `datetime` instead of one beyond them, or infinite.

    hubbub stores no such time, but other programs may. One row of theirs must not fail the statement that reads
    the rows of many rooms.
    """
    early, late = f"WHEN {time} < {FIRST_TIME} THEN {FIRST_TIME}", f"WHEN {time} > {LAST_TIME} THEN {LAST_TIME}"
    return f"CASE {early} {late} ELSE {time} END"


def readable(model: type[msgspec.Struct], table: str = "", computed: Mapping[str, str] | None = None) -> str:
    """As `columns`, with `representable` times: for a SELECT of rows that any program may have written.

    Such a SELECT names the table of a column in its ORDER BY. A bare name would mean the expression, which no
    index has.
    """
    prefix = f"{table}." if table else ""
    hints = get_type_hints(model)
    times = {
        field: representable(f"{prefix}{field}")
        for field in model.__struct_fields__
        if datetime in (hints[field], *get_args(hints[field]))
    }
    return columns(model, table, {**times, **(computed or {})})


def by_id(model: type[M], table: str, selected: str) -> Lookup[M]:
    """The statement that finds a row by its id; its `many` finds the rows of many ids."""
    return Lookup(
        f"{table}.get",
        model,
        f"SELECT {selected} FROM {table} WHERE id = $1",
        many=Statement(f"{table}.get_many", model, f"SELECT {selected} FROM {table} WHERE id = ANY($1::uuid[])"),
        key_of_args=lambda id: id.int,
        key_of_row=lambda row: row.id.int,
    )


def existing(row: T | None, error: Callable[..., Exception], *key: object) -> T:
    """The row. Raises: the error of this key."""
    if row is None:
        raise error(*key)
    return row


def unread(member: str, user_id: str, cap: str) -> str:
    """A subquery that counts the messages after the watermark of a member, as far as the cap."""
    return f"""(
            SELECT count(*) AS count
            FROM (
                SELECT 1
                FROM messages
                WHERE messages.room_id = {member}.room_id
                    AND messages.seq > {member}.last_read_seq
                    AND messages.user_id IS DISTINCT FROM {user_id}
                    AND messages.deleted_at IS NULL
                LIMIT {cap}
            ) AS capped
        )"""


def entry(
    event: type[Logged],
    source: str,
    *,
    room_id: str = "id",
    seq: str = "last_seq",
    message_id: str = "NULL",
    user_id: str = "NULL",
    payload: Mapping[str, str] | None = None,
) -> str:
    """Append an entry to a log for each row of `source`, a part of the WITH. The other arguments are expressions.

    A field of the payload without an expression is the column of that name.
    """
    expressions = payload or {}
    stored = [field for field in event.__struct_fields__ if field in Payload.__struct_fields__]
    pairs = ", ".join(f"'{field}', {expressions.get(field, field)}" for field in stored)
    return f"""
            INSERT INTO room_events (room_id, seq, kind, message_id, user_id, payload)
            SELECT
                {room_id},
                {seq},
                '{event.kind}',
                {message_id}::uuid,
                {user_id}::uuid,
                jsonb_build_object({pairs})
            FROM {source}
        """


def next_entry(
    event: type[Logged],
    source: str,
    *,
    room_id: str = "room_id",
    change: str = "",
    message_id: str = "NULL",
    user_id: str = "NULL",
    payload: Mapping[str, str] | None = None,
) -> str:
    """Parts of a WITH: `head` takes the next seq of the room of each row in `source`, `entry` appends the event.

    `head` has the `id` and `last_seq` of the room. The row of the room stays locked until the transaction ends, so
    the order of seq is the order of the commits. `change` has what else to SET in that row.
    """
    return f"""head AS (
            UPDATE rooms
            SET last_seq = last_seq + 1{change and f", {change}"}
            FROM {source}
            WHERE rooms.id = {source}.{room_id}
            RETURNING rooms.id, rooms.last_seq
        ), entry AS ({entry(event, "head", message_id=message_id, user_id=user_id, payload=payload)})"""
