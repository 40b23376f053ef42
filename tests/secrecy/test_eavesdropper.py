"""The one who listens to the whole run hears what is said there, and a run in which a secret is told fails."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubbub import Hub, User
from secrecy.eavesdropper import MARK, Eavesdropper

pytest_plugins = ["pytester"]

A_RUN = """
    import logging

    import pytest
    from hubbub import Invalid
    from secrecy.eavesdropper import MARK

    SECRET = "0" * 35 + MARK


    def test_it_is_logged():
        logging.getLogger("hubbub.redis").debug("refused: %s", SECRET)


    def test_it_is_in_an_error():
        with pytest.raises(Invalid):
            raise Invalid("token", f"{SECRET} is none")


    def test_it_is_printed():
        print(SECRET)


    def test_a_server_writes_it_down(tmp_path):
        (tmp_path / "server.log").write_text(f"no such key: session:{SECRET}")
"""

HEARD = (
    "the logger hubbub.redis",
    "an error, Invalid",
    "Captured stdout call of test_a_run.py::test_it_is_printed",
    "test_a_server_writes_it_down0/server.log",
)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Not in the folder of this run, which would read the log as well."""
    with tempfile.TemporaryDirectory(prefix="hubbub-told-") as folder:
        yield Path(folder, "run")


def test_a_run_in_which_a_secret_is_told_fails_and_names_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makepyfile(test_a_run=A_RUN)
    result = pytester.runpytest_subprocess(
        *("-p", "secrecy.eavesdropper", "--show-capture=no", f"--basetemp={elsewhere}"), timeout=100
    )
    result.assert_outcomes(passed=4, errors=1)
    said = result.stdout.str()
    assert [where for where in HEARD if f"a session token, in {where}" not in said] == []
    assert MARK not in said


async def test_the_tokens_of_the_run_have_the_mark_and_differ(hub: Hub, ada: User) -> None:
    tokens = {await hub.sessions.create_session(ada.id) for _ in range(10)}
    assert len(tokens) == 10
    assert all(token.endswith(MARK) and len(token) == 47 for token in tokens)
    assert len({token[4:8] for token in tokens}) > 8


def test_a_password_that_is_noted_is_found_and_only_named() -> None:
    eavesdropper, password = Eavesdropper(), secrets.token_hex()
    eavesdropper.hear("an error", f"what a password: {password}")
    assert eavesdropper.told() == []
    eavesdropper.keep(password, "a password that was hashed")
    assert eavesdropper.told() == ["a password that was hashed, in an error"]
