"""Logs kept off a terminal that shows the same information in another way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unreported() -> Iterator[None]:
    """Discard what hubbub logs in the block: Python would write warnings into the table on the terminal."""
    logger, handler = logging.getLogger("hubbub"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
