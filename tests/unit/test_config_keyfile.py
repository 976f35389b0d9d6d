"""GLib's key files: what is taken, what is refused, with which line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep.keyfile import KeyFile, KeyFileError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"[general]\npath=/a\n", "/a"),
        (b"# c\n\n [general]\n\t path \t= /a b \n", "/a b "),
        (b"[general]\r\npath=/a\r\n", "/a"),
        (b"[general]\npath=a\npath=b\n[other]\npath=c\n", "b"),
        (b"[general]\npath=a\n[x]\n[general]\npath=b", "b"),
        (b"[general]\npath=bad\\q\npath=good", "good"),
        (b"[general]\npath=\\s\\t\\n\\r\\\\s", " \t\n\r\\s"),
        (b"[general]\npath[de]=z\n", None),
        (b"[ general ]\npath=a\n", None),
        (b"[general]\na b=3\n", None),
        (b"", None),
    ],
)
def test_values(text: bytes, value: str | None) -> None:
    assert KeyFile(text).get("general", "path") == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"garbage", 1),
        (b"[general\n", 1),
        (b"[general]x\n", 1),
        (b"[general]\n=3\n", 2),
        (b"[general]\n\nfoo\n", 3),
        (b"a=b\n[general]\n", 1),
        (b"[gen\teral]\n", 1),
        (b"[]\n", 1),
        (b"[general]\n[x]=3\n", 2),
        (b"[general]\npath[d!]=z\n", 2),
    ],
)
def test_what_is_no_key_file_is_refused_with_its_line(text: bytes, line: int) -> None:
    with pytest.raises(KeyFileError, match=f"^line {line}: "):
        KeyFile(text)


@pytest.mark.parametrize("raw", [b"a\\", b"a\\q", b"\xff"])
def test_a_broken_value_is_an_error_only_when_it_is_asked_for(raw: bytes) -> None:
    file = KeyFile(b"[general]\npath=" + raw + b"\nmethod=x\n")
    assert file.get("general", "method") == "x"
    with pytest.raises(KeyFileError, match=r"^line 2: "):
        file.get("general", "path")


def test_booleans() -> None:
    file = KeyFile(b"[g]\na=true\nb= 1 \nc=false\nd=0\ne=yes\nf=True\ng=\n")
    assert [file.get_bool("g", k) for k in "abcdz"] == [True, True, False, False, None]
    for key in "efg":
        with pytest.raises(KeyFileError):
            file.get_bool("g", key)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_an_error(data: bytes) -> None:
    try:
        KeyFile(b"[general]\n" + data).get("general", "path")
    except KeyFileError:
        pass
