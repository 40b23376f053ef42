"""`hubbub import` and `hubbub export`: the history of rooms, from files and to files."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path
from stat import S_IFREG, S_IMODE, S_ISREG
from tempfile import NamedTemporaryFile
from typing import IO, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hubbub.cli import in_hub, printable
from hubbub.diagnostics import find_room
from hubbub.history import Imported, Refusal
from hubbub.hub import Hub

LINES_REFUSED = 3
STDOUT = Path("-")


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--refused",
    type=click.File("w"),
    metavar="FILE",
    help="Write the number of each refused line, with the reason, to this file.",
)
@click.pass_context
def import_history(context: click.Context, file: BufferedReader, refused: TextIO | None) -> None:
    """Import the history of rooms from FILE, or from standard input if FILE is a dash.

    FILE has one JSON object per line, with the keys kind (message, join or leave), room, user, at (ISO 8601) and
    content, or the richer form that `hubbub export` writes. It may be compressed with gzip. Missing users and
    rooms are created. If the import was stopped or killed, run it again: it continues where it was.

    Exit status: 0 if all lines were imported, 3 if some were refused, 1 if the import failed.
    """
    on_refusal = None if refused is None else partial(_write_refusal, refused)
    with _progress(file) as show:
        imported = in_hub(lambda chat: chat.history.load(file, progress=show, refused=on_refusal))
    for line in _report(imported):
        click.echo(printable(line))
    if imported.refusals.count:
        context.exit(LINES_REFUSED)


def _write_refusal(file: TextIO, refusal: Refusal) -> None:
    file.write(f"{refusal.line}\t{printable(refusal.reason)}\n")


@contextmanager
def _progress(file: BufferedReader) -> Iterator[Callable[[Imported], None]]:
    """A progress bar on a terminal, by the bytes of the file that were read. Nothing if it is not a terminal."""
    console = Console(stderr=True)
    status = os.fstat(file.fileno())
    size = status.st_size if S_ISREG(status.st_mode) else None
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=size)

        def show(imported: Imported) -> None:
            read = file.tell() if size is not None else None
            speed = imported.lines / max(progress.tasks[0].elapsed or 0, 0.001)
            text = f"{imported.lines:,} lines, {imported.messages:,} messages, {speed:,.0f} lines/s"
            progress.update(task, completed=read, description=text)

        yield show


def _report(imported: Imported) -> Iterator[str]:
    if imported.continued_from:
        yield f"the first {imported.continued_from:,} lines had been imported before"
    refused = imported.refusals.count - (imported.damage is not None)
    described = f"{imported.described:,} about users, rooms and members, " if imported.described else ""
    yield (
        f"{imported.lines:,} lines: {imported.messages:,} messages and {imported.events:,} other entries stored, "
        f"{described}{imported.known:,} lines changed nothing, {refused:,} refused; "
        f"{imported.users:,} users created"
    )
    if imported.unlisted:
        yield f"{imported.unlisted:,} more entries for authors who had not joined"
    if imported.damage is not None:
        yield f"the file ends before line {imported.damage.line:,}: {imported.damage.reason}"
    for one in imported.renamed:
        yield f"  {one.nickname!a} became {one.username!a}: {one.reason}"
    if imported.renamed_count > len(imported.renamed):
        yield f"  and {imported.renamed_count - len(imported.renamed):,} more users were renamed"
    for refusal in imported.refusals.first:
        yield f"  line {refusal.line:,}: {refusal.reason}"
    if imported.refusals.count > len(imported.refusals.first):
        more = imported.refusals.count - len(imported.refusals.first)
        yield f"  and {more:,} more lines were refused; use --refused FILE to list all of them"


@click.command("export")
@click.argument("room")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path),
    default=STDOUT,
    show_default="standard output",
    help="The file to write; compressed with gzip if its name ends in .gz.",
)
def export_room(room: str, output: Path) -> None:
    """Write the history of ROOM as a file for `hubbub import`. ROOM is an id or the name of a public room.

    The export shows the room at one moment: messages, edits, deletions, members and how far they have read, with
    all ids and times. Accounts have their email address, but no password.
    """

    async def write(chat: Hub) -> None:
        async with aclosing(chat.history.lines(await find_room(chat, room))) as pieces:
            async for piece in pieces:
                file.write(piece)

    with _written(output) as file:
        in_hub(write)


@contextmanager
def _written(output: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A file that appears under its name once it is complete."""
    if output == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()  # here, where a full disk is still an error that can be reported
        return
    try:
        mode = output.stat().st_mode
    except FileNotFoundError:
        mode = S_IFREG | 0o666 & ~_umask()
    if not S_ISREG(mode):  # a device or a pipe, which must not be replaced
        with output.open("wb") as file, _compressed(output, file) as written:
            yield written
        return
    target = output.resolve()  # of a symlink, which stays
    # A name of its own: two exports to the same file must not write into one.
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as whole:
        part = Path(whole.name)
        try:
            with _compressed(output, whole) as written:
                yield written
            whole.flush()
            os.fchmod(whole.fileno(), S_IMODE(mode))
            os.fsync(whole.fileno())
            part.replace(target)
        except BaseException:
            part.unlink()
            raise


@contextmanager
def _compressed(output: Path, file: IO[bytes]) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if output.suffix != ".gz":
        yield file
        return
    with gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
        yield compressed


def _umask() -> int:
    os.umask(umask := os.umask(0))
    return umask
