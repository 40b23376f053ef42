from __future__ import annotations

from dataclasses import replace

import pytest

from cli._doctor.saying import Look, troubled
from hubbub import PostgresSettings
from hubbub.cli._doctor import postgresql
from hubbub.cli._doctor.findings import Check, Seen
from hubbub.cli._doctor.postgres_server import Postgres
from hubbub.postgres import Statement

_WRITE = Statement("test.write", str, "INSERT INTO rooms (name) VALUES ('of the doctor') RETURNING name")


async def test_of_an_application_with_the_rights_it_needs_there_is_nothing_to_say(
    look: Look, role: PostgresSettings
) -> None:
    section = await look(role)
    assert section.out_of_reach is None
    assert len(section.checks) == len(postgresql.CHECKS)
    assert troubled(section) == {"postgresql.durability"}  # the servers of the tests wait for no disk


async def test_a_check_cannot_write(
    look: Look, patient: PostgresSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write(postgres: Postgres) -> Seen:
        return Seen(str(await postgres.executor.fetch_one(_WRITE)))

    monkeypatch.setattr(postgresql, "CHECKS", (Check("test.write", "write", write),))
    section = await look(patient)
    assert "takes no changes" in str(section.out_of_reach)


async def test_a_server_that_is_away_is_said_to_be_out_of_reach(look: Look, patient: PostgresSettings) -> None:
    section = await look(replace(patient, port=1))
    assert "cannot connect to 127.0.0.1:1" in str(section.out_of_reach)
    assert section.checks == ()


async def test_a_wrong_password_is_said_and_not_shown(look: Look, patient: PostgresSettings) -> None:
    section = await look(replace(patient, password="not the word"))
    assert "password authentication failed" in str(section.out_of_reach)
    assert "not the word" not in repr(section)
