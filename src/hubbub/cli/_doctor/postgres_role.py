"""The role that the application logs in as: what it may do, and which schema it sees."""

from __future__ import annotations

from typing import NamedTuple

from hubbub.cli._doctor.findings import Check, Seen, error, note, warning
from hubbub.cli._doctor.postgres_server import Postgres
from hubbub.migrations import TABLES
from hubbub.postgres import Statement

OWN_ROLE = "Give the application a role of its own, that owns nothing: `hubbub migrate grant ROLE`."


class Role(NamedTuple):
    name: str
    is_superuser: bool
    may_create_roles: bool
    may_create_databases: bool
    may_replicate: bool
    bypasses_row_security: bool
    owned: list[str]
    may_create_in: list[str]


# Through every role that it is a member of, as that is as good as being it.
_ROLE = Statement(
    "doctor.role",
    Role,
    """
    SELECT
        current_user::text AS name,
        bool_or(rolsuper) AS is_superuser,
        bool_or(rolcreaterole) AS may_create_roles,
        bool_or(rolcreatedb) AS may_create_databases,
        bool_or(rolreplication) AS may_replicate,
        bool_or(rolbypassrls) AS bypasses_row_security,
        ARRAY(
            SELECT relname::text
            FROM pg_class
            WHERE relname = ANY ($1)
                AND pg_table_is_visible(oid)
                AND pg_has_role(relowner, 'USAGE')
            ORDER BY relname
        ) AS owned,
        ARRAY(
            SELECT nspname::text
            FROM pg_namespace
            WHERE nspname = ANY (current_schemas(false))
                AND has_schema_privilege(oid, 'CREATE')
            ORDER BY nspname
        ) AS may_create_in
    FROM pg_roles
    WHERE pg_has_role(oid, 'MEMBER')
    """,
)


async def _role(postgres: Postgres) -> Seen:
    [role] = await postgres.executor.fetch_all(_ROLE, list(TABLES))
    if role.is_superuser:
        meaning = f"{role.name} is as good as a superuser: whoever takes over the application has the server."
        return Seen(role.name, (error(meaning, OWN_ROLE),))
    powers = _powers(role)
    if not powers:
        return Seen(role.name)
    meaning = f"{role.name} {', '.join(powers)}: all of it more than the application needs, or an intruder in it."
    return Seen(role.name, (warning(meaning, OWN_ROLE),))


def _powers(role: Role) -> list[str]:
    rights = {
        "may create roles": role.may_create_roles,
        "may create databases": role.may_create_databases,
        "may replicate the whole server": role.may_replicate,
        "reads past row security": role.bypasses_row_security,
        "owns the tables": bool(role.owned),
        f"may create tables and functions in {', '.join(role.may_create_in)}": bool(role.may_create_in),
    }
    return [right for right, is_held in rights.items() if is_held]


class Path(NamedTuple):
    """`homes` are the schemas that have a history of hubbub's, `searched` those in which this role looks."""

    role: str
    setting: str
    searched: list[str]
    homes: list[str]


_PATH = Statement(
    "doctor.search_path",
    Path,
    """
    SELECT
        current_user::text AS role,
        current_setting('search_path') AS setting,
        current_schemas(false)::text[] AS searched,
        ARRAY(
            SELECT nspname::text
            FROM pg_class
            JOIN pg_namespace ON pg_namespace.oid = relnamespace
            WHERE relname = 'hubbub_schema_version'
            ORDER BY nspname
        ) AS homes
    """,
)


async def _search_path(postgres: Postgres) -> Seen:
    [path] = await postgres.executor.fetch_all(_PATH)
    seen = [schema for schema in path.searched if schema in path.homes]
    findings = []
    if len(path.homes) > 1:
        meaning = (
            f"hubbub's tables are in the schemas {' and '.join(path.homes)}; this role works on those in "
            f"{seen[0] if seen else 'none of them'}."
        )
        findings.append(warning(meaning, "Find out which has the data, drop the other, and pin search_path."))
    if "$user" in path.setting and path.role in path.searched:
        meaning = (
            f'There is a schema named like the role {path.role}, and "$user" puts it first: another role '
            "that runs `hubbub migrate` sees other tables than this one."
        )
        say = note if path.homes == [path.role] else warning
        findings.append(say(meaning, f"ALTER ROLE {path.role} SET search_path = {seen[0] if seen else 'public'}"))
    return Seen(path.setting, tuple(findings))


CHECKS: tuple[Check[Postgres], ...] = (
    Check("postgresql.role", "role", _role),
    Check("postgresql.search_path", "search path", _search_path),
)
