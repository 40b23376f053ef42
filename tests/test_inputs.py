"""Input is refused before it reaches a server, or accepted unchanged or in its normal form."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from functools import partial
from math import inf, nan
from types import MappingProxyType
from typing import TYPE_CHECKING
from unicodedata import category, is_normalized, normalize
from uuid import UUID, uuid4

import pytest
import uuid_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.models import MessageType, Role
from hubbub.postgres import FastUUID

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "hunter2"
NOT_TEXT: list[object] = [None, 5, b"bytes", ["a"], object()]
NOT_STORABLE = ["a\0b", "\0", "a\ud800", "\udfff", "\ud83d \ude00"]

# Default_Ignorable_Code_Point of Unicode 14, from the data of Perl 5.36, without most of the tags at its end.
IGNORABLE = {
    *("\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u3164\ufeff\uffa0"),
    *map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), *range(0xFE00, 0xFE10))),
    *map(
        chr, (*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE0200))
    ),
}
INVISIBLE = sorted(IGNORABLE | {"\u2800", "\ufff9", "\ufffa", "\ufffb", "\U0001d159", "\U00013441", "\U00013442"})

# The first example includes imports, and the machine may be busy with other tests.
patient = settings(deadline=None)

anything = st.text(st.characters(), max_size=300)  # lone surrogates, controls and NUL included


def reason(check: Callable[[], object], field: str) -> str:
    with pytest.raises(Invalid) as caught:
        check()
    assert caught.value.field == field
    return caught.value.reason


# Text


@pytest.mark.parametrize("value", ["a", "  a ", "é" * 10, "👋🏽", "0123456789", "line\nline"])
def test_text_is_returned_unchanged(value: str) -> None:
    assert inputs.text("content", value, longest=10) == value


def test_length_is_in_characters_and_both_limits_are_allowed() -> None:
    assert inputs.text("name", "😀" * 100, longest=100)
    assert inputs.text("name", "abc", longest=3, shortest=3)
    assert (
        reason(lambda: inputs.text("name", "😀" * 101, longest=100), "name") == "must have at most 100 characters"
    )
    assert (
        reason(lambda: inputs.text("name", "ab", longest=3, shortest=3), "name")
        == "must have at least 3 characters"
    )


@pytest.mark.parametrize(
    "blank", ["", " ", "\t\n", "\u00a0\u2003\u3000", "\x01\x7f", *INVISIBLE, " \u200b\n\u2800 "]
)
def test_blank_text_is_refused_unless_it_may_be_empty(blank: str) -> None:
    assert reason(lambda: inputs.text("content", blank, longest=10), "content") == "must not be blank"
    assert inputs.text("description", blank, longest=10, shortest=0) == blank


@pytest.mark.parametrize("value", NOT_STORABLE)
def test_text_that_postgresql_cannot_store_is_refused(value: str) -> None:
    reason(lambda: inputs.text("content", value, longest=10), "content")
    reason(lambda: inputs.text("content", value, longest=10, shortest=0), "content")
    reason(lambda: inputs.email(f"{value}@example.org"), "email")
    reason(lambda: inputs.username(value), "username")
    reason(lambda: inputs.url("avatar_url", value), "avatar_url")


@pytest.mark.parametrize("value", NOT_TEXT)
def test_value_that_is_not_text_is_refused(value: object) -> None:
    reason(lambda: inputs.text("content", value, longest=10), "content")
    reason(lambda: inputs.email(value), "email")
    reason(lambda: inputs.username(value), "username")
    reason(lambda: inputs.role(value), "role")
    reason(lambda: inputs.message_type(value), "message_type")
    if value is not None:
        reason(lambda: inputs.url("avatar_url", value), "avatar_url")


@patient
@given(value=anything)
def test_text_is_refused_or_returned_unchanged_and_storable(value: str) -> None:
    try:
        passed = inputs.text("content", value, longest=200)
    except Invalid:
        assert len(value) > 200 or shows_nothing(value) or "\0" in value or not encodes(value)
    else:
        assert passed is value
        assert encodes(value)
        assert "\0" not in value


def shows_nothing(value: str) -> bool:
    return all(character in INVISIBLE or character.isspace() or category(character) == "Cc" for character in value)


def encodes(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


@patient
@given(before=anything, after=anything)
def test_error_does_not_repeat_the_value(before: str, after: str) -> None:
    value = f"{before}{SECRET}{after}"
    for check in (inputs.email, inputs.username, inputs.role, inputs.message_type, inputs.limit):
        try:
            check(value)
        except Invalid as error:
            assert SECRET not in f"{error} {error!r}"  # noqa: PT017 - most values are refused, not all


# Email


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ("ada@example.org", "ada@example.org"),
        ("Ada.Lovelace+chat@EXAMPLE.Org", "Ada.Lovelace+chat@example.org"),
        ("ada@chat.test", "ada@chat.test"),
        ("jose\u0301@example.org", "jos\u00e9@example.org"),
        ("ada@xn--bcher-kva.example", "ada@b\u00fccher.example"),
    ],
)
def test_email_is_returned_in_its_normal_form(value: str, normal: str) -> None:
    assert inputs.email(value) == normal


@pytest.mark.parametrize(
    "value",
    [
        "ada",
        "@example.org",
        "ada@",
        "ada@localhost",
        "ada@example",
        "ada@@example.org",
        "a da@example.org",
        " ada@example.org",
        "ada@example.org\n",
        "ada@[127.0.0.1]",
        '"a b"@example.org',
        "Ada <ada@example.org>",
        "ada@example..org",
        "ada@-example.org",
    ],
)
def test_malformed_email_is_refused_with_a_short_reason(value: str) -> None:
    assert reason(lambda: inputs.email(value), "email") == "must be an email address"


@pytest.mark.parametrize("value", ["ada@BÜCHER.example", "ada@ΝΊΚΟΣ.example", "ada@xn--bcher-kva.bücher.example"])
def test_email_in_another_case_or_in_punycode_is_accepted(value: str) -> None:
    assert inputs.email(value).startswith("ada@")


@pytest.mark.parametrize(
    "value",
    [
        "ada@exa\u3164mple.org",
        "ada@exa\u00admple.org",
        "ada@ｅxample.org",
        "ada@examp\N{SCRIPT SMALL L}e.org",
        "ada@example\u3002org",
        "ada@ﬁrm.example",
        "a\u3164da@example.org",
        "ada\ufe0f@example.org",
        "ada\u2800@example.org",
    ],
)
def test_email_that_would_become_another_address_is_refused(value: str) -> None:
    assert reason(lambda: inputs.email(value), "email")


def test_email_has_at_most_255_characters() -> None:
    assert reason(lambda: inputs.email("a" * 64 + "@" + "b." * 100 + "org"), "email")
    assert reason(lambda: inputs.email("a" * 250 + "@b.org"), "email") == "must have at most 255 characters"


@patient
@given(value=st.emails() | anything)
def test_accepted_email_fits_its_column_and_normalises_to_itself(value: str) -> None:
    try:
        address = inputs.email(value)
    except Invalid:
        return
    assert len(address) <= inputs.EMAIL_LENGTH
    assert inputs.email(address) == address


def test_import_of_hubbub_does_not_load_the_email_validator() -> None:
    code = "import sys, hubbub.inputs; sys.exit('email_validator' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Username


@pytest.mark.parametrize("value", ["a", "ada lovelace", "Æsir", "山田", "😀", "o'brien; --", "x" * 50])
def test_names_of_people_are_usernames(value: str) -> None:
    assert inputs.username(value) == value


def test_username_is_returned_composed() -> None:
    assert inputs.username("Zoe\u0308") == "Zo\u00eb"


@pytest.mark.parametrize("value", ["ada@example.org", "@ada", "@", "ada\uff20example.org", "\ufe6bada"])
def test_username_with_an_at_sign_is_refused(value: str) -> None:
    assert reason(lambda: inputs.username(value), "username") == "must not contain an @"


@pytest.mark.parametrize("value", [" ada", "ada ", "ada\n", "\u00a0ada", "\tada"])
def test_username_with_white_space_around_it_is_refused(value: str) -> None:
    assert reason(lambda: inputs.username(value), "username") == "must not start or end with white space"


@pytest.mark.parametrize(
    "value",
    [
        "ශ්\u200dරී",  # Sinhala: Sri
        "علی\u200cرضا",  # Persian: Alireza
        "പ്രവീണ്\u200d",  # Malayalam: Praveen
        "👨\u200d👩\u200d👧",
        "👩🏽\u200d🚀",
        "❤\ufe0f\u200d🔥",
        "葛\U000e0100城",  # Japanese: a form of the first letter
        "1\ufe0f\u20e3",
    ],
)
def test_mark_that_changes_how_a_name_is_drawn_is_accepted(value: str) -> None:
    assert inputs.username(value) == value
    assert inputs.same_name(value) == inputs.same_name("".join(one for one in value if one not in IGNORABLE))


@pytest.mark.parametrize(
    "value", ["ad\u200da", "ad\u200ca", "\u200dada", "ada\u200d", "\ufe0fada", "👨\u200d", "a\u200d👨"]
)
def test_joiner_and_selector_that_change_nothing_are_refused(value: str) -> None:
    assert reason(lambda: inputs.username(value), "username") == "must not contain control or invisible characters"


@pytest.mark.parametrize("value", ["a\nb", "a\x7fb", "a\u200bb", "a\u202eb", "\ufeffada", "a\u00a0b"])
def test_username_with_invisible_characters_is_refused(value: str) -> None:
    assert reason(lambda: inputs.username(value), "username") == "must not contain control or invisible characters"


def test_username_whose_composed_form_exceeds_50_characters_is_refused() -> None:
    assert reason(lambda: inputs.username("\u0958" * 26), "username") == "must have at most 50 characters"


@patient
@given(value=anything)
def test_accepted_username_fits_its_column_and_normalises_to_itself(value: str) -> None:
    try:
        name = inputs.username(value)
    except Invalid:
        return
    assert 1 <= len(name) <= inputs.USERNAME_LENGTH
    assert is_normalized("NFC", name)
    assert inputs.username(name) == name


# Names and addresses that are equal

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Νίκος", "ΝΊΚΟΣ"),
        ("Νίκος.α", "ΝΊΚΟΣ.Α"),
        ("µtorrent", "ΜTORRENT"),
        ("straße", "STRAẞE"),
        ("ſam", "SAM"),
        ("ǆ", "ǅ"),
        ("иван", "ИВАН"),
        ("ﬁn", "FIN"),
        ("ｆｉｎ", "FIN"),
        ("ǰ", "J\u030c"),
        ("ŉ", "ʼN"),
        ("ϑ", "Θ"),
        ("ᾳ", "ΑΙ"),
        ("ᏸ", "Ᏸ"),
        ("ada  lovelace", "Ada Lovelace"),
        ("ad\u3164a", "ada"),
    ],
)
def test_spellings_of_one_name_are_equal(one: str, other: str) -> None:
    assert inputs.same_name(one) == inputs.same_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Weiß", "Weiss"), ("Weiß", "WEISS"), ("Jose", "José"), ("İvan", "Ivan"), ("ılgın", "ilgin")],
)
def test_names_that_differ_in_a_letter_are_two(one: str, other: str) -> None:
    assert inputs.same_name(one) != inputs.same_name(other)


@patient
@given(name=names)
def test_key_of_a_name_is_equal_for_its_other_case_its_forms_and_its_key(name: str) -> None:
    key = inputs.same_name(name)
    assert inputs.same_name(key) == key
    assert inputs.same_name(normalize("NFD", name)) == inputs.same_name(normalize("NFC", name)) == key
    for letter in name:
        small, large = letter.lower(), letter.upper()
        if len(small) == len(large) == 1 and small.upper() == large and large.lower() == small:
            assert inputs.same_name(small) == inputs.same_name(large)


@patient
@given(name=names, mark=st.sampled_from(INVISIBLE), position=st.integers(0, 20))
def test_invisible_mark_never_makes_another_name_or_an_empty_one(name: str, mark: str, position: int) -> None:
    marked = name[:position] + mark + name[position:]
    if shows_nothing(name):
        reason(lambda: inputs.username(marked), "username")
    else:
        # A mark can separate a letter from its accent. This changes the drawing, but not the comparison.
        assert inputs.same_name(marked) in {
            inputs.same_name(name),
            inputs.same_name(normalize("NFD", name[:position]) + normalize("NFD", name[position:])),
        }


@patient
@given(name=anything)
def test_accepted_username_has_a_key_that_shows(name: str) -> None:
    try:
        inputs.username(name)
    except Invalid:
        return
    assert not shows_nothing(inputs.same_name(name))


@patient
@given(name=names)
def test_key_is_stored_for_the_names_that_need_it(name: str) -> None:
    stored = inputs.stored_key(name)
    assert (inputs.folded(name) if stored is None else stored) == inputs.same_name(name)


@pytest.mark.parametrize(
    ("one", "other"), [("Ada@x.org", "aDA@x.org"), ("ÉLODIE@x.org", "élodie@x.org"), ("ИВАН@x.org", "иван@x.org")]
)
def test_addresses_that_differ_in_case_are_equal(one: str, other: str) -> None:
    assert inputs.folded(one) == inputs.folded(other)


@pytest.mark.parametrize("other", ["İnfo", "ınfo", "ﬁnfo", "ｉnfo", "inf\u00adο", "info\u3164"])
def test_address_that_differs_in_more_than_case_is_another(other: str) -> None:
    assert inputs.folded(f"{other}@x.org") != inputs.folded("info@x.org")


@patient
@given(one=names, data=st.data())
def test_equal_addresses_differ_only_in_case(one: str, data: st.DataObject) -> None:
    other = "".join(data.draw(st.sampled_from([letter, letter.swapcase(), letter.casefold()])) for letter in one)
    if inputs.folded(one) == inputs.folded(other):
        assert len(one) == len(other)
        assert all(a in (b, b.swapcase()) and b in (a, a.swapcase()) for a, b in zip(one, other, strict=True))


# Avatar


@pytest.mark.parametrize(
    "value",
    [
        None,
        "https://cdn.example.org/ada.png?size=2#top",
        "/avatars/ada.png",
        "avatars/javascript:1.png",
        "s3://bucket/ada.png",
        "//cdn.example.org/é.png",
        "x" * 500,
    ],
)
def test_avatar_is_a_url_a_path_or_a_key(value: str | None) -> None:
    assert inputs.url("avatar_url", value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "vbscript:x",
        "data:text/html,x",
        "java\tscript:alert(1)",
        "\x01javascript:alert(1)",
        " javascript:alert(1)",
        "a b",
        "a\u00a0b",
        "a\u202eb",
        "x" * 501,
    ],
)
def test_avatar_that_a_browser_would_run_or_with_invisible_characters_is_refused(value: str) -> None:
    assert reason(lambda: inputs.url("avatar_url", value), "avatar_url")


# Numbers


def test_limit_of_a_page_is_1_to_200() -> None:
    assert [inputs.limit(value) for value in (1, 50, 200)] == [1, 50, 200]
    assert inputs.limit(500, longest=500) == 500
    for value in (0, -1, 201, True, 5.0, "5", None, 10**100):
        assert reason(partial(inputs.limit, value), "limit") == "must be a whole number from 1 to 200"


def test_seq_is_a_bigint_from_0() -> None:
    assert [inputs.seq("before", value) for value in (0, 1, 2**63 - 1)] == [0, 1, 2**63 - 1]
    for value in (-1, 2**63, False, 1.0, "1", None):
        assert reason(partial(inputs.seq, "before", value), "before").startswith("must be a whole")


# Ids


@patient
@given(id=st.uuids(allow_nil=False))
def test_uuid_is_accepted_as_itself_and_as_text(id: UUID) -> None:
    assert inputs.uuid("room_id", id) is id
    assert inputs.uuid("room_id", str(id)) == inputs.uuid("room_id", str(id).upper()) == id


def test_uuid_of_uuid_utils_becomes_one_of_the_standard_library() -> None:
    made = uuid_utils.uuid7()
    id = inputs.uuid("id", made)
    assert type(id) is UUID
    assert id.bytes == made.bytes


@pytest.mark.parametrize("nil", [UUID(int=0), str(UUID(int=0)), FastUUID(bytes(16)), uuid_utils.UUID(int=0)])
def test_nil_uuid_is_refused_in_every_form(nil: UUID) -> None:
    assert reason(lambda: inputs.uuid("room_id", nil), "room_id") == "must not be the nil UUID"
    assert reason(lambda: inputs.uuids("user_ids", [uuid4(), nil]), "user_ids") == "must not be the nil UUID"


@pytest.mark.parametrize("mangle", ["{%s}", "urn:uuid:%s", "%s\n", " %s", "%s0", "%.35s"])
def test_other_form_of_a_uuid_is_refused(mangle: str) -> None:
    assert reason(lambda: inputs.uuid("room_id", mangle % uuid4()), "room_id") == "must be a UUID"


@pytest.mark.parametrize(
    "value",
    [
        *NOT_TEXT,
        "",
        "general",
        UUID(int=7).hex,
        UUID(int=7).bytes,
        "1_" * 16,
        "\u0660" * 8 + "-0000-0000-0000-" + "0" * 12,
    ],
)
def test_value_that_is_not_a_uuid_is_refused(value: object) -> None:
    assert reason(lambda: inputs.uuid("room_id", value), "room_id") == "must be a UUID"


# Roles and types of message


@pytest.mark.parametrize("role", Role)
def test_role_is_accepted_as_itself_and_by_its_name(role: Role) -> None:
    assert inputs.role(role) is inputs.role(str(role)) is role


@pytest.mark.parametrize("kind", MessageType)
def test_message_type_is_accepted_as_itself_and_by_its_name(kind: MessageType) -> None:
    assert inputs.message_type(kind) is inputs.message_type(str(kind)) is kind


@pytest.mark.parametrize("value", ["", "Admin", "owner", "ADMIN", "admin ", MessageType.TEXT])
def test_unknown_role_is_refused(value: str) -> None:
    assert reason(lambda: inputs.role(value), "role") == "must be one of admin, moderator, member"


@pytest.mark.parametrize("value", ["", "Text", "video", Role.ADMIN])
def test_unknown_message_type_is_refused(value: str) -> None:
    assert reason(lambda: inputs.message_type(value), "message_type") == "must be one of text, image, file"


# JSON


@pytest.mark.parametrize(
    "value", [None, 5, "{}", b"{}", ["a"], [("a", 1)], {("a",): 1}, {1: 2}, {"a": (1,)}, {"a": nan}]
)
def test_value_that_json_changes_is_refused(value: object) -> None:
    assert reason(lambda: inputs.json_object("data", value, longest_bytes=100), "data").startswith(
        "must be a mapping"
    )


def test_json_is_compact_and_its_length_is_in_bytes() -> None:
    value = {"a": [1, "\u00e9"]}
    assert inputs.json_object("data", value, longest_bytes=14) == '{"a":[1,"\u00e9"]}'.encode()
    assert reason(lambda: inputs.json_object("data", value, longest_bytes=13), "data").endswith("13 bytes as JSON")


WIDE: object = "x"
for _ in range(8):
    WIDE = [WIDE] * 100


@pytest.mark.parametrize(
    "value", ["x" * 1_000_000, [0] * 1_000_000, (0,) * 1_000_000, dict.fromkeys(map(str, range(100_000))), WIDE]
)
def test_large_json_is_refused_before_it_is_written(value: object) -> None:
    tracemalloc.start()
    try:
        for data in ({"x": value}, MappingProxyType({"x": value})):
            assert reason(partial(inputs.metadata, data), "metadata")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_metadata_is_optional() -> None:
    assert inputs.metadata(None) is None
    assert inputs.metadata({}) == "{}"


@pytest.mark.parametrize("value", [0.0, -0.0, 1e15, -1e15, 1e-30, 0.1, 10**200])
def test_numbers_that_jsonb_keeps_are_accepted_as_metadata(value: float) -> None:
    assert inputs.metadata({"x": [value]})


@pytest.mark.parametrize("value", [1.1e15, -1e23, 1e300, 9e-31, 5e-324, inf, nan])
def test_numbers_that_jsonb_changes_or_writes_out_are_refused_as_metadata(value: float) -> None:
    assert reason(lambda: inputs.metadata({"x": [value]}), "metadata")


def nested(levels: int, innermost: object) -> object:
    for _ in range(levels):
        innermost = {"x": innermost}
    return innermost


@pytest.mark.parametrize("innermost", [1, "a", [], {}])
def test_metadata_has_at_most_32_levels(innermost: object) -> None:
    containers = isinstance(innermost, list | dict)
    assert inputs.metadata(nested(32 - containers, innermost))
    assert reason(lambda: inputs.metadata(nested(33 - containers, innermost)), "metadata").endswith(
        "32 levels deep"
    )
    assert reason(lambda: inputs.metadata(nested(100_000, innermost)), "metadata")


@pytest.mark.parametrize("value", NOT_STORABLE)
def test_text_that_postgresql_cannot_store_is_refused_anywhere_in_metadata(value: str) -> None:
    holding: list[object] = [{value: 1}, {"a": value}, {"a": [{"b": {value: []}}]}]
    for metadata in holding:
        assert SECRET not in reason(partial(inputs.metadata, metadata), "metadata")
