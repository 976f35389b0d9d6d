"""Each filter does what `privsep/sandbox/rules.py` says: for every system call, and for the neighbours of every argument.

On this machine the kernel is asked; the filters for other machines are run by an interpreter of BPF (which is held against the
kernel here, so that it may be believed there).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from collections.abc import Iterator

import _prctl
import pytest

from privsep.domains import DOMAINS
from privsep.sandbox import kernel, rules, seccomp
from tests.sandbox.stage import FILTERS
from tests.support.agent import PROJECT

sys.path.insert(0, str(PROJECT / "packaging"))
import filters

MACHINE = os.uname().machine
LAST = 470  # system call numbers of both machines end before
STRICT = sorted(name for name, f in rules.FILTERS.items() if f.otherwise != rules.ALLOW)
LOOSE = sorted(set(rules.FILTERS) - set(STRICT))
_MINUS = (1 << 64) - 1

_lib = ctypes.CDLL("libseccomp.so.2")
_lib.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.free.argtypes = [ctypes.c_void_p]


def names(machine: str) -> dict[int, str]:
    """number -> name of every system call."""
    found = {}
    for number in range(LAST):
        address = _lib.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(filters.ARCHES[machine]), number)
        if address:
            found[number] = ctypes.string_at(address).decode()
            _libc.free(address)
    return found


def said(row: str, name: str, args: list[int]) -> int:
    """What the rules say."""
    for call in rules.FILTERS[row].calls:
        if name in call.names and all(
            (args[t.number] & t.mask == t.value) if t.same else (args[t.number] != t.value) for t in call.tests
        ):
            return call.answer
    return rules.FILTERS[row].otherwise


def cases(row: str, name: str) -> Iterator[list[int]]:
    """Arguments: all -1, which no call takes; and for each rule with a test those that fit, and their neighbours."""
    yield [_MINUS] * 6
    for call in rules.FILTERS[row].calls:
        if name not in call.names:
            continue
        fitting = [_MINUS] * 6
        for test in call.tests:
            fitting[test.number] = test.value
        if call.tests:
            yield fitting
        for test in call.tests:
            for bit in (1, 2, 0x40, 0x100, 0x200, 0x1000, 0x10000, 0x10000000, 0x40000000, 0x80000000):
                near = list(fitting)
                near[test.number] = test.value ^ bit
                yield near


# -- BPF, as seccomp(2) uses it


def interpret(program: bytes, machine: str, number: int, args: list[int]) -> int:
    """ALLOW, KILL or an errno."""
    data = struct.pack("<IIQ6Q", number, filters.ARCHES[machine], 0, *args)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == 0x20:  # ld [k]
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x54:  # and #k
            accumulator &= k
        elif op == 0x05:  # ja
            at += k
        elif op in (0x15, 0x25, 0x35):  # jeq, jgt, jge
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}[op]
            at += jt if holds else jf
        elif op == 0x06:  # ret
            if k == filters.ACT_ALLOW:
                return rules.ALLOW
            return rules.KILL if k == filters.ACT_KILL_PROCESS else k & 0xFFFF
        else:
            raise AssertionError(f"an instruction that is not known: {op:#x}")


# Calls whose neighbours would end or stop the one who tries them even where they are allowed.
_ONLY_INTERPRETED = {"rt_sigreturn", "exit", "exit_group", "restart_syscall", "clone", "fork", "pause", "vfork"}


def tried(program: bytes, wanted: list[tuple[int, list[int]]]) -> Iterator[int]:
    """What the kernel makes of each call, in a forked child: KILL, an errno, 0 for anything else."""
    todo = list(wanted)
    while todo:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _prctl.prctl(_prctl.PR_SET_NO_NEW_PRIVS, 1)
                os.dup2(writer, 200)
                kernel.install_filter(program)
                for number, args in todo:
                    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in args))
                    code = ctypes.get_errno() if result == -1 else 0
                    os.write(200, code.to_bytes(2, "little"))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as f:
            found = f.read()
        status = os.waitpid(pid, 0)[1]
        yield from (code for (code,) in struct.iter_unpack("<H", found))
        done = len(found) // 2
        if done < len(todo):
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS, (todo[done], status)
            yield rules.KILL
            done += 1
        todo = todo[done:]


def check(row: str, program: bytes, machine: str, *, unlisted: bool) -> None:
    listed = {n for call in rules.FILTERS[row].calls for n in call.names}
    asked: list[tuple[int, list[int]]] = []
    for number, name in names(machine).items():
        for args in cases(row, name):
            expected = said(row, name, args)
            assert interpret(program, machine, number, args) == expected, (row, name, args)
            if machine == MACHINE and name not in _ONLY_INTERPRETED and (unlisted or name in listed):
                asked.append((number, args))
    for (number, args), found in zip(asked, tried(program, asked), strict=True):
        name = names_here[number]
        expected = said(row, name, args)
        if expected == rules.ALLOW:
            assert found != rules.KILL, (row, name, args)
        else:
            assert found == expected, (row, name, args, errno.errorcode.get(found))


names_here = names(MACHINE)


@pytest.mark.parametrize("row", STRICT)
def test_a_strict_filter_lets_through_what_is_listed_and_nothing_else(row: str) -> None:
    # `write` must work for the report, `mmap` and its like for the interpreter: all strict rows have them.
    check(row, seccomp.load(FILTERS, row), MACHINE, unlisted=rules.FILTERS[row].otherwise == rules.KILL)


@pytest.mark.parametrize("row", LOOSE)
def test_an_inherited_filter_refuses_what_is_listed(row: str) -> None:
    check(row, seccomp.load(FILTERS, row), MACHINE, unlisted=False)


@pytest.mark.parametrize("row", sorted(rules.FILTERS))
@pytest.mark.parametrize("machine", sorted(set(filters.ARCHES) - {MACHINE}))
def test_the_filters_of_other_machines_say_the_same(row: str, machine: str) -> None:
    check(row, filters.compiled(row, machine), machine, unlisted=False)


def test_calls_of_another_architecture_end_a_strict_process() -> None:
    program = seccomp.load(FILTERS, "front")
    other = next(m for m in filters.ARCHES if m != MACHINE)
    assert interpret(program, other, 0, [0] * 6) == rules.KILL
    if MACHINE == "x86_64":
        assert interpret(program, MACHINE, 0x40000000, [0] * 6) == rules.KILL  # x32


def test_there_is_a_filter_for_each_row_that_says_so() -> None:
    assert set(rules.FILTERS) == {"supervisor", *(d.name for d in DOMAINS if d.filtered)}


def test_every_rule_has_a_reason() -> None:
    for row, wanted in rules.FILTERS.items():
        for call in wanted.calls:
            assert call.why and call.names, (row, call.names)


@pytest.mark.parametrize(
    "name",
    # It starts nothing, opens nothing, makes no socket and gives no descriptor away.
    (
        "clone fork vfork execve execveat memfd_create socket socketpair connect bind listen sendmsg sendmmsg pidfd_getfd "
        "setresuid setuid mount ptrace bpf rt_sigreturn"
    ).split(),
)
def test_the_front_may_not(name: str) -> None:
    assert said("front", name, [0] * 6) == rules.KILL


def test_a_filter_of_other_rules_is_refused(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "stamp", lambda: "00000000")
    with pytest.raises(seccomp.NoFilter, match="other rules"):
        seccomp.load(FILTERS, "front")
    with pytest.raises(seccomp.NoFilter, match="no system call filter"):
        seccomp.load(str(tmp_path), "front")


def test_a_filter_that_is_cut_off_is_refused() -> None:
    with pytest.raises(OSError, match="cut off"):
        kernel.install_filter(b"\0" * 9)
