from __future__ import annotations

import pytest

from hubbub import inputs
from hubbub.history.users import accepted, marked


@pytest.mark.parametrize(
    ("nickname", "username"),
    [
        ("[FiDo] ", "[FiDo]"),
        ("ada@example.org", "ada_example.org"),
        ("a\tb\u200bc", "a_b_c"),
        ("x" * 60, "x" * 50),
        ("x" * 49 + " y", "x" * 49),
        ("\u0344" * 50, "\u0308\u0301" * 25),  # in its composed form it has twice the length
        ("\u0344", "\u0308\u0301"),
    ],
)
def test_refused_nickname_becomes_a_valid_username(nickname: str, username: str) -> None:
    assert inputs.username(accepted(nickname)) == username


def test_nicknames_with_the_same_closest_username_stay_distinct() -> None:
    names = {marked(nickname, nickname) for nickname in ("[a] ", " [a]", "x" * 51, "x" * 52)}
    assert len(names) == 4
    assert all(inputs.username(name) == name for name in names)
    assert marked("[a] ", "[a] ") in names
