"""Translates the errors of asyncpg, PostgreSQL and PgBouncer into those of hubbub: the only place that classifies
them.

An `Unavailable` is of one of three classes.

- *retryable*: the statement did not run or was rolled back. It may be sent again.
- *outcome unknown*: the statement was sent and no answer came. A write may be sent again only if it is idempotent.
- *permanent*: the same call gives the same error.
"""

from __future__ import annotations

import re
from typing import Final, TypeGuard

import asyncpg

from hubbub.errors import Conflict, HubbubError, Invalid, NotFound, Unavailable

# The errors of a call on a connection.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, AttributeError, OSError)

# The statement ran, and a rule of the schema refused its values.
REFUSALS = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)

# asyncpg itself refuses a value while it encodes the arguments, after the server has begun the statement. The
# server waits for the rest, in a transaction that holds the locks of the statement.
REFUSED_WHILE_ENCODING = (asyncpg.DataError,)

# The server rolled the statement back and reported it. Sending the statement again is safe.
ROLLED_BACK = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.LockNotAvailableError)

# Nothing was done, so outside of a transaction the statement may be sent again at once. After a change of the
# schema asyncpg itself does so once. A change of many columns can invalidate the statement a second time.
SCHEMA_CHANGED = (asyncpg.InvalidCachedStatementError,)
SENT_AGAIN = (*ROLLED_BACK, *SCHEMA_CHANGED)

READ_ONLY: Final = "the server takes no changes, as a standby does"

# Other statements that did not run or were rolled back, with the reason to report. The first match is taken.
DID_NOT_RUN: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((asyncpg.QueryCanceledError,), "the server cancelled the statement"),
    ((asyncpg.CannotConnectNowError,), "the server is starting or stopping"),
    ((asyncpg.TooManyConnectionsError, asyncpg.ConnectionRejectionError), "the server has no connection free"),
    ((asyncpg.InsufficientResourcesError,), "the server is out of disk space or memory"),
    (SCHEMA_CHANGED, "the schema was changed under the statement"),
    ((asyncpg.PostgresSystemError, asyncpg.InternalServerError), "the server failed to run the statement"),
)

# The connection was lost. Whether a statement that was in flight took effect is unknown.
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.DatabaseDroppedError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    AttributeError,  # raised inside asyncpg when the connection is lost while a statement is prepared
    OSError,
)

# Wrong settings: a retry gives the same answer.
MISCONFIGURED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


NOT_OF_HUBBUB: Final = "is a rule of the database that is unknown to hubbub, and refuses the row"
NOT_UNDERSTOOD: Final = (
    "the driver cannot read the server's answer, and closed the connection: check that DB_HOST and DB_PORT name "
    "PostgreSQL, and set DB_PREPARED_STATEMENTS=false behind a transaction pooler"
)

# A table or column of a statement does not exist. `start` has found the right revision, so it was changed since.
OTHER_SCHEMA = (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError)
SEE_DOCTOR: Final = "the schema is older or newer than this code, see `hubbub doctor`"


def is_of_standby(error: BaseException | None) -> bool:
    """Whether the server is a standby, which the name of the primary leads to for a moment, or led to.

    It refuses a change, and a statement that asks for the end of the log. The second refusal has the SQLSTATE of
    many other errors, and a text in the language of the server.
    """
    return isinstance(error, asyncpg.ReadOnlySQLTransactionError) or (
        isinstance(error, asyncpg.ObjectNotInPrerequisiteStateError)
        and getattr(error, "server_source_function", None) == "pg_current_wal_insert_lsn"
    )


class LockNotAvailable(Unavailable):
    """A lock could not be taken: a deadlock, a serialization conflict or a lock timeout. It was rolled back."""


def to_error(error: Exception, *, writes: bool, lost: bool = False) -> HubbubError | None:
    """The error of hubbub that `error` means, or None for a mistake in hubbub's use of asyncpg.

    `writes`: whether the failed statement changes anything. Only then can its outcome be unknown. `lost`: whether
    the connection is gone. asyncpg raises some errors both then and when it is used wrongly.
    """
    if isinstance(error, asyncpg.IntegrityConstraintViolationError) or _breaks_rule(error):
        return _integrity_error(error)
    # asyncpg raises the same for an argument that it refuses itself, before it is sent.
    if isinstance(error, asyncpg.DataError):
        return Invalid("argument", "has a type or a size that the column cannot hold")
    if isinstance(error, asyncpg.InternalClientError) and not lost:  # also its ProtocolError
        return Unavailable("postgresql", NOT_UNDERSTOOD, outcome_unknown=writes)
    if isinstance(error, asyncpg.InterfaceError | AttributeError) and not lost:
        return None
    of_standby = Unavailable("postgresql", READ_ONLY) if is_of_standby(error) else None
    known = of_standby or _pooler_error(error) or _unavailable(error, writes=writes)
    if known is None and isinstance(error, asyncpg.PostgresError):
        # Not `Unavailable`: one row may be the reason, and a batch goes on without it.
        return Invalid("argument", f"was refused, such as by a trigger (SQLSTATE {error.sqlstate})")
    return known


def _unavailable(error: Exception, *, writes: bool) -> Unavailable | None:
    if isinstance(error, MISCONFIGURED + OTHER_SCHEMA):
        # It has the name of a role, a database, a table or a column, and never a password.
        advice = f": {SEE_DOCTOR}" if isinstance(error, OTHER_SCHEMA) else ""
        return Unavailable("postgresql", first_line(error) + advice, retryable=False)
    if isinstance(error, ROLLED_BACK):
        return LockNotAvailable("postgresql", "a lock was not available")
    for kinds, reason in DID_NOT_RUN:
        if isinstance(error, kinds):
            return Unavailable("postgresql", reason)
    if isinstance(error, LOST):
        return Unavailable("postgresql", "the connection was lost", outcome_unknown=writes)
    if isinstance(error, asyncpg.InFailedSQLTransactionError):
        return transaction_failed()
    return None


def first_line(error: Exception) -> str:
    """The message, without the lines that may hold values of rows."""
    return str(error).partition("\n")[0]


def transaction_failed() -> Unavailable:
    """For a transaction that goes on after a failed statement: PostgreSQL has already rolled it back."""
    reason = "the transaction was rolled back, because a statement in it had failed"
    return Unavailable("postgresql", reason, retryable=False)


def deadline_passed(seconds: float, *, outcome_unknown: bool) -> Unavailable:
    """`seconds` is the time that the call had."""
    return Unavailable("postgresql", f"no answer within {seconds:g} s", outcome_unknown=outcome_unknown)


def pool_busy(size: int, seconds: float) -> Unavailable:
    """For a caller that got no connection in time. `seconds` is how long it waited."""
    reason = f"all {size} connections of the pool were in use for {seconds:.3g} s (DB_POOL_SIZE)"
    return Unavailable("postgresql", reason)


def too_late_to_connect(seconds: float) -> Unavailable:
    """For a caller that found no free connection, and had only `seconds` left to open one."""
    reason = f"no connection of the pool was free until {seconds:.3g} s before the deadline, too late to open one"
    return Unavailable("postgresql", reason)


def distributed_since() -> Unavailable:
    """The error of a process that has the statements of one server."""
    reason = "rooms were distributed over nodes since this process was started: restart it (docs/scale.md)"
    return Unavailable("postgresql", reason, retryable=False)


# Constraints

# For each named constraint of the schema, the error that a violation becomes. The tests of the schema fail when a
# constraint of the migrated database is missing here, or one here from the database.

# Unique constraints and indexes: the thing that is taken.
UNIQUE_CONSTRAINTS = {
    "users_pkey": "user id",
    "idx_users_email": "email",
    "idx_users_username": "username",
    "idx_users_external_id": "external_id",
    "rooms_pkey": "room id",
    "rooms_direct_key_key": "direct room",
    "messages_pkey": "message id",
    "idx_messages_room_id": "message seq",
    "room_users_pkey": "membership",
    "message_read_receipts_pkey": "read receipt",
    "room_events_pkey": "event seq",
    "hubbub_imports_pkey": "import",
    "hubbub_deletions_pkey": "deletion",
    "hubbub_consumers_pkey": "consumer",
    "hubbub_sessions_pkey": "session",
    "hubbub_presence_pkey": "presence",
}

# Foreign keys: the thing that does not exist.
FOREIGN_KEYS = {
    "rooms_created_by_fkey": "user",
    "messages_room_id_fkey": "room",
    "messages_user_id_fkey": "user",
    "room_users_room_id_fkey": "room",
    "room_users_user_id_fkey": "user",
    "room_users_last_read_message_id_fkey": "message",
    "message_read_receipts_message_id_fkey": "message",
    "message_read_receipts_user_id_fkey": "user",
    "room_events_room_id_fkey": "room",
    "hubbub_sessions_user_id_fkey": "user",
}

METADATA: Final = "must be a JSON object of at most 8192 bytes"

# CHECK constraints: the field, and its rule.
CHECK_CONSTRAINTS = {
    "users_email_check": ("email", "must have characters on both sides of an @"),
    "users_username_check": ("username", "must have 1 to 50 characters, none of them an @, no space at the ends"),
    "users_password_hash_check": ("password_hash", "must not be empty"),
    "users_external_id_check": ("external_id", "must have 1 to 255 characters"),
    "users_kind_check": ("kind", "must be person, bot or anonymous"),
    "users_display_name_check": ("display_name", "must have 1 to 100 characters, as its key"),
    "users_metadata_check": ("metadata", METADATA),
    "rooms_name_check": ("name", "must have 1 to 100 characters that are not all white space"),
    "rooms_description_check": ("description", "must have at most 4000 characters"),
    "rooms_last_seq_check": ("last_seq", "must not be negative"),
    "rooms_direct_key_check": ("is_private", "must be True in a direct room"),
    "rooms_metadata_check": ("metadata", METADATA),
    "messages_content_check": (
        "content",
        "must not be empty without metadata in a text, must be once it is deleted, at most 65536 characters",
    ),
    "messages_message_type_check": ("message_type", "must be text, image or file"),
    "messages_seq_check": ("seq", "must be positive"),
    "messages_metadata_check": ("metadata", METADATA),
    "messages_reply_to_check": ("reply_to", "must be another message"),
    "room_users_role_check": ("role", "must be admin, moderator or member"),
    "room_users_last_read_seq_check": ("last_read_seq", "must not be negative"),
    "room_users_joined_seq_check": ("joined_seq", "must not be negative"),
    "room_users_metadata_check": ("metadata", METADATA),
    "room_events_seq_check": ("seq", "must be positive"),
    "room_events_kind_check": ("kind", "must be a kind of event of this version"),
    "hubbub_imports_digest_check": ("digest", "must be a SHA-256 digest"),
    "hubbub_consumers_part_check": ("part", "must be from 0 to 15"),
    "hubbub_sessions_id_check": ("id", "must be a SHA-256 digest"),
    "hubbub_imports_lines_check": ("lines", "must be positive"),
}

_CONSTRAINTS: Final = {*UNIQUE_CONSTRAINTS, *FOREIGN_KEYS, *CHECK_CONSTRAINTS}

# Citus reports an error of another node without its fields. The name of the constraint is the last one of the
# message, with the number of a shard: 'duplicate key value violates unique constraint "messages_pkey_102030"'. The
# SQLSTATE is that of an internal error if Citus ran the statement in parts.
_NAME = re.compile(r'"([^"]+)"')
_SHARD = re.compile(r"_\d+$")


def _names(error: asyncpg.PostgresError) -> list[str]:
    return _NAME.findall(str(error.args[0]) if error.args else "")  # the whole text would have the detail


def _constraint(error: asyncpg.PostgresError) -> str:
    name: str | None = error.constraint_name
    if name is None and (names := [_SHARD.sub("", one) for one in _names(error)]):
        # A row that is still referred to: the table that refers to it is named after the foreign key.
        name = next((one for one in reversed(names) if one in FOREIGN_KEYS), names[-1])
    return str(name)


def _breaks_rule(error: Exception) -> TypeGuard[asyncpg.InternalServerError]:
    """Whether an internal error is one of a rule of the schema."""
    return isinstance(error, asyncpg.InternalServerError) and _constraint(error) in _CONSTRAINTS


# 'Key (user_id)=(0192...) is not present in table "users".'
_MISSING_KEY = re.compile(r"Key \([^)]*\)=\((?P<key>[^)]*)\) is not present")


def _integrity_error(error: asyncpg.PostgresError) -> HubbubError:
    if isinstance(error, asyncpg.NotNullViolationError):
        column = error.column_name or next(iter(_names(error)), None)
        return Invalid(str(column), "is required")
    name = _constraint(error)
    if name in UNIQUE_CONSTRAINTS:
        return Conflict(UNIQUE_CONSTRAINTS[name])
    if name in FOREIGN_KEYS:
        found = _MISSING_KEY.search(error.detail or "")
        return NotFound(FOREIGN_KEYS[name], found["key"] if found else "")
    if name in CHECK_CONSTRAINTS:
        return Invalid(*CHECK_CONSTRAINTS[name])
    return Invalid(name, NOT_OF_HUBBUB)


# Statements of the application's own

_ARGUMENT = re.compile(r"argument (?P<name>\$\d+)")
_STILL_REFERENCED = re.compile(r'still referenced from table (?P<table>"[^"]*")')
_KINDS: Final = {"users": "user", "rooms": "room", "messages": "message"}
_REFERRED = re.compile(r'is not present in table "(?P<table>[^"]*)"')

# Beginnings of the SQLSTATE of what is wrong with a statement: not supported, more rows than one, not possible in
# a transaction, a name that does not exist, syntax, a limit. The messages have names and pieces of the SQL, and no
# arguments.
_FAULTS_OF_SQL = ("0A", "20", "21", "24", "25001", "2B", "2D", "2F", "34", "3B", "3F", "42", "54")
_NOT_OF_SQL = (asyncpg.InsufficientPrivilegeError, asyncpg.DuplicatePreparedStatementError, *SCHEMA_CHANGED)


def to_error_of_application(error: Exception, *, lost: bool) -> HubbubError | None:
    """The error for a statement of the application's own, as far as it differs from `to_error`; otherwise None.

    Its tables have rules that hubbub does not know, and its SQL may be wrong.
    """
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return _integrity_error_of_application(error)
    if isinstance(error, asyncpg.DataError):
        found = _ARGUMENT.search(str(error))
        state = "" if error.sqlstate is None or found else f" (SQLSTATE {error.sqlstate})"
        name = found["name"] if found else "argument"
        return Invalid(name, f"has a type or a size that the statement cannot take{state}")
    if isinstance(error, asyncpg.InterfaceError) and not lost:
        return Invalid("args", first_line(error))  # their number, or a type that asyncpg has no codec for
    state = str(getattr(error, "sqlstate", None))
    if state.startswith(_FAULTS_OF_SQL) and not isinstance(error, _NOT_OF_SQL):
        return Invalid("sql", first_line(error))
    return None


def _integrity_error_of_application(error: asyncpg.IntegrityConstraintViolationError) -> HubbubError:
    name = _constraint(error)
    if (referenced := _STILL_REFERENCED.search(error.detail or "")) is not None:
        return Invalid(name, f"has rows in table {referenced[1]} that still refer to this one")
    if name in _CONSTRAINTS or isinstance(error, asyncpg.NotNullViolationError):
        return _integrity_error(error)
    if isinstance(error, asyncpg.UniqueViolationError | asyncpg.ExclusionViolationError):
        return Conflict(name)
    if isinstance(error, asyncpg.ForeignKeyViolationError):
        missing, found = _MISSING_KEY.search(error.detail or ""), _REFERRED.search(error.detail or "")
        table = found["table"] if found else name
        return NotFound(_KINDS.get(table, f"row of {table}"), missing["key"] if missing else "")
    return Invalid(name, "refuses the row")


# Poolers

_SETTING: Final = "behind a transaction pooler set DB_PREPARED_STATEMENTS=false"
_PAST_THE_POOLER: Final = "this needs its own session: connect to PostgreSQL directly, not to the pooler"

_SET_UP_WRONGLY = re.compile(r"authentication failed|does not exist|no such|unsupported startup parameter")
_NOT_PASSED_ON = re.compile(r"query_wait_timeout|server login has been failing|server_login_retry")
_PARAMETER = re.compile(r"unsupported startup parameter: (?P<name>\w+)")


def connection_refused_by_pooler(error: Exception, server: str) -> Unavailable | None:
    """The reason for which PgBouncer refused a connection, or None if it was not PgBouncer.

    PgBouncer uses one code for a wrong password, a limit that is reached and a server that is down: that of a
    protocol violation, for which PostgreSQL itself has no reason. Only the text distinguishes them.
    """
    if not isinstance(error, asyncpg.ProtocolViolationError):
        return None
    text = str(error)
    advice = ""
    if (parameter := _PARAMETER.search(text)) is not None:
        # A transaction pooler refuses settings that outlive a transaction. A pool can do without its own one.
        advice = f"; {_SETTING if parameter['name'] == 'statement_timeout' else _PAST_THE_POOLER}"
    reason = f"{server} refused the connection: {text}{advice}"
    return Unavailable("postgresql", reason, retryable=_SET_UP_WRONGLY.search(text) is None)


def _pooler_error(error: Exception) -> Unavailable | None:
    if isinstance(error, asyncpg.DuplicatePreparedStatementError | asyncpg.InvalidSQLStatementNameError):
        reason = f"a statement was prepared in another session: {_SETTING}"
        return Unavailable("postgresql", reason, retryable=False)
    if isinstance(error, asyncpg.PostgresConnectionError) and _NOT_PASSED_ON.search(str(error)):
        # The pooler gave up before there was a session for the statement, which has therefore not run.
        return Unavailable("postgresql", "the pooler had no connection to the server")
    return None
