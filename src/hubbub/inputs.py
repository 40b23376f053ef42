"""Input that is refused before it reaches a server: a bad value costs no round trip and changes nothing.

Each function gives back the value to use or raises `Invalid(field, reason)`; no reason repeats the value.
Lengths are in characters, as VARCHAR counts them. NUL and lone surrogates are refused in every text, because
PostgreSQL stores no NUL and a lone surrogate has no UTF-8. The functions take any object at run time: what
arrives from a socket has seldom been through mypy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from inspect import iscoroutinefunction
from typing import Final, TypeVar
from unicodedata import normalize
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.models import MessageType, Role

# The widths of the columns in the seed.
EMAIL_LENGTH: Final = 255
USERNAME_LENGTH: Final = 50
ROOM_NAME_LENGTH: Final = 100
AVATAR_URL_LENGTH: Final = 500
PASSWORD_HASH_LENGTH: Final = 255

# These columns are TEXT in the seed; the limits are hubbub's, so that a page of 200 has a bounded size.
DESCRIPTION_LENGTH: Final = 4_000
CONTENT_LENGTH: Final = 20_000

METADATA_BYTES: Final = 8_192
JSON_LEVELS: Final = 32  # far more than people nest by hand, far less than any parser on the way can take

PAGE_LIMIT: Final = 200
LARGEST_SEQ: Final = 2**63 - 1  # of a bigint
LARGEST_FLOAT: Final = sys.float_info.max


def text(field: str, value: object, *, longest: int, shortest: int = 1) -> str:
    """`shortest` to `longest` characters; only with a `shortest` of 0 may it be blank, that is all white space."""
    if not isinstance(value, str):
        raise Invalid(field, "must be text")
    if len(value) > longest:
        raise Invalid(field, f"must have at most {longest} characters")
    if len(value) < shortest or (shortest and value.isspace()):
        raise Invalid(field, "must not be blank" if shortest == 1 else f"must have at least {shortest} characters")
    if "\0" in value:
        raise Invalid(field, "must not hold a NUL character")
    # This runs on every send. isascii() reads one bit of the string, so most messages skip the encoding.
    if not value.isascii() and not _has_utf8(value):
        raise Invalid(field, "must not hold half of a surrogate pair")
    return value


def _has_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def email(value: object) -> str:
    """An email address in the form to store and to look for, with Unicode and the domain's case normalised.

    Its syntax is checked and nothing is asked of the DNS. The case of the part before the @ is kept; that it
    makes no difference is the database's rule. What is wrong with an address stands in the cause of `Invalid`.
    """
    # Imported on the first use: it costs 25 ms, which `hubbub --help` and every worker's start would pay.
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415 - 25 ms

    address = text("email", value, longest=EMAIL_LENGTH)
    try:
        # test_environment admits the reserved domain .test, so that an application's own tests can register.
        return validate_email(address, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError as error:
        raise Invalid("email", "must be an email address") from error


def username(value: object) -> str:
    """A name of 1 to 50 characters in Unicode's composed form (NFC), the form to store and to look for.

    It has no @, so a login is either an email or a username and never both: else somebody could take the email
    of another as a username and receive their logins. White space around it, control and invisible characters
    are refused, because two names that differ by these look the same.
    """
    name = text("username", value, longest=USERNAME_LENGTH)  # first: a long run of accents is slow to normalise
    name = text("username", normalize("NFC", name), longest=USERNAME_LENGTH)  # again: it can become longer
    if "@" in name:
        raise Invalid("username", "must not hold an @")
    if name != name.strip():
        raise Invalid("username", "must not start or end with white space")
    if not name.isprintable():
        raise Invalid("username", "must not hold control or invisible characters")
    return name


# Schemes that a browser runs or renders as a document of the page when a link or an image names them.
_ACTIVE_SCHEME = re.compile("(javascript|vbscript|data):", re.IGNORECASE)


def url(field: str, value: object) -> str | None:
    """None, or 1 to 500 printable characters without white space: a URL, a relative path, a key of a blob store.

    hubbub does not fetch it and asks for no scheme, but refuses `javascript:`, `vbscript:` and `data:`. Browsers
    skip white space and control characters in front of a scheme; as there are none, nothing slips by.
    """
    if value is None:
        return None
    address = text(field, value, longest=AVATAR_URL_LENGTH)
    if not address.isprintable() or " " in address:
        raise Invalid(field, "must not hold white space, control or invisible characters")
    if _ACTIVE_SCHEME.match(address):
        raise Invalid(field, "must not be a javascript:, vbscript: or data: URL")
    return address


def limit(value: object, *, longest: int = PAGE_LIMIT, field: str = "limit") -> int:
    """How many items a page may have: 1 to `longest`."""
    return _whole_number(field, value, 1, longest)


def seq(field: str, value: object, *, least: int = 0) -> int:
    """A place in the log of a room, 0 being the one before the first."""
    return _whole_number(field, value, least, LARGEST_SEQ)


def _whole_number(field: str, value: object, least: int, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise Invalid(field, f"must be a whole number from {least} to {largest}")
    return value


def flag(field: str, value: object) -> bool:
    """True or False, and nothing that is merely truthy."""
    if not isinstance(value, bool):
        raise Invalid(field, "must be True or False")
    return value


def positive(field: str, value: object) -> float:
    """A number above 0: of seconds, or of things a second."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST_FLOAT:
        raise Invalid(field, "must be a number above 0")
    return value


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
K = TypeVar("K")
V = TypeVar("V")


def items(field: str, value: Iterable[T]) -> Iterable[T]:
    """An iterable, whatever is in it. A text is none: who gives one has forgotten the brackets around it."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise Invalid(field, "must be an iterable, and no text")
    return value


def mapping(field: str, value: Mapping[K, V]) -> Mapping[K, V]:
    """A mapping, whatever is in it."""
    if not isinstance(value, Mapping):
        raise Invalid(field, "must be a mapping")
    return value


# UUID() alone also takes braces, urn:uuid:, hyphens anywhere and underscores between digits.
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def uuid(field: str, value: object) -> UUID:
    """A UUID, from itself or from its string form with hyphens, in either case."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str) and _UUID.fullmatch(value):
        return UUID(value)
    raise Invalid(field, "must be a UUID")


def uuids(field: str, value: Iterable[UUID]) -> set[UUID]:
    """The UUIDs of an iterable, each once."""
    return {uuid(field, one) for one in items(field, value)}


_ROLES = {one.value: one for one in Role}
_MESSAGE_TYPES = {one.value: one for one in MessageType}


def role(value: object) -> Role:
    """A role, from itself or from its name."""
    if isinstance(value, str) and value in _ROLES:
        return _ROLES[value]
    raise Invalid("role", f"must be one of {', '.join(_ROLES)}")


def message_type(value: object) -> MessageType:
    """A type of message, from itself or from its name."""
    if value.__class__ is MessageType:  # this runs on every send, and the hash of an Enum is computed in Python
        return value
    if isinstance(value, str) and value in _MESSAGE_TYPES:
        return _MESSAGE_TYPES[value]
    raise Invalid("message_type", f"must be one of {', '.join(_MESSAGE_TYPES)}")


def json_object(field: str, value: object, *, longest_bytes: int) -> bytes:
    """The compact JSON of a mapping, if the mapping comes back from it as it was. It may be 32 levels deep.

    Refused is what JSON cannot hold, or would hold as something else, as it does keys that are no text, tuples,
    times and NaN. Without a cause: the error of an encoding quotes the value.
    """
    encoded = _encoded(value, longest_bytes) if isinstance(value, Mapping) else None
    if encoded is None:
        raise Invalid(
            field, "must be a mapping of JSON: text, numbers, booleans, None, and lists and dicts of them"
        )
    if len(encoded) > longest_bytes:
        raise Invalid(field, f"must have at most {longest_bytes} bytes as JSON")
    _check_levels(field, value, JSON_LEVELS)
    return encoded


def _encoded(value: Mapping[object, object], longest_bytes: int) -> bytes | None:
    try:
        plain = dict(value)
        encoded = msgspec.json.encode(plain)
        same = len(encoded) > longest_bytes or msgspec.json.decode(encoded) == plain
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return encoded if same else None


def _check_levels(field: str, value: object, levels: int) -> None:
    if isinstance(value, Mapping | list):
        if not levels:
            raise Invalid(field, f"must be at most {JSON_LEVELS} levels deep")
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_levels(field, inner, levels - 1)


def metadata(value: object) -> str | None:
    """None, or the JSON of what an application keeps with a message: at most 8 KiB, and 32 levels deep.

    It lives in a column of type jsonb, which changes more than JSON does: it takes no NUL, and it writes numbers
    out, so 1e23 would come back as a whole number that is another, and 1e-300 as 302 characters. So a float is 0,
    or lies between 1e-30 and 1e15 on either side of it. Whole numbers may be of any size.
    """
    if value is None:
        return None
    encoded = json_object("metadata", value, longest_bytes=METADATA_BYTES)
    _check_fits_jsonb(value)
    return encoded.decode()


def _check_fits_jsonb(value: object) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise Invalid("metadata", "must not hold a NUL character")
    elif isinstance(value, float):
        if value and not 1e-30 <= abs(value) <= 1e15:
            raise Invalid("metadata", "must hold no float beyond 1e15, or closer to 0 than 1e-30")
    elif isinstance(value, Mapping | list):
        for inner in (*value, *value.values()) if isinstance(value, Mapping) else value:
            _check_fits_jsonb(inner)


def callback(field: str, function: F) -> F:
    """A function that the event loop calls: what an async one returns would be awaited by nobody."""
    if not callable(function) or iscoroutinefunction(function):
        raise Invalid(field, "must be a function that is not async")
    return function
