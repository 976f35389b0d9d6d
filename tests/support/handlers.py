"""What a handler needs when it is called without its worker: a context, and a process with exactly a row's privileges."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _prctl

from privsep.blob import SLOT, Flow, Kept, Sealed, window
from privsep.domains import BY_NAME, CAPABILITIES
from privsep.sandbox import caps, kernel
from privsep.sandbox.apply import filter_of, rules_of
from tests.support.agent import program


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def _add(self, text: str) -> None:
        self.lines.append(text)

    error = warning = info = later = debug = _add


class BareContext:
    """The part of privsep.runtime.Context that handlers of commands use."""

    def __init__(self, root: object = "", **settings: str) -> None:
        self.root = str(root)
        self.settings = {name.replace("_", "-"): value for name, value in settings.items()}
        self.log = Lines()

    def setting(self, name: str, default: str = "") -> str:
        return self.settings.get(name, default)


def bulk(member: object) -> bytes:
    """The bytes of a bulk member of a result (privsep/frame.py), in a memfd or not; the memfd is closed."""
    if isinstance(member, Sealed):
        assert fcntl.fcntl(member.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        assert os.fstat(member.fd).st_size == member.size
        data = os.pread(member.fd, member.size, 0)
        os.close(member.fd)
        return data
    if isinstance(member, Kept):
        return os.pread(window().fd, member.size, 0)
    assert isinstance(member, (bytes, bytearray))
    return bytes(member)


def whole(answer: dict[str, Any]) -> dict[str, Any]:
    """A result whose bulk member flows, when all of it has."""
    name, flow = next(iter(answer.items()))
    if not isinstance(flow, Flow):
        return answer
    data, view = bytearray(window().view[:SLOT]), memoryview(bytearray(SLOT))
    size = SLOT
    while size == SLOT:
        size = flow.fill(view)
        data += view[:size]
    return {name: bytes(data), **flow.rest()}


FILTERS = str(Path(program()).resolve().parents[1] / "libexec" / "privsep-ga" / "filters")


def confined(
    domain: str,
    function: Callable[[], Any],
    *,
    without: str = "",
    root: object = "",
    walls: bool = True,
    granted: list[tuple[int, str]] | None = None,
    **settings: str,
) -> Any:
    """What `function` returns, or the exception it raises, in a child that is uid 0 with the row's capabilities and walls.

    `without` takes a capability away: the other side of the rule.  `root` is a folder that plays `/`, `granted` what a worker's `prepare` puts in the place of the row's paths, `walls` False leaves
    Landlock and the filter away (for a test that looks around inside), `settings` are the
    policy slice's.  AssertionError when the filter ends the child."""
    row = BY_NAME[domain]
    mask = sum(1 << CAPABILITIES[name] for name in BY_NAME[domain].caps if name != without)
    rules = rules_of(row, root=str(root), environ=os.environ, settings=settings, granted=granted) if walls else None
    bpf = filter_of(row, FILTERS) if walls else None
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            last = caps.last_cap()
            caps.limit_bounding(mask, last)
            os.setgroups([])
            caps.limit_to(mask, last)
            _prctl.prctl(_prctl.PR_SET_NO_NEW_PRIVS, 1)
            with open("/proc/self/status") as status:
                held = dict(line.split(":\t") for line in status.read().splitlines() if line.startswith("Cap"))
            assert {int(held[s], 16) for s in ("CapPrm", "CapEff", "CapBnd")} == {mask}
            if rules is not None:
                rules.enforce()
            if bpf is not None:
                kernel.install_filter(bpf)
            answer = function()
        except BaseException as e:
            answer = e
        data = pickle.dumps(answer)
        while data:  # no file object: the interpreter would ask whether it is a terminal
            data = data[os.write(writer, data) :]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        data = f.read()
    status = os.waitpid(pid, 0)[1]
    assert not os.WIFSIGNALED(status), f"the row's walls end it: signal {os.WTERMSIG(status)}"
    return pickle.loads(data)
