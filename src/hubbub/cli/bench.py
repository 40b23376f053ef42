"""`hubbub bench`: the benchmarks of the project, where there is a clone of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import hubbub

NO_CLONE = (
    "the benchmarks are not part of the package: they are in the folder `benchmarks` of the project's repository, "
    "and `make bench` there, or `hubbub bench` in that folder, runs them"
)

PEERS = ("broadcaster", "matplotlib", "psycopg")


@click.command()
@click.option("--quick", is_flag=True, help="Take 90 seconds: enough to see that it runs, not for figures.")
@click.option("--only", multiple=True, metavar="CELL", help="Measure this cell alone; may be given again.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for results, table and plots; without it benchmarks/results, and nothing for a part.",
)
@click.pass_context
def bench(context: click.Context, only: tuple[str, ...], output: Path | None, *, quick: bool) -> None:
    """Measure hubbub beside its peers on this machine, in 10 minutes.

    Starts servers of its own, with fsync on, and leaves nothing behind but the results. Needs a clone of the
    project, in the current folder or installed as `pip install -e '.[embedded,bench]'`.
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
    """The current folder, or the one that this code is imported from, if the benchmarks are there."""
    installed = Path(hubbub.__file__).parents[2]
    return next((folder for folder in (Path.cwd(), installed) if _has_benchmarks(folder)), None)


def _has_benchmarks(folder: Path) -> bool:
    return (folder / "pyproject.toml").exists() and (folder / "benchmarks" / "__main__.py").exists()
