"""authorized_keys as text: which lines are keys, and what adding and removing makes of a file.

The contents are those that qemu-ga leaves behind."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.authorized_keys import KEY_LIMIT, acceptable, added, listed, removed, well_formed


def key(kind: str = "ssh-ed25519", body: bytes = b"k" * 32) -> str:
    name = kind.encode()
    blob = struct.pack(">I", len(name)) + name + struct.pack(">I", len(body)) + body
    return f"{kind} {base64.b64encode(blob).decode()}"


GOOD = [
    key(),
    key("ssh-rsa", b"e" * 300) + " user@host",
    key("ecdsa-sha2-nistp256") + " a comment of several words",
    key("sk-ssh-ed25519@openssh.com"),
    key("ssh-ed25519-cert-v01@openssh.com") + "AAAA",
    "restrict " + key(),
    'command="echo \\"hi there\\"",no-pty ' + key() + " c",
    'from="*.example.org,10.0.0.1",environment="A=b c" ' + key("ssh-rsa"),
    "  " + key() + "\t",
    key() + "\r",
]
LENIENT = [
    "ssh-ed25519 AAAAkey1 one",  # what the recorded cases use: base64, but no key
    "ssh-rsa AAAAkey3",
    "",
    "anything at all",
    "ssh-rsa",
    key("ssh-rsa").replace("ssh-rsa ", "ssh-ed25519 "),  # type and blob disagree
    key()[:-8],  # cut off
    key().replace(" ", " !", 1),
    'command="unclosed ' + key(),
]
REFUSED = [
    "# nope",
    "#",
    "  # nope",
    key() + "\n" + key(),
    key() + "\n",
    "\n",
    key() + "\0",
    key() + "\x1b[2J",
    "a\rb",
    "\x7f",
    "\ud800",
    "x" * (KEY_LIMIT + 1),
]


@pytest.mark.parametrize("line", GOOD)
def test_real_keys_pass_both_checks(line: str) -> None:
    assert acceptable(line) and well_formed(line)


@pytest.mark.parametrize("line", LENIENT)
def test_what_the_peer_takes_passes_but_not_strictly(line: str) -> None:
    assert acceptable(line) and not well_formed(line)


@pytest.mark.parametrize("line", REFUSED)
def test_what_can_never_be_one_key_line_is_refused(line: str) -> None:
    assert not acceptable(line) and not well_formed(line)


def test_listed_is_stripped_and_newest_first() -> None:
    assert listed(b"\n  k1 one  \n#c\n\t\nk2 two\r\n") == ["k2 two", "k1 one"]
    assert listed(b"") == []
    assert listed(b"k\xff\n") == ["k\udcff"]


@pytest.mark.parametrize(
    ("before", "keys", "after"),
    [
        (b"", [], b""),
        (b"", [""], b""),
        (b"", ["a", "b"], b"a\nb"),
        (b"", ["a", "a"], b"a"),
        (b"a", ["a", "b"], b"a\nb"),
        (b"# c\na", ["b"], b"# c\na\nb"),
        (b"a\n", ["b"], b"a\n\nb"),
        (b"a\n", ["a"], b"a\n"),
        (b" a", ["a"], b" a\na"),
        (b"\xff", ["\u00e9"], b"\xff\n\xc3\xa9"),
    ],
)
def test_added(before: bytes, keys: list[str], after: bytes) -> None:
    assert added(before, keys) == after


@pytest.mark.parametrize(
    ("before", "keys", "after"),
    [
        (b"a\nb", ["a"], b"b"),
        (b"a", ["a"], b""),
        (b"a\nb\na", ["a"], b"b"),
        (b"# a\nb\n", ["a"], b"# a\nb\n"),
        (b"  a \r\nb", ["a"], b"b"),
        (b"a comment", ["a"], b"a comment"),
        (b"", ["a"], b""),
    ],
)
def test_removed(before: bytes, keys: list[str], after: bytes) -> None:
    assert removed(before, keys) == after


_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)


@given(st.binary(max_size=200), st.lists(_text.filter(acceptable), max_size=5))
def test_added_keys_are_listed_and_nothing_is_lost(content: bytes, keys: list[str]) -> None:
    after = added(content, keys)
    assert after.startswith(content)
    wanted = {k.strip(" \t\r\n\f\v") for k in keys} - {""}
    assert wanted <= set(listed(after)) if b"\r" not in content else True
    assert added(after, keys) == after or "" in keys


@given(st.lists(_text.filter(lambda k: acceptable(k) and k.strip()), min_size=1, max_size=5))
def test_what_is_listed_can_be_removed(keys: list[str]) -> None:
    assert listed(removed(added(b"", keys), listed(added(b"", keys)))) == []


@given(st.text(max_size=300))
def test_no_text_makes_the_checks_fail(text: str) -> None:
    assert acceptable(text) or not well_formed(text)
