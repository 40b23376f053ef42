"""The catalog of a schema, to compare two schemas."""

from __future__ import annotations

from hubbub.postgres import connect
from hubbub.settings import PostgresSettings

# The version table records the revision of the schema, and is not part of it.
SCHEMA = """
    WITH tables AS (
        SELECT oid, relname, reloptions, relpersistence
        FROM pg_class
        WHERE relnamespace = $1::regnamespace
            AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
            AND relname <> 'hubbub_schema_version'
    )
    SELECT format('table %s %s %s', relname, relpersistence, reloptions) AS line
    FROM tables
    UNION ALL
    SELECT format(
        'column %s %s %s %s not null %s default %s collation %s',
        relname,
        rank() OVER (PARTITION BY attrelid ORDER BY attnum),
        attname,
        format_type(atttypid, atttypmod),
        attnotnull,
        pg_get_expr(adbin, adrelid),
        attcollation
    )
    FROM tables
    JOIN pg_attribute ON attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    UNION ALL
    SELECT format(
        'constraint %s %s valid %s %s',
        relname,
        conname,
        convalidated,
        pg_get_constraintdef(pg_constraint.oid)
    )
    FROM tables
    JOIN pg_constraint ON conrelid = tables.oid
    UNION ALL
    SELECT format(
        'index %s valid %s %s',
        pg_get_indexdef(indexrelid),
        indisvalid,
        (SELECT reloptions FROM pg_class WHERE oid = indexrelid)
    )
    FROM tables
    JOIN pg_index ON indrelid = tables.oid
    UNION ALL
    SELECT format('trigger %s %s', relname, tgname)
    FROM tables
    JOIN pg_trigger ON tgrelid = tables.oid AND NOT tgisinternal
    UNION ALL
    SELECT format('function %s', proname)
    FROM pg_proc
    WHERE pronamespace = $1::regnamespace
    UNION ALL
    SELECT format('type %s', typname)
    FROM pg_type
    WHERE typnamespace = $1::regnamespace
        AND typrelid = 0
        AND typelem = 0
    ORDER BY line
"""


async def schema(settings: PostgresSettings) -> list[str]:
    """One line per table, column, constraint, index, trigger, function and type."""
    connection = await connect(settings)
    try:
        return [line for (line,) in await connection.fetch(SCHEMA, settings.schema)]
    finally:
        await connection.close()
