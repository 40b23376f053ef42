"""Names get their keys in a filled database, while a former version without keys is running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from commands import execute
from hubbub import Hub, Invalid, PostgresSettings, Settings, inputs, migrations, sql
from hubbub.migrations.revisions import KEYS, previous
from hubbub.postgres import connect
from hubbub.postgres.connection import Connection
from migrations.filled import fill
from migrations.test_crashes import Died, killed_before

A_USER = "INSERT INTO users (email, username, password_hash) VALUES"
"""The statement by which the former version creates an account."""

STORED = 'SELECT username, username_key, username_key_of FROM users ORDER BY username COLLATE "C"'


@pytest.fixture
async def older(empty_database: PostgresSettings) -> PostgresSettings:
    """A database at the revision before names had keys."""
    await migrations.up(empty_database, previous(KEYS))
    return empty_database


@pytest.fixture
async def connection(empty_database: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(empty_database)
    yield connection
    await connection.close()


async def test_names_that_need_a_key_get_it(older: PostgresSettings, connection: Connection) -> None:
    await fill(
        older, f"{A_USER} ('a@b', 'Ada', '!'), ('c@d', 'Νίκος', '!'), ('e@f', 'a  b', '!'), ('g@h', 'ﬁn', '!')"
    )
    await migrations.up(older)
    assert [tuple(row) for row in await connection.fetch(STORED)] == [
        ("Ada", None, None),
        ("a  b", "a b", "a  b"),
        ("Νίκος", "νίκοσ", "Νίκος"),
        ("ﬁn", "fin", "ﬁn"),
    ]


async def test_more_names_than_a_batch_get_their_keys(older: PostgresSettings, connection: Connection) -> None:
    await fill(older, f"{A_USER[:-7]} SELECT n || '@b', 'É-' || n, '!' FROM generate_series(1, 2100) AS n")
    await migrations.up(older)
    found = await connection.fetch(STORED)
    assert len(found) == 2100
    assert all(key == inputs.same_name(name) for name, key, _ in found)


async def test_killed_run_is_completed_with_all_keys_beside_the_former_version(
    older: PostgresSettings, connection: Connection
) -> None:
    statement = 0
    while (await migrations.status(older)).current != KEYS:
        statement += 1
        await fill(older, f"{A_USER} ('{statement}@b', 'Élodie {statement}', '!')")
        with suppress(Died), killed_before(statement):
            await migrations.up(older, KEYS)
    assert statement > 10
    await migrations.up(older)
    found = await connection.fetch(STORED)
    assert [tuple(row) for row in found] == [(name, inputs.same_name(name), name) for name, *_ in found]
    assert len(found) == statement


async def test_names_with_equal_keys_stop_the_revision_and_lose_nothing(
    older: PostgresSettings, connection: Connection
) -> None:
    await fill(
        older, f"{A_USER} ('a@b', 'Νίκος', '!'), ('c@d', 'ΝΊΚΟΣ', '!'), ('e@f', 'fin', '!'), ('g@h', 'ﬁn', '!')"
    )
    rows = "SELECT id, email, username, updated_at FROM users ORDER BY id"
    before = await connection.fetch(rows)
    with pytest.raises(Invalid) as refused:
        await migrations.up(older)
    assert refused.value.field == "username"
    assert refused.value.reason.startswith("the database holds usernames that are one name in other letters (2);")
    query = refused.value.reason.partition("find them with: ")[2]
    found = {frozenset(row["usernames"]) for row in await connection.fetch(query)}
    assert found == {frozenset({"Νίκος", "ΝΊΚΟΣ"}), frozenset({"fin", "ﬁn"})}
    assert await connection.fetch(rows) == before
    assert (await migrations.status(older)).current == previous(KEYS)
    # The former version still works, and the owner of the names changes them.
    await fill(older, f"{A_USER} ('i@j', 'Bob', '!')")
    await fill(older, "UPDATE users SET username = 'nikos' WHERE username = 'ΝΊΚΟΣ'")
    await fill(older, "UPDATE users SET username = 'ﬁn 2' WHERE username = 'ﬁn'")
    assert await migrations.up(older) == [KEYS, *migrations.REVISIONS[migrations.REVISIONS.index(KEYS) + 1 :]]
    assert {row["username"] for row in await connection.fetch(rows)} == {"Νίκος", "nikos", "fin", "ﬁn 2", "Bob"}


async def test_emails_that_differ_only_in_case_stop_the_revision(older: PostgresSettings) -> None:
    """They can exist if the locale of the database only folds the case of ASCII."""
    await fill(older, "DROP INDEX idx_users_email")
    await fill(older, f"{A_USER} ('É@b', 'a', '!'), ('é@b', 'b', '!')")
    with pytest.raises(Invalid) as refused:
        await migrations.up(older)
    assert refused.value.field == "email"
    assert refused.value.reason.startswith("the database holds emails that differ only in case (1);")


async def test_accounts_of_the_former_version_are_found_and_get_their_keys_by_the_next_up(
    empty_database: PostgresSettings, connection: Connection, settings: Settings
) -> None:
    await migrations.up(empty_database)
    async with Hub(replace(settings, postgres=empty_database)) as hub:
        nikos = await hub.users.create("nikos@example.org", "Νίκος", "hash")
        await fill(empty_database, f"{A_USER} ('ada@example.org', 'Ada', '!'), ('zoe@example.org', 'ZOË', '!')")
        for spelling in ("ADA", "zoë"):
            assert await hub.users.find_by_username(spelling) is not None
        # The former version renames a user that has a key. The user is not found by the former name.
        await fill(empty_database, "UPDATE users SET username = 'ﬁnn' WHERE username = 'Νίκος'")
        assert await hub.users.find_by_username("Νίκος") is None
        assert await migrations.up(empty_database) == []
        found = await hub.users.find_by_username("FINN")
        assert found is not None
        assert found.id == nikos.id
    assert [tuple(row)[1:] for row in await connection.fetch(STORED)] == [
        (None, None),
        ("zoë", "ZOË"),
        ("finn", "ﬁnn"),
    ]


async def test_next_up_reports_a_name_that_is_taken_and_leaves_it(
    empty_database: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(empty_database)
    await fill(empty_database, f"{A_USER} ('a@b', 'fin', '!'), ('c@d', 'ﬁn', '!'), ('e@f', 'É', '!')")
    with pytest.raises(Invalid) as refused:
        await migrations.up(empty_database)
    assert refused.value.reason.startswith("the database holds usernames that are the name of another user")
    query = refused.value.reason.partition("find them with: ")[2]
    assert [row["username"] for row in await connection.fetch(query)] == ["ﬁn"]
    assert [tuple(row)[1:] for row in await connection.fetch(STORED)] == [(None, None), ("é", "É"), (None, None)]


async def test_down_makes_the_former_indexes_and_up_computes_the_keys_again(
    empty_database: PostgresSettings, connection: Connection
) -> None:
    await migrations.up(empty_database, KEYS)
    await fill(empty_database, f"{A_USER} ('a@b', 'Νίκος', '!')")
    await migrations.down(empty_database, previous(KEYS))
    await migrations.up(empty_database)
    assert [tuple(row) for row in await connection.fetch(STORED)] == [("Νίκος", "νίκοσ", "Νίκος")]


async def test_letters_are_folded_alike_in_python_and_in_sql(connection: Connection) -> None:
    folded_by_server = sql.folded("letter")
    rows = await connection.fetch(
        f"""
        SELECT letter, {folded_by_server} AS folded
        FROM (
            SELECT chr(code) AS letter
            FROM generate_series(1, x'10ffff'::integer) AS code
            WHERE code NOT BETWEEN x'd800'::integer AND x'dfff'::integer
        ) AS letters
        """
    )
    assert len(rows) > 1_100_000
    assert [letter for letter, folded in rows if folded != inputs.folded(letter)] == []
    found = await connection.fetchval(
        f"SELECT {folded_by_server} FROM (VALUES ($1::text)) AS texts (letter)", "ÀÉ aZ İ ẞ Я"
    )
    assert found == inputs.folded("ÀÉ aZ İ ẞ Я") == "àé az İ ẞ я"


async def test_locale_of_the_database_makes_no_difference(
    postgres_settings: PostgresSettings, administrator: PostgresSettings, settings: Settings
) -> None:
    """With the locale C, PostgreSQL only folds the case of ASCII."""
    other = replace(postgres_settings, database=f"plain_{uuid4().hex}")
    locale = "ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    connection = await connect(postgres_settings)
    provider = "LOCALE_PROVIDER libc " if connection.get_server_version().major >= 15 else ""
    await connection.execute(f"CREATE DATABASE {other.database} {provider}{locale}")
    try:
        await migrations.up(other)
        async with Hub(replace(settings, postgres=other)) as hub:
            user = await hub.users.create("ÉLODIE@example.org", "ИВАН", "hash")
            assert await hub.users.find_by_username("иван") == user
            assert await hub.users.find_by_email("élodie@example.org") == user
            for name in ("яблоко", "Арбуз", "ЯЗЫК", "zebra", "Apple"):
                await hub.rooms.create(name, created_by=user.id)
            names = [room.name for room in (await hub.rooms.public()).items]
            assert names == ["Apple", "zebra", "Арбуз", "яблоко", "ЯЗЫК"]
    finally:
        await execute(administrator, f"DROP DATABASE {other.database} WITH (FORCE)")
        await connection.close()
