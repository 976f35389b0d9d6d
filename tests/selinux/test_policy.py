"""The SELinux policy: generated parts are fresh, it links with all of Debian's policy, each process may do what is declared.

Linking takes half a minute the first time (Debian's policy is fetched); what was linked is kept in build/selinux.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from privsep.domains import DOMAINS

TREE = Path(__file__).resolve().parents[2]


def _load(name: str) -> ModuleType:
    """selinux/ is no package: its name is that of libselinux's Python module."""
    spec = importlib.util.spec_from_file_location(f"selinux_{name}", TREE / "selinux" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load("build")
generate = _load("generate")

# The first of all fetches Debian's policy.
pytestmark = pytest.mark.timeout(600)
lacking = build.missing()
needs_tools = pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)} (make selinux, as root)")


@pytest.fixture(scope="module")
def policy() -> Path:
    """Debian's policy with ours, linked; every neighbour's `neverallow` was checked by that."""
    try:
        linked: Path = build.link()
    except build.BuildError as e:
        if "apt-get failed" in str(e):
            pytest.skip("needs Debian's policy from its archive, which cannot be reached")
        raise
    return linked


def test_the_generated_parts_are_what_the_table_says() -> None:
    stale = [path.name for path, text in generate.wanted().items() if path.read_text() != text]
    assert stale == [], "run selinux/generate.py"


def test_a_change_of_the_table_changes_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freshness would be worth nothing if the generator did not look."""
    row = next(r for r in DOMAINS if r.name == "network")
    monkeypatch.setattr(row, "caps", {"SYS_TIME": "planted"})
    te = next(text for path, text in generate.wanted().items() if path.suffix == ".te")
    assert "allow privsep_ga_network_t self:capability sys_time;" in te


def test_each_entry_script_has_a_label_of_its_own() -> None:
    text = (TREE / "selinux" / "privsep_ga.fc").read_text()
    for row in DOMAINS:
        lines = [line for line in text.splitlines() if line.startswith(f"/usr/libexec/privsep-ga/{row.name} ")]
        assert len(lines) == 1 and f":{row.selinux_entry_type}," in lines[0]


@needs_tools
def test_it_is_as_declared(policy: Path) -> None:
    assert "FAILED" not in build.check(policy)


PLANTED = {
    "front reads passwords": "(allow privsep_ga_front_t shadow_t (file (read)))",
    "front gets a capability": "(allow privsep_ga_front_t self (capability (sys_admin)))",
    "front writes a file": "(allow privsep_ga_front_t etc_t (file (write)))",
    "front makes a socket": "(allow privsep_ga_front_t self (udp_socket (create)))",
    "front starts a program": "(allow privsep_ga_front_t bin_t (file (execute_no_trans)))",
    "network sets the clock": "(allow privsep_ga_network_t self (capability (sys_time)))",
    "time becomes fs": "(allow privsep_ga_time_t privsep_ga_fs_t (process (dyntransition)))",
    "file worker reads passwords": "(allow privsep_ga_file_t shadow_t (file (read)))",
    "power traces": "(allow privsep_ga_power_t init_t (process (ptrace)))",
    "ssh loads a module": "(allow privsep_ga_ssh_t self (system (module_load)))",
}


@needs_tools
def test_every_planted_rule_is_named_by_the_linker(policy: Path) -> None:
    """All at once, as linking takes seconds: each must be found."""
    with pytest.raises(build.BuildError, match="neverallow check failed") as found:
        build.link("\n".join(PLANTED.values()))
    text = str(found.value)
    lost = [what for what, rule in PLANTED.items() if rule not in text]
    assert lost == []


@needs_tools
def test_the_check_finds_it_too_where_nobody_checked_neverallow(policy: Path) -> None:
    """As on a system that loads modules without expand-check."""
    loose = build.link(
        "\n".join((PLANTED["front reads passwords"], PLANTED["network sets the clock"])), neverallow=False
    )
    with pytest.raises(build.BuildError) as found:
        build.check(loose)
    text = str(found.value)
    assert "information flows past the user worker: shadow_t -> privsep_ga_front_t" in text
    assert "privsep_ga_network_t: capabilities are ['SYS_TIME']" in text


@needs_tools
def test_make_selinux_fails_on_a_planted_rule(tmp_path: Path) -> None:
    """The whole way, in a copy of the tree that shares what was fetched."""
    for name in ("selinux", "privsep", "protocol"):
        shutil.copytree(TREE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    te = tmp_path / "selinux" / "privsep_ga.te"
    te.write_text(te.read_text() + "\nallow privsep_ga_front_t shadow_t:file read;\n")
    (tmp_path / "build" / "selinux").mkdir(parents=True)
    (tmp_path / "build" / "selinux" / "debian").symlink_to(build.debian())
    done = subprocess.run(
        [sys.executable, "-B", str(tmp_path / "selinux" / "build.py")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "neverallow check failed" in done.stderr and "privsep_ga_front_t" in done.stderr
