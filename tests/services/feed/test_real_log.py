"""The real log of a large channel, said again by many at once, while followers come and go."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from faults.figures import IS_FULL, Figures
from hubbub import Hub, LogEvent, MemberJoined, MemberLeft, MessageSent, Options, Room, User
from services.feed.reading import entries, take

REAL = Path(__file__).parents[4] / "shared" / "data" / "ubuntu-irc.jsonl.gz"
# All of it where faults are looked for in full; else its beginning.
LINES = None if IS_FULL else 3_000
SENDERS = 40


class Line(msgspec.Struct, frozen=True):
    kind: str
    user: str
    content: str = ""


def lines() -> Iterator[Line]:
    with gzip.open(REAL) as log:
        yield from islice(map(msgspec.json.Decoder(Line).decode, log), LINES)


def what_is_done() -> dict[str, list[Line]]:
    """By nickname what each does: one joins before saying a thing, and leaves only as a member."""
    done: dict[str, list[Line]] = defaultdict(list)
    inside: set[str] = set()
    for line in lines():
        if line.kind != "leave" and line.user not in inside:
            inside.add(line.user)
            done[line.user].append(Line("join", line.user))
        elif line.kind == "join":
            continue
        if line.kind == "message":
            done[line.user].append(line)
        elif line.kind == "leave" and line.user in inside:
            inside.discard(line.user)
            done[line.user].append(line)
    return done


def said(event: LogEvent, names: dict[UUID, str]) -> Line:
    """The entry as a line of the file."""
    if isinstance(event, MessageSent):
        assert event.message.user_id is not None
        return Line("message", names[event.message.user_id], event.message.content)
    assert isinstance(event, MemberJoined | MemberLeft)
    return Line("join" if isinstance(event, MemberJoined) else "leave", names[event.user_id])


def is_as_done(history: Sequence[LogEvent], done: dict[str, list[Line]], names: dict[UUID, str]) -> bool:
    """Whether the seqs have no hole, and what each is heard to do is what each did, in that order.

    The first entry is Ada's joining, who made the room.
    """
    heard: dict[str, list[Line]] = defaultdict(list)
    for event in history[1:]:
        line = said(event, names)
        heard[line.user].append(line)
    return [event.seq for event in history] == list(range(1, len(history) + 1)) and heard == done


@pytest.fixture
def options() -> Options:
    """Whoever comes back here has missed any number of entries."""
    return Options(follow_heartbeat_seconds=600, follow_at_most_behind=1_000_000)


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log is not part of the project, and not beside it")
@pytest.mark.guarantee("G4", "the real log of a large channel, said by forty at once, four listen")
@pytest.mark.timeout(300)
async def test_the_real_log_is_heard_as_it_is_in_the_file(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, figures: Figures
) -> None:
    done = what_is_done()
    names = {ada.id: "ada"}
    for number, nickname in enumerate(done):
        user = await hub.users.create(f"{number}@example.org", f"user-{number}", "not a hash")
        names[user.id] = nickname
    ids = {nickname: user_id for user_id, nickname in names.items()}
    talkers = iter(done.items())
    chance = random.Random(2004)

    async def say(one: Hub, nickname: str, line: Line) -> None:
        if line.kind == "message":
            await one.messages.send(room.id, ids[nickname], line.content)
        elif line.kind == "join":
            await one.room_users.add(room.id, ids[nickname])
        else:
            await one.room_users.remove(room.id, ids[nickname])

    async def talk(one: Hub) -> None:
        for nickname, own in talkers:
            for line in own:
                await say(one, nickname, line)

    async def visit(one: Hub) -> list[LogEvent]:
        """Comes and goes, and takes up the log where it was left."""
        heard: list[LogEvent] = []
        while len(heard) < head:
            cursor = heard[-1].cursor if heard else None
            async with one.follow(ada.id, after={room.id: cursor}, buffer=chance.choice([10, 100, 1_000])) as feed:
                heard += entries(await take(feed, min(chance.randrange(1, 500), head - len(heard))))
        return heard

    async def stay(one: Hub) -> list[LogEvent]:
        async with one.follow(ada.id, after={room.id: None}) as feed:
            heard: list[LogEvent] = []
            while len(heard) < head:
                heard += entries(await take(feed, min(500, head - len(heard))))
            return heard

    head = 1 + sum(map(len, done.values()))
    hubs = (hub, elsewhere)
    talking = [talk(hubs[number % 2]) for number in range(SENDERS)]
    listening = asyncio.gather(*(listen(one) for listen in (visit, stay) for one in hubs))
    await asyncio.gather(*talking)
    histories = await listening
    violations = sum(not is_as_done(history, done, names) for history in histories)
    figures.found(f"{violations} of {len(histories)} heard anything else than the {head:,} events of the log")
    assert violations == 0
