"""What each process holds is as committed, and a row that is loosened in any way shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from privsep.domains import BY_NAME, DOMAINS
from privsep.sandbox import rules
from tests.sandbox import attack, held
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]


def test_what_is_held_is_as_committed() -> None:
    assert held.differences(attack.measure(held.table), held.EXPECTED.read_text()) == []


def test_the_committed_table_is_complete_and_says_what_the_rows_declare() -> None:
    cells = held.cells(held.EXPECTED.read_text())
    assert {row for row, _ in cells} == {"supervisor", *(d.name for d in DOMAINS)}
    for row in DOMAINS:
        assert cells[row.name, "user"] == ("root" if row.user == "root" else "its own")
        for key in ("capabilities", "permitted", "bounding"):
            assert cells[row.name, key] == ("all" if "ALL" in row.caps else ",".join(sorted_caps(row.caps)) or "none")
        assert cells[row.name, "filters"] == str(int(row.filtered))
        assert cells[row.name, "own namespaces"] == ("net" if row.network == "none" else "none")
        assert cells[row.name, "no_new_privs"] == "yes"


def sorted_caps(caps: object) -> list[str]:
    from privsep.domains import CAPABILITIES

    return sorted(caps, key=lambda name: CAPABILITIES[name])  # type: ignore[call-overload, no-any-return]


def loosenings(name: str) -> Iterator[tuple[str, str, object]]:
    """(what, attribute, value): everything that can be made looser in a row, one at a time."""
    row = BY_NAME[name]
    if row.user != "root":
        yield "another user", "user", "root"
    if "ALL" not in row.caps:
        yield "a capability more", "caps", {**row.caps, "SYS_BOOT": "x"}
    if row.network == "none":
        yield "the agent's network", "network", "host"
    if row.filtered:
        yield "no filter", "filtered", False
    for limit, value in row.limits.items():
        yield f"more of {limit}", "limits", {**row.limits, limit: value + 1}
        yield f"no limit of {limit}", "limits", {k: v for k, v in row.limits.items() if k != limit}
    if row.paths is None:
        return
    yield "no Landlock", "paths", None
    yield "a path more", "paths", {**row.paths, "/opt": ("r", "x")}
    if row.scoped:
        yield "signals leave", "scoped", False
    for path, (letters, why) in row.paths.items():
        if "w" not in letters:
            yield f"{path} may be written", "paths", {**row.paths, path: (letters + "w", why)}


@pytest.mark.parametrize("name", [d.name for d in DOMAINS if list(loosenings(d.name))])
@isolated
def test_a_row_that_is_loosened_shows(name: str) -> None:
    expected = {key: value for (row, key), value in held.cells(held.EXPECTED.read_text()).items() if row == name}
    assert held.measure_row(name) == expected
    for what, attribute, value in loosenings(name):
        with held.loosened(name, attribute, value) as change:
            if what == "another user":
                change += "\nimport os\nos.setresuid = os.setresgid = lambda *ids: None"
                change += "\nfrom privsep.sandbox import apply\napply._compare = lambda *args, **kwargs: None"
            found = held.measure_row(name, change)
        assert found != expected, what


@pytest.mark.parametrize("name", sorted(rules.FILTERS))
def test_a_filter_that_is_loosened_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = held.declared(name)
    wanted = rules.FILTERS[name]

    def declared_with(calls: tuple[rules.Call, ...], otherwise: int) -> dict[str, str]:
        monkeypatch.setitem(rules.FILTERS, name, rules.Filter(calls, otherwise=otherwise))
        return held.declared(name)

    assert declared_with(wanted.calls, wanted.otherwise) == before
    assert declared_with((*wanted.calls, rules.Call("getppid", "x")), wanted.otherwise) != before
    assert declared_with(wanted.calls, 38) != before
    for place, call in enumerate(wanted.calls):
        looser = rules.Call(" ".join(call.names), call.why, *call.tests[1:], answer=call.answer)
        if call.tests:
            assert (
                declared_with((*wanted.calls[:place], looser, *wanted.calls[place + 1 :]), wanted.otherwise) != before
            )
        if call.answer != rules.ALLOW:
            allowed = rules.Call(" ".join(call.names), call.why, *call.tests)
            assert (
                declared_with((*wanted.calls[:place], allowed, *wanted.calls[place + 1 :]), wanted.otherwise) != before
            )
