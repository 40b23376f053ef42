"""Each statement of a function is about one room, so that the node with the room runs it alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hubbub.migrations.distribution import ROOM_OF
from hubbub.postgres.statement import functions, with_names_in_database

BODIES = {name: function.definition.split("$$")[1] for name, function in functions().items()}


def _statements(body: str) -> Iterator[str]:
    """The pieces between semicolons and the words of PL/pgSQL, without comments."""
    body = re.sub(r"--[^\n]*", "", body)
    yield from re.split(r";|\b(?:THEN|ELSE|BEGIN)\n|\bRETURN QUERY\b", body)


def _tables(statement: str) -> set[str]:
    return set(re.findall(rf"\b(?:FROM|JOIN|UPDATE|USING|INTO) ({'|'.join(ROOM_OF)})\b", statement))


def _is_of_one_room(statement: str, table: str) -> bool:
    return bool(
        re.search(rf"\b{table}\.{ROOM_OF[table]} = room\b", statement)
        or re.search(
            rf"INSERT INTO {table} \(\s*(?:id, )?{ROOM_OF[table]}\b.*VALUES \(\s*(?:message, )?room\b",
            statement,
            re.DOTALL,
        )
        # From the row of the room, whose id the statement equates with the parameter.
        or re.search(rf"INSERT INTO {table} .*SELECT\s.*\b(rooms\.id|messages\.room_id)\b", statement, re.DOTALL)
    )


@pytest.mark.parametrize("name", BODIES)
def test_statement_of_a_function_is_about_its_room(name: str) -> None:
    found = [(one, table) for one in _statements(BODIES[name]) for table in _tables(one)]
    assert found
    assert [pair for pair in found if not _is_of_one_room(*pair)] == []


@pytest.mark.parametrize("name", BODIES)
def test_insert_has_no_subquery_and_no_default(name: str) -> None:
    """Citus accepts no subquery in VALUES, and it evaluates a default again on the node."""
    inserts = [one for one in _statements(BODIES[name]) if "INSERT INTO" in one]
    assert all("WITH" not in one.replace("WITH ORDINALITY", "") for one in inserts)
    assert not [one for one in inserts if "SELECT" in one.partition("VALUES")[2]]
    without_time = [one for one in inserts if not re.search(r"\b(created_at|joined_at|read_at)\b", one)]
    assert len(without_time) == (name == "hubbub_change_message")  # this function does not return its event


def test_name_in_the_database_changes_with_the_definition() -> None:
    name = functions()["hubbub_send"].name
    assert re.fullmatch(r"hubbub_send_[0-9a-f]{8}", name)
    assert len({function.name for function in functions().values()}) == len(functions())
    sql = "SELECT id FROM hubbub_send($1) WHERE EXISTS (SELECT FROM hubbub_deletions)"
    assert with_names_in_database(sql) == sql.replace("hubbub_send", name)
