"""No rule of a filter is spare: each lets through (or answers) what a real run asks, or stands in a short list with its reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from privsep.sandbox import rules
from tests.sandbox import traced
from tests.support.namespace import isolated

STRICT = {row for row, wanted in rules.FILTERS.items() if wanted.otherwise != rules.ALLOW}


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_is_called_is_listed_and_what_is_listed_is_called(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    _run(tmp_path / "seen")
    seen = traced.Seen(
        {
            (row, name, tuple(arguments)): count
            for row, name, arguments, count in json.loads((tmp_path / "seen").read_text())
        }
    )
    assert {row for row, _, _ in seen} >= STRICT  # each was there to be seen
    unlisted = {(row, name, arguments) for row, name, arguments in seen if not traced.deciding(row, name, arguments)}
    # ssh answers what is not listed by an error: modules of the account database try this and that.
    assert {x for x in unlisted if rules.FILTERS[x[0]].otherwise == rules.KILL} == set()
    spare = traced.unused(seen)
    assert [x for x in spare if not traced.excuse(x[0], x[1])] == []
    needed = {(place, name) for row, name, _ in spare for place in traced.excuse(row, name)}
    listed = {(place, name) for place, (names, _, _) in enumerate(traced.EXCUSED) for name in names.split()}
    # The first rows are for any machine: there a name may be used here.
    assert {(place, name) for place, name in listed - needed if traced.EXCUSED[place][1]} == set()


def _run(out: Path) -> None:
    @isolated
    def inside(reader: int, writer: int) -> None:
        folder = Path("/tmp/traced")
        folder.mkdir()
        seen = traced.run(folder)
        with os.fdopen(writer, "w") as file:
            json.dump([(row, name, arguments, count) for (row, name, arguments), count in seen.items()], file)

    # A private root keeps no file, so the result comes through a pipe into a file of ours.
    reader, writer = os.pipe()
    os.set_blocking(writer, True)
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        with os.fdopen(reader, "rb") as source:
            out.write_bytes(source.read())
        os._exit(0)
    os.close(reader)
    try:
        inside(reader, writer)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_an_unlisted_call_would_be_noticed() -> None:
    seen = traced.Seen({("front", "socket", (1, 1, 0)): 1, ("front", "poll", (0, 0, 0)): 3})
    assert [name for row, name, arguments in seen if not traced.deciding(row, name, arguments)] == ["socket"]
    assert ("front", "poll") not in {(row, name) for row, name, _ in traced.unused(seen)}
    assert ("front", "accept4") in {(row, name) for row, name, _ in traced.unused(seen)}
    assert traced.excuse("front", "accept4") == []


TRACE = """\
execve("/usr/libexec/privsep-ga/thawer", ["/usr/libexec/privsep-ga/thawer"], 0x7ffd /* 3 vars */) = 0
openat(0xffffff9c, 0x7f, 0x80000) = 0x3
prctl(0x16, 0x2, 0x7f0, 0, 0) = 0
clone(0x3d0f00, 0x7f, 0x7f, 0x7f, 0x7f) = 0x4d2
ioctl(0x9, 0xc0045878, 0) = -1 EINVAL (Invalid argument)
poll(0x7f, 0x1, 0xffffffff <unfinished ...>) = ?
"""


def test_a_trace_is_read_from_the_filter_on_and_threads_belong_to_their_process(tmp_path: Path) -> None:
    (tmp_path / "t.1233").write_text(TRACE)
    (tmp_path / "t.1234").write_text("set_robust_list(0x7f, 0x18) = 0\nfutex(0x7f, 0x80, 0) = 0\n")
    (tmp_path / "t.99").write_text('execve("/bin/sh", ["sh"], 0x1 /* 1 var */) = 0\nsocket(0x1, 0x1, 0) = 0x3\n')
    seen = traced.collect(tmp_path)
    assert {(row, name) for row, name, _ in seen} == {
        ("thawer", name) for name in ("clone", "ioctl", "poll", "set_robust_list", "futex")
    }
    assert traced.deciding("thawer", "ioctl", (9, 0xC0045878, 0)) != []
    assert traced.deciding("thawer", "ioctl", (9, 0xC0045877, 0)) == []


def test_no_two_rules_of_a_filter_decide_about_the_same_call() -> None:
    for row, wanted in rules.FILTERS.items():
        free: list[str] = [name for call in wanted.calls if not call.tests for name in call.names]
        tested: list[object] = [
            (name, tuple((t.number, t.mask, t.value, t.same) for t in call.tests))
            for call in wanted.calls
            if call.tests
            for name in call.names
        ]
        assert len(free) == len(set(free)), row
        assert len(tested) == len(set(tested)), row
        assert {name for name, _ in tested}.isdisjoint(free), row  # type: ignore[misc]
