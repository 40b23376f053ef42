from __future__ import annotations

from collections import Counter

from hubbub import inputs
from hubbub.cli._demo.conversation import PEOPLE, ROOMS, made_up


def test_the_conversation_is_the_same_each_time() -> None:
    assert list(made_up().events) == list(made_up().events)


def test_it_has_as_many_events_as_were_asked_for() -> None:
    assert len(list(made_up(123).events)) == 123


def test_only_who_is_in_a_room_speaks_there_or_leaves() -> None:
    inside: set[tuple[str, str]] = set()
    for event in made_up().events:
        place = (event.room, event.user)
        assert (place in inside) == (event.kind != "join")
        if event.kind == "join":
            inside.add(place)
        elif event.kind == "leave":
            inside.remove(place)


def test_everything_in_it_can_be_stored() -> None:
    for person in PEOPLE:
        assert inputs.username(person) == person
    for event in made_up().events:
        inputs.text("room", event.room, longest=inputs.ROOM_NAME_LENGTH)
        if event.kind == "message":
            inputs.text("content", event.content, longest=inputs.CONTENT_LENGTH)


def test_it_is_as_awkward_as_real_ones() -> None:
    events = list(made_up().events)
    text = "".join(event.content for event in events)
    assert Counter(event.kind for event in events).keys() == {"message", "join", "leave"}
    assert {event.room for event in events} == set(ROOMS)
    assert any(max(map(ord, event.content), default=0) > 0xFFFF for event in events), "no emoji"
    assert "שלום" in text
    assert "مرحبا" in text
    assert max(len(event.content) for event in events) > 2_000
    assert "{" not in text.replace("{}", ""), "a slot was left open"
    assert len({event.at for event in events}) < len(events) / 2, "times do not tell the order"
