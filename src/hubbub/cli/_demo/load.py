"""Loading a chat log: rooms side by side, the events of each room one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from hubbub.cli._demo.chatlog import Event
from hubbub.cli._demo.figures import Check, Claim, Section, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount, fingerprint
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together

# So many lines are in memory at a time.
WINDOW = 2_000
PAGE = 200


async def load(stage: Stage) -> Section:
    """Put the log into the database and read it back, in the order of its lines."""
    watch = Stopwatch()
    loader = Loader(stage, watch)
    done = 0
    for window in _windows(stage.log.events):
        await loader.load(window)
        done += len(window)
        stage.tell(f"loading the chat log: {done:,} lines")
    figures = (watch.all_in_all("lines of the log", done), *watch.figures())
    stage.tell("reading the chat log back")
    return Section(
        title=f"Load {stage.log.title}",
        figures=figures,
        checks=(await read_back(stage),),
        notes=_notes(stage),
    )


def _windows(events: Iterator[Event]) -> Iterator[list[Event]]:
    while window := list(islice(events, WINDOW)):
        yield window


class Loader:
    """Plays the events of a log as their people would have: make an account, open a room, join, say, leave."""

    def __init__(self, stage: Stage, watch: Stopwatch) -> None:
        self._hub = stage.hub
        self._people = stage.people
        self._ledger = stage.ledger
        self._watch = watch
        self._rooms: dict[str, RoomAccount] = {}

    async def load(self, events: Sequence[Event]) -> None:
        newcomers = dict.fromkeys(event.user for event in events if event.user not in self._people)
        await together(self._register(nickname) for nickname in newcomers)
        rooms: dict[str, list[Event]] = {}
        for event in events:
            rooms.setdefault(event.room, []).append(event)
        await together(self._play(room, its_events) for room, its_events in rooms.items())

    async def _register(self, nickname: str) -> None:
        with self._watch.time("make a user"):
            await self._people.meet(nickname)

    async def _play(self, name: str, events: Sequence[Event]) -> None:
        """What members say between two events of another kind is sent at the same time, and stays in its order."""
        said: list[Event] = []
        for event in events:
            room = self._rooms.get(name) or await self._open(name, event)
            is_member = self._people[event.user] in room.members
            if event.kind != "message" or not is_member:
                await self._say(room, said)
                said = []
            match event.kind:
                case "leave":
                    await self._leave(room, event)
                case "join":
                    await self._join(room, event)
                case "message" if not is_member:  # who speaks without having joined came in before the log begins
                    await self._join(room, event)
            if event.kind == "message":
                said.append(event)
        await self._say(self._rooms[name], said)

    async def _open(self, name: str, event: Event) -> RoomAccount:
        user_id = self._people[event.user]
        with self._watch.time("open, join or leave a room"):
            room = await self._hub.rooms.create(name, created_by=user_id)
        account = self._rooms[name] = self._ledger.opened(room.id, name, user_id)
        return account

    async def _join(self, room: RoomAccount, event: Event) -> None:
        user_id = self._people[event.user]
        with self._watch.time("open, join or leave a room"):
            await self._hub.room_users.add(room.id, user_id)
        room.joined(user_id)

    async def _say(self, room: RoomAccount, events: Sequence[Event]) -> None:
        await together(self._send(room, event) for event in events)
        for event in events:
            room.was_told(self._people[event.user], event.content)

    async def _send(self, room: RoomAccount, event: Event) -> None:
        with self._watch.time("send a message"):
            await self._hub.messages.send(room.id, self._people[event.user], event.content)

    async def _leave(self, room: RoomAccount, event: Event) -> None:
        user_id = self._people[event.user]
        with self._watch.time("open, join or leave a room"):
            await self._hub.room_users.remove(room.id, user_id)
        room.left(user_id)


async def read_back(stage: Stage) -> Check:
    """Every room read from its beginning: the messages of the log, all of them, in the order of the lines."""
    order = Claim("all is back, in the order of the log")
    for room in stage.ledger.rooms.values():
        await _compare(stage, room, order)
    return order.check()


async def _compare(stage: Stage, room: RoomAccount, order: Claim) -> None:
    place, seq = 0, 0
    while True:
        page = await stage.hub.messages.page(room.id, after=seq, limit=PAGE)
        for message in page.items:
            same = room.loaded[place : place + 1].tolist() == [fingerprint(message.user_id, message.content)]
            place += 1
            order.holds(same, f"message {place:,} of room {room.name!a} is not message {place:,} of the log")
        if not page.has_newer:
            break
        seq = page.items[-1].seq
    if place < len(room.loaded):
        order.holds(False, f"room {room.name!a} has {place:,} of {len(room.loaded):,} messages")


def _notes(stage: Stage) -> tuple[str, ...]:
    notes = []
    if stage.people.renamed:
        notes.append(_about_names(stage))
    if stage.log.refusals.count:
        notes.append(_about_lines(stage))
    return tuple(notes)


def _about_names(stage: Stage) -> str:
    renamed = stage.people.renamed
    first = "; ".join(f"{one.nickname!a} is {one.username!a}" for one in renamed[:3])
    names = "nickname that" if len(renamed) == 1 else "nicknames that"
    more = "" if len(renamed) <= 3 else "; ..."
    return f"{len(renamed):,} {names} hubbub does not take as it is got another name: {first}{more}"


def _about_lines(stage: Stage) -> str:
    refusals = stage.log.refusals
    first = "; ".join(f"line {one.line:,}: {one.reason}" for one in refusals.first[:3])
    more = "" if refusals.count <= 3 else "; ..."
    lines = "line" if refusals.count == 1 else "lines"
    return f"{refusals.count:,} {lines} could not be used: {first}{more}"
