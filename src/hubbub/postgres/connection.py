"""One connection to PostgreSQL: opening it, and running one call at a time on it until a deadline."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from math import inf
from time import perf_counter
from typing import Final, TypeAlias, TypeVar

import asyncpg

from hubbub.background import ReportErrors
from hubbub.errors import HubbubError, Unavailable
from hubbub.instrumentation import SILENT, Instrumentation, Outcome
from hubbub.postgres.errors import FAILURES, REFUSALS, connection_refused_by_pooler, deadline_passed, to_error
from hubbub.settings import PostgresSettings
from hubbub.settings.tls import failure_in

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

R = TypeVar("R")

CANCEL_GRACE_SECONDS: Final = 1.0
"""How long a cancelled statement may take to stop before its connection is terminated. A server that is up stops
one within milliseconds. Meanwhile the connection serves no other caller."""


def now() -> float:
    """The time of the event loop, in seconds. Deadlines are such times."""
    return asyncio.get_running_loop().time()


async def connect(
    settings: PostgresSettings, *, within_seconds: float = inf, server_settings: dict[str, str] | None = None
) -> Connection:
    """A connection outside of any pool, opened within `settings.connect_timeout_seconds` or `within_seconds`.

    The shorter time counts. `server_settings` hold for the life of the connection.
    """
    seconds = min(settings.connect_timeout_seconds, within_seconds)
    try:
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.database,
            user=settings.user,
            password=settings.password,
            ssl=settings.ssl(),
            timeout=seconds,
            # 200 is more than hubbub has statements. 0 leaves all of them unnamed, as a transaction pooler needs.
            statement_cache_size=200 if settings.prepared_statements else 0,
            # Without end: the statements are fixed. asyncpg's default prepares them anew every five minutes, which
            # only makes a call slow now and then.
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "hubbub", **(server_settings or {})},
        )
    except FAILURES as error:
        raise _cannot_connect(settings, error, seconds) from error


def _cannot_connect(settings: PostgresSettings, error: Exception, seconds: float) -> Unavailable:
    """Names the server and the reason, without a secret."""
    server = f"{settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLError):
        return Unavailable("postgresql", f"TLS with {server} failed: {failure_in(error)}", retryable=False)
    if isinstance(error, TimeoutError):
        return Unavailable("postgresql", f"no connection to {server} within {seconds:g} s")
    if isinstance(error, OSError):
        return Unavailable("postgresql", f"cannot connect to {server}: {error.strerror or error}")
    if (refusal := connection_refused_by_pooler(error, server)) is not None:
        return refusal
    known = to_error(error, writes=False, lost=True)
    if isinstance(known, Unavailable):
        return Unavailable("postgresql", f"{server}: {known.reason}", retryable=known.retryable)
    return Unavailable("postgresql", f"{server} refused the connection: {error}", retryable=False)


async def run(
    connection: Connection,
    call: Callable[[Connection], Awaitable[R]],
    *,
    deadline: float,
    seconds: float,
    writes: bool,
    name: str,
    instrumentation: Instrumentation = SILENT,
) -> R:
    """Await `call(connection)` until `deadline`, which is `seconds` after the start of the caller.

    `writes` tells whether a lost answer leaves the outcome unknown. `name` is reported to the instrumentation.
    Raises: the errors of `hubbub.errors`.
    """
    # Neither `asyncio.wait_for` nor asyncpg's own `timeout=` will do. Both first ask the server, over a second
    # connection, to cancel the statement, and a frozen server never answers. Terminating the connection fails the
    # call at once, in any state of the server. The pool replaces the connection.
    timer = asyncio.get_running_loop().call_at(deadline, connection.terminate)
    outcome: Outcome = "failed"
    # Without instrumentation the clock is not read: it is a third of the cost of all of this.
    since = 0.0 if instrumentation is SILENT else perf_counter()
    try:
        result = await call(connection)
        outcome = "ok"
    except FAILURES as error:
        if isinstance(error, REFUSALS):
            outcome = "refused"
        if now() >= deadline:
            raise deadline_passed(seconds, outcome_unknown=writes) from error
        known = to_error(error, writes=writes, lost=connection.is_closed())
        if known is None:
            raise
        raise known from error
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        timer.cancel()
        if instrumentation is not SILENT:
            with ReportErrors("the instrumentation"):
                instrumentation.queried(name, perf_counter() - since, outcome)
    return result


async def drain_cancelled(connection: Connection) -> None:
    """Have the server end a statement that was cancelled or not sent to its end, so that the connection is usable.

    Any statement does that: asyncpg sends it once the cancellation that it has requested is answered. A connection
    on which it fails is terminated.
    """
    try:
        await run(
            connection,
            lambda connection: connection.execute("SELECT 1"),
            deadline=now() + CANCEL_GRACE_SECONDS,
            seconds=CANCEL_GRACE_SECONDS,
            writes=False,
            name="drain",
        )
    except HubbubError:
        connection.terminate()
