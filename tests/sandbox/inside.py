"""The inside of a row's walls: everything as `privsep/child.py` does it up to the last wall, then attacks instead of work.

Only a script that `tests/sandbox/stage.py` wrote starts this.  `without` takes walls away, to show what each of them stops.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

import _prctl

from privsep import child
from privsep.domains import SUPERVISOR_CAPS
from privsep.sandbox import apply as walls
from privsep.sandbox import caps, kernel, landlock, seccomp
from tests.sandbox.attacks import ATTACKS, Target


def attack(target: Target, first: int) -> NoReturn:
    """Each line on descriptor 1: `> NUMBER` before an attack, `< NUMBER OUTCOME` after it."""
    for number in range(first, len(ATTACKS)):
        os.write(1, b"> %d\n" % number)
        os.write(1, b"< %d %s\n" % (number, ATTACKS[number].outcome(target).encode()))
    os.write(1, b"done\n")
    os._exit(0)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _take_away(without: frozenset[str]) -> None:
    if without:
        walls._compare = _nothing  # type: ignore[assignment]
    if "seccomp" in without:
        kernel.install_filter = _nothing
    if "landlock" in without:
        landlock.Ruleset.enforce = _nothing  # type: ignore[method-assign]
    if "network" in without:
        kernel.unshare_network = _nothing
    if "uid" in without:
        os.setresuid = os.setresgid = _nothing
    if "caps" in without:
        real = os.setresuid
        with open("/proc/self/status", "rb") as f:
            held = caps.permitted(caps.parse_status(f.read()))

        def keep(*ids: int) -> None:
            _prctl.prctl(_prctl.PR_SET_KEEPCAPS, 1)
            real(*ids)

        def everything(mask: int, last: int) -> None:
            kept = [n for n in range(last + 1) if held >> n & 1]
            _prctl.set_caps(kept, kept, [], [], [], kept)

        os.setresuid = keep
        caps.limit_bounding = _nothing
        caps.limit_to = everything
    if "no_new_privs" in without:
        prctl = _prctl.prctl
        _prctl.prctl = lambda option, *rest: None if option == _prctl.PR_SET_NO_NEW_PRIVS else prctl(option, *rest)


def wait(name: str, filters: str) -> NoReturn:
    """Behind the walls, until the control socket is closed: somebody looks from outside."""
    real = child.apply

    def apply(*args: Any, **kwargs: Any) -> NoReturn:
        level = real(*args, **kwargs).level
        os.write(1, b"ready %d\n" % level)
        while os.read(3, 1):
            pass
        os._exit(0)

    child.apply = apply  # type: ignore[assignment]
    child.main(name, filters)


def main(name: str, filters: str, first: int, without: frozenset[str], target: Target) -> NoReturn:
    if name == "supervisor":
        last = caps.last_cap()
        mask = sum(1 << caps.number(c) for c in SUPERVISOR_CAPS)
        kernel.install_filter(seccomp.load(filters, name))
        caps.limit_bounding(mask, last)
        caps.limit_to(mask, last)
        attack(target, first)
    _take_away(without)
    real = child.apply

    def apply(*args: Any, **kwargs: Any) -> NoReturn:
        real(*args, **kwargs)
        attack(target, first)

    child.apply = apply  # type: ignore[assignment]
    child.main(name, filters)
