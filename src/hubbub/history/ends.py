"""How far a file went in each of its rooms, which is how far the rooms count as read after it."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from hubbub.history.batches import Batch
from hubbub.history.checkpoints import CHECK, CHECKPOINTS, Checkpoint
from hubbub.history.forms import Line
from hubbub.history.room_log import RoomLog
from hubbub.history.rooms import room_id_of
from hubbub.history.watermarks import HEADS, Head, count_as_read
from hubbub.postgres import Pool


class Ends:
    """The rooms that a file calls by their names: the others have members who have read what their lines say."""

    def __init__(self) -> None:
        self._named: set[UUID] = set()
        self._heads: dict[UUID, int] = {}
        self._before: Checkpoint | None = None

    def expect(self, batch: Batch) -> None:
        self._named |= {
            room_id_of(line) for _, line in batch.taken if isinstance(line, Line) and line.room_id is None
        }

    def reach(self, before: Checkpoint | None, rooms: Iterable[RoomLog]) -> None:
        """Rooms have come to where a batch left them. Up to `before` another run had brought them."""
        if before is not None:
            self._before = before
        self._heads |= {room.id: room.last_seq for room in rooms if room.has_grown and room.id in self._named}

    async def count_as_read(self, pool: Pool, end: Checkpoint) -> None:
        """What the file said counts as read, once for each end that it had.

        A run that was stopped has not said how far it had brought its rooms, so that is where they are now.
        """
        if self._before is not None and not await self._is_settled(pool, self._before):
            unknown = self._named - self._heads.keys()
            self._heads |= dict(await pool.fetch_all(HEADS, unknown))
        if not await self._is_settled(pool, end):
            await count_as_read(pool, [Head(room_id, seq) for room_id, seq in self._heads.items()])
            settled = end.counted_as_read()
            await pool.execute(CHECK, settled.digest, settled.lines)

    @staticmethod
    async def _is_settled(pool: Pool, point: Checkpoint) -> bool:
        known = await pool.fetch_all(CHECKPOINTS, point.lines - 1, point.lines)
        return point.counted_as_read() in known
