"""Checks of input before it reaches a server, and the form in which names and addresses are compared.

A bad value costs no round trip and changes nothing.

Each function returns the value to use or raises `Invalid(field, reason)`. No reason repeats the value. Lengths are
in characters, as VARCHAR counts them. NUL and lone surrogates are refused in every text, because PostgreSQL stores
no NUL and a lone surrogate has no UTF-8. The functions accept any object at run time, because values from a socket
have seldom been checked by mypy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction
from itertools import chain
from typing import Final, TypeVar
from unicodedata import category, normalize, ucd_3_2_0
from uuid import UUID

import msgspec
import uuid_utils

from hubbub.errors import Invalid
from hubbub.models import MESSAGE_TYPES, ROLES, USER_KINDS, MessageType, Role, UserKind

# The widths of the columns, of which those of display names and external ids are not of the original schema.
EMAIL_LENGTH: Final = 255
USERNAME_LENGTH: Final = 50
DISPLAY_NAME_LENGTH: Final = 100
EXTERNAL_ID_LENGTH: Final = 255
ROOM_NAME_LENGTH: Final = 100
AVATAR_URL_LENGTH: Final = 500
PASSWORD_HASH_LENGTH: Final = 255

# These columns are TEXT in the original schema. The limits are hubbub's, so that a page of 200 has a bounded size.
DESCRIPTION_LENGTH: Final = 4_000
CONTENT_LENGTH: Final = 20_000
IMPORTED_CONTENT_LENGTH: Final = 65_536  # the most that WhatsApp takes; Slack 40,000

SEARCH_KEY_LENGTH: Final = 100

METADATA_BYTES: Final = 8_192
JSON_LEVELS: Final = 32  # far more than applications nest, far less than the limit of any parser in between

PAGE_LIMIT: Final = 200
MAX_SEQ: Final = 2**63 - 1  # of a bigint
MAX_FLOAT: Final = sys.float_info.max

# Unicode's property Default_Ignorable_Code_Point, which Python does not have, and characters without it that are
# drawn as nothing: the anchors of annotations, the blank pattern of Braille, the null note head, Egyptian blanks.
_INVISIBLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U00013441\U00013442\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK: Final = re.compile(rf"[\s\x00-\x1f\x7f-\x9f{_INVISIBLE}]*")
_MARKS: Final = re.compile(f"[{_INVISIBLE}]")
_JOINERS: Final = "\u200c\u200d"
_EMOJI: Final = {"So", "Sm"}
_VARIATION_SELECTORS: Final = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def text(
    field: str,
    value: object,
    *,
    longest: int,
    shortest: int = 1,
    is_blank: Callable[[str], object] = _BLANK.fullmatch,
) -> str:
    """A text of `shortest` to `longest` characters. It may be blank only if `shortest` is 0.

    Blank means that it shows nothing: white space, control and invisible characters.
    """
    if not isinstance(value, str):
        raise Invalid(field, "must be text")
    if len(value) > longest:
        raise Invalid(field, f"must have at most {longest} characters")
    # This runs on every send. Most texts begin with a visible character of ASCII, and skip the pattern.
    if len(value) < shortest or (shortest and not "!" <= value[0] <= "~" and is_blank(value)):
        raise Invalid(field, "must not be blank" if shortest == 1 else f"must have at least {shortest} characters")
    if "\0" in value:
        raise Invalid(field, "must not contain a NUL character")
    # isascii() reads one bit of the string, so most messages skip the encoding.
    if not value.isascii() and not _has_utf8(value):
        raise Invalid(field, "must not contain half of a surrogate pair")
    return value


def imported_text(field: str, value: object, *, longest: int, shortest: int = 1) -> str:
    """As `text`, but only white space is blank. An imported message is kept even if it is invisible."""
    return text(field, value, longest=longest, shortest=shortest, is_blank=str.isspace)


def content(value: object, message_type: object, metadata: object) -> str:
    """The text of a message. It may be empty if the message has metadata, or is an image or a file."""
    return text("content", value, longest=CONTENT_LENGTH, shortest=_least_content(message_type, metadata))


def imported_content(value: object, message_type: object, metadata: object) -> str:
    """The text of a message that an import adds."""
    shortest = _least_content(message_type, metadata)
    return imported_text("content", value, longest=IMPORTED_CONTENT_LENGTH, shortest=shortest)


def _least_content(message_type: object, metadata: object) -> int:
    return 1 if message_type == MessageType.TEXT and metadata is None else 0


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
        normal = validate_email(address, check_deliverability=False, test_environment=True).normalized
    except EmailNotValidError as error:
        raise Invalid("email", "must be an email address") from error
    if not address.isascii() and not _is_same_address(address, normal):
        raise Invalid("email", "must not contain invisible characters or compatibility forms")
    return normal


def _is_same_address(address: str, normal: str) -> bool:
    """Whether nothing was changed but case, composition and labels in Punycode.

    Domains also leave out invisible characters and replace compatibility forms. Mail for an address in such a form
    may go elsewhere, so it finds no account.
    """
    local, _, domain = normal.rpartition("@")
    labels = normalize("NFC", address.rpartition("@")[2]).split(".")
    small = ["".join(map(str.lower, label)) for label in labels]
    pairs = zip(small, domain.split("."), strict=False)
    return not _MARKS.search(local) and all(one == other or one.isascii() for one, other in pairs)


def username(value: object) -> str:
    """A name of 1 to 50 characters in Unicode's composed form (NFC), the form to store.

    It has no @, so a login is either an email or a username and never both. Otherwise a user could choose the
    email of another user as a username and receive their logins. White space around it, control and invisible
    characters are refused, because they make a name look like another. A joiner is accepted where the letters or
    emoji around it need it, and a variation selector after a character. `same_name` ignores both.
    """
    name = _name("username", value, USERNAME_LENGTH)
    if "@" in name or (not name.isascii() and "@" in normalize("NFKC", name)):  # also one of another width
        raise Invalid("username", "must not contain an @")
    return name


def display_name(value: object) -> str | None:
    """None, or a name to show: 1 to 100 characters, as `username`, but with any @. Several users may have it."""
    return None if value is None else _name("display_name", value, DISPLAY_NAME_LENGTH)


def description(value: object) -> str | None:
    """None, or the description of a room: up to 4,000 characters."""
    return None if value is None else text("description", value, longest=DESCRIPTION_LENGTH, shortest=0)


def _name(field: str, value: object, longest: int) -> str:
    name = text(field, value, longest=longest)  # first: a long run of accents is slow to normalise
    name = text(field, normalize("NFC", name), longest=longest)  # again: it can become longer
    if name != name.strip():
        raise Invalid(field, "must not start or end with white space")
    if not name.isprintable() or not name.isascii():
        _check_marks(field, name)
    return name


def _check_marks(field: str, name: str) -> None:
    for position, character in enumerate(name):
        is_mark = not character.isprintable() or _MARKS.match(character)
        if is_mark and not (_joins(name, position) or (position and _VARIATION_SELECTORS.match(character))):
            raise Invalid(field, "must not contain control or invisible characters")


def _joins(name: str, position: int) -> bool:
    """Whether the character is a joiner that changes how its neighbours are drawn.

    Between letters these are the rules of RFC 5892, which PRECIS (RFC 8264) refers to.
    """
    if name[position] not in _JOINERS or not position > 0:
        return False
    from idna.core import valid_contextj  # noqa: PLC0415 - few names need it

    if name[position] == "\u200d" and position + 1 < len(name) and category(name[position + 1]) in _EMOJI:
        before = name[position - 1]
        return before == "\ufe0f" or category(before) in {*_EMOJI, "Sk"}  # Sk: of a tone of skin
    with suppress(ValueError):  # a neighbour without a name in Unicode
        return valid_contextj(name, position)
    return False


# Names and addresses that are equal


def _is_capital(letter: str) -> bool:
    """Whether it is a pair with one small letter, as İ and ẞ are not, since Unicode 3.2.

    Unicode keeps such a pair for ever. A pair of a later version would be in this process and not in the index.
    """
    small = letter.lower()
    return letter != small and small.upper() == letter and ucd_3_2_0.category(letter) != "Cn"


CAPITALS: Final = "".join(filter(_is_capital, map(chr, (*range(0x590), *range(0x1E00, 0x1F00)))))
"""Of Latin, Greek, Cyrillic and Armenian. Their small letters are `CAPITALS.lower()`."""

_SMALL: Final = str.maketrans(CAPITALS, CAPITALS.lower())


def folded(text: str) -> str:
    """The text in small letters, one for one. Texts that are equal in this form differ in case only.

    `hubbub.sql.folded` is the same in SQL, whatever the locale of the database.
    """
    return text.translate(_SMALL)


def same_name(name: str) -> str:
    """The form that is equal for all spellings of one username: the key of the index, lookups, imports and limits.

    Case, compatibility forms (width, ligatures), invisible characters and repeated spaces make no difference.
    PRECIS compares nicknames like this (RFC 8266), but with `lower`, whose form of a sigma depends on the letters
    around it. This is `casefold`, except that ß and ss are two, as in PRECIS: Weiß and Weiss are two surnames.
    """
    if name.isascii():
        return " ".join(name.lower().split())
    key, before = name, ""
    while key != before:  # one mapping can enable another, as a removed mark does
        before, key = key, _folded_once(key)
    return key or normalize("NFC", name)  # a name of nothing, of a former version, equals only itself


def login_key(login: str) -> str:
    """The form that is equal for all spellings of a login that find the same user."""
    return folded(email(login)) if "@" in login else same_name(username(login))


def stored_key(name: str) -> str | None:
    """`same_name` if the column needs it: for the other names `folded` is the same."""
    key = same_name(name)
    return None if name.isascii() and key == folded(name) else key


def search_key(name: str) -> str:
    """The start of `same_name` by which a name to show is found. It fits into an entry of an index."""
    return same_name(name)[:SEARCH_KEY_LENGTH]


def prefix_range(key: str) -> tuple[str, str]:
    """The first text that starts with `key`, and the first one after all of these, in the order of Unicode."""
    rest = key.rstrip("\U0010ffff")
    if not rest:
        raise Invalid("prefix", "must not consist of the last character of Unicode")
    after = ord(rest[-1]) + 1
    return key, rest[:-1] + chr(0xE000 if after == 0xD800 else after)  # a surrogate has no UTF-8


def name_prefix(value: object) -> tuple[str, str]:
    """`prefix_range` of the start of a username or a name to show, in any spelling: 1 to 100 characters."""
    return prefix_range(search_key(text("prefix", value, longest=DISPLAY_NAME_LENGTH)))


def room_prefix(value: object) -> tuple[str, str]:
    """`prefix_range` of the start of the name of a room, in any case: 1 to 100 characters."""
    return prefix_range(folded(text("prefix", value, longest=ROOM_NAME_LENGTH)))


def _folded_once(name: str) -> str:
    visible = _MARKS.sub("", normalize("NFKC", name)).replace("ẞ", "ß")
    return " ".join(normalize("NFKC", "ß".join(part.casefold() for part in visible.split("ß"))).split())


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
    return whole_number(field, value, 1, longest)


def seq(field: str, value: object, *, least: int = 0) -> int:
    """A seq of the log of a room. 0 is the position before the first entry."""
    return whole_number(field, value, least, MAX_SEQ)


def whole_number(field: str, value: object, least: int, largest: int) -> int:
    """A whole number in these bounds, which are allowed themselves. A bool is not one."""
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
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_FLOAT:
        raise Invalid(field, "must be a number above 0")
    return value


T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
K = TypeVar("K")
V = TypeVar("V")


def items(field: str, value: Iterable[T]) -> Iterable[T]:
    """An iterable of any items. A text is refused, because it is usually an item without its brackets."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise Invalid(field, "must be an iterable other than text")
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


def viewer(as_user: object) -> UUID | None:
    """The user for whom a call is checked, or None for a call of the application's own."""
    return None if as_user is None else uuid("as_user", as_user)


def uuids(field: str, value: Iterable[UUID]) -> set[UUID]:
    """The UUIDs of an iterable, each once."""
    return {uuid(field, one) for one in items(field, value)}


def role(value: object) -> Role:
    """A role, from itself or from its name."""
    if isinstance(value, str) and value in ROLES:
        return ROLES[value]
    raise Invalid("role", f"must be one of {', '.join(ROLES)}")


def user_kind(value: object) -> UserKind:
    """A kind of account, from itself or from its name."""
    if isinstance(value, str) and value in USER_KINDS:
        return USER_KINDS[value]
    raise Invalid("kind", f"must be one of {', '.join(USER_KINDS)}")


def external_id(value: object) -> str:
    """The text of an account's id in another system: 1 to 255 characters. It may be given as an int or a UUID."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**EXTERNAL_ID_LENGTH
    if is_number or isinstance(value, UUID):  # Python writes no number of more than 4,300 digits
        value = str(value)
    return text("external_id", value, longest=EXTERNAL_ID_LENGTH)


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
    if not isinstance(value, Mapping):
        raise _not_json(field)
    is_json, encoded = False, b""
    # The errors are raised after this block: one raised in it would have that of the encoder as its context.
    with suppress(TypeError, ValueError, OverflowError, RecursionError):
        plain = value if value.__class__ is dict else dict(value)
        is_short = _measure(field, plain, JSON_LEVELS, longest_bytes) >= 0
        if is_short:
            encoded = msgspec.json.encode(plain)
            is_short = len(encoded) <= longest_bytes
        is_json = not is_short or msgspec.json.decode(encoded) == plain
    if not is_json:
        raise _not_json(field)
    if not is_short:
        raise Invalid(field, f"must have at most {longest_bytes} bytes as JSON")
    return encoded


def _not_json(field: str) -> Invalid:
    return Invalid(field, "must be a mapping of JSON: text, numbers, booleans, None, and lists and dicts of them")


def _measure(field: str, value: object, levels: int, left: int) -> int:
    """The bytes that are `left` by the JSON of the value, at most. It ends where these are below 0.

    Writing a value of 100 MB, to refuse it then, would hold the event loop for a second.
    """
    if isinstance(value, str):
        return left - len(value) - 2
    if isinstance(value, dict | list):
        if not levels:
            raise Invalid(field, f"must be at most {JSON_LEVELS} levels deep")
        left -= len(value) + 1
        for inner in chain(value, value.values()) if isinstance(value, dict) else value:
            if left < 0:
                break
            left = _measure(field, inner, levels - 1, left)
        return left
    if value is None or isinstance(value, int | float):
        return left - 1
    raise _not_json(field)


def metadata(value: object) -> str | None:
    """None, or the JSON of the data that an application keeps with something: at most 8 KiB and 32 levels deep.

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
