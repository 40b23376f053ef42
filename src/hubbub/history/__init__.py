"""History: import from files, and export to them. docs/history.md has the form of the lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from io import BufferedIOBase
from uuid import UUID

from hubbub import inputs
from hubbub.commits import OnCommit, ignore
from hubbub.errors import Invalid, NotFound
from hubbub.history.export import export as export_room
from hubbub.history.importing import Import, Imported, Refusals
from hubbub.history.lines import AnyLine, JoinLine, LeaveLine, MessageLine, derive_room_id, derive_user_id
from hubbub.history.source import Refusal, read_lines
from hubbub.history.users import Renamed
from hubbub.postgres import Pool, Replicas, Statement, not_supported
from hubbub.sql import folded, not_deleted

__all__ = [
    "AnyLine",
    "History",
    "Imported",
    "JoinLine",
    "LeaveLine",
    "MessageLine",
    "Refusal",
    "Refusals",
    "Renamed",
    "derive_room_id",
    "derive_user_id",
    "read_lines",
]

# Two are enough to show that a name means more than one room.
BY_NAME = Statement(
    "history.rooms_by_name",
    lambda id: id,
    f"""
    SELECT id
    FROM rooms
    WHERE {folded("name")} = $2
        AND name = $1
        AND NOT is_private
        AND {not_deleted("rooms.id")}
    ORDER BY id
    LIMIT 2
    """,
)


class History:
    """Imports of files into rooms, and exports of rooms. Each works on connections of the pool."""

    def __init__(self, pool: Pool, on_commit: OnCommit = ignore, replicas: Replicas | None = None) -> None:
        self._pool = pool
        self._on_commit = on_commit
        self._replicas = replicas

    async def load(
        self,
        file: BufferedIOBase,
        *,
        progress: Callable[[Imported], None] = lambda _: None,
        refused: Callable[[Refusal], None] | None = None,
    ) -> Imported:
        """Import the lines of a file open for reading bytes, plain or gzip: also a pipe or an `io.BytesIO`.

        Batches of at most 10,000 lines are committed, each with a record of how far the file is done. After any
        end, also a kill, the same call continues from there, and a file that has grown continues from where it
        ended. The entries of a room are in the order of the lines, with their times. docs/history.md has the form
        of the lines. `progress` is called after each batch, `refused` with each line that cannot be taken, both
        from the event loop. While PostgreSQL cannot be reached, a batch is retried for half a minute. Where rooms
        are distributed over several nodes, there is no import.

        Raises: Invalid (not a file of bytes, or not a function), Unavailable (PostgreSQL was away for longer).
        """
        if not hasattr(file, "read1") or getattr(file, "closed", False):
            raise Invalid("file", "must be a file opened for reading bytes: open(path, 'rb')")
        if self._pool.is_distributed:
            raise not_supported("the import of a history")
        progress = inputs.callback("progress", progress)
        running = Import(self._pool, self._on_commit)
        running.state.refusals.on_refusal = None if refused is None else inputs.callback("refused", refused)
        return await running.run(file, progress)

    def lines(self, room_id: UUID) -> AsyncGenerator[bytes, None]:
        """The room as lines that `load` takes, in pieces of some hundred lines. Close it if it is not read to its
        end, as `contextlib.aclosing` does.

        It shows the room as of one moment: a transaction is open until the last piece, and blocks no other. The
        import of it into another database creates the same room, with the same log; into the same one it changes
        nothing. Raises: NotFound.
        """
        return export_room(self._pool, inputs.uuid("room_id", room_id), self._replicas)

    async def find(self, name: str) -> UUID:
        """The id of the one public room of this name. Raises: NotFound, Invalid (several rooms have it)."""
        name = inputs.text("room", name, longest=inputs.ROOM_NAME_LENGTH)
        found = await self._pool.fetch_all(BY_NAME, name, inputs.folded(name))
        if not found:
            raise NotFound("public room", repr(name))
        if len(found) > 1:
            raise Invalid("room", f"several rooms have this name ({found[0]}, {found[1]}, ...): use an id")
        room_id: UUID = found[0]
        return room_id
