"""The audit of docs/examples, over three guests at once: two as they come, one where SELinux is enforcing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vm.harness import playbook
from tests.vm.harness.libvirt import Domain
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import POLICY, set_policy

IMAGES = ("selinux",)
AUDIT = Path(__file__).resolve().parents[2] / "docs/examples/audit.yml"
GUESTS = {"web1": "plain", "web2": "plain", "db1": "selinux"}


@pytest.fixture(scope="module")
def fleet(image: str) -> Iterator[list[Domain]]:
    def boot(stack: ExitStack, name: str) -> Domain:
        domain = stack.enter_context(Domain(GUESTS[name], name))
        domain.wait_booted()
        set_policy(domain, "ansible", dropin="ansible")
        domain.wait_agent()
        return domain

    with ThreadPoolExecutor(len(GUESTS)) as pool, ExitStack() as stack:  # libvirtd ends with the thread that started it
        booting = [pool.submit(boot, stack.enter_context(ExitStack()), name) for name in GUESTS]
        yield [future.result() for future in booting]


def audit(
    tools: Path, folder: Path, fleet: list[Domain], *more: str
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, object]]]:
    """What Ansible counts for each guest, and each guest's report."""
    done = playbook.run(tools, folder, fleet, str(AUDIT), "-e", f"privsep_ga_policy={POLICY}", *more)
    counts = playbook.recap(done)
    assert set(counts) == set(GUESTS), done.stdout[-3000:] + done.stderr[-1000:]
    assert done.returncode == (2 if any(row["failed"] for row in counts.values()) else 0), done.stdout[-3000:]
    return counts, {name: json.loads((folder / "audit" / f"{name}.json").read_text()) for name in GUESTS}


def test_an_audit_of_three_guests(fleet: list[Domain], tools: Path, tmp_path: Path, seen: Seen) -> None:
    """Ansible's audit of three guests: all are as they should be; then two have another policy, a broken and a wider one, and those fail"""
    begun = time.monotonic()
    counts, reports = audit(tools, tmp_path, fleet)
    took = time.monotonic() - begun
    assert [row["failed"] + row["unreachable"] for row in counts.values()] == [0, 0, 0], reports
    for report in reports.values():
        assert "guest-exec" in " ".join(report["allowed"])  # type: ignore[arg-type]
    allowed = tmp_path / "allowed.txt"
    allowed.write_text("\n".join(reports["db1"]["allowed"]) + "\n")  # type: ignore[arg-type]
    # Somebody changes two guests' policies and reloads nothing: they are wrong from now on.
    dropin = f"{Path(POLICY).parent}/policy.d/90-somebody.toml"
    fleet[0].put("allow = [\n", dropin)
    fleet[1].put('[commands]\nallow = ["guest-set-user-password"]\n', dropin)
    counts, reports = audit(tools, tmp_path, fleet, "-e", f"privsep_ga_allowed={allowed}")
    assert {name for name, row in counts.items() if row["failed"]} == {"web1", "web2"}
    assert "90-somebody.toml" in str(reports["web1"]["policy"])
    assert "90-somebody.toml" not in str(reports["web2"]["policy"])
    assert "guest-set-user-password" in " ".join(reports["web2"]["allowed"])  # type: ignore[arg-type]
    seen(
        f"3 reports in {took:.0f} s; the second time web1 fails ({reports['web1']['policy']}), and web2, which allows more"
    )
