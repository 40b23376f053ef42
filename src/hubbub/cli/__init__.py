"""The command `hubbub`. A command is imported when it is used, so that help is quick."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NamedTuple

import click

from hubbub.errors import HubbubError


class Entry(NamedTuple):
    """Where a command is, and what the help of `hubbub` says of it."""

    module: str
    summary: str
    attribute: str | None = None
    """What it is called in its module, where that is not the name of the command."""


COMMANDS = {
    "demo": Entry("hubbub.cli.demo", "Let a chat happen on servers of its own, and check it."),
    "up": Entry("hubbub.cli.servers", "Start PostgreSQL and Valkey in this folder, and migrate."),
    "status": Entry("hubbub.cli.servers", "Say how these servers are, and how to log in to them."),
    "down": Entry("hubbub.cli.servers", "Stop these servers. Their data stay."),
    "migrate": Entry("hubbub.cli.migrate", "Change the schema of a database."),
    "doctor": Entry("hubbub.cli.doctor", "Say what is wrong with the servers, and what to do."),
    "import": Entry("hubbub.cli.history", "Take the history of rooms from a file.", "import_history"),
    "export": Entry("hubbub.cli.history", "Write the history of a room, for an import.", "export_room"),
    "top": Entry("hubbub.cli.top", "Watch a chat and its servers, live."),
    "bench": Entry("hubbub.cli.bench", "Measure hubbub beside its peers, in a clone of the project."),
    "sessions": Entry("hubbub.cli.sessions", "Show who is logged in where, and log them out."),
}


class Commands(click.Group):
    """The commands of the table above, each in its module under its own name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(entry.module), entry.attribute or cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except HubbubError as error:
            # What the user can do something about needs no traceback: exit status 1 and the reason.
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise  # whoever read has read enough; click knows what to do
        except OSError as error:
            _give_up_output()
            raise click.ClickException(str(error) or repr(error)) from error


def _give_up_output() -> None:
    """Sends what can be written no more to nowhere: Python would try once more at its end, and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hubbub", message="hubbub %(version)s")
def main() -> None:
    """The data foundation of a chat application, on PostgreSQL and Redis.

    \b
    hubbub demo     shows what it does, and leaves nothing behind
    hubbub up       gives you servers to develop on
    """
