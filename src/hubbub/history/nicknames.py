"""From nicknames of elsewhere to usernames of hubbub."""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

from hubbub import inputs
from hubbub.errors import Invalid

# No bcrypt hash reads so: nobody can log in with any password until one is set.
NO_LOGIN: Final = "!"


class Renamed(NamedTuple):
    """A nickname that could not be taken as it is."""

    nickname: str
    username: str
    reason: str


def refusal(nickname: str) -> str | None:
    """Why hubbub takes no such username, None for one that it takes."""
    try:
        inputs.username(nickname)
    except Invalid as error:
        return error.reason
    return None


def accepted(nickname: str) -> str:
    """The username that comes closest to a nickname that the rules refuse."""
    name = "".join(letter if letter.isprintable() and letter != "@" else "_" for letter in nickname)
    name = name.strip()[: inputs.USERNAME_LENGTH].strip() or "nameless"
    while refusal(name) is not None:  # only the composed form can be longer than what was cut
        name = name[:-1].strip() or "nameless"
    return name


def marked(nickname: str, mark: str) -> str:
    """The closest username with eight digits of a hash of `mark` at its end: the same one each time."""
    ending = f"-{sha256(mark.encode()).hexdigest()[:8]}"
    return accepted(nickname)[: inputs.USERNAME_LENGTH - len(ending)].rstrip() + ending
