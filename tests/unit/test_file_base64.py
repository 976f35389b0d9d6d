"""base64 is read as loosely as the peer reads it, with and without the SIMD library."""

from __future__ import annotations

import base64 as standard

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import CommandError
from workers import base64

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

# Recorded from the peer: the text of a write, and how many bytes it counted.
RECORDED = [
    ("YWJ", 0),
    ("YWJj\n", 3),
    ("YWJjZ===", 4),
    ("YWJj====", 4),
    ("", 0),
    ("YWJj", 3),
    ("YQ==", 1),
    ("Y\nQ=\n=", 1),
]

KINDS = [pytest.param(True, id="simd", marks=pytest.mark.skipif(not base64.SIMD, reason="no pybase64")), False]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "SIMD", request.param)


def by_the_letter(text: str) -> bytes:
    """GLib's rule written down as it is told: one character after the other."""
    out = bytearray()
    group = ""
    for c in text.replace("\n", ""):
        group += c
        if len(group) == 4:
            v = 0
            for g in group:
                v = v << 6 | (0 if g == "=" else ALPHABET.index(g))
            out.append(v >> 16)
            if group[2] != "=":
                out.append(v >> 8 & 255)
            if group[3] != "=":
                out.append(v & 255)
            group = ""
    return bytes(out)


@pytest.mark.parametrize(("text", "count"), RECORDED)
@pytest.mark.usefixtures("kind")
def test_odd_texts_count_what_the_peer_counts(text: str, count: int) -> None:
    assert len(base64.decode(text)) == count
    assert base64.decode(text) == by_the_letter(text)


@pytest.mark.parametrize("simd", KINDS)
@given(text=st.text(alphabet="A/z=", max_size=12) | st.text(alphabet=ALPHABET[:3] + "z/+=\n", max_size=40))
def test_any_text_of_the_alphabet_decodes_by_the_rule(simd: bool, text: str) -> None:
    before, base64.SIMD = base64.SIMD, simd
    try:
        assert base64.decode(text) == by_the_letter(text)
    finally:
        base64.SIMD = before


@pytest.mark.parametrize("simd", KINDS)
@given(data=st.binary(max_size=200))
def test_canonical_text_is_decoded(simd: bool, data: bytes) -> None:
    before, base64.SIMD = base64.SIMD, simd
    try:
        assert base64.decode(standard.b64encode(data).decode()) == data
    finally:
        base64.SIMD = before


@pytest.mark.parametrize(
    "text", ["@@@@", " YWJj", "YWJj ", "YW Jj", "YWJj\r\n", "YW-_", "YWJ\0", "\0", "é", "\udc80", "€==="]
)
@pytest.mark.usefixtures("kind")
def test_other_characters_are_refused_in_the_peers_words(text: str) -> None:
    with pytest.raises(CommandError, match=r"^Base64 data contains invalid characters$"):
        base64.decode(text)


@pytest.mark.usefixtures("kind")
def test_megabytes_of_padding_and_of_short_lines_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "_SLICE", 4096)
    assert base64.decode("=" * 100_002) == bytes(25_000)
    data = bytes(range(256)) * 4096
    assert base64.decode(standard.encodebytes(data).decode()) == data
    assert base64.decode("YQ==" * 50_001) == b"a" * 50_001


@pytest.mark.parametrize("simd", KINDS)
@given(
    text=st.text(alphabet="A/z=", max_size=40) | st.binary(max_size=60).map(lambda b: standard.b64encode(b).decode())
)
def test_a_text_in_pieces_is_the_same_text(simd: bool, text: str) -> None:
    before, base64.SIMD = base64.SIMD, simd
    try:
        raw = text.encode()
        pieces = [memoryview(raw[i : i + 8]) for i in range(0, len(raw), 8)]
        assert b"".join(base64.decode_all(iter(pieces))) == base64.decode(text)
    finally:
        base64.SIMD = before


@pytest.mark.usefixtures("kind")
def test_a_bad_character_in_the_last_piece_is_found() -> None:
    with pytest.raises(CommandError, match=r"^Base64 data contains invalid characters$"):
        base64.decode_all(iter([memoryview(b"YWJjYWJj"), memoryview(b"YWJ\x80")]))
