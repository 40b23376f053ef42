"""Fragments of SQL that several statements use."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from hubbub import inputs
from hubbub.events import LoggedEvent, Payload
from hubbub.models import Message, Room, Stored, User, times_of
from hubbub.postgres import Lookup, Statement

T = TypeVar("T")

M = TypeVar("M", Message, Room, User)  # of the tables whose key is `id`

_HIDDEN: Final = "ARRAY(SELECT id FROM hubbub_deletions)"


def not_deleted(*ids: str) -> str:
    """A condition: no account or room with one of these ids is being deleted (`hubbub.deletions`).

    Parameters are looked up once per statement. For columns the ids, usually none, are read once per statement: a
    lookup for each of 50 rows would make a page a fifth slower.
    """
    parameters = [id for id in ids if id.startswith("$")]
    conditions = [f"{id} <> ALL ({_HIDDEN})" for id in ids if id not in parameters]
    if parameters:
        found = f"SELECT 1 FROM hubbub_deletions AS hidden WHERE hidden.id IN ({', '.join(parameters)})"
        conditions.append(f"NOT EXISTS ({found})")
    return " AND ".join(conditions)


def has_member(room_id: str, user_id: str) -> str:
    """A condition: the user is a member of the room, and neither of them is being deleted."""
    return f"""EXISTS (
                SELECT 1
                FROM room_users AS viewer
                WHERE viewer.room_id = {room_id}
                    AND viewer.user_id = {user_id}
                    AND {not_deleted(room_id, user_id)}
            )"""


def acting_admin(room_id: str, user_id: str) -> str:
    """A part of a WITH: the membership of the admin who changes the room. None for a user who is not an admin.

    It is locked, so that it cannot end before the change is committed.
    """
    return f"""acting_admin AS MATERIALIZED (
            SELECT user_id
            FROM room_users
            WHERE room_id = {room_id}
                AND user_id = {user_id}
                AND role = 'admin'
                AND {not_deleted(user_id)}
            FOR SHARE
        )"""


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


_NEAR: Final = "{0} >= '1700-01-01 00:00:00+00' AND {0} < '2200-01-01 00:00:00+00'"
"""A float8 holds 2^33 seconds, which are 272 years, to the microsecond."""


def representable(time: str) -> str:
    """A time as Python can hold it: the first or the last `datetime` instead of one beyond them, or infinite.

    hubbub stores no such time, but other programs may. One row of theirs must not fail the statement that reads
    the rows of many rooms.
    """
    early, late = f"WHEN {time} < {FIRST_TIME} THEN {FIRST_TIME}", f"WHEN {time} > {LAST_TIME} THEN {LAST_TIME}"
    return f"CASE {early} {late} ELSE {time} END"


def readable(model: type[msgspec.Struct], table: str = "", computed: Mapping[str, str] | None = None) -> str:
    """As `columns`, with `representable` times: for a SELECT of rows that any program may have written.

    A message of an account that is being deleted has no author.

    Such a SELECT names the table of a column in its ORDER BY. A bare name would mean the expression, which no
    index has.
    """
    prefix = f"{table}." if table else ""
    fields = [model.__struct_fields__[index] for index in times_of(model)]
    times = {field: representable(f"{prefix}{field}") for field in fields}
    if issubclass(model, Message):
        times["user_id"] = f"CASE WHEN {prefix}user_id <> ALL ({_HIDDEN}) THEN {prefix}user_id END"
    return columns(model, table, {**times, **(computed or {})})


def quickly_readable(model: type[Stored], computed: Mapping[str, str] | None = None) -> str:
    """As `readable`, for `Stored.of_rows`: a time comes as the seconds since 1970, in a tenth of the time.

    Those that a float8 does not hold to the microsecond come in further columns, one for each time of the model.
    """
    times = [model.__struct_fields__[index] for index in times_of(model)]
    near = {time: f"CASE WHEN {_NEAR.format(time)} THEN date_part('epoch', {time}) END" for time in times}
    far = (f"CASE WHEN NOT ({_NEAR.format(time)}) THEN {representable(time)} END AS far_{time}" for time in times)
    return ",\n    ".join((readable(model, computed={**near, **(computed or {})}), *far))


def stored_columns(model: type[Stored]) -> list[str]:
    """The names of the columns of `quickly_readable`."""
    fields = model.__struct_fields__
    return [*fields, *(f"far_{fields[index]}" for index in times_of(model))]


def folded(column: str) -> str:
    """`hubbub.inputs.folded` of a column, for an index and the statements that use it.

    It depends on no locale: in Turkish the small letter of I has no dot. Bytes are compared, so a new version of a
    library does not change the order of an index. The CASE keeps texts of ASCII from the search for each letter in
    the list.
    """
    of_ascii = f'lower({column} COLLATE "C")'
    others = f"translate({column}, '{inputs.CAPITALS}', '{inputs.CAPITALS.lower()}') COLLATE \"C\""
    return f"CASE WHEN octet_length({column}) = length({column}) THEN {of_ascii} ELSE {others} END"


def username_key(table: str = "users") -> str:
    """`hubbub.inputs.same_name` of a username. A column has it for names for which `folded` may be another.

    The name that the key was computed from is stored with it. So a name does not keep the key of a former one that
    another program has changed.
    """
    key, others = f"{table}.username_key", folded(f"{table}.username")
    return f"(CASE WHEN {key}_of = {table}.username THEN {key} ELSE {others} END)"


def with_presence(sql: str) -> str:
    """The form of a statement that reads accounts, where each node has a copy of these: there the presence is in a
    table of one node, because each change of an account goes to all nodes."""
    columns_of_users = ", ".join(f"users.{column}" for column in _OF_USERS)
    source = f"""(
        SELECT {columns_of_users}, COALESCE(presence.is_online, false) AS is_online, presence.last_seen
        FROM users
        LEFT JOIN hubbub_presence AS presence ON presence.user_id = users.id
    ) AS users"""
    return sql.replace("FROM users", f"FROM {source}")


_OF_USERS: Final = (
    *("id", "email", "username", "username_key", "username_key_of", "external_id", "password_hash", "avatar_url"),
    *("display_name", "display_name_key", "metadata", "kind", "created_at", "updated_at"),
)

OLDEST_LAST: Final = "ORDER BY messages.created_at DESC, messages.room_id DESC"
"""Where rooms are distributed, the id of a message is unique in its room only. By its id alone the oldest counts,
so that a message cannot be hidden by another one with the same id. Of rows that become a dict, the last counts."""
OLDEST: Final = "ORDER BY messages.created_at, messages.room_id LIMIT 1"


def by_id(model: type[M], table: str, computed: Mapping[str, str] | None = None) -> Lookup[M]:
    """The statement that finds a row by its id; its `many` finds the rows of many ids."""
    id = "messages.room_id" if model is Message else f"{table}.id"
    found = f"FROM {table} WHERE {not_deleted(id)} AND {table}.id"
    one = f"SELECT {readable(model, computed=computed)} {found} = $1"
    # Without the subquery PostgreSQL would replan it each time for a few ids, as SEND_MANY.
    many = f"SELECT {quickly_readable(model, computed)} {found} = ANY((SELECT $1::uuid[])::uuid[])"
    distributed, distributed_many = one, many
    if model is Message:
        distributed, distributed_many = f"{one} {OLDEST}", f"{many} {OLDEST_LAST}"
    elif model is User:
        distributed, distributed_many = with_presence(one), with_presence(many)
    return Lookup(
        f"{table}.get",
        model,
        one,
        many=Statement(f"{table}.get_many", model, many, distributed=distributed_many),
        key_of_args=lambda id: id.int,
        key_of_row=lambda row: row.id.int,
        has_room=model is Room,
        distributed=distributed,
    )


def message_bytes(table: str) -> str:
    """The size of a message, without a look at its content; 0 for a row of NULLs.

    Metadata counts several times, because its objects take more memory than its JSON, and as the largest where it
    is stored compressed.
    """
    return f"""(
            COALESCE(octet_length({table}.content), 0)
            + 4 * CASE
                WHEN pg_column_compression({table}.metadata) IS NULL
                    THEN COALESCE(pg_column_size({table}.metadata), 0)
                ELSE {inputs.METADATA_BYTES}
            END
        )"""


def require(row: T | None, error: Callable[..., Exception], *key: object) -> T:
    """The row. Raises: the error of this key."""
    if row is None:
        raise error(*key)
    return row


UNREAD_AMONG: Final = 5_000
"""How many of the newest messages of a room are looked at for unread ones: some 50 pages of the index. The user's
own messages and tombstones, of which a room can have any number, do not count."""


def at_most(rows: int) -> str:
    """A LIMIT for rows that an index has in their order. They are read by it, also of a table without statistics.

    Without statistics, as after a restore, PostgreSQL takes every room for a small one. With a number, which it
    compares with its guess, it would read and sort the whole room. A subquery it takes for a tenth of the rows.
    """
    return f"LIMIT (SELECT {rows})"


def with_numbers(sql: str) -> str:
    """The statement with a number in each `at_most`, for Citus, which has to know a limit."""
    return re.sub(r"LIMIT \(SELECT (\d+)\)", r"LIMIT \1", sql)


def unread(member: str, user_id: str, cap: str, *, room_id: str = "") -> str:
    """A subquery that counts the messages after the read mark of a member, as far as the cap.

    `room_id` is the parameter that has the room, in a statement about one.
    """
    return f"""(
            SELECT count(*) AS count
            FROM (
                SELECT 1
                FROM (
                    SELECT messages.user_id, messages.deleted_at
                    FROM messages
                    WHERE messages.room_id = {room_id or f"{member}.room_id"}
                        AND messages.seq > {member}.last_read_seq
                    ORDER BY messages.seq DESC
                    {at_most(UNREAD_AMONG)}
                ) AS newest
                WHERE newest.user_id IS DISTINCT FROM {user_id}
                    AND newest.deleted_at IS NULL
                LIMIT {cap}
            ) AS capped
        )"""


def entry(
    event: type[LoggedEvent],
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
    event: type[LoggedEvent],
    source: str,
    *,
    room_id: str,
    change: str = "",
    message_id: str = "NULL",
    user_id: str = "NULL",
    payload: Mapping[str, str] | None = None,
) -> str:
    """Parts of a WITH: `head` takes the next seq of the room of each row in `source`, `entry` appends the event.

    `head` has the `id` and `last_seq` of the room. The row of the room stays locked until the transaction ends, so
    the order of seq is the order of the commits. `room_id` is the parameter that has the room, or a column of
    `source`. `change` has what else to SET in the row.
    """
    return f"""head AS (
            UPDATE rooms
            SET last_seq = last_seq + 1{change and f", {change}"}
            FROM {source}
            WHERE rooms.id = {room_id}
            RETURNING rooms.id, rooms.last_seq
        ), entry AS ({entry(event, "head", message_id=message_id, user_id=user_id, payload=payload)})"""


def next_entries(event: type[LoggedEvent], source: str, *columns: str, unless: str = "") -> str:
    """As `next_entry`, for any number of rows in a room, in the order of their `ordinal`.

    `source` has the columns `room_id` and `ordinal`, and those of the entry among `message_id`, `user_id` and
    `role`. `item` has them with the `seq` of the entry, and the `last_seq` of the room after all of them. Rooms
    are locked in the order of their ids, so that two batches with rooms in common cannot deadlock.
    `unless` is a condition on a row and on `locked`, the room as it is then: such a row has no entry, and is in no
    `item`.
    """
    arrays = ", ".join(f"{column}s" for column in columns)
    gathered = ", ".join(f"array_agg({column} ORDER BY ordinal) AS {column}s" for column in columns)
    message_id = "item.message_id" if "message_id" in columns else "NULL"
    appended = entry(
        event, "item", room_id="item.room_id", seq="item.seq", message_id=message_id, user_id="item.user_id"
    )
    return f"""locked AS MATERIALIZED (
            SELECT id, is_private
            FROM rooms
            WHERE id IN (SELECT room_id FROM {source})
            ORDER BY id
            FOR NO KEY UPDATE
        ), gathered AS (
            SELECT room_id, count(*) AS entries, {gathered}
            FROM {source}{unless and f" JOIN locked ON locked.id = room_id AND NOT ({unless})"}
            GROUP BY room_id
        ), head AS (
            UPDATE rooms
            SET last_seq = last_seq + gathered.entries
            FROM gathered
            WHERE rooms.id = gathered.room_id
                AND (SELECT count(*) FROM locked) > 0
            RETURNING rooms.id, rooms.last_seq, rooms.last_seq - gathered.entries AS before, {arrays}
        ), item AS (
            SELECT head.id AS room_id, head.last_seq, head.before + item.ordinal AS seq, {", ".join(columns)}
            FROM head
            CROSS JOIN LATERAL unnest({arrays}) WITH ORDINALITY AS item ({", ".join(columns)}, ordinal)
        ), entry AS ({appended})"""


def as_arrays(part: str, *columns: str, order_by: str = "") -> str:
    """For FROM and USING: the rows of a part of the WITH, as arrays.

    PostgreSQL expects ten rows of an array that it does not know, and looks up what is joined with them by an
    index. For the thousands of rows of a step it would read the whole table, in each step. All columns of the key
    come from the arrays: with one of them equal to a parameter, a plan for any parameter may read all its rows.
    """
    order = f" ORDER BY {order_by}" if order_by else ""
    arrays = ", ".join(f"ARRAY(SELECT {column} FROM {part}{order})" for column in columns)
    return f"unnest({arrays}) AS {part} ({', '.join(columns)})"


def in_steps(
    name: str, model: Callable[..., T], sql: str, *, idempotent: bool = False, **parts: Sequence[str]
) -> Statement[T]:
    """A statement that changes the rows of a page: `sql` with `as_arrays` of each part that is named here.

    Where rooms are distributed, it has the parts themselves. `{room_id}` is that of the page, and there the first
    parameter, which names the node.
    """
    looked_up = {part: as_arrays(part, *columns) for part, columns in parts.items()}
    return Statement(
        name,
        model,
        sql.format(**looked_up, room_id="page.room_id"),
        idempotent=idempotent,
        distributed=sql.format(**{part: part for part in parts}, room_id="$1"),
    )


def lock_timeout(placeholder: str) -> str:
    """A condition that is true, and limits the wait for each lock of the statement if the argument is not NULL.

    As a subquery it is evaluated once, before a row is locked. Citus takes no volatile function in another form.
    """
    return f"(SELECT {placeholder}::text IS NULL OR set_config('lock_timeout', {placeholder}, true) IS NOT NULL)"
