"""What a pooler between hubbub and PostgreSQL says in the place of PostgreSQL."""

from __future__ import annotations

import re
from typing import Final

import asyncpg

from hubbub.errors import Unavailable

SETTING: Final = "behind a transaction pooler set DB_PREPARED_STATEMENTS=false"
PAST_IT: Final = "this needs a session of its own: connect to PostgreSQL itself, not to the pooler"

PREPARED_ELSEWHERE = (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError)
"""A statement went to another session than the one that it was prepared in."""

_SET_UP_WRONGLY = re.compile(r"authentication failed|does not exist|no such|unsupported startup parameter")
_NOT_PASSED_ON = re.compile(r"query_wait_timeout|server login has been failing|server_login_retry")
_PARAMETER = re.compile(r"unsupported startup parameter: (?P<name>\w+)")


def refused_by_pooler(error: Exception, where: str) -> Unavailable | None:
    """What PgBouncer refused the connection for; None when it was not PgBouncer that did.

    It gives a wrong password, a limit that is reached and a server that is away the same code, that of a violation
    of the protocol, which PostgreSQL itself has no reason to give. Only the words tell them apart.
    """
    if not isinstance(error, asyncpg.ProtocolViolationError):
        return None
    words = str(error)
    wrong = _SET_UP_WRONGLY.search(words) is not None
    return Unavailable(
        "postgresql", f"{where} refused the connection: {words}{_advice(words)}", retryable=not wrong
    )


def because_of_pooler(error: Exception) -> Unavailable | None:
    """What a statement failed for that a pooler stands behind; None for what PostgreSQL itself did."""
    if isinstance(error, PREPARED_ELSEWHERE):
        return Unavailable(
            "postgresql", f"a statement was prepared in another session: {SETTING}", retryable=False
        )
    if isinstance(error, asyncpg.PostgresConnectionError) and _NOT_PASSED_ON.search(str(error)):
        # It was given up, and the connection with it, before there was a session for it: it has not run.
        return Unavailable("postgresql", "the pooler had no connection to the server")
    return None


def _advice(words: str) -> str:
    """A pooler refuses settings that outlive a transaction: those of a pool, which can do without, and others."""
    if (parameter := _PARAMETER.search(words)) is None:
        return ""
    return f"; {SETTING if parameter['name'] == 'statement_timeout' else PAST_IT}"
