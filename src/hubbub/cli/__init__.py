"""The command `hubbub`. Each subcommand is imported when it is used, so that help is fast."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NamedTuple

import click

from hubbub.errors import HubbubError


class Entry(NamedTuple):
    """Where a command is, and its line in the help of `hubbub`."""

    module: str
    summary: str
    attribute: str | None = None
    """Its name in the module, if that is not the name of the command."""


COMMANDS = {
    "demo": Entry("hubbub.cli.demo", "Run a chat on temporary servers and check that nothing was lost."),
    "up": Entry("hubbub.cli.servers", "Start PostgreSQL and Valkey in this folder, and migrate."),
    "status": Entry("hubbub.cli.servers", "Show server status and connection settings."),
    "down": Entry("hubbub.cli.servers", "Stop the servers and keep their data."),
    "migrate": Entry("hubbub.cli.migrate", "Show and change the schema of a database."),
    "doctor": Entry("hubbub.cli.doctor", "Check the servers and their settings, and say what to change."),
    "import": Entry("hubbub.cli.history", "Import the history of rooms from a file.", "import_history"),
    "export": Entry("hubbub.cli.history", "Write the history of a room to a file.", "export_room"),
    "top": Entry("hubbub.cli.top", "Show live figures of a chat and its servers."),
    "bench": Entry("hubbub.cli.bench", "Measure hubbub beside its peers, in a clone of the project."),
    "sessions": Entry("hubbub.cli.sessions", "Show the sessions of a user, and end them."),
}


class Commands(click.Group):
    """The commands of the table above."""

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
            # An error that the user can do something about needs no traceback: the reason, and exit status 1.
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise  # the reader has closed the pipe; click handles it
        except OSError as error:
            _give_up_output()
            raise click.ClickException(str(error) or repr(error)) from error


def _give_up_output() -> None:
    """Discards output that cannot be written. Python would try again when it exits, and exit with 120."""
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
    hubbub up       starts servers to develop on
    """
