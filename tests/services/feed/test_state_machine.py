"""One room, several members, any changes in any order. Every follower receives the entries of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hubbub import Hub, LogEvent, Message, Options, RedisSettings, Role, Room, Settings, User, events
from hubbub.redis import Connection
from hubbub.services.feed import Follower
from hubbub.testing import LogEntry, entries_for
from services.feed.reading import entries, take
from waiting import until

T = TypeVar("T")

PEOPLE = 3
# An entry of the model: its kind, its user, and further values that do not change later.
Line = tuple[str, UUID | None, str]


def line(event: LogEvent) -> Line:
    """The entry in the form of the model."""
    kind = event.kind
    match event:
        case events.MessageSent(message=message) | events.MessageDeleted(message=message):
            return kind, message.user_id, ""
        case events.MessageEdited(message=message, by=by):
            return kind, by, str(message.id)
        case events.MemberJoined(user_id=user_id, role=role) | events.RoleChanged(user_id=user_id, role=role):
            return kind, user_id, role
        case events.MemberLeft(user_id=user_id) | events.MemberChanged(user_id=user_id):
            return kind, user_id, ""
        case events.RoomChanged():
            return kind, event.by, ""


@dataclass
class Following:
    """A follower, and the seqs that it still has to receive."""

    feed: Follower
    user_id: UUID
    expected: list[int] = field(default_factory=list)


class World:
    """The servers, and the chat of one example."""

    def __init__(self, settings: Settings, administrator: RedisSettings, runner: asyncio.Runner) -> None:
        self._runner = runner
        options = Options(follow_heartbeat_seconds=0.02)
        self.hubs = [Hub(settings, options=options), Hub(settings, options=options)]
        self.redis = Connection(administrator)

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(doing)

    async def start(self) -> list[User]:
        for hub in self.hubs:
            await hub.start()
        await self.redis.start()
        names = [f"user-{number}" for number in range(PEOPLE)]
        return [await self.hubs[0].users.create(f"{name}@example.org", name, "not a hash") for name in names]

    async def close(self) -> None:
        await self.redis.close()
        for hub in self.hubs:
            await hub.close()


class Chat(RuleBasedStateMachine):
    world: World
    people: list[User]

    def __init__(self) -> None:
        super().__init__()
        self.owner = self.people[0].id
        self.room: Room = self.run(self.world.hubs[0].rooms.create("room", created_by=self.owner))
        self.log: list[Line] = [("joined", self.owner, "admin")]
        self.members = {self.owner: "admin"}
        self.messages: list[Message] = []
        self.followers: list[Following] = []

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.world.run(doing)

    def append(self, *what: Line) -> None:
        for entry in what:
            self.log.append(entry)
            for one in self.followers:
                if one.user_id in self.members or entry[:2] == ("left", one.user_id):
                    one.expected.append(len(self.log))

    hubs = st.integers(0, 1)
    someone = st.integers(0, PEOPLE - 1)

    @rule(hub=hubs, user=someone, replies=st.booleans())
    def send(self, hub: int, user: int, replies: bool) -> None:
        user_id = self.people[user].id
        if user_id not in self.members:
            return
        first = self.messages[-1].id if replies and self.messages else None
        sending = self.world.hubs[hub].messages.send(self.room.id, user_id, "hello", reply_to=first)
        self.messages.append(self.run(sending))
        self.append(("sent", user_id, ""))

    @precondition(lambda self: self.messages)
    @rule(hub=hubs, which=st.integers(0), deletes=st.booleans())
    def change(self, hub: int, which: int, deletes: bool) -> None:
        message = self.messages[which % len(self.messages)]
        messages = self.world.hubs[hub].messages
        if deletes:
            self.messages.remove(message)
            self.run(messages.delete(message.id, by=self.owner))
            self.append(("deleted", message.user_id, ""))
        else:
            content = f"edited at {len(self.log)}"
            self.run(messages.edit(message.id, content, by=self.owner))
            self.append(("edited", self.owner, str(message.id)))

    @rule(hub=hubs, user=st.integers(1, PEOPLE - 1))
    def join_or_leave(self, hub: int, user: int) -> None:
        user_id, members = self.people[user].id, self.world.hubs[hub].room_users
        if user_id in self.members:
            self.run(members.remove(self.room.id, user_id))
            del self.members[user_id]
            self.append(("left", user_id, ""))
        else:
            self.run(members.add(self.room.id, user_id))
            self.members[user_id] = "member"
            self.append(("joined", user_id, "member"))
        self.run(until(lambda: all(self._knows(one) for one in self.followers if one.user_id == user_id)))

    def _knows(self, one: Following) -> bool:
        """Whether the follower has noticed, or will notice by reading. Shorter visits need not be delivered."""
        followed = one.feed.positions.get(self.room.id)
        if followed is not None and followed in one.feed.inbox.behind:
            return True
        return (followed is not None) == (one.user_id in self.members)

    @rule(hub=hubs, user=st.integers(1, PEOPLE - 1), role=st.sampled_from(["member", "moderator", "admin"]))
    def set_role(self, hub: int, user: int, role: str) -> None:
        user_id = self.people[user].id
        if self.members.get(user_id) in (None, role):
            return
        self.run(self.world.hubs[hub].room_users.set_role(self.room.id, user_id, Role(role)))
        self.members[user_id] = role
        self.append(("role_changed", user_id, role))

    @rule(hub=hubs, user=someone, start=st.integers(0), buffer=st.sampled_from([1, 3, 100]))
    def follow(self, hub: int, user: int, start: int, buffer: int) -> None:
        user_id = self.people[user].id
        if user_id not in self.members:
            return
        start %= len(self.log) + 1
        page = self.run(self.world.hubs[hub].messages.since(self.room.id, None, limit=max(start, 1)))
        after = {self.room.id: page.cursor if start else None}
        feed = self.world.hubs[hub].follow(user_id, after=after, buffer=buffer, rooms=[self.room.id])
        self.run(feed.__aenter__())
        self.followers.append(Following(feed, user_id, self._due(user_id, start)))

    def _due(self, user_id: UUID, start: int) -> list[int]:
        entries = [
            LogEntry(seq, kind, member_id=about if kind in ("joined", "left") else None)
            for seq, (kind, about, _) in enumerate(self.log, 1)
        ]
        return [entry.seq for entry in entries_for(entries, after=start, member_id=user_id)]

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0), count=st.integers(1, 5))
    def read(self, which: int, count: int) -> None:
        one = self.followers[which % len(self.followers)]
        self.receive(one, min(count, len(one.expected)))

    def receive(self, one: Following, count: int) -> None:
        received = entries(self.run(take(one.feed, count)))
        expected, one.expected = one.expected[:count], one.expected[count:]
        assert [event.seq for event in received] == expected
        assert [line(event) for event in received] == [self.log[seq - 1] for seq in expected]

    @precondition(lambda self: self.followers)
    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        one = self.followers.pop(which % len(self.followers))
        self.run(one.feed.__aexit__(None, None, None))

    @rule()
    def cut_subscriptions(self) -> None:
        self.run(self._cut_subscriptions())

    async def _cut_subscriptions(self) -> None:
        await self.world.redis.execute("CLIENT", "KILL", "TYPE", "pubsub")

    @invariant()
    def no_buffer_holds_more_than_it_may(self) -> None:
        assert all(len(one.feed.inbox.events) <= one.feed.inbox.limit for one in self.followers)

    def teardown(self) -> None:
        try:
            for one in self.followers:
                self.receive(one, len(one.expected))
                assert not one.feed.inbox.events
        finally:
            for one in self.followers:
                self.run(one.feed.__aexit__(None, None, None))


def test_every_follower_receives_the_entries_of_the_model(settings: Settings, servers: Settings) -> None:
    with asyncio.Runner() as runner:
        world = World(settings, servers.redis, runner)
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
