"""The revisions of the schema: their SQL files, their order, and which of them a database is at.

A revision is `versions/NNNN_name.up.sql` and `.down.sql`, which psql could run as they are:

- A statement ends with a semicolon at the end of a line, outside of the `$$` of a function. A line that starts
  with `--` is a comment.
- The first comment is the title of the revision. In a `.down.sql` it lists what the revision deletes.
- BEGIN and COMMIT make a transaction. Any other statement commits on its own, and can be run again.
- The last statement before the last COMMIT writes the new revision to the version table.

The runner treats three kinds of statement in a way of its own, which `script` writes down in SQL as far as it can:

- `CREATE INDEX CONCURRENTLY name_to_NNNN`, NNNN being the revision that the database is on its way to. An index of
  that name is kept where it is complete. One that a killed run left INVALID is dropped and built again.
- A query behind `-- refuse FIELD: ROWS`. Where it finds rows, the revision is refused before it changes what the
  running application sees.
- A query behind `-- compute keys`. The users that it finds get the keys of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from hubbub.errors import Invalid, SchemaMismatch
from hubbub.postgres import TABLES, Executor, Statement

NEWEST = 22
"""The number of the newest revision in `versions/`. Numbers have no gaps."""

KEYS = "0015"
"""From this revision on, names have keys."""

REVISIONS: tuple[str, ...] = tuple(f"{number:04}" for number in range(1, NEWEST + 1))
HEAD = REVISIONS[-1]

VERSION_TABLE_EXISTS = Statement(
    "migrations.version_table_exists",
    bool,
    "SELECT to_regclass(current_schema() || '.hubbub_schema_version') IS NOT NULL AS version_table_exists",
)

APPLIED = Statement(
    "migrations.versions", str, "SELECT version_num FROM hubbub_schema_version ORDER BY version_num"
)

OTHER_SCHEMAS = Statement(
    "migrations.other_schemas",
    str,
    """
    SELECT relnamespace::regnamespace::text AS schema
    FROM pg_class
    WHERE relname = 'hubbub_schema_version'
        AND relkind = 'r'
        AND relnamespace IS DISTINCT FROM to_regnamespace(current_schema())
    ORDER BY schema
    """,
)

FOREIGN_TABLES = Statement(
    "migrations.foreign_tables",
    str,
    """
    SELECT relname::text AS name
    FROM pg_class
    WHERE relname = ANY ($1)
        AND relnamespace = to_regnamespace(current_schema())
    ORDER BY name
    """,
)


async def current_revision(executor: Executor) -> str | None:
    """The revision that the database is at, None without a schema. It may be one that this code does not know."""
    if not await executor.fetch_one(VERSION_TABLE_EXISTS):
        return None
    return ", ".join(await executor.fetch_all(APPLIED)) or None


async def verify(executor: Executor) -> None:
    """Check that the schema is at the revision that this code was written for. Raises: SchemaMismatch."""
    current = await current_revision(executor)
    if current is None:
        raise mismatch(None, await executor.fetch_all(OTHER_SCHEMAS))
    if current != HEAD:
        raise mismatch(current)


async def refuse_foreign_tables(executor: Executor, schema: str) -> None:
    """Check that no table of the application has the name of one that is to be made. Raises: Invalid."""
    made = [table for table in TABLES if table != "hubbub_schema_version"]  # which stays when all is undone
    if found := await executor.fetch_all(FOREIGN_TABLES, made):
        what = f"{schema} has the tables {', '.join(found)} already, and no revision of hubbub"
        way_out = (
            "choose another schema, as in DB_SCHEMA=hubbub; docs/migrations.md has the way for original tables"
        )
        raise Invalid("DB_SCHEMA", f"{what}: {way_out}")


def mismatch(current: str | None, others: Sequence[str] = ()) -> SchemaMismatch:
    """The error for a database at `current`, with the way out. `others` are schemas with a version table."""
    if others:
        where = f"its tables are in the schema {' and '.join(others)}: set DB_SCHEMA"
        return SchemaMismatch(current, HEAD, f"{where}, or run `hubbub migrate up`")
    if is_unknown(current):
        return SchemaMismatch(current, HEAD, "a newer hubbub has migrated it, so upgrade hubbub")
    return SchemaMismatch(current, HEAD, "run `hubbub migrate up`")


def is_unknown(current: str | None) -> bool:
    return current is not None and current not in REVISIONS


def to_apply(current: str | None, target: str) -> tuple[str, ...]:
    """The revisions from a database at `current` up to `target` ("head" or an id), oldest first.

    Raises: Invalid (an unknown revision), SchemaMismatch (the database is newer than this code).
    """
    end = len(REVISIONS) if target == "head" else ordinal(target)
    return REVISIONS[_count_applied(current) : end]


def to_undo(current: str | None, target: str) -> tuple[str, ...]:
    """The revisions from a database at `current` back to `target` ("base", "-1" or an id), newest first.

    Raises: Invalid (not an applied revision), SchemaMismatch (the database is newer than this code).
    """
    applied = _count_applied(current)
    named = {"base": 0, "-1": max(applied - 1, 0)}
    end = named[target] if target in named else ordinal(target)
    if end > applied:
        raise Invalid("revision", f"{target} is not applied: the database is at {current or 'none'}")
    return REVISIONS[end:applied][::-1]


def previous(revision: str) -> str:
    """The revision that a database is at once `revision` is undone: "base" for the first."""
    return ("base", *REVISIONS)[ordinal(revision) - 1]


def ordinal(revision: str) -> int:
    """The position of a revision in `REVISIONS`, counted from 1. Raises: Invalid (an unknown revision)."""
    if revision not in REVISIONS:
        raise Invalid("revision", f"there is no such revision: they go from {REVISIONS[0]} to {HEAD}")
    return REVISIONS.index(revision) + 1


def _count_applied(current: str | None) -> int:
    if is_unknown(current):
        raise mismatch(current)
    return 0 if current is None else ordinal(current)


# The SQL files

Direction = Literal["up", "down"]

VERSIONS = Path(__file__).with_name("versions")

# Building an index waits for every transaction older than it. No statement of the application queues behind that
# wait, so it may be longer than the lock timeout of other statements. It is bounded, so that the command ends.
BUILD_LOCK_TIMEOUT = "SET lock_timeout = '60s'"
USUAL_LOCK_TIMEOUT = "RESET lock_timeout"

# A revision may be applied by another role than the owner of the tables, such as a superuser. The owner could not
# use what that role makes. So it is given to the owner of `rooms`, if the role may do that: a superuser, or a role
# that can become both owners, of which the new one may create in the schema.
COMMANDS_TO_GIVE: Final = f"""
    SELECT format('ALTER %s OWNER TO %I', made.name, owner.rolname) AS command
    FROM pg_class AS rooms
    JOIN pg_roles AS owner ON owner.oid = rooms.relowner
    JOIN pg_roles AS giver ON giver.rolname = current_user
    CROSS JOIN LATERAL (
        SELECT format('TABLE %s', pg_class.oid::regclass), pg_class.relowner
        FROM pg_class
        WHERE pg_class.relnamespace = rooms.relnamespace
            AND pg_class.relname IN ({", ".join(f"'{table}'" for table in TABLES)})
        UNION ALL
        SELECT format('FUNCTION %s', pg_proc.oid::regprocedure), pg_proc.proowner
        FROM pg_proc
        WHERE pg_proc.pronamespace = rooms.relnamespace
            AND pg_proc.proname = 'hubbub_check_room'
    ) AS made (name, owner)
    WHERE rooms.oid = to_regclass(format('%I.rooms', current_schema()))
        AND made.owner <> rooms.relowner
        AND (
            giver.rolsuper
            OR (
                pg_has_role(made.owner, 'USAGE')
                AND CASE
                    WHEN current_setting('server_version_num')::integer < 160000
                    THEN pg_has_role(rooms.relowner, 'MEMBER')
                    ELSE pg_has_role(rooms.relowner, 'SET')
                END
                AND has_schema_privilege(rooms.relowner, rooms.relnamespace, 'CREATE')
            )
        )
"""  # noqa: S608 - the names of tables of ours
GIVE_TO_OWNER: Final = f"""DO $$
DECLARE
    command text;
BEGIN
    FOR command IN {COMMANDS_TO_GIVE}
    LOOP
        EXECUTE command;
    END LOOP;
END $$"""

_INDEX = re.compile(r"CREATE (UNIQUE )?INDEX CONCURRENTLY (?P<building>(?P<name>\w+)_to_\d{4}) ON ")
_REFUSE = re.compile(r"^-- refuse (?P<field>\w+): (?P<rows>.+)$", re.MULTILINE)
_SETS_REVISION = re.compile(r"(INSERT INTO|UPDATE|DELETE FROM) hubbub_schema_version ")


class Index(NamedTuple):
    """An index that a statement builds: its final name, and the one that it has until it is complete."""

    name: str
    building: str

    @property
    def drop(self) -> str:
        return f"DROP INDEX CONCURRENTLY IF EXISTS {self.building}"


class Refusal(NamedTuple):
    """Rows that a revision refuses, in words, and the field to name in the error."""

    field: str
    rows: str


class Step(msgspec.Struct, frozen=True):
    """One statement of a revision, without its semicolon, and the comments in front of it."""

    sql: str
    comment: str

    @property
    def index(self) -> Index | None:
        found = _INDEX.match(self.sql)
        return Index(found["name"], found["building"]) if found else None

    @property
    def refusal(self) -> Refusal | None:
        found = _REFUSE.search(self.comment)
        return Refusal(found["field"], found["rows"]) if found else None

    @property
    def computes_keys(self) -> bool:
        return self.comment.endswith("-- compute keys")

    @property
    def sets_revision(self) -> bool:
        return _SETS_REVISION.match(self.sql) is not None


def steps(direction: Direction, revision: str) -> list[Step]:
    """The statements of a revision, in order."""
    found: list[Step] = []
    comment: list[str] = []
    sql: list[str] = []
    for line in _text(direction, revision).splitlines():
        if line.startswith("--") or not line:
            comment.append(line)
            continue
        sql.append(line)
        if line.endswith(";") and "\n".join(sql).count("$$") % 2 == 0:
            found.append(Step("\n".join(sql)[:-1], "\n".join(comment).strip()))
            comment, sql = [], []
    return found


def script(direction: Direction, revisions: Iterable[str]) -> str:
    """The SQL that applies or undoes `revisions`, to be sent statement by statement.

    Each revision fails at its first statement in a database that is not at the revision before it. Rows that a
    revision refuses make one of its later statements fail. The script cannot compute the keys of names. The next
    `up` does that, even if it has nothing else to do.
    """
    written: list[str] = []
    for revision in revisions:
        written.append(f"-- {revision} {direction}")
        if (needed := revision if direction == "down" else previous(revision)) != "base":
            written.append(_NEEDS.format(needed))
        for step in steps(direction, revision):
            if step.refusal or step.computes_keys:
                continue
            statements = [step.sql]
            if step.index:
                statements = [BUILD_LOCK_TIMEOUT, step.index.drop, step.sql, USUAL_LOCK_TIMEOUT]
            statements[0] = f"{step.comment}\n{statements[0]}".lstrip()
            written += [f"{statement};" for statement in statements]
    if direction == "up":
        written.append(f"{GIVE_TO_OWNER};")
    return "".join(f"{one}\n\n" for one in written)


_NEEDS = """DO $$
BEGIN
    IF (SELECT version_num FROM hubbub_schema_version) IS DISTINCT FROM '{0}' THEN
        RAISE EXCEPTION 'the database is not at revision {0}';
    END IF;
END $$;"""


def _text(direction: Direction, revision: str) -> str:
    [file] = VERSIONS.glob(f"{revision}_*.{direction}.sql")
    return file.read_text(encoding="utf-8")


def first_comment(direction: Direction, revision: str) -> str:
    """The purpose of the revision (up), or the data that undoing it deletes (down)."""
    lines = re.match(r"(-- .*\n)+", _text(direction, revision))
    return " ".join(line.removeprefix("-- ") for line in lines[0].splitlines()) if lines else ""
