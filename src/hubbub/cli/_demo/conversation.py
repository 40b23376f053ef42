"""A conversation made up from a small grammar: the same one each time, and awkward where real ones are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final

from hubbub.cli._demo.chatlog import ChatLog, Event

EVENTS: Final = 1_200
BEGINNING: Final = datetime(2025, 3, 3, 8, 0, tzinfo=UTC)

# Names that a careless column, collation or length check trips over stand among the plain ones.
PEOPLE: Final = (
    *("ada", "amina", "bo", "carlos", "chidi", "dmitri", "elif", "farah", "Grace", "hana", "ines", "jamal"),
    *("kofi", "lea", "linus", "mei", "nadia", "omar", "priya", "quentin", "rosa", "sven", "tariq", "uma"),
    *("viktor", "wanjiru", "yara", "zoe", "zoë", "Łukasz", "Jürgen", "søren", "Анна", "李雷", "محمد", "דנה"),
    *("o'brien", "|trey|", "dr_wïllis", "x" * 50),
)
ROOMS: Final = ("kitchen", "engine-room", "book club", "help", "قهوة", "night shift 🌙")

GREETINGS: Final = (
    "morning all",
    "hey",
    "hello hello",
    "o/",
    "evening, everyone",
    "hi {name}",
    "good to see you, {name}",
)
OPENINGS: Final = (
    "does anybody know",
    "can someone tell me",
    "quick question:",
    "{name}: do you remember",
    "any idea",
)
QUESTIONS: Final = (
    *("why {thing} is {state}", "who broke {thing}", "where {thing} went", "when {thing} will be back"),
    *("how long {thing} has been {state}", "what to do when {thing} is {state}"),
)
ANSWERS: Final = (
    *("{name}: turn {thing} off and on again", "I think {thing} is {state} since {time}", "works here"),
    *("{name}: no, {thing} was {state} even before {time}", "same here, {thing} is {state}", "not my week, sorry"),
    *(
        "yes, {time}",
        "{thing}? again?",
        "let me look",
        "{name}: thank you, that was it",
        "it is in the second drawer",
    ),
)
THINGS: Final = (
    *("the kettle", "the build", "the blue bicycle", "chapter nine", "the printer", "the night bus", "the backup"),
    *("my keyboard", "the door code", "the last biscuit", "the projector", "the cat", "the café opposite"),
)
STATES: Final = (
    "on fire",
    "gone",
    "slower than usual",
    "louder than it should be",
    "empty",
    "fine, really",
    "locked",
)
TIMES: Final = (
    "yesterday",
    "Tuesday",
    "five past nine",
    "the last release",
    "lunch",
    "before the rain",
    "half eight",
)
REMARKS: Final = (
    *("lol", "+1", "👍", "🎉🎉🎉", "👩🏽‍🚀 reporting", "brb", "…", ":)", "haha, no", "🇰🇪 🇳🇴 🇯🇵", "ok", "nice!"),
    *(
        "صباح الخير يا جماعة",
        "القهوة جاهزة ☕",
        "בוקר טוב לכולם",
        "מי שבר את המדפסת?",
        "今天吃什么 谁知道",
        "おつかれさまです",
    ),
    *(
        "Grüße aus Köln",
        "naïve question: e\u0301 or é?",
        "1 < 2 && 'a' != \"b\"; -- not SQL",
        "%s %d $1 {} \\n",
        "100 %",
    ),
    *("\tindented", "two\nlines", "<b>bold</b> & plain", "mixed: hello שלום مرحبا 123"),
)
LOG_LINE: Final = "{time} worker[17]: {thing} is {state}, trying again"


def made_up(events: int = EVENTS) -> ChatLog:
    """A log of so many events: a few dozen people who meet, talk, leave and come back in a few rooms."""
    return ChatLog("a conversation made up for this run", _events(events))


def _events(count: int) -> Iterator[Event]:
    chance = Random(1984)  # noqa: S311 - has to be the same each time
    present: dict[str, list[str]] = {room: [] for room in ROOMS}
    at = BEGINNING
    for _ in range(count):
        at += timedelta(seconds=chance.expovariate(1 / 4))
        minute = at.replace(second=0, microsecond=0)  # as in real logs: many events share their time
        room = chance.choices(ROOMS, weights=(12, 6, 3, 4, 3, 2))[0]
        inside = present[room]
        away = [person for person in PEOPLE if person not in inside]
        turn = chance.random()
        if len(inside) < 4 or (away and turn < 0.03):
            person = chance.choice(away)
            inside.append(person)
            yield Event("join", room, person, minute)
        elif turn < 0.04:
            person = inside.pop(chance.randrange(len(inside)))
            yield Event("leave", room, person, minute)
        else:
            yield Event("message", room, chance.choice(inside), minute, sentence(chance, inside))


def sentence(chance: Random, names: list[str]) -> str:
    """Something that one of these people could say: mostly short, sometimes a screenful."""
    kind = chance.random()
    if kind < 0.08:
        form = chance.choice(GREETINGS)
    elif kind < 0.33:
        form = f"{chance.choice(OPENINGS)} {chance.choice(QUESTIONS)}?"
    elif kind < 0.80:
        form = chance.choice(ANSWERS)
    elif kind < 0.99:
        return chance.choice(REMARKS)
    else:
        form = "\n".join([LOG_LINE] * chance.randint(20, 120))
    return _filled(form, chance, names)


def _filled(form: str, chance: Random, names: list[str]) -> str:
    words = {"{name}": names, "{thing}": THINGS, "{state}": STATES, "{time}": TIMES}
    for slot, choices in words.items():
        while slot in form:
            form = form.replace(slot, chance.choice(choices), 1)
    return form
