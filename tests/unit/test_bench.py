"""The bench: which of several tries counts where a host takes the processors away."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench.processes import Stolen


def tries(monkeypatch: pytest.MonkeyPatch, *percents: float) -> Iterator[float]:
    left = iter(percents)

    class Told:
        def __init__(self) -> None:
            self.percent = next(left)

    monkeypatch.setattr(bench, "Stolen", Told)
    made = iter(range(len(percents)))
    monkeypatch.setattr(bench, "measure", lambda name, effort: {"row": {"ours": [float(next(made))], "theirs": []}})
    return left


OPTIONS = argparse.Namespace(quick=True, tries=3, stolen=5.0)


def test_a_quiet_try_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    left = tries(monkeypatch, 20.0, 5.0, 0.0)
    percent, found = bench.quietest("files", OPTIONS)
    assert (percent, found["row"]["ours"], list(left)) == (5.0, [1.0], [0.0])


def test_of_noisy_ones_the_least_counts_not_the_best_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    tries(monkeypatch, 30.0, 10.0, 20.0)
    percent, found = bench.quietest("files", OPTIONS)
    assert (percent, found["row"]["ours"]) == (10.0, [1.0])


def test_one_that_failed_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tries(monkeypatch, 0.0, 20.0, 30.0)
    results = iter([{}, {"row": {"ours": [7.0], "theirs": []}}, {}])
    monkeypatch.setattr(bench, "measure", lambda name, effort: next(results))
    assert bench.quietest("files", OPTIONS) == (20.0, {"row": {"ours": [7.0], "theirs": []}})
    tries(monkeypatch, 0.0, 0.0, 0.0)
    monkeypatch.setattr(bench, "measure", lambda name, effort: {})
    assert bench.quietest("files", OPTIONS) == (None, {})


def ticks_now() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def test_what_was_used_here_was_not_stolen() -> None:
    ticks = ticks_now()
    stolen = Stolen()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        os.getpid()
    after = ticks_now()
    used = sum(a - b for n, (a, b) in enumerate(zip(after, ticks, strict=True)) if n in (0, 1, 2, 5, 6))
    taken = after[7] - ticks[7]
    assert 0 <= stolen.percent <= 100
    assert used > 0 and abs(stolen.percent - 100 * taken / (used + taken)) < 25
