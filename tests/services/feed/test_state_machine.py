"""One room, several members, anything in any order: every follower hears what a plain list says it must."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hubbub import Hub, LogEvent, Message, Options, Role, Room, Settings, User, events
from hubbub.postgres import connect
from hubbub.redis import Connection
from hubbub.services.feed import Follower
from services.feed.reading import entries, take
from waiting import until

T = TypeVar("T")

PEOPLE = 3
COMING_AND_GOING = ("MemberJoined", "MemberLeft")
# What an entry of the log says: its kind, whom it is about, and what else does not change later.
Line = tuple[str, UUID | None, str]


def line(event: LogEvent) -> Line:
    """The entry in the words of the model."""
    kind = type(event).__name__
    match event:
        case events.MessageSent(message=message) | events.MessageDeleted(message=message):
            return kind, message.user_id, ""
        case events.MessageEdited(message=message, by=by):
            return kind, by, str(message.id)
        case events.MemberJoined(user_id=user_id, role=role) | events.RoleChanged(user_id=user_id, role=role):
            return kind, user_id, role
        case events.MemberLeft(user_id=user_id):
            return kind, user_id, ""
        case events.RoomChanged():
            return kind, event.by, ""


@dataclass
class Following:
    """A follower, and the seqs that it has yet to hear."""

    feed: Follower
    user_id: UUID
    expected: list[int] = field(default_factory=list)


class World:
    """The servers, and the chat of one example."""

    def __init__(self, settings: Settings, runner: asyncio.Runner) -> None:
        self._runner = runner
        options = Options(follow_heartbeat_seconds=0.02)
        self.hubs = [Hub(settings, options=options), Hub(settings, options=options)]
        self.bell = Connection(settings.redis)

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(doing)

    async def start(self) -> list[User]:
        for hub in self.hubs:
            await hub.start()
        await self.bell.start()
        names = [f"user-{number}" for number in range(PEOPLE)]
        return [await self.hubs[0].users.create(f"{name}@example.org", name, "not a hash") for name in names]

    async def close(self) -> None:
        await self.bell.close()
        for hub in self.hubs:
            await hub.close()


class Chat(RuleBasedStateMachine):
    world: World
    people: list[User]

    def __init__(self) -> None:
        super().__init__()
        self.owner = self.people[0].id
        self.room: Room = self.run(self.world.hubs[0].rooms.create("room", created_by=self.owner))
        self.log: list[Line] = [("MemberJoined", self.owner, "admin")]
        self.members = {self.owner: "admin"}
        self.messages: list[Message] = []
        self.followers: list[Following] = []

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.world.run(doing)

    def append(self, *what: Line) -> None:
        for entry in what:
            self.log.append(entry)
            for one in self.followers:
                if one.user_id in self.members or entry[:2] == ("MemberLeft", one.user_id):
                    one.expected.append(len(self.log))

    hubs = st.integers(0, 1)
    someone = st.integers(0, PEOPLE - 1)

    @rule(hub=hubs, who=someone, replies=st.booleans())
    def send(self, hub: int, who: int, replies: bool) -> None:
        user_id = self.people[who].id
        if user_id not in self.members:
            return
        first = self.messages[-1].id if replies and self.messages else None
        sending = self.world.hubs[hub].messages.send(self.room.id, user_id, "hello", reply_to=first)
        self.messages.append(self.run(sending))
        self.append(("MessageSent", user_id, ""))

    @precondition(lambda self: self.messages)
    @rule(hub=hubs, which=st.integers(0), deletes=st.booleans())
    def change(self, hub: int, which: int, deletes: bool) -> None:
        message = self.messages[which % len(self.messages)]
        messages = self.world.hubs[hub].messages
        if deletes:
            self.messages.remove(message)
            self.run(messages.delete(message.id, by=self.owner))
            self.append(("MessageDeleted", message.user_id, ""))
        else:
            content = f"edited at {len(self.log)}"
            self.run(messages.edit(message.id, content, by=self.owner))
            self.append(("MessageEdited", self.owner, str(message.id)))

    @rule(hub=hubs, who=st.integers(1, PEOPLE - 1))
    def join_or_leave(self, hub: int, who: int) -> None:
        user_id, members = self.people[who].id, self.world.hubs[hub].room_users
        if user_id in self.members:
            self.run(members.remove(self.room.id, user_id))
            del self.members[user_id]
            self.append(("MemberLeft", user_id, ""))
        else:
            self.run(members.add(self.room.id, user_id))
            self.members[user_id] = "member"
            self.append(("MemberJoined", user_id, "member"))
        self.run(until(lambda: all(self._knows(one) for one in self.followers if one.user_id == user_id)))

    def _knows(self, one: Following) -> bool:
        """Whether the follower has noticed, or will when it reads. It need not tell of a shorter visit."""
        place = one.feed.positions.get(self.room.id)
        if place is not None and place in one.feed.inbox.behind:
            return True
        return (place is not None) == (one.user_id in self.members)

    @rule(hub=hubs, who=st.integers(1, PEOPLE - 1), role=st.sampled_from(["member", "moderator", "admin"]))
    def set_role(self, hub: int, who: int, role: str) -> None:
        user_id = self.people[who].id
        if self.members.get(user_id) in (None, role):
            return
        self.run(self.world.hubs[hub].room_users.set_role(self.room.id, user_id, Role(role)))
        self.members[user_id] = role
        self.append(("RoleChanged", user_id, role))

    @rule(hub=hubs, who=someone, place=st.integers(0), buffer=st.sampled_from([1, 3, 100]))
    def follow(self, hub: int, who: int, place: int, buffer: int) -> None:
        user_id = self.people[who].id
        if user_id not in self.members:
            return
        start = place % (len(self.log) + 1)
        page = self.run(self.world.hubs[hub].messages.since(self.room.id, None, limit=max(start, 1)))
        after = {self.room.id: page.cursor if start else None}
        feed = self.world.hubs[hub].follow(user_id, after=after, buffer=buffer, rooms=[self.room.id])
        self.run(feed.__aenter__())
        self.followers.append(Following(feed, user_id, self._readable(user_id, start)))

    def _readable(self, user_id: UUID, start: int) -> list[int]:
        """The seqs after the start that are for the user: not those between a leaving and the next joining."""
        own = [kind for kind, about, _ in self.log[:start] if about == user_id and kind in COMING_AND_GOING]
        found, is_inside = [], own[-1:] != ["MemberLeft"]
        for seq, (kind, about, _) in enumerate(self.log[start:], start + 1):
            is_inside = is_inside or (kind == "MemberJoined" and about == user_id)
            if is_inside:
                found.append(seq)
            if kind == "MemberLeft" and about == user_id:
                is_inside = False
        return found

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0), count=st.integers(1, 5))
    def read(self, which: int, count: int) -> None:
        one = self.followers[which % len(self.followers)]
        self.hear(one, min(count, len(one.expected)))

    def hear(self, one: Following, count: int) -> None:
        heard = entries(self.run(take(one.feed, count)))
        expected, one.expected = one.expected[:count], one.expected[count:]
        assert [event.seq for event in heard] == expected
        assert [line(event) for event in heard] == [self.log[seq - 1] for seq in expected]

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        one = self.followers.pop(which % len(self.followers))
        self.run(one.feed.__aexit__(None, None, None))

    @rule()
    def break_the_bell(self) -> None:
        self.run(self._break_the_bell())

    async def _break_the_bell(self) -> None:
        await self.world.bell.execute("CLIENT", "KILL", "TYPE", "pubsub")

    @invariant()
    def no_buffer_holds_more_than_it_may(self) -> None:
        assert all(len(one.feed.inbox.events) <= one.feed.inbox.limit for one in self.followers)

    def teardown(self) -> None:
        try:
            for one in self.followers:
                self.hear(one, len(one.expected))
                assert not one.feed.inbox.events
        finally:
            for one in self.followers:
                self.run(one.feed.__aexit__(None, None, None))


def test_every_follower_hears_what_the_list_says(servers: Settings, template: str) -> None:
    with asyncio.Runner() as runner:
        name = f"test_{uuid4().hex}"
        runner.run(command(servers, f"CREATE DATABASE {name} TEMPLATE {template}"))
        world = World(replace(servers, postgres=replace(servers.postgres, database=name)), runner)
        people = runner.run(world.start())
        try:
            run_state_machine_as_test(
                type("ChatInWorld", (Chat,), {"world": world, "people": people}),
                settings=hypothesis_settings(
                    max_examples=40,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(world.close())
            runner.run(command(servers, f"DROP DATABASE {name} WITH (FORCE)"))


async def command(servers: Settings, words: str) -> None:
    connection = await connect(servers.postgres)
    try:
        await connection.execute(words)
    finally:
        await connection.close()
