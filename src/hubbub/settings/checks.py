"""What a value may be. A check gives the reason to refuse it, or None.

It takes any object, because settings that are written in code are checked as well, and not everybody runs mypy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import get_args

from hubbub.settings.tls import SslMode

Reason = str | None

_DNS_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?", re.IGNORECASE | re.ASCII)


def host(value: object) -> Reason:
    if not isinstance(value, str) or not value:
        return "is missing"
    if "," in value:
        return "must be one host: a client that knows several never gets past one that hangs"
    if value.startswith("/"):
        return "must be a host name or an IP address: Unix sockets are not supported"
    return None if _DNS_NAME.fullmatch(value) or _is_ip_address(value) else "must be a host name or an IP address"


def _is_ip_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return value.isascii() and value.isprintable() and " " not in value  # ip_address takes any zone, fe80::1%...


def name(value: object) -> Reason:
    if not isinstance(value, str) or not value.strip():
        return "is missing"
    return None if value.isprintable() else "must be UTF-8 without control characters"


def optional_name(value: object) -> Reason:
    return None if value is None else name(value)


def password(value: object) -> Reason:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        return "is empty: leave it out where there is none"
    return "must be UTF-8 without NUL" if re.search("[\0\ud800-\udfff]", value) else None


def sslmode(value: object) -> Reason:
    return None if value in get_args(SslMode) else f"must be one of {', '.join(get_args(SslMode))}"


def optional_file(value: object) -> Reason:
    if value is None or (isinstance(value, Path) and _is_readable(value)):
        return None
    return "does not name a file that can be read"


def _is_readable(file: Path) -> bool:
    try:
        return file.is_file() and os.access(file, os.R_OK)
    except OSError:  # from is_file, where a folder on the way may not be searched
        return False


def from_to(lowest: int, highest: int) -> Callable[[object], Reason]:
    def check(value: object) -> Reason:
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return None
        return f"must be a whole number from {lowest} to {highest}"

    return check


def duration(value: object) -> Reason:
    # The comparison also refuses NaN and infinity.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 86_400:
        return None
    return "must be a number of seconds above 0 and up to 86400, a day"


def yes_or_no(value: object) -> Reason:
    return None if isinstance(value, bool) else "must be true or false"
