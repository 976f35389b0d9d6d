#!/usr/bin/env python3
"""Compile the system call filters: libexec/privsep-ga/filters/<row>.<machine> for each row of `privsep/sandbox/rules.py`.

Used by `make setup` and by the packages, for every machine at once (BPF is the same everywhere, the numbers of the calls are
not).  By libseccomp, through ctypes: its Python binding is no pure Python package and distributions ship it for their own
interpreter only.

    filters.py --libexecdir .venv/libexec/privsep-ga
    filters.py --show front            # the filter in words

Facts: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).  Rules for a call that a machine does not have are passed
over by `seccomp_rule_add` (not by `seccomp_rule_add_exact`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE))

from privsep.sandbox import rules, seccomp  # noqa: E402

# machine (uname -m) -> SCMP_ARCH_*
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ACT_ALLOW = 0x7FFF0000
ACT_KILL_PROCESS = 0x80000000
CMP_NE = 1
CMP_MASKED_EQ = 7
FLTATR_ACT_BADARCH = 2
FLTATR_CTL_OPTIMIZE = 8
NR_UNKNOWN = -1


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class FilterError(Exception):
    """A rule that libseccomp refuses."""


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.restype = None
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_arch_add.argtypes = lib.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compare),
    ]  # fmt: skip
    lib.seccomp_export_bpf.argtypes = lib.seccomp_export_pfc.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return lib


def action(answer: int) -> int:
    if answer == rules.ALLOW:
        return ACT_ALLOW
    return ACT_KILL_PROCESS if answer == rules.KILL else 0x00050000 | answer


class Compiler:
    """One row on one machine."""

    def __init__(self, lib: ctypes.CDLL, wanted: rules.Filter, machine: str) -> None:
        self._lib = lib
        self._context = lib.seccomp_init(action(wanted.otherwise))
        if not self._context:
            raise MemoryError
        if machine != os.uname().machine:
            self._check(lib.seccomp_arch_add(self._context, ARCHES[machine]), machine)
            self._check(lib.seccomp_arch_remove(self._context, ARCHES[os.uname().machine]), machine)
        # Calls of another architecture (32-bit ones) would be outside of every rule.
        badarch = ACT_KILL_PROCESS if wanted.otherwise == rules.KILL else action(rules.EPERM)
        if wanted.otherwise != rules.ALLOW:
            self._check(lib.seccomp_attr_set(self._context, FLTATR_ACT_BADARCH, badarch), "other architectures")
        else:
            self._check(
                lib.seccomp_attr_set(self._context, FLTATR_ACT_BADARCH, action(rules.EPERM)), "other architectures"
            )
        self._check(lib.seccomp_attr_set(self._context, FLTATR_CTL_OPTIMIZE, 2), "optimize")
        for call in wanted.calls:
            if call.answer != wanted.otherwise:
                for name in call.names:
                    self._add(name, call)

    def _add(self, name: str, call: rules.Call) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number == NR_UNKNOWN:
            raise FilterError(f"libseccomp does not know the system call {name}")
        tests = (Compare * max(1, len(call.tests)))()
        for slot, test in zip(tests, call.tests, strict=False):
            slot.arg = test.number
            if test.same:
                slot.op, slot.a, slot.b = CMP_MASKED_EQ, test.mask, test.value
            else:
                slot.op, slot.a = CMP_NE, test.value
        result = self._lib.seccomp_rule_add_array(self._context, action(call.answer), number, len(call.tests), tests)
        self._check(result, f"{name} ({call.why})")

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise FilterError(f"{what}: {os.strerror(-result)}")

    def export(self, *, words: bool = False) -> bytes:
        function = self._lib.seccomp_export_pfc if words else self._lib.seccomp_export_bpf
        with tempfile.TemporaryFile() as file:
            self._check(function(self._context, file.fileno()), "export")
            file.seek(0)
            return file.read()

    def close(self) -> None:
        self._lib.seccomp_release(self._context)


def compiled(row: str, machine: str, *, words: bool = False) -> bytes:
    """The row's filter.  Raises FilterError; OSError without libseccomp."""
    compiler = Compiler(library(), rules.FILTERS[row], machine)
    try:
        return compiler.export(words=words)
    finally:
        compiler.close()


def write(path: Path, data: bytes) -> bool:
    """False if it is there already."""
    try:
        if path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o644:
            return False
    except FileNotFoundError:
        pass
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.chmod(0o644)
    draft.rename(path)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the system call filters of privsep-ga.")
    parser.add_argument("--libexecdir", help="below it filters/")
    parser.add_argument("--destdir", default="", help="put before the path that is written to")
    parser.add_argument("--machine", choices=ARCHES, help="only this one's (uname -m)")
    parser.add_argument("--show", metavar="ROW", help="print one row's filter, as libseccomp words it")
    options = parser.parse_args(argv)
    if options.show:
        sys.stdout.write(compiled(options.show, os.uname().machine, words=True).decode())
        return 0
    if not options.libexecdir:
        parser.error("one of --libexecdir and --show is required")
    folder = Path(options.destdir + os.path.abspath(options.libexecdir)) / "filters"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    stamp = seccomp.stamp()
    wanted = set()
    for row in rules.FILTERS:
        for machine in (options.machine,) if options.machine else ARCHES:
            path = folder / seccomp.file_name(row, machine)
            wanted.add(path.name)
            if write(path, seccomp.header(row, machine, stamp) + compiled(row, machine)):
                print(f"wrote {path}")
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
            print(f"removed {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
