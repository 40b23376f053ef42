from __future__ import annotations

from cli._doctor.saying import Look, Sql, meanings, of, severities
from hubbub import PostgresSettings
from hubbub.cli._doctor.postgres_tables import hot_statements
from sql.package import statements
from waiting import until_it_answers

FILL = """
    ALTER TABLE users SET (autovacuum_enabled = false);
    INSERT INTO users (email, username, password_hash)
    SELECT 'user-' || n || '@example.org', 'user-' || n, '!'
    FROM generate_series(1, 20000) AS n;
    ANALYZE;
"""


async def test_autovacuum_that_was_turned_off_is_told(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    assert of(await look(patient), "postgresql.vacuum").findings == ()
    await sql("ALTER TABLE room_users SET (autovacuum_enabled = off)")
    section = await look(patient)
    assert severities(section, "postgresql.vacuum") == ["warning"]
    assert "ALTER TABLE room_users RESET (autovacuum_enabled)" in meanings(section, "postgresql.vacuum")


async def test_counting_that_was_turned_off_is_an_error(look: Look, almighty: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {almighty.database} SET track_counts = off")
    section = await look(almighty)
    assert severities(section, "postgresql.vacuum") == ["error"]
    assert "track_counts is off" in meanings(section, "postgresql.vacuum")


async def test_many_dead_rows_are_told(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    await sql(FILL)
    await sql("UPDATE users SET avatar_url = 'https://example.org/a.png'")

    async def is_told() -> bool:  # the server takes its time to count
        return "20,000 dead rows" in meanings(await look(patient), "postgresql.vacuum")

    await until_it_answers(is_told)


async def test_a_plan_that_reads_a_whole_large_table_is_told_by_the_name_of_its_statement(
    look: Look, patient: PostgresSettings, sql: Sql
) -> None:
    assert "no table is large enough" in of(await look(patient), "postgresql.plans").remark
    await sql(FILL)
    section = await look(patient)
    assert of(section, "postgresql.plans").findings == ()
    assert of(section, "postgresql.plans").remark == f"auto; {len(hot_statements())} statements planned"
    await sql("DROP INDEX idx_users_email")
    section = await look(patient)
    assert "users.find_by_email reads all of users, by Seq Scan" in meanings(section, "postgresql.plans")


async def test_plans_for_each_value_are_told(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    await sql(f"ALTER DATABASE {patient.database} SET plan_cache_mode = force_custom_plan")
    assert "plan_cache_mode = auto" in meanings(await look(patient), "postgresql.plans")


async def test_what_the_role_may_not_plan_is_said(look: Look, role: PostgresSettings, sql: Sql) -> None:
    await sql(FILL)
    await sql(f"REVOKE ALL ON room_events FROM {role.user}")
    assert of(await look(role), "postgresql.plans").unseen == "permission denied for table room_events"


def test_it_plans_what_the_repositories_run() -> None:
    prefixes = ("users.", "rooms.", "room_users.", "messages.", "receipts.")
    assert {one.name for one in hot_statements()} >= {name for name in statements() if name.startswith(prefixes)}
