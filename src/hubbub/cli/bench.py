"""`hubbub bench`: the benchmarks of the project, which need a clone of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import hubbub

NO_CLONE = (
    "the benchmarks are not part of the package: clone the project's repository, "
    "and run `make bench` or `hubbub bench` in that folder"
)

PEERS = ("matplotlib", "redis", "socketio", "sqlalchemy", "uvloop")


@click.command()
@click.option(
    "--quick",
    is_flag=True,
    help="Run for less than 2 minutes, to check that the benchmarks work. The figures are not reliable.",
)
@click.option("--only", multiple=True, metavar="CELL", help="Measure only this cell. May be repeated.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for results, table and plots. Default: benchmarks/results, or none with --only, whose cells "
    "replace those of a results.json in the folder.",
)
@click.pass_context
def bench(context: click.Context, only: tuple[str, ...], output: Path | None, *, quick: bool) -> None:
    """Compare hubbub with its peers on this machine, in 20 minutes.

    Starts its own servers, with fsync on, and keeps only the results. Needs a clone of the project, in the current
    folder or installed as `pip install -e '.[embedded,bench]'`.
    """
    clone = find_clone()
    if clone is None:
        raise click.ClickException(NO_CLONE)
    if missing := [name for name in PEERS if find_spec(name) is None]:
        raise click.ClickException(
            f"{', '.join(missing)} missing: run `pip install -e '.[embedded,bench]'` in {clone}"
        )
    command = [sys.executable, "-m", "benchmarks"]
    command += ["--quick"] if quick else []
    command += [f"--only={cell}" for cell in only]
    command += [f"--output={output.absolute()}"] if output else []
    context.exit(subprocess.run(command, cwd=clone, check=False).returncode)  # noqa: S603 - our own program


def find_clone() -> Path | None:
    """The current folder, or the one from which this code is imported, if it has the benchmarks."""
    installed = Path(hubbub.__file__).parents[2]
    needed = "pyproject.toml", "benchmarks/__main__.py"
    found = (folder for folder in (Path.cwd(), installed) if all((folder / file).exists() for file in needed))
    return next(found, None)
