"""Turns what asyncpg and PostgreSQL raise into hubbub's errors. The one place where failures are classified.

Three classes: *retryable* (the statement did not run, or was rolled back: it may be sent again), *unknown* (it
left, and no answer came: a write may be sent again only where it is idempotent), *permanent* (the same call gives
the same error).
"""

from __future__ import annotations

import re

import asyncpg

from hubbub.errors import HubbubError, Invalid, Unavailable
from hubbub.postgres.constraints import violated
from hubbub.postgres.pooler import because_of_pooler

# 'Key (user_id)=(0192...) is not present in table "users".'
_KEY = re.compile(r"Key \([^)]*\)=\((?P<key>[^)]*)\) is not present")

# The server rolled the statement back, and said so: sending it again is safe.
ROLLED_BACK = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)

# Nothing was done, so that on its own, outside of a transaction, the statement may be sent again at once. asyncpg
# does so itself once where the schema was changed; a change of many columns comes between a second time.
SENT_AGAIN = (*ROLLED_BACK, asyncpg.InvalidCachedStatementError)

# What else did not run or was rolled back, and the reason that is given. The first that fits is taken.
DID_NOT_RUN: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((asyncpg.QueryCanceledError,), "the server cancelled the statement"),
    ((asyncpg.CannotConnectNowError,), "the server is starting or stopping"),
    ((asyncpg.TooManyConnectionsError, asyncpg.ConnectionRejectionError), "the server has no connection free"),
    ((asyncpg.InsufficientResourcesError,), "the server is out of disk space or memory"),
    ((asyncpg.ReadOnlySQLTransactionError,), "the server takes no changes, as a standby does"),
    ((asyncpg.InvalidCachedStatementError,), "the schema was changed under the statement"),
    ((asyncpg.PostgresSystemError, asyncpg.InternalServerError), "the server failed to run the statement"),
)

# The connection was lost. Whether a statement that was on its way took effect, nobody knows.
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    AttributeError,  # asyncpg looks for what is gone, when the connection was lost while a statement was prepared
    OSError,
)


class Locked(Unavailable):
    """A lock was not to be had, and what the statement had done was rolled back."""


# Set up wrongly: trying again gives the same answer.
MISCONFIGURED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)

# asyncpg refuses a value itself once the server has told it the types, and leaves the server waiting for the rest
# of the statement: in a transaction that has begun, holding the locks of what it is about.
LEFT_HALFWAY = (asyncpg.DataError,)


def translated(error: Exception, *, writes: bool, lost: bool = False) -> HubbubError | None:
    """The error of hubbub's that says the same as `error`, or None for one that only a bug can cause.

    `writes` says whether what failed changes anything: only then can its outcome be unknown. `lost` says whether
    the connection is gone, for what asyncpg raises both then and when it is used wrongly.
    """
    if isinstance(error, asyncpg.IntegrityConstraintViolationError):
        return _integrity(error)
    # asyncpg raises the same for an argument that it refuses itself, before anything is sent.
    if isinstance(error, asyncpg.DataError):
        return Invalid("argument", "has a type or a size that the column cannot hold")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | AttributeError) and not lost:
        return None
    return because_of_pooler(error) or _unavailable(error, writes=writes)


def _integrity(error: asyncpg.IntegrityConstraintViolationError) -> HubbubError | None:
    if isinstance(error, asyncpg.NotNullViolationError):
        return Invalid(str(error.column_name), "is required")
    found = _KEY.search(error.detail or "")
    return violated(str(error.constraint_name), found["key"] if found else "")


def _unavailable(error: Exception, *, writes: bool) -> Unavailable | None:
    if isinstance(error, MISCONFIGURED):
        return Unavailable("postgresql", _first_line(error), retryable=False)
    if isinstance(error, ROLLED_BACK):
        return Locked("postgresql", "a lock was not to be had")
    for kinds, reason in DID_NOT_RUN:
        if isinstance(error, kinds):
            return Unavailable("postgresql", reason)
    if isinstance(error, LOST):
        return Unavailable("postgresql", "the connection was lost", outcome_unknown=writes)
    if isinstance(error, asyncpg.InFailedSQLTransactionError):
        return aborted()
    return None


def aborted() -> Unavailable:
    """A transaction goes on although a statement in it had failed: PostgreSQL has undone it already."""
    reason = "the transaction was rolled back, because a statement in it had failed"
    return Unavailable("postgresql", reason, retryable=False)


def _first_line(error: Exception) -> str:
    """What the server says of a refused login, a missing database or right: names, never a password."""
    return str(error).partition("\n")[0]
