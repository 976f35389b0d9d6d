"""What each process holds behind its walls: the kernel's view from outside, and what its rows declare where the kernel tells nothing.

Printed by `make attack` below the attack table and compared with held.txt: an attack that one wall stops does not show that
another has a hole, so a row that was loosened behind a wall is seen here.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from privsep import kernelview
from privsep.domains import BY_NAME, DOMAINS, SUPERVISOR_CAPS
from privsep.sandbox import rules
from tests.sandbox import stage

EXPECTED = Path(__file__).with_name("held.txt")
HEAD = "# As the kernel shows it, but for `may open`, `needs at least` and `system calls`: these are what the tables declare.\n"
_READY = b"ready "


def declared(name: str) -> dict[str, str]:
    """The two that no file of /proc shows; with a checksum of each rule's arguments and answers."""
    row = BY_NAME.get(name)
    if row is None:  # the supervisor, whose least is declared and not its all
        return {"needs at least": ",".join(SUPERVISOR_CAPS), **_calls(name)}
    if row.paths is None:
        paths = "anything"
    else:
        paths = " ".join(f"{path}={letters}" for path, (letters, _) in row.paths.items()) or "nothing"
        paths += "; signals and abstract sockets stay inside" if row.scoped else "; not scoped"
    return {"may open": paths, **_calls(name)}


def _calls(name: str) -> dict[str, str]:
    if name not in rules.FILTERS:
        return {"system calls": "any"}
    wanted = rules.FILTERS[name]
    listed = [(c.names, c.answer, [(t.number, t.value, t.mask, t.same) for t in c.tests]) for c in wanted.calls]
    names = {n for c in wanted.calls for n in c.names}
    what = "but" if wanted.otherwise == rules.ALLOW else "only"
    crc = binascii.crc32(repr((wanted.otherwise, listed)).encode())
    return {"system calls": f"{what} {len(names)} ({crc:08x})"}


def seen(name: str, pid: int, level: int) -> dict[str, str]:
    """The kernel's view; `level` is what the process says of Landlock."""
    process = kernelview.look(name, pid)
    ours = kernelview.look("supervisor", os.getpid())
    uid = process.number("Uid")

    def named(key: str) -> str:
        held = kernelview.names(process.mask(key))
        return "all" if held == kernelview.names(ours.mask("CapPrm")) else ",".join(held) or "none"

    own = sorted(ns for ns, link in process.namespaces.items() if link != ours.namespaces[ns])
    unlike = {k: v for k, v in process.limits.items() if v != ours.limits[k]}
    return {
        "user": "root" if uid == 0 else "its own",
        "groups": ",".join(process.status["Groups"]) or "none",
        "capabilities": named("CapEff"),
        "permitted": named("CapPrm"),
        "bounding": named("CapBnd"),
        "inheritable, ambient": f"{named('CapInh')}, {named('CapAmb')}",
        "no_new_privs": "yes" if process.number("NoNewPrivs") else "no",
        "filters": str((process.number("Seccomp_filters") or 0) - (ours.number("Seccomp_filters") or 0)),
        "landlock": "none" if level in (0, 255) else "in force",
        "own namespaces": ",".join(own) or "none",
        "limits": " ".join(f"{k}={v}" for k, v in sorted(unlike.items())) or "none",
    }


def measure_row(name: str, change: str = "") -> dict[str, str]:
    """In a private root.  `change` is code that loosens something in the process before it puts up its walls."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        body = f"{change}\nfrom tests.sandbox.inside import wait\nwait({name!r}, {stage.FILTERS!r})"
        reader, writer = os.pipe()
        pid, control = stage.start(name, stage.script(folder, name, body), writer)
        os.close(writer)
        try:
            with control, os.fdopen(reader, "rb", 0) as log:
                text = b""
                while b"\n" not in text.partition(_READY)[2] and (part := log.read(4096)):
                    text += part
                word = text.partition(_READY)[2].split()
                if not word:
                    raise RuntimeError(f"{name} did not come to its end: {text.decode(errors='replace')}")
                return {**seen(name, pid, int(word[0])), **declared(name)}
        finally:
            os.waitpid(pid, 0)


def table() -> str:
    """One line a cell; in a private root."""
    lines = [f"{'supervisor':10} {key:22} {value}" for key, value in declared("supervisor").items()]
    for row in DOMAINS:
        lines += [f"{row.name:10} {key:22} {value}" for key, value in measure_row(row.name).items()]
    return HEAD + "\n".join(lines) + "\n"


def cells(text: str) -> dict[tuple[str, str], str]:
    return {
        (line[:10].strip(), line[11:33].strip()): line[34:] for line in text.splitlines() if not line.startswith("#")
    }


def differences(found: str, expected: str) -> list[str]:
    """Cells that are not as expected."""
    wanted, got = cells(expected), cells(found)
    return [
        f"{row}, {key}: {got.get((row, key))}, not {wanted.get((row, key))}"
        for row, key in sorted({*wanted, *got})
        if got.get((row, key)) != wanted.get((row, key))
    ]


@contextlib.contextmanager
def loosened(name: str, attribute: str, value: object) -> Iterator[str]:
    """The row with another value, here and, by the code that is given, in its process."""
    row = BY_NAME[name]
    before = getattr(row, attribute)
    setattr(row, attribute, value)
    try:
        yield f"from privsep.domains import BY_NAME\nBY_NAME[{name!r}].{attribute} = {value!r}"
    finally:
        setattr(row, attribute, before)
