"""The bytes of a file as they come, for as long as they are wanted."""

from __future__ import annotations

import io
import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# As much as a pipe holds.
CHUNK: Final = 1 << 16


class Source(io.RawIOBase):
    """An open file as one thread reads it. It ends where the file does, or when another thread says `stop`.

    A read of a silent pipe cannot be broken off, nor the pipe be closed meanwhile: so the thread waits until there
    is something to read, or for `stop`.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._stopped, self._stop = os.pipe()
        self._waiting = select.poll()
        self._waiting.register(self._stopped, select.POLLIN)
        self._is_there = False
        try:
            self._waiting.register(file.fileno(), select.POLLIN)
        except io.UnsupportedOperation:  # no file of the system, then it is in memory
            self._is_there = True

    def buffered(self) -> io.BufferedReader:
        """To read from. Closing it closes the source, and leaves the file open."""
        return io.BufferedReader(self, CHUNK)

    def stop(self) -> None:
        os.write(self._stop, b"\0")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._is_there and self._stopped in (descriptor for descriptor, _ in self._waiting.poll()):
            return 0
        view = memoryview(buffer).cast("B")
        read = self._file.read1(len(view))
        view[: len(read)] = read
        return len(read)

    def close(self) -> None:
        if not self.closed:
            os.close(self._stopped)
            os.close(self._stop)
        super().close()
