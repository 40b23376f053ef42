from __future__ import annotations

import io
import os
import threading
from pathlib import Path

from hubbub.history.source import Source


def test_it_ends_where_the_file_ends_and_leaves_it_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one\ntwo\n")
    with (tmp_path / "file").open("rb") as file:
        with Source(file).buffered() as content:
            assert content.readlines() == [b"one\n", b"two\n"]
        assert not file.closed


def test_bytes_in_memory_are_read_like_a_file() -> None:
    with Source(io.BufferedReader(io.BytesIO(b"x" * 200_000))).buffered() as content:
        assert content.read() == b"x" * 200_000


def test_a_stop_ends_a_read_of_a_pipe_that_says_nothing() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        source = Source(pipe)
        os.write(writing, b"one\ntw")
        read: list[bytes] = []
        with source.buffered() as content:
            thread = threading.Thread(target=lambda: read.extend(content))
            thread.start()
            source.stop()
            thread.join(30)
            assert not thread.is_alive()
        os.close(writing)
    assert read in ([], [b"one\n", b"tw"])  # the stop may come before the first read


def test_the_end_of_a_pipe_is_the_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, Source(pipe).buffered() as content:
        os.write(writing, b"one")
        os.close(writing)
        assert content.read() == b"one"
