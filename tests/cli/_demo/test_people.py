from __future__ import annotations

import asyncio

from hubbub import Hub
from hubbub.cli._demo.people import People


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
