"""The real log of a large channel, sent again by many users at once while followers start and end."""

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
from hubbub.testing import LogEntry, seq_errors
from services.feed.reading import entries, take

REAL = Path(__file__).parents[4] / "shared" / "data" / "ubuntu-irc.jsonl.gz"
# The whole log in `make faults`, otherwise its beginning.
LINES = None if IS_FULL else 3_000
SENDERS = 40


class Line(msgspec.Struct, frozen=True):
    kind: str
    user: str
    content: str = ""


def lines() -> Iterator[Line]:
    with gzip.open(REAL) as log:
        yield from islice(map(msgspec.json.Decoder(Line).decode, log), LINES)


def lines_by_user() -> dict[str, list[Line]]:
    """The lines of each nickname, with a join before the first message and only leaves of members."""
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


def line_of(event: LogEvent, names: dict[UUID, str]) -> Line:
    """The entry as a line of the file."""
    if isinstance(event, MessageSent):
        assert event.message.user_id is not None
        return Line("message", names[event.message.user_id], event.message.content)
    assert isinstance(event, MemberJoined | MemberLeft)
    return Line("join" if isinstance(event, MemberJoined) else "leave", names[event.user_id])


def is_as_done(history: Sequence[LogEvent], done: dict[str, list[Line]], names: dict[UUID, str]) -> bool:
    """Whether the log has no hole, and has the entries that each user made, in the same order.

    The first entry is the join of Ada, who created the room.
    """
    received: dict[str, list[Line]] = defaultdict(list)
    for event in history[1:]:
        line = line_of(event, names)
        received[line.user].append(line)
    return not list(seq_errors([LogEntry.of(event) for event in history], len(history))) and received == done


@pytest.fixture
def options() -> Options:
    """A returning follower may have missed any number of entries."""
    return Options(follow_heartbeat_seconds=600, follow_at_most_behind=1_000_000)


@pytest.mark.skipif(not REAL.exists(), reason="the real chat log is not part of the project, and not beside it")
@pytest.mark.guarantee("G4", "the real log of a large channel, sent by forty at once to four followers")
async def test_real_log_is_received_as_in_the_file(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, figures: Figures
) -> None:
    done = lines_by_user()
    names = {ada.id: "ada"}
    for number, nickname in enumerate(done):
        user = await hub.users.create(f"{number}@example.org", f"user-{number}", "not a hash")
        names[user.id] = nickname
    ids = {nickname: user_id for user_id, nickname in names.items()}
    users = iter(done.items())
    chance = random.Random(2004)

    async def do(one: Hub, nickname: str, line: Line) -> None:
        if line.kind == "message":
            await one.messages.send(room.id, ids[nickname], line.content)
        elif line.kind == "join":
            await one.room_users.add(room.id, ids[nickname])
        else:
            await one.room_users.remove(room.id, ids[nickname])

    async def work(one: Hub) -> None:
        for nickname, own in users:
            for line in own:
                await do(one, nickname, line)

    async def visit(one: Hub) -> list[LogEvent]:
        """Follow for a while, repeatedly, each time from the last cursor."""
        received: list[LogEvent] = []
        while len(received) < head:
            cursor = received[-1].cursor if received else None
            async with one.follow(ada.id, after={room.id: cursor}, buffer=chance.choice([10, 100, 1_000])) as feed:
                received += entries(await take(feed, min(chance.randrange(1, 500), head - len(received))))
        return received

    async def stay(one: Hub) -> list[LogEvent]:
        async with one.follow(ada.id, after={room.id: None}) as feed:
            received: list[LogEvent] = []
            while len(received) < head:
                received += entries(await take(feed, min(500, head - len(received))))
            return received

    head = 1 + sum(map(len, done.values()))
    hubs = (hub, elsewhere)
    working = [work(hubs[number % 2]) for number in range(SENDERS)]
    following = asyncio.gather(*(follow(one) for follow in (visit, stay) for one in hubs))
    await asyncio.gather(*working)
    histories = await following
    violations = sum(not is_as_done(history, done, names) for history in histories)
    figures.found(f"{violations} of {len(histories)} received another log than the {head:,} entries")
    assert violations == 0
