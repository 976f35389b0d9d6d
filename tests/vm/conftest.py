"""Guests for the tests, and the rows of the table that a run of them makes.

A test asks for `guest`, one for its module.  Each test runs once in every image: `plain`, and `selinux`, whose guests are enforcing
and where a denial that nobody expects fails the test in which it happened; `--vm-image` chooses one, and a module's IMAGES
says that it is for some only.  A test is a row of the table; the first line of its docstring is what the row says, what it gave
to `seen` stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import accel, clients, images, rows, shell
from tests.vm.harness.machine import Guest
from tests.vm.harness.rows import Row
from tests.vm.harness.seen import Seen

IMAGES = ("plain", "selinux")
_SEEN: pytest.StashKey[list[str]] = pytest.StashKey()
_SECONDS: pytest.StashKey[float] = pytest.StashKey()
_rows: dict[str, Row] = {}
_how: dict[str, str] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("image", getattr(metafunc.module, "IMAGES", IMAGES), indirect=True, scope="session")


def _image(item: pytest.Item) -> str:
    found: str = item.callspec.params["image"]  # type: ignore[attr-defined]
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.vm)
    chosen = config.getoption("--vm-image")
    left = [item for item in ours if chosen not in ("both", _image(item))]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    _how["accel"] = "KVM" if accel.name(images.image(name)) == "kvm" else "QEMU's translator (TCG)"
    return name


@pytest.fixture(autouse=True)
def nothing_is_denied(image: str) -> Iterator[None]:
    """In the guests that are up after the test; one that has ended has looked itself."""
    yield
    shell.look_for_denials()


@pytest.fixture(scope="module")
def guest(image: str) -> Iterator[Guest]:
    """A guest for the tests of one module, booted and with its agent answering."""
    with Guest(image) as booted:
        booted.wait_booted()
        yield booted


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of the programs of a virtual environment with qemu.qmp and ansible."""
    return clients.programs()


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    return Seen(request.node.stash.setdefault(_SEEN, []))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]
    if item.get_closest_marker("vm") is None:
        return
    item.stash[_SECONDS] = item.stash.get(_SECONDS, 0.0) + report.duration
    notes = item.stash.setdefault(_SEEN, []).copy()
    if report.skipped and isinstance(report.longrepr, tuple):
        notes.append(report.longrepr[2].removeprefix("Skipped: "))
    elif report.failed:
        text = str(call.excinfo.value).strip() if call.excinfo else ""
        notes.append(f"{report.when}: {' '.join(text.split())[:300]}")
    failed_before = item.nodeid in _rows and _rows[item.nodeid].result == rows.WORDS["failed"]
    if (report.when == "call" or not report.passed) and not failed_before:
        what = next(iter((getattr(item, "obj", None).__doc__ or item.name).strip().splitlines())).rstrip(".")
        theme = item.path.stem.removeprefix("test_").replace("_", " ")
        result = rows.WORDS[report.outcome]
        _rows[item.nodeid] = Row(_image(item), theme, what, result, 0.0, " ".join("; ".join(notes).split()))
    if report.when == "teardown" and item.nodeid in _rows:
        row = _rows[item.nodeid] = _rows[item.nodeid]._replace(seconds=item.stash[_SECONDS])
        if path := item.config.getoption("--vm-rows"):
            rows.append(Path(path), row)
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:  # a run takes long: say what there is
            reporter.ensure_newline()
            reporter.write_line(row.line())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _rows and not config.getoption("--vm-rows"):
        terminalreporter.section(f"virtual machine, run by {_how.get('accel', 'nothing')}", sep="-")
        for row in _rows.values():
            terminalreporter.write_line(row.line())
