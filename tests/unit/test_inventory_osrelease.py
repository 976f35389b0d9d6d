"""os-release is understood as qemu-ga understands it, single quotes included, and no file can make the parser fail otherwise
than by ValueError."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.osrelease import MEMBERS, parse_os_release, unquote


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"NAME=", ""),
        (b'NAME=""', ""),
        (b"NAME = x", "x"),
        (b"  NAME=x", "x"),
        (b"NAME=x   ", "x"),
        (b"NAME=x\r\n", "x"),
        (b"NAME= x y", "x"),
        (b"NAME=a;b", "a"),
        (b"NAME=;x", ""),
        (b"NAME=a#b", "a#b"),
        (b"NAME==x", "=x"),
        (b"NAME=a\tb", "a\tb"),
        (b'NAME="x y" z', "x y"),
        (b'NAME="a;b # c"', "a;b # c"),
        (b'NAME="a\\"b"', 'a"b'),
        (b'NAME="a\\nb\\\\c\\$d\\`e\\\'f"', "a\\nb\\c$d`e'f"),
        (b'NAME="unclosed', "unclosed"),
        (b'NAME="x\\', "x\\"),
        (b'NAME="a"b"c"', "a"),
        (b"NAME='x y'", "x y"),
        (b"NAME='a\\$b' c", "a\\$b"),
        (b"NAME=x\nNAME=y", "y"),
        (b"NAME=x\x00y", "x"),
        (b"#c\n\nNAME=x", "x"),
        ("NAME='Größe'".encode(), "Größe"),
        (b"[os-release]\nNAME=z", "z"),
    ],
)
def test_value_rules(text: bytes, name: str) -> None:
    assert parse_os_release(text) == {"name": name}


@pytest.mark.parametrize("text", [b"", b"[other]\nNAME=x", b"export NAME=x", b"\xef\xbb\xbfNAME=x", b"HOME_URL=x"])
def test_what_is_not_asked_for_is_left_out(text: bytes) -> None:
    assert parse_os_release(text) == {}


@pytest.mark.parametrize("text", [b"garbage\nNAME=x", b"NAME=x\ngarbage", b"=x\nNAME=y", b"NAME=\xff"])
def test_a_bad_line_spoils_the_file(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_os_release(text)


def test_all_members_in_the_order_of_the_reply() -> None:
    text = "".join(f'{key}="{key.lower()} 1"\n' for key in reversed(MEMBERS))
    found = parse_os_release(text.encode())
    assert list(found) == "id name pretty-name version version-id variant variant-id".split()
    assert found["pretty-name"] == "pretty_name 1"


@given(st.binary(max_size=200))
def test_any_bytes_give_members_or_a_value_error(text: bytes) -> None:
    try:
        found = parse_os_release(text)
    except ValueError:
        return
    assert set(found) <= set(MEMBERS.values())


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85"), max_size=30))
def test_what_a_shell_quotes_comes_back(value: str) -> None:
    # Double quotes: the five characters that a shell would expand are covered.
    covered = "".join("\\" + c if c in '$"\\`' else c for c in value)
    assert unquote(f'"{covered}"') == value
    if "'" not in value and shlex.quote(value).startswith("'"):
        assert unquote(shlex.quote(value)) == value
