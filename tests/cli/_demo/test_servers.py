from __future__ import annotations

import logging

import pytest

from hubbub.cli._demo.servers import greet, versions
from hubbub.cli._demo.stage import Stage
from redis_server import title


async def test_both_servers_answer_and_refuse_a_wrong_password(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    section = await greet(stage)
    assert {figure.what for figure in section.figures} == {"ask PostgreSQL", "ask Valkey"}
    [check] = section.checks
    assert check.ok
    assert check.count == 2
    assert capsys.readouterr().err == "", "what fails on purpose was reported"
    assert not logging.getLogger("hubbub").handlers


async def test_both_servers_say_their_version(stage: Stage) -> None:
    told = await versions(stage)
    assert list(told) == ["PostgreSQL", title()]
    assert all(version[0].isdigit() for version in told.values())
