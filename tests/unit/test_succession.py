"""What a row lacks before a restart, and which slices a worker may go on under."""

from __future__ import annotations

import pytest

from policy.model import builtin
from policy.seal import slice_for
from privsep.domains import BY_NAME, CAPABILITIES
from privsep.orders import narrower
from privsep.succession import unavailable

ALL = (1 << 41) - 1
TIME = 1 << CAPABILITIES["SYS_TIME"]


@pytest.mark.parametrize(
    ("row", "granted", "available", "walled", "said"),
    [
        ("time", ALL, ALL, False, ""),
        ("time", ALL, ALL & ~TIME, False, "time needs CAP_SYS_TIME, which the agent has given up"),
        ("time", ALL & ~TIME, ALL & ~TIME, False, "which the agent was not started with"),
        ("network", 0, 0, True, ""),
        ("exec", ALL, ALL, False, ""),
        ("exec", ALL, ALL & ~TIME, False, "exec needs capabilities, which the agent has given up"),
        ("exec", TIME, TIME, True, "programs of exec would inherit"),
        ("exec", TIME, TIME, False, ""),
    ],
)
def test_what_a_row_lacks(row: str, granted: int, available: int, walled: bool, said: str) -> None:
    found = unavailable(BY_NAME[row], granted=granted, available=available, walled=walled)
    assert (said in found) if said else found == ""


def test_a_slice_is_narrower_when_a_command_is_gone_or_anything_else_differs() -> None:
    old = b"allow a\nallow b\nset rule x\nset origin f:1\nset verbose 0\nrule file\tone\tf:3\tpath=/a\n"
    assert not narrower(old, old)
    assert not narrower(old, old + b"allow c\n")
    assert not narrower(old, old.replace(b"f:1", b"f:2").replace(b"one\tf:3", b"two\tf:9"))
    assert narrower(old, old.replace(b"allow b\n", b""))
    assert narrower(old, old.replace(b"/a", b"/b"))
    assert narrower(old, old.replace(b"verbose 0", b"verbose 1"))
    assert narrower(old, b"")


def test_profiles_that_allow_more_are_not_narrower_for_the_workers_they_share() -> None:
    default, ansible = builtin("default"), builtin("ansible")
    for domain in ("inventory", "network", "trim"):
        slices = [slice_for(domain, p, p.settings()) for p in (default, ansible)]
        assert not narrower(*slices) and not narrower(*reversed(slices))
