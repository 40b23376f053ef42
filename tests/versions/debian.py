"""Servers from unpacked Debian packages. An installation would start a service."""

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
    """Fetch this package and the dependencies that this system lacks.

    A script beside `usr` of the same name runs each of the programs in the packages.
    """

    def fetch(folder: Path) -> None:
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "--quiet=2"], check=True)
        for one in _lacking(name):
            subprocess.run(["apt-get", "download", "--quiet=2", one], cwd=folder, check=True)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
            archive.unlink()
        for program in programs:
            script = folder / program.name
            installed = Path("/") / program
            if not (folder / program).exists() and installed.exists():
                script.write_text(f'#!/bin/sh\nexec {installed} "$@"\n')
            else:  # without a folder all libraries are installed already
                machine = next((found.name for found in folder.glob("usr/lib/*-linux-gnu")), "")
                script.write_text(SCRIPT.format(machine=machine, program=program))
            script.chmod(0o755)

    return fetch


def _lacking(name: str) -> list[str]:
    """The packages that an installation would add. A simulation needs no right to install."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", "--reinstall", name]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^Inst (\S+)", said, re.MULTILINE)
