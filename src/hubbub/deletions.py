"""The deletion of an account or a room that has too many rows for one statement.

    there --delete, few rows: one transaction------------------------------> gone
      |                                                                       ^
      +-----delete, many rows: one transaction--> hidden --------steps--------+

The id of a hidden account or room is in `hubbub_deletions`. Statements that read accounts, rooms, memberships or
messages exclude it (`hubbub.sql.not_deleted`), so no caller sees it, and its rows are deleted in steps. Each step
is a transaction of its own that locks the row of `hubbub_deletions`. The call that began the deletion runs the
steps until its deadline. If it did not finish, the same call again or `maintain` continues. A step depends only on
the rows that are left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from hubbub.commits import MembershipEnded, OnCommit, RoomTouched
from hubbub.errors import Invalid, NotFound, Unavailable
from hubbub.events import MemberLeft
from hubbub.models import MaintenanceResult
from hubbub.postgres import NOT_SUPPORTED, Executor, LockNotAvailable, OpenTransaction, Statement
from hubbub.postgres.connection import now
from hubbub.scheduling import in_slices
from hubbub.sql import acting_admin, as_arrays, in_steps, next_entry

ROWS_PER_STEP: Final = 2_000
"""A step takes some 50 ms, and some seconds where each row has to be read from a slow disk. It also bounds what is
deleted without steps."""

ROOMS_PER_TURN: Final = 100
"""Rooms that an account has left and that are reported in one turn of the event loop. For each, followers read its
log, caches forget it, and other processes are notified: 0.1 ms."""

RECEIPTS_PER_STEP: Final = 20_000
"""No other row refers to a receipt, so its deletion costs a tenth."""

DELETIONS_PER_CALL: Final = 1_000
"""How many hidden accounts and rooms `maintain` looks at."""

NOT_FINISHED: Final = "not all rows could be deleted in time: call it again, or run `hubbub maintain`"


# Accounts

# The member's leaving is an entry in the log of each room. Rooms are locked in the order of their ids, so that two
# accounts with rooms in common can be deleted at the same time, and before the user, as a send does. This removes
# the creator of the rooms too: the foreign key would look the user up again for a room that this transaction has
# written to, and not find the row. PostgreSQL plans without the id: for an account in most rooms it would read the
# memberships from the first one.
LEAVE: Final = Statement(
    "deletions.leave",
    lambda is_last, room_ids: (is_last, room_ids),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, user_id
        FROM room_users
        WHERE user_id = (SELECT $1::uuid)
        LIMIT {ROWS_PER_STEP}
    ), gone AS (
        DELETE FROM room_users
        USING {as_arrays("page", "room_id", "user_id", order_by="room_id")}
        WHERE room_users.room_id = page.room_id
            AND room_users.user_id = page.user_id
        RETURNING room_users.room_id
    ), locked AS MATERIALIZED (
        SELECT id
        FROM rooms
        WHERE id = ANY(ARRAY(SELECT room_id FROM gone))
        ORDER BY id
        FOR NO KEY UPDATE
    ), {
        next_entry(
            MemberLeft,
            "locked",
            room_id="locked.id",
            change="created_by = NULLIF(created_by, $1)",
            user_id="$1",
        )
    }
    SELECT
        (SELECT count(*) FROM page) < {ROWS_PER_STEP} AS is_last,
        ARRAY(SELECT id FROM head) AS room_ids
    """,
    distributed=NOT_SUPPORTED,
)

# The same where rooms are distributed, one room at a time.
ROOM_OF_ACCOUNT: Final = Statement(
    "deletions.room_of_account",
    lambda room_id: room_id,
    "SELECT room_id FROM room_users WHERE user_id = $1 ORDER BY room_id LIMIT 1",
)
LEAVE_ROOM: Final = Statement(
    "deletions.leave_room",
    lambda room_id: room_id,
    f"""
    WITH gone AS (
        DELETE FROM room_users
        WHERE room_id = $2
            AND user_id = $1
        RETURNING room_id
    ), {next_entry(MemberLeft, "gone", room_id="$2", change="created_by = NULLIF(created_by, $1)", user_id="$1")}
    SELECT room_id
    FROM gone
    """,
)

# Waits for joins that are in flight, and lets no other one begin.
LOCK_ACCOUNT: Final = Statement(
    "deletions.lock_account",
    bool,
    f"""
    SELECT
        EXISTS (SELECT 1 FROM hubbub_deletions WHERE id = $1)
        OR EXISTS (SELECT 1 FROM messages WHERE user_id = $1 OFFSET {ROWS_PER_STEP})
        OR EXISTS (SELECT 1 FROM rooms WHERE created_by = $1 OFFSET {ROWS_PER_STEP})
        OR EXISTS (SELECT 1 FROM message_read_receipts WHERE user_id = $1 OFFSET {RECEIPTS_PER_STEP}) AS is_large
    FROM users
    WHERE id = $1
    FOR UPDATE
    """,
    distributed="SELECT true AS is_large FROM users WHERE id = $1 FOR UPDATE",
)

# The rows of durable sessions would go with the account, and their copies in Redis would be left unknown.
END_SESSIONS: Final = Statement(
    "deletions.end_sessions_of_account",
    lambda id: id.hex(),
    "DELETE FROM hubbub_sessions WHERE user_id = $1 RETURNING id",
)

# Where rooms are distributed.
FORGET_PRESENCE: Final = Statement(
    "deletions.forget_presence", int, "DELETE FROM hubbub_presence WHERE user_id = $1", idempotent=True
)

DELETE_ACCOUNT: Final = Statement(
    "deletions.delete_account",
    int,
    """
    DELETE FROM users
    WHERE id = $1
        AND NOT EXISTS (SELECT 1 FROM room_users WHERE user_id = $1)
    """,
    # Once `ROOM_OF_ACCOUNT` finds none. It misses a join in flight: the lock of `LOCK_ACCOUNT` is on one copy of
    # the row, and the join has locked the copy of its node. The foreign key then refuses this.
    distributed="DELETE FROM users WHERE id = $1",
)

HIDE: Final = Statement(
    "deletions.hide",
    int,
    "INSERT INTO hubbub_deletions (id, is_room) VALUES ($1, $2) ON CONFLICT DO NOTHING",
)

# The email, the username and the account of another system are free for others at once. The names in their place
# are random, so that no other account can have taken them.
_WITHOUT_PROFILE: Final = """
    UPDATE users
    SET email = 'deleted-' || gen_random_uuid() || '@hubbub.invalid',
        username = 'deleted-' || gen_random_uuid(),
        username_key = NULL,
        username_key_of = NULL,
        external_id = NULL,
        password_hash = NULL,
        display_name = NULL,
        display_name_key = NULL,
        avatar_url = NULL,
        metadata = NULL,
        is_online = false,
        last_seen = NULL
    WHERE id = $1
    """
HIDE_ACCOUNT: Final = Statement(
    "deletions.hide_account",
    int,
    f"""
    WITH hidden AS (
        INSERT INTO hubbub_deletions (id, is_room)
        VALUES ($1, false)
        ON CONFLICT DO NOTHING
    )
    {_WITHOUT_PROFILE}
    """,
    # Beside `HIDE`. The copies of a row would get different random names, but they get the same time.
    distributed=_WITHOUT_PROFILE.replace("gen_random_uuid()", "md5(id::text || now())"),
)

# Times are passed as text, because the driver does not know an infinite one. Where rooms are distributed, a
# message of another author in another room may have the same id.
_AUTHOR: Final = in_steps(
    "deletions.author",
    lambda is_last, created_at, id: (is_last, created_at, id),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, id, user_id, created_at
        FROM messages
        WHERE user_id = $1
            AND (created_at, id) < ($2::text::timestamptz, $3)
        ORDER BY created_at DESC, id DESC
        LIMIT {ROWS_PER_STEP}
    ), changed AS (
        UPDATE messages
        SET user_id = NULL
        FROM {{page}}
        WHERE messages.room_id = page.room_id
            AND messages.id = page.id
            AND messages.user_id = page.user_id
    )
    SELECT
        (SELECT count(*) FROM page) < {ROWS_PER_STEP} AS is_last,
        created_at::text AS created_at,
        id
    FROM page
    ORDER BY page.created_at, page.id
    LIMIT 1
    """,
    page=("room_id", "id", "user_id"),
)

_CREATOR: Final = Statement(
    "deletions.creator",
    lambda is_last: (is_last,),
    f"""
    WITH page AS MATERIALIZED (
        SELECT id, created_by
        FROM rooms
        WHERE created_by = $1
        LIMIT {ROWS_PER_STEP}
    ), locked AS MATERIALIZED (
        SELECT rooms.id
        FROM {as_arrays("page", "id", "created_by")}
        JOIN rooms ON rooms.id = page.id
            AND rooms.created_by = page.created_by
        ORDER BY rooms.id
        FOR NO KEY UPDATE OF rooms
    ), changed AS (
        UPDATE rooms
        SET created_by = NULL
        FROM {as_arrays("locked", "id")}
        WHERE rooms.id = locked.id
    )
    SELECT count(*) < {ROWS_PER_STEP} AS is_last
    FROM page
    """,
    distributed="""
    WITH changed AS (
        UPDATE rooms
        SET created_by = NULL
        WHERE created_by = $1
        RETURNING id
    )
    SELECT count(*) >= 0 AS is_last
    FROM changed
    """,
)

_RECEIPTS_OF_ACCOUNT: Final = in_steps(
    "deletions.receipts_of_account",
    lambda is_last: (is_last,),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, message_id, user_id
        FROM message_read_receipts
        WHERE user_id = $1
        LIMIT {RECEIPTS_PER_STEP}
    ), gone AS (
        DELETE FROM message_read_receipts
        USING {{page}}
        WHERE message_read_receipts.room_id = page.room_id
            AND message_read_receipts.message_id = page.message_id
            AND message_read_receipts.user_id = page.user_id
    )
    SELECT count(*) < {RECEIPTS_PER_STEP} AS is_last
    FROM page
    """,
    page=("room_id", "message_id", "user_id"),
)

# Rooms

# A room with few rows is deleted with all of them. One with more rows is hidden, unless $2 forbids that. The two
# members of a hidden direct room can have a new one; where rooms are distributed, once the rows are gone.
_DELETE_ROOM: Final = f"""
    WITH {acting_admin("$1", "$3")}, room AS MATERIALIZED (
        SELECT
            id,
            EXISTS (SELECT 1 FROM hubbub_deletions WHERE id = $1)
            OR EXISTS (SELECT 1 FROM messages WHERE room_id = $1 OFFSET {ROWS_PER_STEP})
            OR EXISTS (SELECT 1 FROM room_events WHERE room_id = $1 OFFSET {ROWS_PER_STEP})
            OR EXISTS (SELECT 1 FROM room_users WHERE room_id = $1 OFFSET {ROWS_PER_STEP})
            OR EXISTS (
                SELECT 1
                FROM messages
                JOIN message_read_receipts ON message_read_receipts.message_id = messages.id
                WHERE messages.room_id = $1
                    AND message_read_receipts.room_id = $1
                OFFSET {RECEIPTS_PER_STEP}
            ) AS is_large
        FROM rooms
        WHERE id = $1
            AND ($3::uuid IS NULL OR EXISTS (SELECT 1 FROM acting_admin))
        FOR UPDATE
    ), gone AS (
        DELETE FROM rooms
        USING room
        WHERE rooms.id = $1
            AND NOT room.is_large
    ), {{hidden}}without_key AS (
        UPDATE rooms
        SET direct_key = NULL
        FROM room
        WHERE rooms.id = $1
            AND room.is_large
            AND $2
    )
    SELECT is_large
    FROM room
    """
DELETE_ROOM: Final = Statement(
    "deletions.delete_room",
    bool,
    _DELETE_ROOM.format(
        hidden="""hidden AS (
        INSERT INTO hubbub_deletions (id, is_room)
        SELECT id, true
        FROM room
        WHERE room.is_large
            AND $2
        ON CONFLICT DO NOTHING
    ), """
    ),
    distributed=_DELETE_ROOM.format(hidden=""),  # beside `HIDE`, in a transaction
)

_MEMBERS: Final = in_steps(
    "deletions.members",
    lambda is_last, user_id: (is_last, user_id),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, user_id, role
        FROM room_users
        WHERE room_id = $1
            AND user_id > $2
        ORDER BY user_id
        LIMIT {ROWS_PER_STEP}
    ), gone AS (
        DELETE FROM room_users
        USING {{page}}
        WHERE room_users.room_id = {{room_id}}
            AND room_users.user_id = page.user_id
            AND (page.role = 'admin') = $3
    )
    SELECT
        (SELECT count(*) FROM page) < {ROWS_PER_STEP} AS is_last,
        user_id
    FROM page
    ORDER BY user_id DESC
    LIMIT 1
    """,
    page=("room_id", "user_id", "role"),
)

# A message goes with the last of its receipts. Where these are more than a step takes, it is looked at again.
# OFFSET 0 has receipts looked up message by message, so that a step reads no more of them than it deletes.
_MESSAGES: Final = in_steps(
    "deletions.messages",
    lambda is_last, seq: (is_last, seq),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, id, seq
        FROM messages
        WHERE room_id = $1
            AND seq >= $2
        ORDER BY seq
        LIMIT {ROWS_PER_STEP}
    ), receipt AS MATERIALIZED (
        SELECT page.seq, receipts.message_id, receipts.user_id
        FROM page
        CROSS JOIN LATERAL (
            SELECT message_id, user_id
            FROM message_read_receipts
            WHERE message_read_receipts.message_id = page.id
                AND message_read_receipts.room_id = $1
            OFFSET 0
        ) AS receipts
        LIMIT {RECEIPTS_PER_STEP}
    ), without_receipts AS (
        DELETE FROM message_read_receipts
        USING {{receipt}}
        WHERE message_read_receipts.message_id = receipt.message_id
            AND message_read_receipts.user_id = receipt.user_id
            AND message_read_receipts.room_id = $1
    ), bound AS MATERIALIZED (
        SELECT CASE
            WHEN (SELECT count(*) FROM receipt) < {RECEIPTS_PER_STEP} THEN (SELECT max(seq) + 1 FROM page)
            ELSE (SELECT max(seq) FROM receipt)
        END AS seq
    ), gone AS (
        DELETE FROM messages
        USING {{page}}
        WHERE messages.room_id = {{room_id}}
            AND messages.seq = page.seq
            AND messages.seq < (SELECT seq FROM bound)
    )
    SELECT
        (SELECT count(*) FROM page) < {ROWS_PER_STEP}
        AND (SELECT count(*) FROM receipt) < {RECEIPTS_PER_STEP} AS is_last,
        seq
    FROM bound
    """,
    page=("room_id", "seq"),
    receipt=("message_id", "user_id"),
)

_EVENTS: Final = in_steps(
    "deletions.events",
    lambda is_last, seq: (is_last, seq),
    f"""
    WITH page AS MATERIALIZED (
        SELECT room_id, seq
        FROM room_events
        WHERE room_id = $1
            AND seq > $2
        ORDER BY seq
        LIMIT {ROWS_PER_STEP}
    ), gone AS (
        DELETE FROM room_events
        USING {{page}}
        WHERE room_events.room_id = {{room_id}}
            AND room_events.seq = page.seq
    )
    SELECT
        count(*) < {ROWS_PER_STEP} AS is_last,
        max(seq) AS seq
    FROM page
    """,
    page=("room_id", "seq"),
)

_DELETE_REST_OF_ROOM: Final = Statement("deletions.rest_of_room", int, "DELETE FROM rooms WHERE id = $1")

# Steps


class Deletion(NamedTuple):
    """An account or a room that is hidden."""

    id: UUID
    is_room: bool


class _Progress(NamedTuple):
    """The stage that comes next, and the arguments with which it goes on."""

    stage: int = 0
    arguments: tuple[object, ...] = ()


_FIRST_ID: Final = UUID(int=0)
_LAST_ID: Final = UUID(int=2**128 - 1)

# A stage runs a statement until it finds less than a step takes. The statement returns whether that is so, and the
# next arguments of the stage, so that it does not read over deleted rows that VACUUM has not removed yet.
_Stage: TypeAlias = Callable[..., Awaitable[tuple[Any, ...] | None]]


async def _leave(part: Executor, id: UUID) -> tuple[Any, ...] | None:
    if not part.is_distributed:
        return await part.fetch_one(LEAVE, id)
    room_id: UUID | None = await part.fetch_one(ROOM_OF_ACCOUNT, id)
    if room_id is None:
        return True, []
    return False, await part.fetch_all(LEAVE_ROOM, id, room_id)


_STAGES_OF_ACCOUNT: Final[tuple[_Stage, ...]] = (
    _leave,
    lambda part, id, time="infinity", message_id=_LAST_ID: part.fetch_one(_AUTHOR, id, time, message_id),
    lambda part, id: part.fetch_one(_CREATOR, id),
    lambda part, id: part.fetch_one(_RECEIPTS_OF_ACCOUNT, id),
)
# Members come first: each deleted message is looked for among those that members have read last. Admins come last,
# so that one who has deleted the room can go on.
_STAGES_OF_ROOM: Final[tuple[_Stage, ...]] = (
    lambda part, id, user_id=_FIRST_ID: part.fetch_one(_MEMBERS, id, user_id, False),
    lambda part, id, seq=0: part.fetch_one(_MESSAGES, id, seq),
    lambda part, id, seq=0: part.fetch_one(_EVENTS, id, seq),
    lambda part, id, user_id=_FIRST_ID: part.fetch_one(_MEMBERS, id, user_id, True),
)

_LOCK: Final = Statement("deletions.lock", int, "SELECT 1 AS found FROM hubbub_deletions WHERE id = $1 FOR UPDATE")
_TRY_LOCK: Final = Statement(
    "deletions.try_lock", int, "SELECT 1 AS found FROM hubbub_deletions WHERE id = $1 FOR UPDATE SKIP LOCKED"
)
_FINISHED: Final = Statement("deletions.finished", int, "DELETE FROM hubbub_deletions WHERE id = $1")
_UNFINISHED: Final = Statement(
    "deletions.unfinished",
    Deletion,
    f"SELECT id, is_room FROM hubbub_deletions ORDER BY created_at, id LIMIT {DELETIONS_PER_CALL}",
)


TOO_MANY_ROWS: Final = "has too many rows to be deleted in a transaction"
OF_SEVERAL_NODES: Final = "cannot be deleted in a transaction where rooms are distributed over several nodes"


def check_outside_transaction(executor: Executor, field: str, reason: str = TOO_MANY_ROWS) -> None:
    """Refuse a deletion in steps in a transaction of the caller, which could not end. Raises: Invalid."""
    if isinstance(executor, OpenTransaction):
        raise Invalid(field, f"{reason}: delete it outside of one")


async def finish(
    executor: Executor,
    deletion: Deletion,
    on_commit: OnCommit,
    *,
    deadline: float,
    waits: bool = True,
    ended: list[str] | None = None,
) -> bool:
    """Delete the remaining rows of a hidden account or room. False if another process has done it or does it now.

    A second process waits for the step of the first, or returns False if `waits` is False. `ended` gets the
    ids of the durable sessions that end with the account.

    Raises: Unavailable (also at the deadline).
    """
    ended = [] if ended is None else ended
    progress: _Progress | None = _Progress()
    while progress is not None:
        try:
            async with executor.transaction(deadline=deadline) as part:
                locked = part.fetch_one(_LOCK, deletion.id) if waits else part.fetch_one(_TRY_LOCK, deletion.id)
                if await locked is None:
                    return False
                following, left = await _step(part, deletion, progress, ended)
        except LockNotAvailable:
            continue
        except NotFound:
            if deletion.is_room or not executor.is_distributed:
                raise
            # A node has found a membership that refers to the account. The join was in flight when memberships
            # were looked for. So the user leaves again.
            progress = _Progress()
            continue
        except Unavailable as failure:
            # It is hidden, so the change is made.
            if now() < deadline:
                raise failure.with_unknown_outcome() from failure
            raise Unavailable("postgresql", NOT_FINISHED, outcome_unknown=True) from failure
        progress = following
        await report_left(left, deletion.id, on_commit)
    return True


async def report_left(room_ids: Sequence[UUID], user_id: UUID, report: OnCommit) -> None:
    """Report that the account has left these rooms, over many turns of the event loop, or at once if cancelled."""

    def report_room(room_id: UUID) -> None:
        report(MembershipEnded(room_id, user_id))
        report(RoomTouched(room_id))

    await in_slices(room_ids, report_room, ROOMS_PER_TURN)


async def _step(
    part: Executor, deletion: Deletion, progress: _Progress, ended: list[str]
) -> tuple[_Progress | None, list[UUID]]:
    """Returns where to go on, None at the end, and the rooms that the user has left by it."""
    stages = _STAGES_OF_ROOM if deletion.is_room else _STAGES_OF_ACCOUNT
    number, arguments = progress
    if number == len(stages):
        # If the user is in a room again, a call that was in flight when the account was hidden has joined it.
        return None if await _delete_last(part, deletion, ended) else _Progress(), []
    is_last, *following = await stages[number](part, deletion.id, *arguments) or (True,)
    left: list[UUID] = following.pop() if stages[number] is _leave else []
    return _Progress(number + 1) if is_last else _Progress(number, tuple(following)), left


async def _delete_last(part: Executor, deletion: Deletion, ended: list[str]) -> bool:
    """Delete the account or room itself. False, with nothing done, if the user is in a room again."""
    if deletion.is_room:
        await part.execute(_DELETE_REST_OF_ROOM, deletion.id)
    elif await part.fetch_one(LOCK_ACCOUNT, deletion.id) is not None:
        if part.is_distributed and await part.fetch_one(ROOM_OF_ACCOUNT, deletion.id) is not None:
            return False
        ended += await part.fetch_all(END_SESSIONS, deletion.id)
        if part.is_distributed:
            await part.execute(FORGET_PRESENCE, deletion.id)
        if not await part.execute(DELETE_ACCOUNT, deletion.id):
            return False
    await part.execute(_FINISHED, deletion.id)
    return True


# Not those that were revoked in the last minute: a call that is repeated empties their copies in Redis.
_END_SESSIONS: Final = Statement(
    "deletions.end_sessions",
    int,
    f"""
    DELETE FROM hubbub_sessions
    WHERE id IN (
        SELECT id
        FROM hubbub_sessions
        WHERE ends_at < CURRENT_TIMESTAMP
            AND seen_at < CURRENT_TIMESTAMP - interval '1 minute'
        ORDER BY ends_at
        LIMIT {ROWS_PER_STEP}
        FOR UPDATE SKIP LOCKED
    )
    """,
    idempotent=True,
)


async def maintain(executor: Executor, on_commit: OnCommit, *, deadline: float) -> MaintenanceResult:
    """Delete sessions that have ended, and finish deletions that were cut, until the deadline.

    Deletions on which another process works are skipped.

    Raises: Unavailable (before the deadline).
    """
    while now() < deadline and await executor.execute(_END_SESSIONS) == ROWS_PER_STEP:
        pass
    finished = {True: 0, False: 0}
    failure: Exception | None = None
    for deletion in await executor.fetch_all(_UNFINISHED):
        try:
            if now() < deadline:
                is_done = await finish(executor, deletion, on_commit, deadline=deadline, waits=False)
                finished[deletion.is_room] += is_done
        except Exception as error:  # noqa: BLE001 - one that cannot be deleted must not keep others from it
            failure = failure or (None if now() >= deadline else error)
    if failure is not None:
        raise failure
    left = await executor.fetch_all(_UNFINISHED)
    return MaintenanceResult(accounts=finished[False], rooms=finished[True], unfinished=len(left))
