"""What the environment gives, with the secrets that stand in files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hubbub.errors import Invalid
from hubbub.settings.variables import SECRETS, VARIABLES

_LONGEST_FILE = 10_000


def given_in(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not empty; what a secret's file holds stands under the secret's own name.

    Raises Invalid for a secret that is given twice, or whose file cannot be read.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    for secret in SECRETS:
        file = given.pop(f"{secret}_FILE", None)
        if file is not None and secret in given:
            raise Invalid(f"{secret}_FILE", f"is set and {secret} is too: set one of them")
        if file is not None:
            given[secret] = _content(f"{secret}_FILE", Path(file))
    return given


def _content(name: str, file: Path) -> str:
    text = ""
    # Bytes that are not UTF-8 become lone surrogates, which are refused where they are used.
    with suppress(OSError):
        if file.is_file():
            with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
                text = opened.read(_LONGEST_FILE + 1).removesuffix("\n").removesuffix("\r")
    if not 1 <= len(text) <= _LONGEST_FILE:
        raise Invalid(name, f"must name a readable file of 1 to {_LONGEST_FILE} characters")
    return text
