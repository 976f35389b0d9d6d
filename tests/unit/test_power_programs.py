"""Running a program: what it gets, what is kept of it, and that it ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from workers import programs

SH = "/bin/sh"


def sh(script: str, **more: object) -> programs.Result:
    more.setdefault("limit", 10.0)
    return programs.run((SH, "-c", script), **more)  # type: ignore[arg-type]


def test_status_and_merged_output() -> None:
    result = sh("echo one; echo two >&2; exit 7")
    assert (result.status, result.output, result.truncated, result.late) == (7, b"one\ntwo\n", False, False)


def test_death_by_signal_is_a_negative_status() -> None:
    assert sh("kill -9 $$").status == -signal.SIGKILL


def test_stdin_is_what_was_given_then_end_of_file() -> None:
    data = os.urandom(300_000)  # more than a pipe holds
    assert sh("wc -c", stdin=data).output.strip() == b"300000"
    assert sh("cat", stdin=bytearray(b"abc")).output == b"abc"
    assert sh("cat").output == b""


def test_a_program_that_does_not_read_is_no_error() -> None:
    assert sh("exec 0<&-; sleep 0.1; exit 3", stdin=b"x" * 1_000_000).status == 3


def test_output_is_bounded_and_read_to_its_end() -> None:
    result = sh("head -c 1000000 /dev/zero; exit 5", keep=100)
    assert (result.status, len(result.output), result.truncated) == (5, 100, True)
    assert result.text().endswith("[output truncated]")


def test_control_characters_do_not_reach_a_text() -> None:
    assert sh(r"printf 'a\033[31m\000\nb\377'").text() == "a\ufffd[31m\ufffd\nb\ufffd"


def test_only_the_three_standard_descriptors_are_inherited() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        got = programs.run(
            (sys.executable, "-ISc", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"), limit=10
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert got.output == b"[0, 1, 2, 3]\n"  # 3 is the folder that listdir reads


def test_own_session_root_folder_umask_signals_and_core_limit() -> None:
    script = (
        "import os, signal, resource; print(os.getsid(0) == os.getpid(), os.getcwd(), oct(os.umask(0)), "
        "[int(s) for s in range(1, 65) if s not in (9, 13, 19, 25, 32, 33) and signal.getsignal(s) == signal.SIG_IGN], "
        "signal.pthread_sigmask(signal.SIG_BLOCK, ()), resource.getrlimit(resource.RLIMIT_CORE)[0] <= 1, "
        "sorted(os.environ))"
    )
    old = [(s, signal.signal(s, signal.SIG_IGN)) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        result = programs.run((sys.executable, "-ISc", script), limit=10)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, action in old:
            signal.signal(number, action)
    words = "True / 0o22 [] set() True ['LC_ALL', 'PATH']\n"
    assert result.output.decode().replace("['LC_ALL', 'LC_CTYPE', 'PATH']", "['LC_ALL', 'PATH']") == words


def test_the_time_limit_kills_the_whole_group(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    began = time.monotonic()
    result = sh(f"(sleep 1; echo late > {mark}) & echo begun; sleep 60", limit=0.3)
    assert result.late and result.status == -signal.SIGKILL and result.output == b"begun\n"
    assert time.monotonic() - began < 2
    time.sleep(1.0)
    assert not mark.exists()


def test_what_stays_in_the_background_is_not_waited_for() -> None:
    began = time.monotonic()
    result = sh("setsid sleep 3 & echo done")
    assert result.output == b"done\n" and result.status == 0
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("name", "number"), [("missing", errno.ENOENT), ("plain", errno.EACCES), ("garbage", errno.ENOEXEC)]
)
def test_what_cannot_be_started_is_an_oserror(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "garbage").write_text("x")
    (tmp_path / "garbage").chmod(0o755)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as e:
        programs.run((str(tmp_path / name),), limit=5, stdin=b"x")
    assert e.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_nul_in_an_argument_is_refused_and_leaves_no_second_worker() -> None:
    with pytest.raises(OSError):
        programs.run((SH, "-c", "a\0b"), limit=5)


def test_no_descriptor_and_no_child_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        sh("cat", stdin=b"abc")
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_programs_are_found_in_the_fixed_folders_below_the_root_only(tmp_path: Path) -> None:
    for folder, mode in (("usr/sbin", 0o644), ("bin", 0o755), ("opt", 0o755)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tool").write_text("")
        (tmp_path / folder / "tool").chmod(mode)
    (tmp_path / "sbin/tool").mkdir(parents=True)
    assert programs.find("tool", str(tmp_path)) == f"{tmp_path}/bin/tool"
    assert programs.find("nothing", str(tmp_path)) is None
    assert programs.find("sh") in ("/usr/bin/sh", "/bin/sh")
