from __future__ import annotations

from uuid import UUID

import pytest

from hubbub.postgres import FastUUID, Statement
from hubbub.postgres.statement import count_of


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO users (id) VALUES ($1)",
        "UPDATE users SET username = $1",
        "DELETE FROM users",
        "WITH gone AS (DELETE FROM room_users RETURNING room_id) SELECT room_id FROM gone",
        "\n    WITH head AS (\n        UPDATE rooms SET last_seq = 1\n    )\n    SELECT 1",
    ],
)
def test_writing_statement_is_repeatable_only_if_idempotent(sql: str) -> None:
    statement = Statement("test", int, sql)
    assert statement.writes
    assert not statement.repeatable
    assert Statement("test", int, sql, idempotent=True).repeatable


@pytest.mark.parametrize(
    "sql", ["SELECT updated_at, deleted_at FROM messages", "SELECT count(*) FROM message_read_receipts"]
)
def test_reading_statement_is_repeatable(sql: str) -> None:
    statement = Statement("test", int, sql)
    assert not statement.writes
    assert statement.repeatable


def test_repr_of_a_statement_is_its_name() -> None:
    assert repr(Statement("users.get", int, "SELECT 1")) == "Statement(users.get)"


@pytest.mark.parametrize(("tag", "count"), [("UPDATE 3", 3), ("INSERT 0 2", 2), ("DELETE 0", 0), ("SELECT 7", 7)])
def test_command_tag_holds_the_number_of_rows(tag: str, count: int) -> None:
    assert count_of(tag) == count


def test_fast_uuid_equals_a_uuid() -> None:
    raw = bytes(range(16))
    assert FastUUID(raw) == UUID(bytes=raw)
    assert hash(FastUUID(raw)) == hash(UUID(bytes=raw))
    assert isinstance(FastUUID(raw), UUID)
