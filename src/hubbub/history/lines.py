"""The lines of a file, plain or compressed with gzip, read once and never as a whole."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Final

GZIP_MAGIC: Final = b"\x1f\x8b"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

# A message of 20,000 characters fits, also with each written as \uXXXX\uXXXX; a file without line ends does not
# fill the memory.
LONGEST_LINE: Final = 1 << 20


def numbered(file: BufferedReader, refuse: Callable[[int, str], None]) -> Iterator[tuple[int, bytes]]:
    """Lines, counted from 1, without their ends; one that is too long is cut to a byte more than the limit.

    Where the file cannot be read any further, the line that would have come next is refused.
    """
    number = 0
    try:
        compressed = file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)  # by content: a name can be wrong
        opened = gzip.GzipFile(fileobj=file) if compressed else file
        while line := opened.readline(LONGEST_LINE + 1):
            number += 1
            end = line
            while len(end) > LONGEST_LINE and not end.endswith(b"\n"):
                end = opened.readline(LONGEST_LINE + 1)
            yield number, (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        refuse(number + 1, "the compressed file is damaged from here on")
    except OSError as error:
        refuse(number + 1, f"the file cannot be read from here on: {error.strerror}")
