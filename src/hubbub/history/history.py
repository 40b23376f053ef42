"""History of rooms, in and out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from io import BufferedIOBase
from uuid import UUID

from hubbub import inputs
from hubbub.commits import OnCommit, ignore
from hubbub.errors import Invalid, NotFound
from hubbub.history.exporting import export
from hubbub.history.importing import Import, Imported
from hubbub.history.refusals import Refusal
from hubbub.postgres import Pool, Statement


def _unheard(_: object) -> None:
    """For who wants no progress."""


# Two are enough to say that a name means more than one room.
NAMED = Statement(
    "history.named",
    lambda id: id,
    """
    SELECT id
    FROM rooms
    WHERE name = $1
        AND NOT is_private
    ORDER BY id
    LIMIT 2
    """,
)


class History:
    """Imports of files into rooms, and exports of rooms. Each works on connections of the pool."""

    def __init__(self, pool: Pool, on_commit: OnCommit = ignore) -> None:
        self._pool = pool
        self._on_commit = on_commit

    async def load(
        self,
        file: BufferedIOBase,
        *,
        progress: Callable[[Imported], None] = _unheard,
        refused: Callable[[Refusal], None] | None = None,
    ) -> Imported:
        """Import the lines of a file open for reading bytes, plain or gzip: also a pipe or an `io.BytesIO`.

        Batches of at most 10,000 lines are committed, each with a note of how far the file is done: after any end,
        also a kill, the same call goes on from there, and a file that has grown goes on from where it ended. The
        entries of a room are in the order of the lines, with their times. docs/history.md has the form of the lines.
        `progress` is called after each batch, `refused` with each line that cannot be taken; both from the event
        loop.

        Raises `Invalid` for what is no file of bytes or no function, `Unavailable` once PostgreSQL could not be
        reached for half a minute.
        """
        if not hasattr(file, "read1"):
            raise Invalid("file", "must be a file opened for reading bytes: open(path, 'rb')")
        progress = inputs.callback("progress", progress)
        running = Import(self._pool, self._on_commit)
        running.state.refusals.tell = None if refused is None else inputs.callback("refused", refused)
        return await running.run(file, progress)

    def lines(self, room_id: UUID) -> AsyncGenerator[bytes, None]:
        """The room as lines that `load` takes, in pieces of some thousand lines; close it when it is not read to
        its end, as `contextlib.aclosing` does.

        It is the room of one moment: a transaction is held until the last piece, without holding up anybody. The
        import of it into another database makes the same room, with the same log; into the same one it changes
        nothing. Raises `NotFound`.
        """
        return export(self._pool, inputs.uuid("room_id", room_id))

    async def find(self, name: str) -> UUID:
        """The one public room of this name. Raises `NotFound`, or `Invalid` where there are several."""
        found = await self._pool.fetch_all(NAMED, inputs.text("room", name, longest=inputs.ROOM_NAME_LENGTH))
        if not found:
            raise NotFound("public room", repr(name))
        if len(found) > 1:
            raise Invalid("room", f"several are called so, {found[0]} and {found[1]} among them: give an id")
        room_id: UUID = found[0]
        return room_id
