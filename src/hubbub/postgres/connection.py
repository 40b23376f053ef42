"""Opening a connection to PostgreSQL."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import asyncpg

from hubbub.errors import Unavailable
from hubbub.postgres.failures import translated
from hubbub.postgres.pooler import refused_by_pooler
from hubbub.postgres.run import FAILURES
from hubbub.settings.tls import failure_in

if TYPE_CHECKING:
    from hubbub.settings import PostgresSettings

    Connection = asyncpg.Connection[asyncpg.Record]


async def connect(
    settings: PostgresSettings,
    *,
    within_seconds: float | None = None,
    server_settings: dict[str, str] | None = None,
) -> Connection:
    """One connection of its own.

    Raises `Unavailable` after `settings.connect_timeout_seconds` at the latest, or `within_seconds` if sooner.
    `server_settings` are set for the life of the connection.
    """
    seconds = settings.connect_timeout_seconds
    if within_seconds is not None:
        seconds = min(seconds, within_seconds)
    try:
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.database,
            user=settings.user,
            password=settings.password,
            ssl=settings.ssl(),
            timeout=seconds,
            # 0 keeps every statement unnamed, which a transaction pooler needs.
            statement_cache_size=200 if settings.prepared_statements else 0,
            # The statements of hubbub are few and fixed: to prepare them anew every five minutes, asyncpg's
            # default, would only show up as a slow call now and then.
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "hubbub", **(server_settings or {})},
        )
    except FAILURES as error:
        raise _cannot_connect(settings, error, seconds) from error


def _cannot_connect(settings: PostgresSettings, error: Exception, seconds: float) -> Unavailable:
    """Says which server could not be reached, and why, without a secret."""
    where = f"{settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLError):
        return Unavailable("postgresql", f"TLS with {where} failed: {failure_in(error)}", retryable=False)
    if isinstance(error, TimeoutError):
        return Unavailable("postgresql", f"no connection to {where} within {seconds:g} s")
    if isinstance(error, OSError):
        return Unavailable("postgresql", f"cannot connect to {where}: {error.strerror or error}")
    if (refusal := refused_by_pooler(error, where)) is not None:
        return refusal
    known = translated(error, writes=False, lost=True)
    if isinstance(known, Unavailable):
        return Unavailable("postgresql", f"{where}: {known.reason}", retryable=known.retryable)
    return Unavailable("postgresql", f"{where} refused the connection: {error}", retryable=False)
