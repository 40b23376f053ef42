"""One person of the live talk."""

from __future__ import annotations

from random import Random
from typing import Final
from uuid import UUID

from uuid_utils.compat import uuid7

from hubbub.cli._demo.conversation import PEOPLE, sentence
from hubbub.cli._demo.figures import Check, Claim, Stopwatch
from hubbub.cli._demo.ledger import RoomAccount
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.errors import Conflict, HubbubError, NotAMember
from hubbub.models import Message, MessagePage, Room

PAGE: Final = 50
# Of a long log only so many pages are turned back; the checks at the end read all of it.
LONGEST_SCROLL: Final = 10
# The share of messages that are sent again, half of these while the first is still under way.
RETRIED: Final = 0.2
NAMES: Final = list(PEOPLE)


class Claims:
    """What has to hold at every turn of every talker."""

    def __init__(self) -> None:
        self.retries = Claim("a retry gives the same message")
        self.refusals = Claim("a reused id or a stranger is refused")
        self.pages = Claim("pages stay in order meanwhile")
        self.marks = Claim("what was read stays read")
        self.lists = Claim("lists have every room of a person")
        self.direct = Claim("two people share one direct room")

    def checks(self) -> tuple[Check, ...]:
        claims = (self.retries, self.refusals, self.pages, self.marks, self.lists, self.direct)
        return tuple(claim.check() for claim in claims)


class Talker:
    """Acts on the hub as one user, times each call and enters in the ledger what was acknowledged."""

    def __init__(self, stage: Stage, watch: Stopwatch, claims: Claims, id: UUID, chance: Random) -> None:
        self.id = id
        self._hub = stage.hub
        self._ledger = stage.ledger
        self._watch = watch
        self._claims = claims
        self._chance = chance
        self._rooms: list[RoomAccount] = []
        self._friends: list[UUID] = []
        self._own: list[Message] = []
        self._read: dict[UUID, int] = {}

    def enters(self, room: RoomAccount, others: list[UUID]) -> None:
        self._rooms.append(room)
        self._friends += others

    async def talk(self, turns: int) -> None:
        """Do something so many times, one thing after the other."""
        habits = {
            self._say: 30,
            self._read_newest: 8,
            self._scroll_back: 2,
            self._look_around: 6,
            self._mark_read: 8,
            self._list_rooms: 5,
            self._count_unread: 5,
            self._edit: 5,
            self._delete: 3,
            self._leave_and_come_back: 2,
            self._write_directly: 4,
            self._reuse_an_id: 2,
        }
        for habit in self._chance.choices(list(habits), weights=list(habits.values()), k=turns):
            await habit()

    async def _say(self) -> None:
        """Send; sometimes the answer is as good as lost, and the same message goes out again, or twice at once."""
        room = self._chance.choice(self._rooms)
        id, content = uuid7(), sentence(self._chance, NAMES)
        fate = self._chance.random()
        if fate < RETRIED / 2:
            first, again = await together([self._send(room, id, content), self._send(room, id, content)])
        elif fate < RETRIED:
            first = await self._send(room, id, content)
            again = await self._send(room, id, content, what="send a message again")
        else:
            self._own.append(await self._send(room, id, content))
            return
        self._claims.retries.holds(
            first == again, f"message {id} came back as two: seq {first.seq} and {again.seq}"
        )
        self._own.append(first)

    async def _send(self, room: RoomAccount, id: UUID, content: str, what: str = "send a message") -> Message:
        with self._watch.time(what):
            message = await self._hub.messages.send(room.id, self.id, content, id=id)
        self._ledger.sent(message)
        return message

    async def _read_newest(self) -> None:
        await self._newest(self._chance.choice(self._rooms))

    async def _newest(self, room: RoomAccount) -> MessagePage:
        with self._watch.time("read a page"):
            page = await self._hub.messages.page(room.id, limit=PAGE)
        self._inspect(page)
        return page

    async def _scroll_back(self) -> None:
        room = self._chance.choice(self._rooms)
        page = await self._newest(room)
        for _ in range(LONGEST_SCROLL):
            if not page.has_older:
                return
            oldest = page.items[0]
            with self._watch.time("read a page"):
                page = await self._hub.messages.page(room.id, before=oldest, limit=PAGE)
            self._inspect(page)
            newest = page.items[-1].seq
            self._claims.pages.holds(newest < oldest.seq, f"before seq {oldest.seq} came seq {newest}")

    async def _look_around(self) -> None:
        if not self._own:
            return
        message = self._chance.choice(self._own)
        with self._watch.time("read a page"):
            page = await self._hub.messages.page(message.room_id, around=message.id, limit=PAGE)
        self._inspect(page)
        found = any(each.id == message.id for each in page.items)
        self._claims.pages.holds(found, f"message {message.id} is not on the page around it")

    def _inspect(self, page: MessagePage) -> None:
        places = [message.seq for message in page.items]
        self._claims.pages.holds(places == sorted(set(places)), f"a page of room {page.room_id} is out of order")

    async def _mark_read(self) -> None:
        """Up to the newest, and then a second device reports what it had seen before."""
        room = self._chance.choice(self._rooms)
        page = await self._newest(room)
        if not page.items:
            return
        for message in (page.items[-1], page.items[0]):
            with self._watch.time("mark as read"):
                mark = await self._hub.receipts.mark_read(room.id, self.id, up_to=message.seq)
            least = self._read[room.id] = max(self._read.get(room.id, 0), message.seq)
            self._claims.marks.holds(mark >= least, f"{self.id} had read up to {least}, now only to {mark}")

    async def _list_rooms(self) -> None:
        with self._watch.time("list my rooms"):
            page = await self._hub.rooms.list_for(self.id, limit=200)
        missing = {room.id for room in self._rooms} - {summary.room.id for summary in page.items}
        self._claims.lists.holds(
            page.has_more or not missing, f"{self.id} does not see {len(missing)} of his rooms"
        )

    async def _count_unread(self) -> None:
        with self._watch.time("count unread messages"):
            await self._hub.receipts.unread_counts(self.id)

    async def _edit(self) -> None:
        if not self._own:
            return
        place = self._chance.randrange(len(self._own))
        with self._watch.time("edit or delete a message"):
            edited = await self._hub.messages.edit(self._own[place].id, sentence(self._chance, NAMES), by=self.id)
        self._ledger.changed(edited)
        self._own[place] = edited

    async def _delete(self) -> None:
        if not self._own:
            return
        message = self._own.pop(self._chance.randrange(len(self._own)))
        with self._watch.time("edit or delete a message"):
            self._ledger.changed(await self._hub.messages.delete(message.id, by=self.id))

    async def _leave_and_come_back(self) -> None:
        room = self._chance.choice(self._rooms)
        with self._watch.time("join or leave a room"):
            await self._hub.room_users.remove(room.id, self.id)
        room.left(self.id)
        await self._is_refused(room, uuid7(), NotAMember)
        with self._watch.time("join or leave a room"):
            await self._hub.room_users.add(room.id, self.id)
        room.joined(self.id)

    async def _reuse_an_id(self) -> None:
        """For another room, which is never a retry."""
        if not self._own:
            return
        message = self._chance.choice(self._own)
        room = self._chance.choice([room for room in self._rooms if room.id != message.room_id])
        await self._is_refused(room, message.id, Conflict)

    async def _is_refused(self, room: RoomAccount, id: UUID, error: type[HubbubError]) -> None:
        refused = False
        with self._watch.time("be refused"):
            try:
                await self._hub.messages.send(room.id, self.id, "not to be stored", id=id)
            except error:
                refused = True
        self._claims.refusals.holds(refused, f"message {id} of {self.id} was taken in room {room.id}")

    async def _write_directly(self) -> None:
        """Both open their room at the same moment; then each says something in it."""
        friend = self._chance.choice(self._friends)
        mine, theirs = await together([self._direct(self.id, friend), self._direct(friend, self.id)])
        pair = frozenset((self.id, friend))
        known = self._ledger.direct.setdefault(pair, mine.id)
        self._claims.direct.holds(mine.id == theirs.id == known, f"{self.id} and {friend} have two rooms")
        room = self._ledger.rooms.get(known) or self._ledger.opened(known, mine.name, *pair)
        await self._send(room, uuid7(), sentence(self._chance, NAMES))
        with self._watch.time("send a message"):
            self._ledger.sent(await self._hub.messages.send(room.id, friend, sentence(self._chance, NAMES)))

    async def _direct(self, one: UUID, other: UUID) -> Room:
        with self._watch.time("open a direct room"):
            return await self._hub.rooms.direct(one, other)
