"""How far one follower has come in one room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubbub.events import Resync
from hubbub.positions import NOT_SEEN, Position

if TYPE_CHECKING:
    from hubbub.models import ResyncReason
    from hubbub.repositories.messages.log import Entry
    from hubbub.services.feed.followed_room import FollowedRoom
    from hubbub.services.feed.follower import Follower


class Place:
    """How far one follower has come in one room.

    A live place hears each entry as it is taken. One that is behind, because it starts at a cursor or because the
    buffer was full, reads the log until it has caught up. Either way its entries come in order, each once: it goes
    live in the same step in which it finds that nothing is missing.
    """

    __slots__ = ("follower", "is_outside", "member_since", "missed", "position", "room")

    def __init__(self, follower: Follower, room: FollowedRoom, position: Position) -> None:
        self.follower = follower
        self.room = room
        self.position = position
        self.is_outside = False
        """Whether the user has left the room at this place of its log: nothing is for them until they join."""
        self.member_since = 0
        """The seq of the user's newest joining, as far as somebody has looked; 0 where it is not known."""
        self.missed = 0
        """How often in a row, while it was live, the user was not among the members when somebody looked."""

    def hear(self, entry: Entry) -> None:
        """The next entry of the room; when the buffer is full, it is left to be read later."""
        follower = self.follower
        if len(follower.buffer) >= follower.limit:
            follower.instrumentation.fell_behind()
            self.fall_behind()
            return
        self.position = entry.position
        follower.put(entry.event)

    def resync(self, position: Position, reason: ResyncReason) -> None:
        """Go on from another position, and say so. It is said however full the buffer is: once a rewinding."""
        self.position = position
        self.is_outside = False
        if reason == "rewound":
            self.room.was_rewound(self.room.id)
        self.follower.instrumentation.resynced(reason)
        self.follower.put(Resync(self.room.id, position.encode(self.room.id), reason))

    def skip_to(self, seq: int) -> None:
        """There is nothing up to this seq that was not given: what there was has been purged."""
        if self.position.seq < seq:
            self.position = Position(seq, NOT_SEEN)

    def catch_up(self) -> None:
        """Go live when nothing is missing, else read the log."""
        if self.position.seq < self.room.position.seq:
            self.fall_behind()
        elif self.is_outside:
            self.show_out()
        else:
            self.follower.behind.pop(self, None)
            self.room.live[self] = None
            self.room.know(self.position)

    def show_out(self) -> None:
        """The user has left the room here. If they are known to have joined again further on, the log says so."""
        if self.member_since > self.position.seq:
            self.member_since = 0  # looked for once: the log may have been rewound
            self.return_from_outside()
        else:
            self.end()

    def return_from_outside(self) -> None:
        """Read on from where the user had left the room: the next thing for them is that they joined again."""
        self.is_outside = True
        self.fall_behind()

    def fall_behind(self) -> None:
        self.missed = 0
        self.room.live.pop(self, None)
        self.follower.behind[self] = None
        self.follower.wake()

    def end(self) -> None:
        """No more of this room."""
        self.room.live.pop(self, None)
        self.follower.leave(self)
