"""The batches of a file, read and checked by a thread."""

from __future__ import annotations

import asyncio
from io import BufferedIOBase
from types import TracebackType
from typing import Self

from hubbub.history.batches import Batch, batches
from hubbub.history.source import Source


class Reading:
    """One batch after the other, and the next one ahead of time, from whenever `ahead` is called."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._source = Source(file)
        self._content = self._source.buffered()
        self._coming = batches(self._content)
        self._task: asyncio.Task[Batch | None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._source.stop()
        if self._task is not None:
            await asyncio.wait([self._task])  # a thread cannot be cancelled, but this one is at its end soon
        self._content.close()

    def ahead(self) -> None:
        """Begin to read the next batch, where that has not begun."""
        self._begun()

    async def next(self) -> Batch | None:
        """None at the end of the file."""
        batch = await asyncio.shield(self._begun())
        self._task = None
        return batch

    def _begun(self) -> asyncio.Task[Batch | None]:
        if self._task is None:
            read = asyncio.to_thread(next, self._coming, None)
            self._task = asyncio.create_task(read, name="hubbub: read history")
        return self._task
