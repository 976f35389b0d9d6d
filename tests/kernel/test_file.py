"""The file commands on real files, fifos and devices."""

from __future__ import annotations

import base64
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privsep import frame, wiring
from privsep.runtime import Context
from protocol.errors import CommandError
from tests.support.handlers import bulk, whole
from workers import file


class Lines:
    """A log that is a list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str) -> None:
        self.lines.append(text)

    warning = info = debug = error

    def flush(self) -> None:
        pass


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


Make = Callable[..., Context]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Context] = []
    state = tmp_path / "state"
    state.mkdir()

    def build(**more: str) -> Context:
        ctx = Context(log=Lines(), settings={"statedir": str(state), **more})  # type: ignore[arg-type]
        file.prepare(ctx)
        made.append(ctx)
        return ctx

    yield build
    for ctx in made:
        table = file._table(ctx)
        for opened in table.files.values():
            os.close(opened.fd)


@pytest.fixture
def ctx(make: Make) -> Context:
    return make()


def read(ctx: Context, handle: int, count: int = 4096) -> tuple[bytes, bool]:
    answer = whole(file.guest_file_read(ctx, handle, count))
    data = bulk(answer["buf-b64"])
    assert answer["count"] == len(data)
    assert sorted(answer) == ["buf-b64", "count", "eof"]
    return data, bool(answer["eof"])


def write(ctx: Context, handle: int, data: bytes) -> None:
    assert file.guest_file_write(ctx, handle, b64(data)) == {"count": len(data), "eof": False}


def test_end_of_file_is_told_only_when_it_was_met(ctx: Context, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"Hello World!\n")
    handle = file.guest_file_open(ctx, str(path))
    assert handle == 1000
    assert read(ctx, handle, 5) == (b"Hello", False)
    assert read(ctx, handle, 8) == (b" World!\n", False)
    assert read(ctx, handle, 5) == (b"", True)
    assert read(ctx, handle, 0) == (b"", False)
    file.guest_file_seek(ctx, handle, 0, "set")
    assert read(ctx, handle) == (b"Hello World!\n", True)
    assert file.guest_file_close(ctx, handle) == {}
    assert not file.holds(ctx)


def test_a_file_of_proc_is_read_to_its_end(ctx: Context) -> None:
    handle = file.guest_file_open(ctx, "/proc/self/maps")
    data, eof = read(ctx, handle, 1 << 20)
    assert eof and len(data) > 4096


def test_a_device_without_end_gives_what_was_asked_for(ctx: Context) -> None:
    handle = file.guest_file_open(ctx, "/dev/zero")
    assert read(ctx, handle, 3_000_000) == (bytes(3_000_000), False)


@pytest.mark.parametrize("mode", list(file._FLAGS))
def test_each_mode_does_what_fopen_does(ctx: Context, tmp_path: Path, mode: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    handle = file.guest_file_open(ctx, str(path), mode)
    if mode[0] == "r" or "+" in mode:
        assert read(ctx, handle, 3) == ((b"", True) if mode[0] == "w" else (b"012", False))
    else:
        with pytest.raises(CommandError, match=r"^failed to read file: Bad file descriptor$"):
            file.guest_file_read(ctx, handle)
    if mode[0] != "r" or "+" in mode:
        write(ctx, handle, b"AB")
    else:
        with pytest.raises(CommandError, match=r"^failed to write to file: Bad file descriptor$"):
            file.guest_file_write(ctx, handle, "QUI=")
        assert file.guest_file_write(ctx, handle, "") == {"count": 0, "eof": False}
    file.guest_file_close(ctx, handle)
    expected = {"r": b"0123456789", "w": b"AB", "a": b"0123456789AB"}[mode[0]]
    if mode[0] == "r" and "+" in mode:
        expected = b"012AB56789"
    assert path.read_bytes() == expected
    flags = file._FLAGS[mode]
    assert bool(flags & os.O_CREAT) == (mode[0] != "r")


@pytest.mark.parametrize("mode", ["rw", "rt", "r ", "", "+", "rb++", "x", "re"])
def test_other_modes_are_refused_and_make_nothing(ctx: Context, tmp_path: Path, mode: str) -> None:
    with pytest.raises(CommandError) as e:
        file.guest_file_open(ctx, str(tmp_path / "n"), mode)
    assert e.value.desc == f"invalid file open mode '{mode}'"
    assert not (tmp_path / "n").exists()


def test_a_new_file_is_0666_whatever_the_umask_and_an_old_one_keeps_its_mode(ctx: Context, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch(0o600)
    old.chmod(0o600)
    before = os.umask(0o077)
    try:
        file.guest_file_open(ctx, str(tmp_path / "new"), "a")
        file.guest_file_open(ctx, str(old), "w")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("none", "r", "No such file or directory"),
        ("none", "r+", "No such file or directory"),
        ("none/n", "w", "No such file or directory"),
        ("", "w", "Is a directory"),
        ("loop", "r", "Too many levels of symbolic links"),
        ("dangling", "w", "No such file or directory"),
        ("n" * 300, "r", "File name too long"),
        ("plain/n", "r", "Not a directory"),
        ("fifo", "w", "No such device or address"),
    ],
)
def test_a_failed_open_says_why_and_takes_no_number(
    ctx: Context, tmp_path: Path, name: str, mode: str, why: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "plain").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CommandError) as e:
        file.guest_file_open(ctx, f"{tmp_path}/{name}", mode)
    assert e.value.desc == f"failed to open file '{tmp_path}/{name}' (mode: '{mode}'): {why}"
    assert file.guest_file_open(ctx, "/dev/null") == 1000


@pytest.mark.parametrize("path", ["a\0b", "\0", "\ud800", "x\udfff"])
def test_a_path_that_cannot_be_is_an_error_and_nothing_else(ctx: Context, path: str) -> None:
    with pytest.raises(CommandError, match=r"^failed to open file "):
        file.guest_file_open(ctx, path, "w")


def test_a_name_that_is_not_utf8_is_opened(ctx: Context, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(name)).write_bytes(b"x")
    assert read(ctx, file.guest_file_open(ctx, name.decode("utf-8", "surrogateescape")))[0] == b"x"


def test_a_relative_path_starts_in_the_working_folder(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(b"here")
    assert read(ctx, file.guest_file_open(ctx, "f"))[0] == b"here"


def test_a_folder_opens_for_reading_and_cannot_be_read(ctx: Context, tmp_path: Path) -> None:
    handle = file.guest_file_open(ctx, str(tmp_path))
    with pytest.raises(CommandError, match=r"^failed to read file: Is a directory$"):
        file.guest_file_read(ctx, handle)


def test_a_fifo_never_blocks_and_loses_nothing(ctx: Context, tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = file.guest_file_open(ctx, path)
    assert read(ctx, reader) == (b"", True)
    writer = file.guest_file_open(ctx, path, "w")
    with pytest.raises(CommandError, match=r"^failed to read file: Resource temporarily unavailable$"):
        file.guest_file_read(ctx, reader)
    write(ctx, writer, b"some")
    assert read(ctx, reader) == (b"some", False)
    with pytest.raises(CommandError, match=r"^failed to seek file: Illegal seek$"):
        file.guest_file_seek(ctx, reader, 0, "set")
    with pytest.raises(
        CommandError, match=r"^failed to write to file: Resource temporarily unavailable \(65536 of 100000 "
    ):
        file.guest_file_write(ctx, writer, b64(bytes(100_000)))
    file.guest_file_close(ctx, reader)
    with pytest.raises(CommandError, match=r"^failed to write to file: Broken pipe$"):
        file.guest_file_write(ctx, writer, "YQ==")


def test_a_full_disk_is_told_by_the_write(ctx: Context) -> None:
    handle = file.guest_file_open(ctx, "/dev/full", "w")
    with pytest.raises(CommandError, match=r"^failed to write to file: No space left on device$"):
        file.guest_file_write(ctx, handle, "YQ==")
    assert file.guest_file_flush(ctx, handle) == {}
    assert file.guest_file_close(ctx, handle) == {}


def test_a_partial_write_says_how_much_and_the_position_agrees(ctx: Context, tmp_path: Path) -> None:
    handle = file.guest_file_open(ctx, str(tmp_path / "n"), "w")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(
            CommandError, match=r"^failed to write to file: File too large \(65536 of 100000 bytes were written\)$"
        ):
            file.guest_file_write(ctx, handle, b64(bytes(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.guest_file_seek(ctx, handle, 0, 1) == {"position": 65536, "eof": False}


def test_a_write_is_there_at_once(ctx: Context, tmp_path: Path) -> None:
    handle = file.guest_file_open(ctx, str(tmp_path / "n"), "w")
    write(ctx, handle, b"abc")
    assert (tmp_path / "n").read_bytes() == b"abc"


def test_with_a_buffer_small_writes_wait_for_a_flush_as_with_the_peer(make: Make, tmp_path: Path) -> None:
    ctx = make(**{"file-buffer": "4096"})
    path = tmp_path / "n"
    handle = file.guest_file_open(ctx, str(path), "w+")
    write(ctx, handle, b"abc")
    assert path.read_bytes() == b""
    file.guest_file_flush(ctx, handle)
    assert path.read_bytes() == b"abc"
    write(ctx, handle, b"def")
    assert file.guest_file_seek(ctx, handle, 0, "cur") == {"position": 6, "eof": False}
    assert path.read_bytes() == b"abcdef"
    write(ctx, handle, b"g")
    assert read(ctx, handle) == (b"", True)
    write(ctx, handle, b"h")
    write(ctx, handle, bytes(5000))
    assert path.stat().st_size == 5008
    write(ctx, handle, b"i")
    file.stopping(ctx)
    assert path.stat().st_size == 5009
    write(ctx, handle, b"j")
    file.guest_file_close(ctx, handle)
    assert path.read_bytes()[-2:] == b"ij"


def test_with_a_buffer_a_full_disk_is_told_at_flush_and_close(make: Make) -> None:
    ctx = make(**{"file-buffer": "4096"})
    handle = file.guest_file_open(ctx, "/dev/full", "w")
    write(ctx, handle, b"abc")
    with pytest.raises(CommandError, match=r"^failed to flush file: No space left on device$"):
        file.guest_file_flush(ctx, handle)
    with pytest.raises(CommandError, match=r"^failed to close handle: No space left on device$"):
        file.guest_file_close(ctx, handle)
    with pytest.raises(CommandError, match=r"has not been found"):
        file.guest_file_close(ctx, handle)
    handle = file.guest_file_open(ctx, "/dev/zero", "r")
    with pytest.raises(CommandError, match=r"^failed to write to file: Bad file descriptor$"):
        file.guest_file_write(ctx, handle, "YQ==")


def test_the_handle_is_looked_at_first_then_base64_then_count(ctx: Context) -> None:
    calls: tuple[Callable[[int], object], ...] = (
        lambda h: file.guest_file_read(ctx, h, -1),
        lambda h: file.guest_file_write(ctx, h, "@", 99),
        lambda h: file.guest_file_seek(ctx, h, 0, 9),
        lambda h: file.guest_file_flush(ctx, h),
        lambda h: file.guest_file_close(ctx, h),
    )
    for call in calls:
        with pytest.raises(CommandError, match=r"^handle '9' has not been found$"):
            call(9)
    handle = file.guest_file_open(ctx, "/dev/null", "w")
    with pytest.raises(CommandError, match=r"^Base64 data contains invalid characters$"):
        file.guest_file_write(ctx, handle, "@", 99)
    for count in (-1, 4):
        with pytest.raises(CommandError, match=rf"^value '{count}' is invalid for argument count$"):
            file.guest_file_write(ctx, handle, "YWJj", count)
    for count in (-1, (48 << 20) + 1, (1 << 63) - 1):
        with pytest.raises(CommandError, match=rf"^value '{count}' is invalid for argument count$"):
            file.guest_file_read(ctx, handle, count)


def test_seek_refuses_other_whences_and_places_before_the_start(ctx: Context, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"Hello World!\n")
    handle = file.guest_file_open(ctx, str(tmp_path / "f"))
    assert file.guest_file_seek(ctx, handle, 6, 0)["position"] == 6
    assert file.guest_file_seek(ctx, handle, 1, "cur")["position"] == 7
    assert file.guest_file_seek(ctx, handle, -1, 2)["position"] == 12
    assert file.guest_file_seek(ctx, handle, 1000, "end")["position"] == 1013
    assert read(ctx, handle) == (b"", True)
    for whence in (3, -1, 1 << 40):
        with pytest.raises(CommandError, match=f"^invalid whence code {whence}$"):
            file.guest_file_seek(ctx, handle, 0, whence)
    for offset, whence in ((-1, 0), (-5000, 1), (-(1 << 63), 2)):
        with pytest.raises(
            CommandError, match=r"^failed to seek file: (Invalid argument|Value too large for defined data type)$"
        ):
            file.guest_file_seek(ctx, handle, offset, whence)


def test_only_so_many_files_are_open_at_once(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MOST", 3)
    handles = [file.guest_file_open(ctx, "/dev/null") for _ in range(3)]
    with pytest.raises(CommandError, match=r"3 files are open already"):
        file.guest_file_open(ctx, str(tmp_path / "n"), "w")
    assert not (tmp_path / "n").exists()
    file.guest_file_close(ctx, handles[0])
    assert file.guest_file_open(ctx, "/dev/null") == 1003


def test_a_handle_lost_with_an_earlier_worker_is_told_as_that(make: Make) -> None:
    first = make()
    lost = file.guest_file_open(first, "/dev/null")
    second = make()
    own = file.guest_file_open(second, "/dev/null")
    file.guest_file_close(second, own)
    with pytest.raises(
        CommandError, match=f"^handle '{lost}' has not been found: it was given out by an earlier file worker"
    ):
        file.guest_file_read(second, lost)
    for number in (own, 999, own + 1):
        with pytest.raises(CommandError) as e:
            file.guest_file_read(second, number)
        assert e.value.desc == f"handle '{number}' has not been found"


def test_without_a_state_folder_no_handle_is_given_out_and_nothing_leaks(tmp_path: Path) -> None:
    ctx = Context(log=Lines(), settings={"statedir": str(tmp_path / "none")})  # type: ignore[arg-type]
    file.prepare(ctx)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CommandError, match=r"^failed to commit persistent state to disk: there is no state folder$"):
        file.guest_file_open(ctx, "/dev/null")
    assert len(os.listdir("/proc/self/fd")) == before


def test_48_mebibytes_are_read_in_one_piece(ctx: Context, tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as f:
        f.truncate(48 << 20)
        f.seek((48 << 20) - 1)
        f.write(b"!")
    answer = whole(file.guest_file_read(ctx, file.guest_file_open(ctx, str(path)), 48 << 20))
    assert answer["count"] == 48 << 20
    assert answer["eof"] is False
    assert bulk(answer["buf-b64"]) == b"\0" * ((48 << 20) - 1) + b"!"


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 9000)),
        st.tuples(st.just("write"), st.binary(max_size=6000)),
        st.tuples(st.just("seek"), st.integers(-10, 9000), st.sampled_from([0, 1, 2])),
        st.tuples(st.just("flush")),
    ),
    max_size=25,
)


@pytest.mark.parametrize("buffer", ["", "4096"])
@pytest.mark.parametrize("mode", ["r+", "w+", "a+"])
@given(operations=OPERATIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_does_what_a_python_file_does(
    make: Make, tmp_path: Path, buffer: str, mode: str, operations: list[tuple[object, ...]]
) -> None:
    ctx = make(**{"file-buffer": buffer})
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.write_bytes(bytes(range(256)) * 20)
    handle = file.guest_file_open(ctx, str(mine), mode)
    with other.open(mode + "b") as model:
        model.seek(0)
        for operation in operations:
            match operation:
                case ("read", int(count)):
                    expected = model.read(count)
                    assert read(ctx, handle, count) == (expected, len(expected) < count)
                case ("write", bytes(data)):
                    # Writing nothing after a read in mode a+ makes CPython's own file write what it had read ahead.
                    if data:
                        model.write(data)
                    if data and mode == "a+":  # the kernel moves there; a Python file only finds out when it seeks
                        model.seek(0, os.SEEK_END)
                    write(ctx, handle, data)
                case ("seek", int(offset), int(whence)):
                    try:
                        position = model.seek(offset, whence)
                    except (OSError, ValueError):
                        with pytest.raises(CommandError, match=r"^failed to seek file: Invalid argument$"):
                            file.guest_file_seek(ctx, handle, offset, whence)
                    else:
                        assert file.guest_file_seek(ctx, handle, offset, whence)["position"] == position
                case _:
                    model.flush()
                    file.guest_file_flush(ctx, handle)
    file.guest_file_close(ctx, handle)
    assert mine.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("mode", "buffer", "size"), [("w+", "0", 1), ("a+", "0", 1 + frame.BULK_PART), ("w+", "1000000", 1)]
)
def test_a_front_that_goes_in_the_middle_of_a_write(
    make: Make, tmp_path: Path, mode: str, buffer: str, size: int
) -> None:
    ctx = make(**{"file-buffer": buffer})
    path = tmp_path / "file"
    handle = file.guest_file_open(ctx, path=str(path), mode=mode)
    file.guest_file_write(ctx, handle, b64(b"1"))
    ours, theirs = wiring.pair()
    ours.send(b"x" * frame.BULK_PART)
    ours.close()
    incoming = frame.Incoming(theirs, 3 * frame.BULK_PART, "", bytearray(frame.DATAGRAM))
    with pytest.raises(frame.FrontGone):
        file.guest_file_write(ctx, handle, incoming)
    assert "broken off after 65536 of 196608 bytes" in ctx.log.lines[-1]  # type: ignore[attr-defined]
    file.guest_file_write(ctx, handle, b64(b"2"))
    file.guest_file_close(ctx, handle)
    assert path.read_bytes().replace(b"x" * (frame.BULK_PART - 1), b"") in (b"12", b"1x2")
    assert path.read_bytes()[size:][:1] == b"2"
