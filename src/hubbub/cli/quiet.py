"""Keeping what hubbub logs off a screen that shows the same by other means."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unreported() -> Iterator[None]:
    """Without a handler of its own, Python writes warnings to the terminal: across a table, or above it."""
    logger, nowhere = logging.getLogger("hubbub"), logging.NullHandler()
    logger.addHandler(nowhere)
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
