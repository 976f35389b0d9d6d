"""The fuzz target of the wire, for as long as a test run can spare; `make fuzz` and atheris run it for longer."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_wire import run


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_input_breaks_the_invariant(seed: int) -> None:
    assert run(1.0, seed) > 20
