"""The numbers of transactions after a restore into another cluster, whose own transactions begin at 1 again."""

from __future__ import annotations

from typing import Final

from hubbub.migrations.revisions import verify
from hubbub.migrations.runner import Timeouts, session, take_lock
from hubbub.postgres import Statement
from hubbub.settings import PostgresSettings

TABLES: Final = ("messages", "room_events")


def _newest_in(table: str) -> str:
    return f"""
            SELECT {table}.transaction_id
            FROM {table}
            WHERE (get_byte(uuid_send({table}.room_id), 15) & 15) = part.number
                AND {table}.transaction_id IS NOT NULL
            ORDER BY {table}.transaction_id DESC
            LIMIT 1
        """


# NULL if the transactions of this cluster have larger ids than all entries, as they have without a restore.
_OFFSET: Final = Statement(
    "migrations.transaction_id_offset",
    lambda transaction_id_offset: transaction_id_offset,
    f"""
    SELECT max(newest.transaction_id) + 1 AS transaction_id_offset
    FROM generate_series(0, 15) AS part (number)
    CROSS JOIN LATERAL (
        ({_newest_in("messages")})
        UNION ALL
        ({_newest_in("room_events")})
    ) AS newest
    CROSS JOIN hubbub_schema_version
    WHERE newest.transaction_id
        >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + hubbub_schema_version.transaction_id_offset
    """,
)
_SET_OFFSET: Final = Statement(
    "migrations.set_transaction_id_offset", int, "UPDATE hubbub_schema_version SET transaction_id_offset = $1"
)


async def renumber(settings: PostgresSettings, timeouts: Timeouts) -> int | None:
    """Give new entries larger transaction ids than all that were restored.

    Returns what is added to the ids of this cluster. None if nothing had to be done.
    """
    async with session(settings) as transaction:
        await take_lock(transaction, timeouts.migration_lock_seconds)
        async with transaction() as executor:
            await verify(executor)
            for table in TABLES:
                lock = f"LOCK TABLE {settings.schema}.{table} IN ACCESS EXCLUSIVE MODE"
                await executor.execute(Statement("migrations.lock_entries", int, lock))
            offset = await executor.fetch_one(_OFFSET)
            if offset is None:
                return None
            await executor.execute(_SET_OFFSET, offset)
            for table in TABLES:
                default = f"pg_current_xact_id()::text::bigint + {int(offset)}"
                alter = f"ALTER TABLE {settings.schema}.{table} ALTER COLUMN transaction_id SET DEFAULT {default}"
                await executor.execute(Statement("migrations.set_default", int, alter))
            return int(offset)
