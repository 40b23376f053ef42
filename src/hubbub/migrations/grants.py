"""The rights of an application's role: to use hubbub's tables, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid, Unavailable
from hubbub.migrations.revisions import verify
from hubbub.migrations.runner import Timeouts, session, take_lock
from hubbub.postgres import Executor, Statement
from hubbub.settings import PostgresSettings

RIGHTS: Final[Mapping[str, str]] = {
    "users": "SELECT, INSERT, UPDATE, DELETE",
    "rooms": "SELECT, INSERT, UPDATE, DELETE",
    "messages": "SELECT, INSERT, UPDATE, DELETE",
    "room_users": "SELECT, INSERT, UPDATE, DELETE",
    "message_read_receipts": "SELECT, INSERT, DELETE",
    "room_events": "SELECT, INSERT, DELETE",
    "hubbub_imports": "SELECT, INSERT",
    "hubbub_deletions": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_consumers": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_sessions": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_presence": "SELECT, INSERT, UPDATE, DELETE",
    "hubbub_schema_version": "SELECT",
}
"""The rights that hubbub's statements need, by table. UPDATE of `hubbub_deletions` is for the lock of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When PostgreSQL ends a statement, a wait or an idle transaction of the role, in seconds.

    They are longer than the deadline of a call (`DB_DEADLINE_SECONDS`, 10 by default), so the call ends first.
    """

    statement_seconds: float = 30
    lock_seconds: float = 15
    idle_in_transaction_seconds: float = 60


USUAL_LIMITS = Limits()


class GrantTarget(msgspec.Struct, frozen=True):
    """The tables that the rights are for, and whether the role may be granted them.

    A member of a superuser, or of the owner, can become it by SET ROLE, and counts as it. `schema` and `owner` are
    quoted if SQL needs it.
    """

    database: str
    schema: str
    owner: str
    exists: bool
    is_superuser: bool
    is_owner: bool


_TARGET = Statement(
    "migrations.grant_target",
    GrantTarget,
    """
    SELECT current_database() AS database,
           tables.relnamespace::regnamespace::text AS schema,
           tables.relowner::regrole::text AS owner,
           roles.oid IS NOT NULL AS exists,
           EXISTS (
               SELECT FROM pg_roles AS others
               WHERE others.rolsuper AND pg_has_role(roles.oid, others.oid, 'MEMBER')
           ) AS is_superuser,
           coalesce(pg_has_role(roles.oid, tables.relowner, 'MEMBER'), FALSE)
               OR coalesce(pg_has_role(roles.oid, databases.datdba, 'MEMBER'), FALSE) AS is_owner
    FROM pg_class AS tables
    JOIN pg_database AS databases ON databases.datname = current_database()
    LEFT JOIN pg_roles AS roles ON roles.rolname = $1
    WHERE tables.oid = to_regclass(current_schema() || '.hubbub_schema_version')
    """,
)

_SURPLUS = Statement(
    "migrations.surplus",
    str,
    """
    SELECT surplus.action
    FROM (
        VALUES ('create in the schema', has_schema_privilege($1::name, $2::text::regnamespace, 'CREATE')),
               ('create schemas', has_database_privilege($1::name, current_database(), 'CREATE')),
               ('make temporary tables', has_database_privilege($1::name, current_database(), 'TEMPORARY'))
    ) AS surplus (action, is_held)
    WHERE surplus.is_held
    """,
)


async def grant(
    settings: PostgresSettings, role: str, *, limits: Limits = USUAL_LIMITS, only_plan: bool = False
) -> list[str]:
    """Run the statements that let `role` use the tables and nothing else, in one transaction. Returns them.

    A second call changes nothing. With `only_plan` they are returned and not run. The role must exist, and must
    not be a superuser, the owner of the tables or database, or a member of either. If the user of `settings` may
    not grant, nothing is changed.
    Raises: Invalid (the role), SchemaMismatch (to be migrated first), Unavailable (no right to grant).
    """
    role = inputs.text("role", role, longest=63)
    async with session(settings) as transaction:
        if not only_plan:
            await take_lock(transaction, Timeouts().migration_lock_seconds)
        async with transaction() as executor:
            await verify(executor)
            target = await _checked(executor, role)
            statements = grant_statements(target, role, limits)
            if not only_plan:
                await _execute(executor, statements)
                await _refuse_surplus(executor, target, role)
    return statements


def grant_statements(target: GrantTarget, role: str, limits: Limits = USUAL_LIMITS) -> list[str]:
    """The statements for a role that exists."""
    name, within, schema = quoted(role), quoted(target.database), target.schema
    settings = (
        f"search_path = {schema}, pg_temp",  # temporary tables last, so that they hide no other
        f"statement_timeout = {_checked_milliseconds(limits.statement_seconds)}",
        f"lock_timeout = {_checked_milliseconds(limits.lock_seconds)}",
        f"idle_in_transaction_session_timeout = {_checked_milliseconds(limits.idle_in_transaction_seconds)}",
    )
    return [
        # Former rights are revoked first, so that those of an older hubbub do not stay.
        *(f"REVOKE ALL ON TABLE {schema}.{table} FROM {name}" for table in RIGHTS),
        *(f"GRANT {rights} ON TABLE {schema}.{table} TO {name}" for table, rights in RIGHTS.items()),
        f"GRANT CONNECT ON DATABASE {within} TO {name}",
        f"GRANT USAGE ON SCHEMA {schema} TO {name}",
        # Up to PostgreSQL 14 the owner of a database may create in it only as a member of PUBLIC.
        f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {target.owner}",
        # By default PUBLIC may do both (the first up to PostgreSQL 14). Every role is a member of PUBLIC, so the
        # right cannot be revoked from one role only.
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {name}",
        f"REVOKE CREATE, TEMPORARY ON DATABASE {within} FROM PUBLIC, {name}",
        *(f"ALTER ROLE {name} IN DATABASE {within} SET {setting}" for setting in settings),
    ]


def quoted(name: str) -> str:
    """The name of a role or database as SQL. It may hold any character."""
    return '"' + name.replace('"', '""') + '"'


def _checked_milliseconds(seconds: float) -> int:
    """Raises: Invalid (`limits`)."""
    if not 0.001 <= seconds <= 86_400:
        raise Invalid("limits", "must be from 0.001 to 86,400 s")
    return round(seconds * 1000)


async def _checked(executor: Executor, role: str) -> GrantTarget:
    target = await executor.fetch_one(_TARGET, role)
    if target is None or not target.exists:
        raise Invalid("role", "there is no such role: create it with CREATE ROLE ... LOGIN PASSWORD '...'")
    if role.startswith("pg_"):
        raise Invalid("role", "is one of PostgreSQL's own: create one for the application")
    if target.is_superuser:
        raise Invalid("role", "is a superuser, which has every right, or a member of one: create another")
    if target.is_owner:
        raise Invalid("role", "owns the tables or the database, or is a member of their owner: create another")
    return target


async def _execute(executor: Executor, statements: Sequence[str]) -> None:
    try:
        for sql in statements:
            await executor.fetch_all(Statement("migrations.grant", str, sql))
    except Unavailable as error:
        if error.retryable:
            raise
        hint = "run it as the owner of the tables, with CREATEROLE, or as a superuser, for which --print prints it"
        raise Unavailable("postgresql", f"{error.reason}; {hint}", retryable=False) from error


async def _refuse_surplus(executor: Executor, target: GrantTarget, role: str) -> None:
    """Fail if the role keeps a right that this user cannot revoke. PostgreSQL only warns, or not even that."""
    surplus = await executor.fetch_all(_SURPLUS, role, target.schema)
    if surplus:
        reason = (
            f"the role could still {' and '.join(surplus)}, by a right that this user cannot revoke: run it as a "
            "superuser, or end the role's membership in the role that has the right"
        )
        raise Unavailable("postgresql", reason, retryable=False)
