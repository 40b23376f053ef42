"""Servers out of Debian's packages, which are unpacked and not installed: that would start a service."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

SCRIPT = """\
#!/bin/sh
folder="${{0%/*}}"
LD_LIBRARY_PATH="$folder/usr/lib/{machine}" exec "$folder/{program}" "$@"
"""


def package(name: str, *programs: Path) -> Callable[[Path], None]:
    """Fetch this package with all that it depends on and this system lacks.

    Each of the programs, which lie there in the packages, is run by a script of the same name beside `usr`.
    """

    def fetch(folder: Path) -> None:
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "--quiet=2"], check=True)
        for one in _lacking(name):
            subprocess.run(["apt-get", "download", "--quiet=2", one], cwd=folder, check=True)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
            archive.unlink()
        [libraries] = folder.glob("usr/lib/*-linux-gnu")
        for program in programs:
            script = folder / program.name
            script.write_text(SCRIPT.format(machine=libraries.name, program=program))
            script.chmod(0o755)

    return fetch


def _lacking(name: str) -> list[str]:
    """What an installation would bring. Without a right to install: it is asked for as a simulation."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", "--reinstall", name]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^Inst (\S+)", said, re.MULTILINE)
