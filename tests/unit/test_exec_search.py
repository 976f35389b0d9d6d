"""Where a program is looked for, and which of several failures is told."""

from __future__ import annotations

import pytest

from workers.launch import _candidates, _raw


@pytest.mark.parametrize(
    ("file", "search", "expected"),
    [
        (b"", b"/bin", []),
        (b"/bin/true", b"/usr/bin", [b"/bin/true"]),
        (b"./true", b"/usr/bin", [b"./true"]),
        (b"true", b"/a:/b", [b"/a/true", b"/b/true"]),
        (b"true", b":/b", [b"./true", b"/b/true"]),
        (b"true", b"/a::/b:", [b"/a/true", b"./true", b"/b/true", b"./true"]),
        (b"true", b"", [b"./true"]),
        (b"true", None, [b"/bin/true", b"/usr/bin/true", b"./true"]),
    ],
)
def test_the_search_goes_through_path_as_glibs_does(file: bytes, search: bytes | None, expected: list[bytes]) -> None:
    assert _candidates(file, search) == expected


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_program_can_be_given_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"path, arguments or environment"):
        _raw(text)
    assert _raw("caf\udce9") == b"caf\xe9"
