"""Free ports of the loopback interface, for servers that are told their port before they listen."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The ports that the kernel gives to connections, and to sockets that ask for any port."""

CHOICE = random.SystemRandom()
"""Has no seed. pytest-randomly gives all processes of a run the same one, so they would choose the same ports."""


def free_port() -> int:
    """A port that is free now, and below those that the kernel gives away.

    One of the others may belong to a connection of another test before the server listens on it. A client that
    tries to connect meanwhile may even get that port for its own end, and then it talks to itself.
    """
    first, _ = map(int, OF_CONNECTIONS.read_text().split())
    first = max(first, 31_024)  # where connections get all ports, any may be taken
    while True:
        # The cluster bus of Redis has a port 10,000 further.
        port = CHOICE.randrange(first - 20_000, first - 10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
