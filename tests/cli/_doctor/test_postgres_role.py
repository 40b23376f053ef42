from __future__ import annotations

from uuid import uuid4

from cli._doctor.saying import Look, Sql, meanings, of, severities
from hubbub import PostgresSettings


async def test_a_superuser_is_an_error(look: Look, almighty: PostgresSettings) -> None:
    section = await look(almighty)
    assert severities(section, "postgresql.role") == ["error"]
    assert "hubbub migrate grant ROLE" in meanings(section, "postgresql.role")


async def test_the_owner_of_the_tables_has_more_rights_than_an_application_needs(
    look: Look, patient: PostgresSettings
) -> None:
    section = await look(patient)
    assert severities(section, "postgresql.role") == ["warning"]
    for power in ("owns the tables", "may create databases"):
        assert power in meanings(section, "postgresql.role")


async def test_rights_that_come_from_another_role_count(
    look: Look, role: PostgresSettings, patient: PostgresSettings, sql: Sql
) -> None:
    assert severities(await look(role), "postgresql.role") == []
    await sql(f"GRANT {patient.user} TO {role.user}")
    assert "owns the tables" in meanings(await look(role), "postgresql.role")


async def test_attributes_that_reach_beyond_the_database_are_named(
    look: Look, role: PostgresSettings, sql: Sql
) -> None:
    await sql(f"ALTER ROLE {role.user} CREATEROLE REPLICATION BYPASSRLS")
    said = meanings(await look(role), "postgresql.role")
    for power in ("may create roles", "may replicate", "reads past row security"):
        assert power in said


async def test_who_can_become_a_superuser_is_as_good_as_one(look: Look, role: PostgresSettings, sql: Sql) -> None:
    boss = f"boss_{uuid4().hex}"
    await sql(f"CREATE ROLE {boss} CREATEDB BYPASSRLS; GRANT {boss} TO {role.user}")
    section = await look(role)
    assert severities(section, "postgresql.role") == ["warning"]
    for power in ("may create databases", "reads past row security"):
        assert power in meanings(section, "postgresql.role")
    await sql(f"ALTER ROLE {boss} SUPERUSER")
    assert severities(await look(role), "postgresql.role") == ["error"]
    await sql(f"DROP ROLE {boss}")
    assert severities(await look(role), "postgresql.role") == []


async def test_a_schema_named_like_the_role_hides_the_tables(
    look: Look, patient: PostgresSettings, sql: Sql
) -> None:
    assert of(await look(patient), "postgresql.search_path").findings == ()
    await sql(f"CREATE SCHEMA {patient.user} AUTHORIZATION {patient.user}")
    section = await look(patient)
    assert severities(section, "postgresql.search_path") == ["warning"]
    assert f"ALTER ROLE {patient.user} SET search_path = public" in meanings(section, "postgresql.search_path")


async def test_a_schema_named_like_the_role_that_has_the_tables_is_a_note(
    look: Look, patient: PostgresSettings, sql: Sql
) -> None:
    await sql(f"ALTER SCHEMA public RENAME TO {patient.user}; CREATE SCHEMA public")
    assert severities(await look(patient), "postgresql.search_path") == ["note"]


async def test_a_role_whose_search_path_is_pinned_does_not_fall_for_it(
    look: Look, role: PostgresSettings, sql: Sql
) -> None:
    await sql(f"CREATE SCHEMA {role.user}")
    assert of(await look(role), "postgresql.search_path").findings == ()
    await sql(f"DROP SCHEMA {role.user}")


async def test_tables_in_two_schemas_are_told(look: Look, patient: PostgresSettings, sql: Sql) -> None:
    await sql("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.hubbub_schema_version (version_num text)")
    section = await look(patient)
    assert severities(section, "postgresql.search_path") == ["warning"]
    assert "elsewhere and public; this role works on those in public" in meanings(
        section, "postgresql.search_path"
    )
