"""Running one call on a connection: its deadline, and what its failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.instrumentation import SILENT, Instrumentation, Outcome
from hubbub.postgres.failures import translated

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

R = TypeVar("R")

REFUSALS = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, AttributeError, OSError)


def now() -> float:
    """The time of the event loop, in seconds; deadlines are given in it."""
    return asyncio.get_running_loop().time()


def too_late(seconds: float, *, outcome_unknown: bool) -> Unavailable:
    return Unavailable("postgresql", f"no answer within {seconds:g} s", outcome_unknown=outcome_unknown)


def carry_out(actions: Iterable[Callable[[], None]]) -> None:
    """Call what waited for a COMMIT, at once, so that its effects come before whatever the caller does next.

    One that raises can fail nobody any more: the commit stands, and the other actions still run.
    """
    for action in actions:
        with ReportErrors("an action after a COMMIT"):
            action()


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
    """Await `call(connection)` until `deadline`, which lies `seconds` after the caller's start.

    Raises the errors of `hubbub.errors`. `writes` says whether a lost answer leaves the outcome unknown. What is
    run is told of under `name`.
    """
    outcome: Outcome = "failed"
    # While nobody listens not even the time is asked for: that is a third of what all of this costs.
    since = 0.0 if instrumentation is SILENT else perf_counter()
    try:
        with _ends_by(connection, deadline):
            result = await call(connection)
        outcome = "ok"
    except FAILURES as error:
        if isinstance(error, REFUSALS):
            outcome = "refused"
        if now() >= deadline:
            raise too_late(seconds, outcome_unknown=writes) from error
        known = translated(error, writes=writes, lost=connection.is_closed())
        if known is None:
            raise
        raise known from error
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        if instrumentation is not SILENT:
            with ReportErrors("the instrumentation"):
                instrumentation.queried(name, perf_counter() - since, outcome)
    return result


@contextmanager
def _ends_by(connection: Connection, deadline: float) -> Iterator[None]:
    """Terminate the connection at the deadline.

    Neither `asyncio.wait_for` nor asyncpg's own `timeout=` will do: both first ask the server, over a second
    connection, to cancel the statement, and a frozen server never answers. Terminating fails the waiter at once,
    whatever the server does; the pool replaces the connection.
    """
    timer = asyncio.get_running_loop().call_at(deadline, connection.terminate)
    try:
        yield
    finally:
        timer.cancel()
