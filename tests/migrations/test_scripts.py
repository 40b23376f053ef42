"""The SQL files of the revisions keep the conventions that the runner relies on."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from hubbub.migrations import REVISIONS
from hubbub.migrations.revisions import VERSIONS, Direction, Index, Refusal, Step, previous, script, steps

BOTH: tuple[Direction, Direction] = ("up", "down")
EVERY_SCRIPT = [(direction, revision) for direction in BOTH for revision in REVISIONS]


@pytest.mark.parametrize(("direction", "revision"), EVERY_SCRIPT)
def test_script_sets_its_revision_in_its_last_transaction(direction: Direction, revision: str) -> None:
    *_, noted, last = steps(direction, revision)
    assert last.sql == "COMMIT"
    assert [step for step in steps(direction, revision) if step.sets_revision] == [noted]
    older, newer = previous(revision), revision
    before, after = (older, newer) if direction == "up" else (newer, older)
    assert re.findall(r"'(\d{4})'", noted.sql) == [one for one in (after, before) if one != "base"]


@pytest.mark.parametrize(("direction", "revision"), EVERY_SCRIPT)
def test_script_opens_and_closes_its_transactions_in_turn(direction: Direction, revision: str) -> None:
    words = [step.sql for step in steps(direction, revision) if step.sql in {"BEGIN", "COMMIT"}]
    assert words == ["BEGIN", "COMMIT"] * (len(words) // 2)


@pytest.mark.parametrize(("direction", "revision"), EVERY_SCRIPT)
def test_script_builds_indexes_outside_of_transactions_under_the_revision_they_lead_to(
    direction: Direction, revision: str
) -> None:
    target = revision if direction == "up" else previous(revision)
    in_transaction = False
    created: set[str] = set()
    for step in steps(direction, revision):
        created.update(re.findall(r"^CREATE TABLE (\w+)", step.sql))
        in_transaction = step.sql == "BEGIN" or (in_transaction and step.sql != "COMMIT")
        if "CONCURRENTLY" in step.sql:
            assert step.index is not None
            assert step.index.building == f"{step.index.name}_to_{target}"
            assert not in_transaction
        # Otherwise the table is locked while it is in use, unless the same revision creates it. The tables of the
        # first revisions were never in use.
        if index := re.match(r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON (?:public\.)?(\w+)", step.sql):
            assert direction == "up"
            assert revision < "0006" or index[1] in created


def test_script_refuses_exactly_the_rows_that_its_constraints_would_refuse() -> None:
    rules: dict[str, str] = {}
    refused: dict[str, str] = {}
    for step in steps("up", "0009"):
        if step.refusal and step.refusal.field.endswith("_check"):
            table = step.refusal.rows.split()[2]
            assert f"FROM {table}\n" in step.sql
            refused[step.refusal.field] = step.sql.partition("WHERE NOT ")[2]
        rules |= dict(re.findall(r"ADD CONSTRAINT (\w+)\s+CHECK (\(.*\))\s+NOT VALID", step.sql))
    assert refused == {name: rule for name, rule in rules.items() if not name.endswith("_no_nulls_check")}
    assert len(refused) == 14


def test_constraint_added_without_check_of_rows_is_validated_after_a_commit() -> None:
    for direction, revision in EVERY_SCRIPT:
        sql = [step.sql for step in steps(direction, revision)]
        for position, statement in enumerate(sql):
            for name in re.findall(
                r"ADD CONSTRAINT (\w+)(?:(?!ADD CONSTRAINT).)*? NOT VALID", statement, re.DOTALL
            ):
                [validated] = [n for n, one in enumerate(sql) if one.endswith(f" VALIDATE CONSTRAINT {name}")]
                assert validated > position
                assert ("BEGIN" in sql[:position]) == ("COMMIT" in sql[position:validated])


def test_step_is_one_statement_and_the_comments_before_it() -> None:
    assert steps("down", "0001") == [
        Step("BEGIN", "-- Deletes: every user"),
        Step("DROP TABLE users", "-- The version table stays, without a row."),
        Step("DELETE FROM hubbub_schema_version WHERE version_num = '0001'", ""),
        Step("COMMIT", ""),
    ]


def test_step_knows_its_index_and_what_it_refuses() -> None:
    refusal, *_ = steps("up", "0006")
    assert refusal.refusal == Refusal("room_id", "messages without a room")
    built, *_ = steps("up", "0012")
    assert built.index == Index("idx_messages_room_id", "idx_messages_room_id_to_0012")
    assert built.refusal is None


def test_script_for_administrator_keeps_order_and_leaves_out_refusals() -> None:
    written = script("up", ("0006", "0012"))
    assert "refuse" not in written
    order = [
        "-- 0006 up",
        "ADD COLUMN seq",
        "-- 0012 up",
        "DROP INDEX CONCURRENTLY",
        "CREATE UNIQUE INDEX",
        "RESET",
    ]
    assert all(first < second for first, second in pairwise(written.index(part) for part in order))


def test_no_other_file_is_among_the_scripts() -> None:
    assert {file.name.partition(".")[2] for file in VERSIONS.iterdir()} == {"up.sql", "down.sql"}
