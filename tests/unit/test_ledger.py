"""The supervisor's end of the audit trail: nobody waits, nothing is written while frozen, what is lost is counted and said."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.model import Policy, builtin, with_lists
from privsep import ledger as module
from privsep import spawn
from privsep.audit import Audit
from privsep.auditsink import SinkError, ToFile, ToJournal, open_sink
from privsep.counters import SIZE, nowhere, numbers_in
from privsep.ledger import BUDGET, Ledger
from privsep.loop import Loop
from protocol import tally
from tests.support.handlers import Lines


def to(path: Path, policy: Policy) -> Policy:
    """The policy with its records in that file."""
    object.__setattr__(policy, "more", {"audit-to": f"file:{path}"})
    return policy


class Trail:
    """A ledger with a file, and processes that write to it."""

    def __init__(self, path: Path, policy: str = "default") -> None:
        self.path = path
        self.log = Lines()
        self.ledger = Ledger(log=self.log, policy=to(path, builtin(policy)))  # type: ignore[arg-type]
        self.loop = Loop()
        self.ledger.listen(self.loop)
        self.loop.at("end", 1e9, lambda: None)

    def process(self, name: str, pid: int = 5) -> tuple[Audit, int]:
        ours, theirs = spawn.outlet()
        self.ledger.watch(name, pid, ours)
        return Audit(theirs, nowhere()), theirs

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            while self.loop.due("audit rest") is not None:
                self.loop.turn()
            self.loop.at("now", 0.0, lambda: None)
            self.loop.turn()

    def once(self) -> None:
        """One thing that happens, a rest's end too; it is waited for."""
        self.loop.at("now", 1.0, lambda: None)
        self.loop.turn()

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[Trail]:
    yield Trail(tmp_path / "audit.jsonl")


def test_a_record_is_signed_with_the_name_of_the_socket_it_came_from(trail: Trail) -> None:
    file, _ = trail.process("file", 11)
    front, _ = trail.process("front", 12)
    file.begin(1, "guest-file-open", ["path", "/x"])
    front.refused(2, "guest-exec", [])
    trail.turn()
    assert [(r["process"], r["pid"], r["phase"]) for r in trail.records()] == [
        ("file", 11, "begin"),
        ("front", 12, "refused"),
    ]
    assert os.stat(trail.path).st_mode & 0o777 == 0o600


def test_what_a_process_said_before_it_died_is_written(trail: Trail) -> None:
    file, fd = trail.process("file")
    for number in range(20):
        file.begin(number, "guest-file-open", [])
    os.close(fd)
    trail.turn(2)
    assert [r["id"] for r in trail.records()] == list(range(20))
    assert trail.ledger._sources == {}


def test_what_is_left_at_the_end_is_written(trail: Trail) -> None:
    file, fd = trail.process("file")
    fs, _ = trail.process("fs")
    for number in range(100):
        file.begin(number, "guest-file-open", [])
    fs.begin(100, "guest-fsfreeze-thaw", [])
    os.close(fd)
    begun = time.monotonic()
    trail.ledger.drain()
    assert sorted(r["id"] for r in trail.records()) == list(range(101)) and time.monotonic() - begun < 5  # type: ignore[type-var]


def test_what_comes_in_a_stream_is_taken_together(trail: Trail) -> None:
    file, _ = trail.process("file")
    file.begin(1, "guest-file-open", [])
    trail.turn()
    assert [r["id"] for r in trail.records()] == [1]  # at once
    begun = time.monotonic()
    for number in range(2, 7):
        file.begin(number, "guest-file-open", [])
    taken = 1
    while taken < 6:
        trail.once()
        assert len(trail.records()) in (1, 6)
        taken = len(trail.records())
    assert time.monotonic() - begun < 0.5
    trail.turn(3)
    file.begin(7, "guest-file-open", [])
    trail.turn()
    assert [r["id"] for r in trail.records()] == list(range(1, 8))


def test_a_rest_does_not_outlast_a_freeze_that_began_in_it(trail: Trail) -> None:
    fs, _ = trail.process("fs")
    fs.begin(1, "guest-fsfreeze-freeze", [])
    trail.once()
    trail.ledger.frozen(True)
    fs.end(1, "guest-fsfreeze-freeze", error=None, took=0.1, taken=0, given=0)
    trail.turn(3)
    assert len(trail.records()) == 1
    trail.ledger.frozen(False)
    trail.turn()
    assert [r["phase"] for r in trail.records()] == ["begin", "end"]


def test_nothing_is_written_while_frozen_and_all_of_it_after(trail: Trail) -> None:
    fs, fd = trail.process("fs")
    trail.ledger.frozen(True)
    fs.begin(1, "guest-fsfreeze-thaw", [])
    trail.ledger.recovery("the deadline passed")
    trail.turn(3)
    assert trail.records() == []
    os.close(fd)  # its process dies: the socket keeps what it said
    trail.turn(3)
    assert trail.records() == []
    before = trail.ledger.numbers[tally.FROZEN_SINCE]
    assert before > 0
    time.sleep(0.01)
    trail.ledger.frozen(False)
    trail.turn(2)
    assert sorted(str(r["phase"]) for r in trail.records()) == ["begin", "event"]
    numbers = trail.ledger.numbers
    assert (numbers[tally.FREEZES], numbers[tally.FROZEN_SINCE], numbers[tally.RECOVERIES]) == (1, 0, 1)
    assert 10_000 <= numbers[tally.FROZEN_US] < 5_000_000


def test_while_frozen_a_socket_that_is_full_drops_and_says_so_later(trail: Trail) -> None:
    fs, _ = trail.process("fs")
    trail.ledger.frozen(True)
    counts = fs._numbers
    made = 0
    while not counts[tally.DROPPED]:
        fs.begin(made, "guest-fsfreeze-thaw", [])
        made += 1
        assert made < 10_000
    assert made > 100  # as many at least are kept
    trail.ledger.frozen(False)
    trail.turn(made // 30 + 2)
    fs.begin(made, "guest-fsfreeze-thaw", [])
    trail.turn()
    records = trail.records()
    assert len(records) == made and records[-1]["lost"] == 1


def test_a_front_that_says_too_much_waits_and_the_others_do_not(trail: Trail) -> None:
    front, _ = trail.process("front")
    file, _ = trail.process("file")
    size = 0
    while size < BUDGET["front"]:
        front.refused(1, "guest-exec", ["path", "x" * 1500])
        size += 1500
        trail.turn()
    trail.turn(3)
    paused = len(trail.records())
    front.refused(2, "guest-exec", [])
    file.begin(3, "guest-file-open", [])
    trail.turn(3)
    assert [r["id"] for r in trail.records()][paused:] == [3]
    due = trail.loop.due("audit")
    assert due is not None
    for number in range(4, 9):  # what others say does not make it wait longer
        file.begin(number, "guest-file-open", [])
        trail.turn()
    assert trail.loop.due("audit") == due
    trail.ledger._sources[next(iter(trail.ledger._sources))].since -= module.SECOND
    trail.ledger.resume()
    trail.turn()
    assert [r["id"] for r in trail.records()][paused:] == [3, 4, 5, 6, 7, 8, 1, 2]


def test_a_file_that_was_rotated_is_made_anew(trail: Trail, tmp_path: Path) -> None:
    file, _ = trail.process("file")
    file.begin(1, "guest-file-open", [])
    trail.turn()
    trail.path.rename(tmp_path / "audit.1")
    file.begin(2, "guest-file-open", [])
    trail.turn()
    assert [r["id"] for r in trail.records()] == [2]
    assert (tmp_path / "audit.1").read_text().count("\n") == 1


def test_a_full_disk_loses_whole_records_and_says_so(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a disk that is full after so many bytes."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            trail = Trail(tmp_path / "audit.jsonl")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            file, _ = trail.process("file")
            for number in range(50):
                file.begin(number, "guest-file-open", [])
            trail.turn(2)
            kept = len(trail.records())  # each line is whole
            lost = numbers_in(os.pread(trail.ledger.counters("supervisor").fd, SIZE, 0))[tally.DROPPED]
            assert 0 < kept < 50 and kept + lost == 50, (kept, lost)
            (line,) = trail.log.lines  # once a minute
            assert line.endswith(f" audit records were lost: file:{tmp_path}/audit.jsonl did not take them")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_journal_that_does_not_read_blocks_nobody_and_one_that_comes_back_is_used(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.bind(path)
    sink = ToJournal(path)
    record = {"time": "t", "phase": "event", "process": "supervisor", "pid": 1, "event": "lapse", "detail": "x" * 500}
    begun = time.monotonic()
    lost = sink.write([dict(record) for _ in range(20000)])  # type: ignore[arg-type, misc]
    assert 0 < lost < 20000 and time.monotonic() - begun < 5
    reader.close()
    os.unlink(path)
    assert sink.write([dict(record)]) == 1  # type: ignore[arg-type]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        assert sink.write([dict(record)]) == 0  # type: ignore[arg-type]
        assert b"PRIVSEP_GA_EVENT=lapse\n" in again.recv(1 << 16)


def test_refusals_are_in_the_log_too_once_a_minute_for_each_command(trail: Trail) -> None:
    front, _ = trail.process("front")
    for number in range(5):
        front.refused(number, "guest-exec", ["path", "/bin/sh"])
    front.refused(9, "guest-file-open", [])
    trail.turn()
    assert len(trail.records()) == 6
    assert len(trail.log.lines) == 2
    assert trail.log.lines[0].startswith("refused 0 guest-exec path=/bin/sh: not allowed by ")


def test_another_policy_counts_from_now_on(trail: Trail) -> None:
    numbers = trail.ledger.counters("front").numbers
    cell = (
        tally.FIRST
        + tally.WIDTH * list(__import__("policy.builtin").builtin.COMMANDS).index("guest-exec")
        + tally.REFUSED
    )
    numbers[cell] += 5
    first = builtin("default").about("guest-exec")
    assert trail.ledger.adopt(to(trail.path, with_lists(builtin("qemu-ga"), ["guest-exec"], []))) == []
    lines = trail.ledger.status()
    assert f"refused guest-exec 5 {first[0]} {first[1]}" in lines
    assert any(line.startswith("rule guest-exec block-rpcs") for line in lines)
    numbers[cell] += 2
    trail.ledger.adopt(to(trail.path, builtin("default")))
    assert [line for line in trail.ledger.status() if line.startswith("refused guest-exec 2 block-rpcs")]
    assert [r["event"] for r in trail.records()] == ["policy", "policy"]


def test_another_policy_may_have_another_sink(trail: Trail, tmp_path: Path) -> None:
    file, _ = trail.process("file")
    file.begin(1, "guest-file-open", [])
    other = tmp_path / "other.jsonl"
    assert trail.ledger.adopt(to(other, builtin("default"))) == []
    file.begin(2, "guest-file-open", [])
    trail.turn()
    assert [r["id"] for r in trail.records()] == [1]
    trail.path = other
    assert [r.get("id") for r in trail.records()] == [None, 2]  # the first says that another policy is in force
    (note,) = trail.ledger.adopt(to(tmp_path / "no" / "such", builtin("default")))
    assert note.startswith(
        f"audit records go to file:{other} as before: the audit file {tmp_path}/no/such cannot be opened"
    )
    file.begin(3, "guest-file-open", [])
    trail.turn()
    assert [r.get("id") for r in trail.records()] == [None, 2, None, 3]


def test_a_sink_that_cannot_be_had_is_an_error_that_names_it(tmp_path: Path) -> None:
    log = Lines()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    for to, words in (
        (f"file:{tmp_path}/no/such", "No such file"),
        (f"file:{tmp_path}", "directory"),
        (f"file:{tmp_path}/link", "symbolic links"),
        (f"file:{tmp_path}/fifo", "No such device|not a regular file"),
    ):
        with pytest.raises(SinkError, match=words) as caught:
            open_sink(to, log)  # type: ignore[arg-type]
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(SinkError, match="the journal cannot be reached"):
        ToJournal(str(tmp_path / "none"))


def test_the_file_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_text("before\n")
    sink = ToFile(str(path))
    assert sink.write([{"phase": "event", "event": "lapse", "detail": "d"}]) == 0
    assert path.read_text() == 'before\n{"phase":"event","event":"lapse","detail":"d"}\n'
