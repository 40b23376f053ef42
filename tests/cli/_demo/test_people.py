from __future__ import annotations

import asyncio

import pytest

from hubbub import Hub, inputs
from hubbub.cli._demo.people import People, accepted


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
def test_a_nickname_that_is_refused_becomes_one_that_is_not(nickname: str, username: str) -> None:
    assert inputs.username(accepted(nickname)) == username


async def test_each_nickname_is_one_user(hub: Hub) -> None:
    people = People(hub.users)
    ada, bob = await people.meet("ada"), await people.meet("bob")
    assert ada != bob
    assert people["ada"] == ada
    assert people.ids == [ada, bob]
    assert "carol" not in people
    assert people.renamed == []
    assert (await hub.users.get(ada)).email == "user-0001@example.org"


async def test_nicknames_that_differ_by_case_are_different_people(hub: Hub) -> None:
    people = People(hub.users)
    names = ["Mez", "mez", "MEZ", "straße", "STRASSE", "x" * 50, "X" * 50]
    await asyncio.gather(*(people.meet(name) for name in names))
    assert len(set(people.ids)) == len(names)
    assert len(people.renamed) >= 3
    for one in people.renamed:
        assert one.username[-2:] in {"-2", "-3"}
        assert (await hub.users.get(people[one.nickname])).username == one.username


async def test_who_was_renamed_is_told_with_the_reason(hub: Hub) -> None:
    people = People(hub.users)
    await people.meet("two@once")
    [one] = people.renamed
    assert (one.nickname, one.username) == ("two@once", "two_once")
    assert "@" in one.reason
