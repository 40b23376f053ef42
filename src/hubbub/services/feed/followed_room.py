"""A room that somebody in this process follows: how far its log is known here, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from hubbub.events import MemberJoined, MemberLeft
from hubbub.positions import NOT_SEEN, Position
from hubbub.repositories.messages.log import Entry

if TYPE_CHECKING:
    from hubbub.services.feed.place import Place

# So many of the newest entries are remembered by their marks.
REMEMBERED: Final = 64


class FollowedRoom:
    """One for each followed room of the process, however many follow it.

    `position` is the newest entry that is known here. Entries are taken one after the other: what rings ahead of
    the next seq is not taken, but read from the log together with what is missing before it.
    """

    __slots__ = (
        "_compare_soon",
        "_marks",
        "_read_soon",
        "asked",
        "gone",
        "id",
        "live",
        "places",
        "position",
        "rewindings",
        "rung",
        "suspect",
        "was_rewound",
    )

    def __init__(
        self,
        room_id: UUID,
        position: Position,
        *,
        read_soon: Callable[[FollowedRoom], None],
        compare_soon: Callable[[FollowedRoom], None],
        was_rewound: Callable[[UUID], None],
    ) -> None:
        self.id = room_id
        self.position = position
        self.rung = position.seq
        """The highest seq that was heard of."""
        self.asked = False
        """Whether the log has to be read whatever was heard."""
        self.suspect: Position | None = None
        """What was taken here for an entry although something else was heard of at the same seq."""
        self.rewindings = 0
        """How often the log turned out to be another one."""
        self.places: dict[Place, None] = {}
        """All that follow the room here."""
        self.live: dict[Place, None] = {}
        """The places that hear each entry as it is taken; the others are behind, and read the log themselves."""
        self.gone: set[UUID] = set()
        """Users who have left the room as far as it is known here, and have a place in it that is behind."""
        self._read_soon = read_soon
        self._compare_soon = compare_soon
        self.was_rewound = was_rewound
        self._marks: dict[int, bytes] = {}

    @property
    def is_behind(self) -> bool:
        return self.asked or self.rung > self.position.seq

    def hear(self, entry: Entry) -> None:
        """An entry that somebody says was committed; any may be missing before it."""
        seq = entry.position.seq
        if seq == self.position.seq + 1:
            self.take(entry)
        elif seq > self.position.seq:
            self.heard_of(seq)
        else:
            self._compare_with_known(entry.position)

    def _compare_with_known(self, position: Position) -> None:
        """What is heard late is mostly what was read before. If not, the log may have been rewound and have grown
        past what is known here, so that its head alone would not show it."""
        known = self._marks.get(position.seq, position.mark)
        if known != position.mark:
            self.suspect = Position(position.seq, known)
            self._compare_soon(self)

    def know(self, position: Position) -> None:
        """What stands at the head, as somebody has read it: what is heard late of this seq is compared with it."""
        if position.seq == self.position.seq and position.mark != NOT_SEEN:
            self.position = position
            self._marks[position.seq] = position.mark

    def heard_of(self, seq: int) -> None:
        """That the log has grown up to this seq."""
        if seq > self.position.seq:
            self.rung = max(self.rung, seq)
            self._read_soon(self)

    def ask(self) -> None:
        """That the log has grown, nobody says how far."""
        self.asked = True
        self._read_soon(self)

    def take(self, entry: Entry) -> None:
        """The next entry: whoever is live hears it now."""
        self.position = position = entry.position
        seq = position.seq
        self._marks[seq] = position.mark
        self._marks.pop(seq - REMEMBERED, None)
        for place in tuple(self.live):  # a copy: one whose buffer is full leaves
            if place.position.seq < seq:
                place.hear(entry)
        if isinstance(entry.event, MemberLeft):
            self._show_out(entry.event.user_id, seq)
        elif isinstance(entry.event, MemberJoined):
            self.gone.discard(entry.event.user_id)

    def skip_to(self, seq: int) -> None:
        """There is nothing up to this seq that was not taken: what there was has been purged."""
        if self.position.seq < seq:
            self.position = Position(seq, NOT_SEEN)
            self._marks.clear()

    def _show_out(self, user_id: UUID, seq: int) -> None:
        """Not from a place that is further: the user has joined again before it."""
        for place in [place for place in self.places if place.follower.user_id == user_id]:
            if place not in self.live:
                self.gone.add(user_id)
            elif place.position.seq == seq:
                place.show_out()

    def leave(self, place: Place) -> None:
        """One fewer follows the room."""
        self.places.pop(place, None)
        user_id = place.follower.user_id
        if user_id in self.gone and all(other.follower.user_id != user_id for other in self.places):
            self.gone.discard(user_id)

    def rewind(self, position: Position) -> None:
        """The log is not the one that was known: everybody goes on from `position`, and is told."""
        self.position = position
        self.rung = position.seq
        self.suspect = None
        self.rewindings += 1
        self._marks.clear()
        self.gone.clear()
        for place in tuple(self.live):
            place.resync(position, "rewound")
