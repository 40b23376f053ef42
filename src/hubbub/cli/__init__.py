"""The command `hubbub`. Each subcommand is imported when it is used, so that help is fast.

Also what subcommands share: their hub, logs that stay off the terminal, signals that end them, and printable text.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Final, TypeVar

import click

from hubbub import hub
from hubbub.errors import HubbubError
from hubbub.hub import Hub

T = TypeVar("T")

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and the signals that end a program."""

COMMANDS = {
    "demo": ("hubbub.cli.demo:demo", "Run a chat on temporary servers and check that nothing was lost."),
    "up": ("hubbub.cli.servers:up", "Start PostgreSQL and Valkey in this folder, and migrate."),
    "status": ("hubbub.cli.servers:status", "Show server status and connection settings."),
    "down": ("hubbub.cli.servers:down", "Stop the servers and keep their data."),
    "serve": ("hubbub.cli.serve:serve", "Serve clients by WebSocket and HTTP: the gateway alone."),
    "migrate": ("hubbub.cli.migrate:migrate", "Show and change the schema of a database."),
    "distribute": ("hubbub.cli.migrate:distribute", "Distribute rooms over the nodes of Citus."),
    "doctor": ("hubbub.cli.doctor:doctor", "Check the servers and their settings, and suggest fixes."),
    "import": ("hubbub.cli.history:import_history", "Import the history of rooms from a file."),
    "export": ("hubbub.cli.history:export_room", "Write the history of a room to a file."),
    "maintain": ("hubbub.cli.doctor:maintain", "Finish deletions that were interrupted: run it once a day."),
    "top": ("hubbub.cli.top:top", "Show live figures of a chat and its servers."),
    "console": ("hubbub.cli.serve:console", "Serve a web page with live figures of a chat and its servers."),
    "bench": ("hubbub.cli.bench:bench", "Compare hubbub with its peers, in a clone of the project."),
    "users": ("hubbub.cli.users:users", "Create, show and delete accounts, and set their passwords."),
    "rooms": ("hubbub.cli.rooms:rooms", "Show rooms and their members."),
    "say": ("hubbub.cli.rooms:say", "Send messages to a room, and show new ones."),
    "sessions": ("hubbub.cli.users:sessions", "Show the sessions of a user, and end them."),
}
"""The import path of each command, and its line in the help of `hubbub`."""


class Commands(click.Group):
    """The commands of the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return resolve_name(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except HubbubError as error:
            # The user can fix these errors, so the reason is printed without a traceback. The exit status is 1.
            raise click.ClickException(str(error)) from error
        except ImportError as error:
            if error.name is None:  # an error of hubbub's own, which names the extra
                raise click.ClickException(str(error)) from error
            if error.name.partition(".")[0] == "hubbub":
                raise
            raise click.ClickException(f"{error}: pip install 'hubbub[web]'") from error
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
    hubbub demo     run a simulated chat, check it, and leave nothing behind
    hubbub up       start servers for development
    """


def in_hub(work: Callable[[Hub], Awaitable[T]]) -> T:
    """The result of the work on a hub with the settings of the environment, which is closed afterwards."""

    async def run() -> T:
        async with hub.open() as chat:
            return await work(chat)

    return asyncio.run(run())


@contextmanager
def unreported() -> Iterator[None]:
    """Discard what hubbub logs in the block: Python would write warnings into the table on the terminal."""
    logger, handler = logging.getLogger("hubbub"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def on_signals(act: Callable[[signal.Signals], object], *signals: signal.Signals) -> Iterator[None]:
    """In the block `act` is called for these signals, instead of what they do."""
    loop = asyncio.get_running_loop()
    for one in signals:
        loop.add_signal_handler(one, act, one)
    try:
        yield
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


def printable(text: str) -> str:
    """Without control characters, which would steer the terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)
