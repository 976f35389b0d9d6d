"""Bulk data that comes again in a reply with the same words: the front's short way says what the long one does."""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privsep import blob, frame, wiring
from protocol.commands import COMMANDS
from protocol.errors import ProtocolViolation
from protocol.request import Known
from protocol.session import Session
from tests.support.links import greeted

READ = b'{"execute":"guest-file-read","arguments":{"handle":1,"count":%d}}\n'
LARGE = frame.INLINE + 1


class Ends:
    """The front's session and its link to a file worker, and that worker."""

    def __init__(self) -> None:
        self.link, self.worker = greeted("file")
        allowed = frozenset(c.name for c in COMMANDS)
        self.session = Session(
            allowed=allowed, frozen=lambda: False, version="1", host_name=lambda: "host", clock_ns=lambda: 0
        )
        self.memory = self._memory()
        self.sent = False
        self.short = 0  # replies that went the short way

    @staticmethod
    def _memory() -> blob._Window:
        return blob._Window()

    def restart(self) -> None:
        """Another worker, with a memory of its own, which starts with nothing in it."""
        self.link.close()
        self.worker.close()
        ours, self.worker = wiring.pair()
        self.link.connect(ours, 0.0)
        self.worker.recv(1000)
        self.worker.send(frame.encode([self.link._greeting, True, True])[0])
        assert self.link.read(0.0) is None
        self.another_memory()

    def another_memory(self) -> None:
        self.memory.view.release()
        os.close(self.memory.fd)
        self.memory = self._memory()
        self.sent = False

    def ask(self, count: int) -> int:
        """As the front does it, by the short way where there is one; the request's number."""
        data = READ % count
        request = self.session.hop(data)
        if request is None or not self.link.hop(request, 0.0):
            self.session.receive(data, 0.0)
            self.link.queue.append(self.session.calls.pop() if request is None else request)
            self.link.push(0.0)
        self.worker.recv(1000)
        return self.link.current_id

    def heard(self) -> bytes:
        """What the front tells the host of a reply.  Raises ProtocolViolation."""
        reply = self.link.read(0.0)
        assert reply is not None
        request, ok, value = reply
        assert ok
        if type(value) is dict:
            self.session.answered(request, value, 0.0, self.link.tail)
        elif type(value) is Known:
            self.session.repeated(request, 0.0)
        else:
            assert type(value) is blob.Blob
            self.short += 1
            self.session.repeated(request, 0.0, value)
        text = b""
        while self.session.output:
            text += self.session.output
            self.session.written(len(self.session.output), 0.0)
        return text

    def tell(self, kind: str, data: bytes, *, descriptor: bool = False) -> None:
        """The worker's reply with that data."""
        number, value = self.link.current_id, {"count": len(data), "buf-b64": len(data), "eof": False}
        if kind == "inline":
            self.worker.send(frame.encode([number, True, {**value, "buf-b64": data}])[0])
        elif kind == "sealed":
            fd = blob.create()
            os.write(fd, data)
            blob.seal(fd)
            wiring.send_fd(self.worker, frame.encode([number, True, value, ["buf-b64"], frame.SEALED])[0], fd)
            os.close(fd)
        else:
            self.memory.view[: len(data)] = data
            (part,) = frame.encode([number, True, value, ["buf-b64"], frame.KEPT])
            if self.sent and not descriptor:
                self.worker.send(part)
            else:
                self.sent = True
                wiring.send_fd(self.worker, part, self.memory.fd)

    def close(self) -> None:
        self.link.close()
        self.worker.close()
        self.memory.view.release()
        os.close(self.memory.fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def line(data: bytes) -> bytes:
    value = {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": False}
    return json.dumps({"return": value}).encode() + b"\n"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["kept"] * 8
            + ["kept, and its memory again", "kept, in another memory", "inline", "sealed", "another worker"]
        ),
        st.sampled_from(
            [LARGE, LARGE, LARGE, LARGE + 1, blob.SLOT, blob.SLOTS * blob.SLOT, blob.SLOTS * blob.SLOT + 1]
        ),
        st.binary(min_size=1, max_size=3),
        st.sampled_from([LARGE, LARGE, 70000]),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(STEPS)
def test_each_reply_is_its_own(steps: list[tuple[str, int, bytes, int]]) -> None:
    ends = Ends()
    try:
        for kind, size, seed, count in steps:
            if kind == "another worker":
                ends.restart()
            if kind == "kept, in another memory":  # ours would not
                ends.another_memory()
            ends.ask(count)
            data = (seed * size)[: 5000 if kind == "inline" else size]
            ends.tell(kind, data, descriptor=kind == "kept, and its memory again")
            assert ends.heard() == line(data)
            assert ends.session.idle
    finally:
        ends.close()


def test_the_second_goes_the_short_way_and_the_memory_is_the_new_ones(ends: Ends) -> None:
    for number in range(4):
        ends.ask(LARGE)
        data = bytes([number]) * LARGE
        ends.tell("kept", data)
        assert ends.heard() == line(data)
    # The first request is not remembered yet when it is asked; the second is, and its reply is what the third's is held against.
    assert ends.short == 2
    ends.restart()
    ends.ask(LARGE)
    ends.tell("kept", b"n" * LARGE)  # with its descriptor
    assert ends.heard() == line(b"n" * LARGE)
    assert ends.short == 2
    ends.ask(LARGE)
    ends.tell("kept", b"o" * LARGE)
    assert ends.heard() == line(b"o" * LARGE)
    assert ends.short == 3


def test_a_new_worker_that_hands_out_no_memory_has_none(ends: Ends) -> None:
    for _ in range(3):
        ends.ask(LARGE)
        ends.tell("kept", b"x" * LARGE)
        ends.heard()
    assert ends.short == 1
    ends.restart()
    ends.sent = True
    ends.ask(LARGE)
    ends.tell("kept", b"y" * LARGE)
    with pytest.raises(ProtocolViolation, match="without a descriptor"):
        ends.heard()


def test_no_bulk_data_is_no_line_without_an_end(ends: Ends) -> None:
    for number in range(4):
        ends.ask(LARGE)
        ends.tell("kept", b"")  # ours would say it inline
        assert ends.heard() == line(b""), number
    assert ends.short == 0


@pytest.mark.parametrize("array", [0x93, 0x94, 0x96])
def test_the_same_words_in_an_array_of_another_length_are_no_reply(ends: Ends, array: int) -> None:
    for _ in range(3):
        ends.ask(LARGE)
        ends.tell("kept", b"x" * LARGE)
        ends.heard()
    ends.ask(LARGE)
    value = {"count": LARGE, "buf-b64": LARGE, "eof": False}
    (part,) = frame.encode([ends.link.current_id, True, value, ["buf-b64"], frame.KEPT])
    ends.worker.send(part[:1] + bytes([array]) + part[2:])
    with pytest.raises(ProtocolViolation):
        ends.heard()


@pytest.mark.parametrize("kind", ["kept", "inline"])
def test_the_same_words_under_another_number_are_no_reply(ends: Ends, kind: str) -> None:
    for _ in range(3):
        ends.ask(LARGE)
        ends.tell(kind, b"x" * 40 if kind == "inline" else b"x" * LARGE)
        ends.heard()
    ends.ask(LARGE)
    ends.link.current_id -= 1
    ends.tell(kind, b"x" * 40 if kind == "inline" else b"x" * LARGE)
    ends.link.current_id += 1
    with pytest.raises(ProtocolViolation, match=r"(to|for) nothing"):
        ends.heard()


def test_what_comes_to_the_same_place(ends: Ends) -> None:
    memory = blob.take(os.dup(ends.memory.fd), kept=True)
    assert [part.kept for part in blob.parts(memory, [blob.SLOTS * blob.SLOT], kept=True)] == [True]
    assert [part.kept for part in blob.parts(memory, [blob.SLOTS * blob.SLOT + 1], kept=True)] == [False]  # not mapped
    assert [part.kept for part in blob.parts(memory, [5, 6], kept=True)] == [False, False]


@pytest.mark.parametrize("how", ["refused", "of pages that there are none of"])
def test_memory_that_cannot_be_mapped_is_a_violation_before_the_reply_begins(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def no(*_: object) -> None:
        raise PermissionError

    ends.ask(LARGE)
    if how == "refused":
        monkeypatch.setattr(blob.mmap, "mmap", no)
        ends.tell("kept", b"x" * LARGE)
    else:
        fd = os.memfd_create("t", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC | os.MFD_HUGETLB)
        os.ftruncate(fd, blob.KEPT)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, blob._SIZED)
        if int(Path("/proc/sys/vm/nr_hugepages").read_text()):
            os.close(fd)
            return  # it could be mapped: `refused` is the same for the front
        value = {"count": LARGE, "buf-b64": LARGE, "eof": False}
        (part,) = frame.encode([ends.link.current_id, True, value, ["buf-b64"], frame.KEPT])
        wiring.send_fd(ends.worker, part, fd)
        os.close(fd)
    with pytest.raises(ProtocolViolation, match="cannot be read"):
        ends.heard()
    assert not ends.session.output
    assert ends.link.lost() is not None  # so that the request is answered with an error
