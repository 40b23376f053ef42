"""Checks of input before it reaches a server. A bad value costs no round trip and changes nothing.

Each function returns the value to use or raises `Invalid(field, reason)`. No reason repeats the value. Lengths are
in characters, as VARCHAR counts them. NUL and lone surrogates are refused in every text, because PostgreSQL stores
no NUL and a lone surrogate has no UTF-8. The functions accept any object at run time, because values from a socket
have seldom been checked by mypy.
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
import uuid_utils

from hubbub.errors import Invalid
from hubbub.models import MESSAGE_TYPES, ROLES, MessageType, Role

# The widths of the columns in the original schema.
EMAIL_LENGTH: Final = 255
USERNAME_LENGTH: Final = 50
ROOM_NAME_LENGTH: Final = 100
AVATAR_URL_LENGTH: Final = 500
PASSWORD_HASH_LENGTH: Final = 255

# These columns are TEXT in the original schema. The limits are hubbub's, so that a page of 200 has a bounded size.
DESCRIPTION_LENGTH: Final = 4_000
CONTENT_LENGTH: Final = 20_000
IMPORTED_CONTENT_LENGTH: Final = 65_536  # the most that WhatsApp takes; Slack 40,000

METADATA_BYTES: Final = 8_192
JSON_LEVELS: Final = 32  # far more than applications nest, far less than the limit of any parser in between

PAGE_LIMIT: Final = 200
LARGEST_SEQ: Final = 2**63 - 1  # of a bigint
LARGEST_FLOAT: Final = sys.float_info.max


def text(field: str, value: object, *, longest: int, shortest: int = 1) -> str:
    """A text of `shortest` to `longest` characters. It may be blank, all white space, only if `shortest` is 0."""
    if not isinstance(value, str):
        raise Invalid(field, "must be text")
    if len(value) > longest:
        raise Invalid(field, f"must have at most {longest} characters")
    if len(value) < shortest or (shortest and value.isspace()):
        raise Invalid(field, "must not be blank" if shortest == 1 else f"must have at least {shortest} characters")
    if "\0" in value:
        raise Invalid(field, "must not contain a NUL character")
    # This runs on every send. isascii() reads one bit of the string, so most messages skip the encoding.
    if not value.isascii() and not _has_utf8(value):
        raise Invalid(field, "must not contain half of a surrogate pair")
    return value


def content(value: object, message_type: object, metadata: object, *, longest: int = CONTENT_LENGTH) -> str:
    """The text of a message. It may be empty if the message has metadata, or is an image or a file."""
    is_text = message_type == MessageType.TEXT
    return text("content", value, longest=longest, shortest=1 if is_text and metadata is None else 0)


def _has_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def email(value: object) -> str:
    """An email address in the form to store and to look up, with Unicode and the domain's case normalised.

    Only its syntax is checked, without a DNS query. The case of the part before the @ is kept, and the database
    ignores it. The cause of `Invalid` has the details.
    """
    # Imported on first use. It takes 25 ms, which would delay `hubbub --help` and the start of every worker.
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415 - 25 ms

    address = text("email", value, longest=EMAIL_LENGTH)
    try:
        # test_environment admits the reserved domain .test, so that an application's own tests can register.
        return validate_email(address, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError as error:
        raise Invalid("email", "must be an email address") from error


def username(value: object) -> str:
    """A name of 1 to 50 characters in Unicode's composed form (NFC), the form to store and to look up.

    It has no @, so a login is either an email or a username and never both. Otherwise a user could choose the
    email of another user as a username and receive their logins. White space around it, control and invisible
    characters are refused, because two names that differ only by these look the same.
    """
    name = text("username", value, longest=USERNAME_LENGTH)  # first: a long run of accents is slow to normalise
    name = text("username", normalize("NFC", name), longest=USERNAME_LENGTH)  # again: it can become longer
    if "@" in name:
        raise Invalid("username", "must not contain an @")
    if name != name.strip():
        raise Invalid("username", "must not start or end with white space")
    if not name.isprintable():
        raise Invalid("username", "must not contain control or invisible characters")
    return name


# Schemes that a browser runs or renders as a document of the page when a link or an image names them.
_ACTIVE_SCHEME = re.compile("(javascript|vbscript|data):", re.IGNORECASE)


def url(field: str, value: object) -> str | None:
    """None, or 1 to 500 printable characters without white space: a URL, a relative path, a key of a blob store.

    hubbub does not fetch it and needs no scheme, but refuses `javascript:`, `vbscript:` and `data:`. Browsers skip
    white space and control characters in front of a scheme. These are refused as well, so the check cannot be
    evaded.
    """
    if value is None:
        return None
    address = text(field, value, longest=AVATAR_URL_LENGTH)
    if not address.isprintable() or " " in address:
        raise Invalid(field, "must not contain white space, control or invisible characters")
    if _ACTIVE_SCHEME.match(address):
        raise Invalid(field, "must not be a javascript:, vbscript: or data: URL")
    return address


def limit(value: object, *, longest: int = PAGE_LIMIT, field: str = "limit") -> int:
    """The number of items that a page may have: 1 to `longest`."""
    return _whole_number(field, value, 1, longest)


def seq(field: str, value: object, *, least: int = 0) -> int:
    """A seq of the log of a room. 0 is the position before the first entry."""
    return _whole_number(field, value, least, LARGEST_SEQ)


def _whole_number(field: str, value: object, least: int, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise Invalid(field, f"must be a whole number from {least} to {largest}")
    return value


def flag(field: str, value: object) -> bool:
    """True or False, and no other truthy or falsy value."""
    if not isinstance(value, bool):
        raise Invalid(field, "must be True or False")
    return value


def positive(field: str, value: object) -> float:
    """A number above 0: of seconds, or of things per second."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST_FLOAT:
        raise Invalid(field, "must be a number above 0")
    return value


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
K = TypeVar("K")
V = TypeVar("V")


def items(field: str, value: Iterable[T]) -> Iterable[T]:
    """An iterable of any items. A text is refused, because it is usually an item without its brackets."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise Invalid(field, "must be an iterable and not a text")
    return value


def mapping(field: str, value: Mapping[K, V]) -> Mapping[K, V]:
    """A mapping of any keys and values."""
    if not isinstance(value, Mapping):
        raise Invalid(field, "must be a mapping")
    return value


# UUID() alone also takes braces, urn:uuid:, hyphens anywhere and underscores between digits.
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def uuid(field: str, value: object) -> UUID:
    """A UUID, from itself, from that of uuid_utils, or from its string form with hyphens, in either case.

    The nil UUID is refused. Programs use it for a missing id, and pages ordered by id begin after it.
    """
    if isinstance(value, UUID):
        id = value
    elif isinstance(value, str) and _UUID.fullmatch(value):
        id = UUID(value)
    elif isinstance(value, uuid_utils.UUID):
        id = UUID(bytes=value.bytes)
    else:
        raise Invalid(field, "must be a UUID")
    if not id.int:
        raise Invalid(field, "must not be the nil UUID")
    return id


def uuids(field: str, value: Iterable[UUID]) -> set[UUID]:
    """The UUIDs of an iterable, each once."""
    return {uuid(field, one) for one in items(field, value)}


def role(value: object) -> Role:
    """A role, from itself or from its name."""
    if isinstance(value, str) and value in ROLES:
        return ROLES[value]
    raise Invalid("role", f"must be one of {', '.join(ROLES)}")


def message_type(value: object) -> MessageType:
    """A type of message, from itself or from its name."""
    if value.__class__ is MessageType:  # this runs on every send, and the hash of an Enum is computed in Python
        return value
    if isinstance(value, str) and value in MESSAGE_TYPES:
        return MESSAGE_TYPES[value]
    raise Invalid("message_type", f"must be one of {', '.join(MESSAGE_TYPES)}")


def json_object(field: str, value: object, *, longest_bytes: int) -> bytes:
    """The compact JSON of a mapping, if decoding it gives an equal mapping. It may be 32 levels deep.

    Values that JSON cannot represent, or represents as something else, are refused: keys that are not text,
    tuples, times, NaN. The error has no cause, because the error of the encoder quotes the value.
    """
    encoded = _encoded(value, longest_bytes) if isinstance(value, Mapping) else None
    if encoded is None:
        kinds = "text, numbers, booleans, None, and lists and dicts of them"
        raise Invalid(field, f"must be a mapping of JSON: {kinds}")
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
    """None, or the JSON of the data that an application keeps with a message: at most 8 KiB and 32 levels deep.

    Its column is of type jsonb, which accepts less than JSON. It refuses NUL and writes numbers in full: 1e23
    would come back as another whole number, and 1e-300 as 302 characters. So the absolute value of a float is 0 or
    from 1e-30 to 1e15. Whole numbers may be of any size.
    """
    if value is None:
        return None
    encoded = json_object("metadata", value, longest_bytes=METADATA_BYTES)
    _check_fits_jsonb(value)
    return encoded.decode()


def _check_fits_jsonb(value: object) -> None:
    if isinstance(value, str) and "\0" in value:
        raise Invalid("metadata", "must not contain a NUL character")
    if isinstance(value, float) and value and not 1e-30 <= abs(value) <= 1e15:
        raise Invalid("metadata", "must not contain a float beyond 1e15, or closer to 0 than 1e-30")
    if isinstance(value, Mapping | list):
        for inner in (*value, *value.values()) if isinstance(value, Mapping) else value:
            _check_fits_jsonb(inner)


def callback(field: str, function: F) -> F:
    """A function that the event loop calls. An async one is refused: its coroutine would not be awaited."""
    if not callable(function) or iscoroutinefunction(function):
        raise Invalid(field, "must be a function that is not async")
    return function
