"""Guests for the tests, and the table that a run of them prints.

A test asks for `guest`, which is booted once for its module, or for `fresh`, which is its own (what it does cannot be undone).
The image is a parameter of the run: `--vm-image selinux` runs every test in an enforcing guest.  A test is a row of the
table; the first line of its docstring is what the row says, what it gave to `seen` stands beside it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import accel, cache, hosttools, images
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen

_SEEN: pytest.StashKey[list[str]] = pytest.StashKey()
_rows: dict[str, tuple[str, str, str, str]] = {}
_how: dict[str, str] = {}
SYSTEM_PYTHON = "/usr/bin/python3"  # libvirt's binding is a package of the distribution
WORDS = {"passed": "ok", "failed": "FAILED", "skipped": "cannot"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--vm-image")
    _how["accel"] = "KVM" if accel.name(images.image(name)) == "kvm" else "QEMU's translator (TCG)"
    return name


@pytest.fixture(scope="module")
def guest(image: str) -> Iterator[Guest]:
    """A guest for the tests of one module, booted and with its agent answering."""
    with Guest(image) as booted:
        booted.wait_booted()
        yield booted


@pytest.fixture
def fresh(image: str) -> Iterator[Guest]:
    """A guest for one test."""
    with Guest(image) as booted:
        booted.wait_booted()
        yield booted


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of the programs of a virtual environment with qemu.qmp and ansible, made once."""
    place = cache.folder() / "clients"
    if not (place / "complete").exists():
        hosttools.need({}, {"/usr/lib/python3/dist-packages/libvirt.py": "python3-libvirt"})
        subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--clear", "--system-site-packages", str(place)], check=True)
        words = [str(place / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "qemu.qmp", "ansible"]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        (place / "complete").touch()
    return place / "bin"


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    return Seen(request.node.stash.setdefault(_SEEN, []))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if item.get_closest_marker("vm") is None or (report.when != "call" and report.passed):
        return
    what = next(iter((getattr(item, "obj", None).__doc__ or item.name).strip().splitlines()))
    notes = item.stash.setdefault(_SEEN, []).copy()
    if report.skipped and isinstance(report.longrepr, tuple):
        notes.append(report.longrepr[2].removeprefix("Skipped: "))
    elif report.failed:
        notes.append(
            str(call.excinfo.value).strip().splitlines()[0][:200] if call.excinfo and str(call.excinfo.value) else ""
        )
    theme = item.path.stem.removeprefix("test_").replace("_", " ")
    row = (theme, what.rstrip("."), WORDS[report.outcome], " ".join("; ".join(notes).split()))
    if item.nodeid not in _rows or report.outcome != "passed":
        _rows[item.nodeid] = row
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:  # a run takes long: say what there is
            reporter.ensure_newline()
            reporter.write_line(_line(row))


def _line(row: tuple[str, str, str, str]) -> str:
    theme, what, word, notes = row
    return f"{word:7} {theme}: {what}" + (f"  [{notes}]" if notes else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _rows:
        return
    terminalreporter.section("virtual machine", sep="-")
    for row in _rows.values():
        terminalreporter.write_line(_line(row))
    name = config.getoption("--vm-image")
    lines = [
        f"Image {name}, run by {_how.get('accel', 'nothing')}.",
        "",
        "| | what | result | seen |",
        "|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join(part.replace("|", "\\|") for part in (t, w, r, n)) + " |" for t, w, r, n in _rows.values()
    ]
    out = Path(config.rootpath) / "build" / f"vm-{name}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    terminalreporter.write_line(f"the same as a document: {out}")
