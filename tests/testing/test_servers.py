from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from hubbub.testing import serving


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_servers_are_there_in_the_block_and_gone_after_it() -> None:
    with tempfile.TemporaryDirectory(prefix="hubbub-") as folder:
        with serving(Path(folder)) as settings:
            ports = settings.postgres.port, settings.redis.port
            assert [_answers(port) for port in ports] == [True, True]
        assert [_answers(port) for port in ports] == [False, False]
