"""privsep-gactl audit and metrics: times, filters, entries of the journal, and a text that Prometheus' parser takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from privsep import ctlmetrics
from privsep.auditrecord import journal_field
from privsep.counters import Page
from privsep.ctlaudit import LOOK, AuditError, chosen, from_file, instant, line, of_journal
from privsep.kernelview import Report, parse_report
from protocol import tally
from protocol.commands import BY_NAME

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("30s", datetime(2026, 1, 31, 11, 59, 30, tzinfo=UTC)),
        ("10m", datetime(2026, 1, 31, 11, 50, tzinfo=UTC)),
        ("2h", datetime(2026, 1, 31, 10, 0, tzinfo=UTC)),
        ("7d", datetime(2026, 1, 24, 12, 0, tzinfo=UTC)),
        ("1w", datetime(2026, 1, 24, 12, 0, tzinfo=UTC)),
        ("999999999999d", datetime.fromtimestamp(0, UTC)),
        ("2026-01-30T10:00:00Z", datetime(2026, 1, 30, 10, 0, tzinfo=UTC)),
        ("2026-01-30T10:00+02:00", datetime(2026, 1, 30, 8, 0, tzinfo=UTC)),
    ],
)
def test_since(text: str, want: datetime) -> None:
    assert instant(text, NOW) == want


@pytest.mark.parametrize("text", ["", "m", "10", "ten minutes", "-5m", "2026-13-01", "0x1s"])
def test_since_that_is_none(text: str) -> None:
    with pytest.raises(AuditError, match="neither"):
        instant(text, NOW)


def test_filters() -> None:
    records = [
        {"phase": "begin", "command": "guest-exec", "domain": "exec", "time": "2026-01-31T10:00:00.000000Z"},
        {
            "phase": "end",
            "command": "guest-exec",
            "domain": "exec",
            "result": "ok",
            "time": "2026-01-31T11:00:00.000000Z",
        },
        {"phase": "refused", "command": "guest-fstrim", "domain": "trim", "time": "2026-01-31T12:00:00.000000Z"},
        {"phase": "event", "event": "lapse", "time": "broken"},
    ]

    def found(**wanted: object) -> list[int]:
        return [records.index(r) for r in chosen(records, **wanted)]  # type: ignore[arg-type]

    assert found() == [0, 1, 2, 3]
    assert found(command="guest-ex*") == [0, 1]
    assert found(domain="trim") == [2]
    assert found(result="ok") == [1]
    assert found(result="refused") == [2]
    assert found(since=datetime(2026, 1, 31, 10, 30, tzinfo=UTC)) == [1, 2]


def record(number: int) -> bytes:
    made = {
        "phase": "end",
        "id": number,
        "command": "guest-exec",
        "result": "ok",
        "time": "2026-01-31T10:00:00.000000Z",
    }
    return json.dumps(made).encode() + b"\n"


def test_following_a_file_that_grows_is_rotated_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(record(1) + record(2)[:20])
    words = [sys.executable, "-m", "privsep.ctl", "audit", "--follow", "--json", "--result", "ok", "--file", str(path)]
    # Whoever runs this in the background of a shell has it ignored.
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    assert process.stdout is not None

    def told() -> int:
        assert process.stdout is not None
        number = json.loads(process.stdout.readline())["id"]
        assert isinstance(number, int)
        return number

    try:
        assert told() == 1
        with open(path, "ab") as file:
            file.write(record(2)[20:] + record(3))
        assert [told(), told()] == [2, 3]
        path.rename(tmp_path / "audit.jsonl.1")
        with open(tmp_path / "audit.jsonl.1", "ab") as file:
            file.write(record(4))
        path.write_bytes(record(5))
        assert [told(), told()] == [4, 5]
        os.truncate(path, 0)
        time.sleep(3 * LOOK)
        with open(path, "ab") as file:
            file.write(record(6))
        assert told() == 6
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_file_with_a_line_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    good = {"phase": "end", "id": 7, "command": "guest-exec", "result": "ok"}
    path.write_bytes(json.dumps(good).encode() + b'\n{"phase":"be\n[]\n17\n\xff\xfe\n' + json.dumps(good).encode())
    assert list(from_file(str(path))) == [good, good]
    with pytest.raises(AuditError, match="No such file"):
        list(from_file(str(tmp_path / "none")))


def test_an_entry_of_the_journal() -> None:
    entry = {
        journal_field("phase"): "end",
        journal_field("id"): "17",
        journal_field("duration-us"): "x",  # what is no number stays as it is
        journal_field("error"): [0x61, 0x0A, 0xFF],
        journal_field("command"): ["guest-exec", "guest-exec"],
        "PRIVSEP_GA_ARG_CAPTURE_OUTPUT": "true",
        "MESSAGE": "ignored",
    }
    assert of_journal(entry) == {
        "phase": "end",
        "id": 17,
        "duration-us": "x",
        "error": "a\n\\xff",
        "command": "guest-exec",
        "arguments": {"capture-output": "true"},
    }


def test_a_line_for_people_is_one_line() -> None:
    text = line(
        {"time": "t", "process": "exec", "phase": "end", "id": 1, "command": "c", "result": "error", "error": "a\n\x1b"}
    )
    assert text == "t exec      end 1 c error: a\\n\\x1b"


def sample(text: str, name: str, **labels: str) -> float:
    found = [
        s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
        if s.name == f"privsep_ga_{name}" and labels.items() <= s.labels.items()
    ]
    return sum(found)


def test_refusals_are_those_of_the_rule_that_decided_then() -> None:
    exec_ = BY_NAME["guest-exec"].cell
    front, worker = Page.create("front"), Page.create("exec")
    front.numbers[exec_ + tally.REFUSED] = 10
    front.numbers[exec_ + tally.FROZEN] = 3
    worker.numbers[exec_ + tally.REFUSED] = 4
    for _ in range(4):
        worker.refused_by("guest-exec exec.1")
    report = parse_report(
        "policy p\nrule guest-exec commands.block a file.toml:4\nrefused guest-exec 6 unlisted default\norigin exec.1 b.toml:9\n"
    )
    pages = {"front": bytes(front._page), "exec": bytes(worker._page)}
    text = ctlmetrics.render(ctlmetrics.samples(report, pages))
    assert sample(text, "commands_total", command="guest-exec", result="refused") == 17
    assert sample(text, "refusals_total", rule="commands.block", origin="a file.toml:4") == 4
    assert sample(text, "refusals_total", rule="unlisted", origin="default") == 6
    assert sample(text, "refusals_total", rule="exec.1", origin="b.toml:9") == 4
    assert sample(text, "refusals_total", rule="frozen") == 3
    assert sample(text, "refusals_total") == 17


def test_seconds_of_a_freeze_that_goes_on_are_counted() -> None:
    page = Page.create("supervisor")
    page.numbers[tally.FROZEN_US] = 2_500_000
    page.numbers[tally.FROZEN_SINCE] = 10_000_000
    text = ctlmetrics.render(ctlmetrics.samples(Report(), {"supervisor": bytes(page._page)}, monotonic=11.25))
    assert sample(text, "freeze_seconds_total") == 3.75


@given(st.text(max_size=40), st.binary(min_size=0, max_size=200))
def test_whatever_stands_in_policy_and_pages_the_text_is_one_that_prometheus_takes(name: str, noise: bytes) -> None:
    page = Page.create("x")
    page._page[: len(noise)] = noise
    page.refused_by(f"guest-exec {name}")
    report = Report(
        policy=name, audit="log", processes={name: 1}, restarts={name: 2}, rules={"guest-exec": (name, name)}
    )
    text = ctlmetrics.render(ctlmetrics.samples(report, {"front": bytes(page._page), "supervisor": bytes(page._page)}))
    families = list(text_string_to_metric_families(text))
    assert {f.name for f in families} <= {f"privsep_ga_{n.removesuffix('_total')}" for n, _, _ in ctlmetrics.METRICS}
    (info,) = [s for f in families for s in f.samples if s.name == "privsep_ga_build_info"]
    assert info.labels["policy"] == name
