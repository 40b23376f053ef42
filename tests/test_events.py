"""The table of event kinds, and all places that have to list each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hubbub
from hubbub import PostgresSettings, events
from hubbub.events import KINDS, LoggedEvent, Payload
from hubbub.history.lines import EVENT_LINES
from hubbub.postgres import connect
from sql.package import statements

ROOT = Path(__file__).parents[1]


def own_fields(event: type[LoggedEvent]) -> set[str]:
    return set(event.__struct_fields__) - set(LoggedEvent.__struct_fields__)


def test_every_type_of_entry_is_in_the_table_under_a_kind_of_its_own() -> None:
    entries = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, LoggedEvent)]
    assert {kind.__name__ for kind in entries} - {"LoggedEvent"} == {event.__name__ for event in KINDS.values()}
    assert len({event.__struct_config__.tag for event in KINDS.values()}) == len(KINDS)


def test_every_event_is_public() -> None:
    assert {event.__name__ for event in KINDS.values()} <= set(hubbub.__all__)


@pytest.mark.parametrize("event", KINDS.values())
def test_fields_of_an_entry_are_those_of_its_row_or_of_the_payload(event: type[LoggedEvent]) -> None:
    assert own_fields(event) - {"user_id", "by", "message"} <= set(Payload.__struct_fields__)


def test_every_kind_is_written_by_a_statement() -> None:
    append = re.compile(r"INSERT INTO room_events \([^)]*\)\s+SELECT\s+\S+\s+[^']*'(\w+)'")
    written = {kind for statement in statements().values() for kind in append.findall(statement.sql)}
    assert written == KINDS.keys() - {events.MessageSent.kind}


async def test_check_of_room_events_accepts_exactly_the_kinds_of_the_table(
    postgres_settings: PostgresSettings,
) -> None:
    connection = await connect(postgres_settings)
    check = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'room_events_kind_check'"
    )
    await connection.close()
    assert set(re.findall(r"'(\w+)'", check)) == KINDS.keys() - {events.MessageSent.kind}


def test_page_about_the_log_lists_each_event_with_its_fields() -> None:
    rows = re.findall(r"^\| (`\w+`.*?) \| yes \| (.*?) \|$", (ROOT / "docs/log.md").read_text(), re.MULTILINE)
    listed = {
        name: set(re.findall(r"`(\w+)`", cell)) for names, cell in rows for name in re.findall(r"\w+", names)
    }
    assert listed == {event.__name__: own_fields(event) for event in KINDS.values()}


def test_page_about_history_names_the_line_of_each_kind() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/history.md").read_text()))
    assert {line.__struct_config__.tag for line in EVENT_LINES.values()} <= named


def test_page_about_the_schema_lists_each_kind() -> None:
    schema = (ROOT / "docs/schema.md").read_text()
    [paragraph] = [part for part in schema.split("\n\n") if part.startswith("**room_events.**")]
    assert KINDS.keys() - {events.MessageSent.kind} <= set(re.findall(r"`(\w+)`", paragraph))
