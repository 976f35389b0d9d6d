"""The service: what it grants is what the default policy needs, what it takes away hides no mount, and it scores as noted.

Facts: systemd.exec(5), systemd.service(5), systemd.kill(5); which directives give a service a mount namespace of its own is
`exec_needs_mount_namespace` in systemd's src/core (looked up for 252; what later releases added is in the list too).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.builtin import PROFILES
from policy.model import builtin
from privsep import granted, orders, rundir
from privsep.accounts import resolve
from privsep.domains import BY_NAME, CAPABILITIES, DOMAINS, SUPERVISOR_CAPS
from privsep.sandbox import caps
from tests.support.agent import PROJECT, Agent

SYSTEMD = PROJECT / "packaging" / "systemd"
UNIT = SYSTEMD / "privsep-ga.service"
DROPINS = sorted((SYSTEMD / "drop-ins").glob("*.conf"))
RATCHET = 47  # tenths: what `systemd-analyze security` of systemd 252 comes to.  It may fall.

_spec = importlib.util.spec_from_file_location("units", PROJECT / "packaging" / "units.py")
assert _spec is not None and _spec.loader is not None
units = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(units)

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def directives(path: Path, section: str = "Service") -> Iterator[tuple[str, str]]:
    """(name, value) of a section, as systemd.syntax(7) has them; no file here continues a line."""
    inside = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals and not value.endswith("\\"), line
            yield name, value


def value(name: str, section: str = "Service") -> str:
    found = [v for n, v in directives(UNIT, section) if n == name]
    assert len(found) == 1, (name, found)
    return found[0]


def bounding(path: Path) -> set[str]:
    return {
        word.removeprefix("CAP_") for n, v in directives(path) if n == "CapabilityBoundingSet" for word in v.split()
    }


# -- generated from the table


def test_what_is_generated_is_current() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "packaging" / "units.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bounding_set_is_the_union_of_the_default_policys_rows() -> None:
    rows = orders.enabled_rows(builtin("default"), hook=False)
    wanted = {c for row in rows for c in BY_NAME[row].caps} | set(SUPERVISOR_CAPS)
    assert bounding(UNIT) == wanted
    assert "ALL" not in wanted


@pytest.mark.parametrize("profile", PROFILES)
def test_each_shipped_profile_is_granted_what_it_needs_by_the_unit_or_a_drop_in(profile: str) -> None:
    rows = orders.enabled_rows(builtin(profile), hook=profile == "qemu-ga")
    beyond = {row for row in rows if set(BY_NAME[row].caps) - bounding(UNIT)}
    if not beyond:
        return
    name = granted.dropin(beyond)
    if profile in granted.DROPINS:
        assert name == profile
    if any("ALL" in BY_NAME[row].caps for row in beyond):
        assert bounding(SYSTEMD / "drop-ins" / f"{name}.conf") == {"~"}
    else:
        assert {c for row in beyond for c in BY_NAME[row].caps} <= bounding(UNIT) | bounding(
            SYSTEMD / "drop-ins" / f"{name}.conf"
        )


def test_every_row_with_more_than_the_unit_has_a_drop_in() -> None:
    beyond = {d.name for d in DOMAINS if set(d.caps) - bounding(UNIT)}
    assert beyond <= {row for rows, _ in granted.DROPINS.values() for row in rows}


def test_the_system_users_are_those_of_the_table() -> None:
    lines = [x for x in (SYSTEMD / "privsep-ga.sysusers").read_text().splitlines() if not x.startswith("#")]
    assert [x.split()[1] for x in lines] == [d.user for d in DOMAINS if d.user != "root"]


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.geteuid() != 0, reason="needs systemd-sysusers, root"
)
def test_systemd_makes_the_users_and_the_agent_finds_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    with open(SYSTEMD / "privsep-ga.sysusers", "rb") as file:
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "-"], stdin=file, check=True, capture_output=True)
    ids, missing = resolve((tmp_path / "etc" / "passwd").read_bytes())
    assert missing == []
    assert len({uid for uid, _ in ids.values() if uid}) == len([d for d in DOMAINS if d.user != "root"])


# -- nothing hides a mount

# What the unit and the drop-ins may say: none of these gives the service a mount namespace, a root or a view of its own.
HARMLESS = {
    # how it runs, ends and starts again
    "Type", "EnvironmentFile", "ExecStart", "ExecReload", "ExecStopPost", "Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec",
    "WatchdogSec", "WatchdogSignal", "KillMode", "SyslogIdentifier", "OOMPolicy", "OOMScoreAdjust",
    # resource limits
    "LimitMEMLOCK", "LimitCORE", "LogRateLimitIntervalSec",
    # a folder below /run (with DynamicUser= there would be a namespace)
    "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve",
    # sets of the process
    "CapabilityBoundingSet", "AmbientCapabilities", "KeyringMode", "LockPersonality",
    # seccomp
    "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "RestrictAddressFamilies", "RestrictNamespaces",
    "RestrictRealtime", "RestrictSUIDSGID", "MemoryDenyWriteExecute",
    # BPF programs of the control group
    "IPAddressDeny", "DevicePolicy", "DeviceAllow",
}  # fmt: skip
# What would, in systemd 252 to 257 (ProtectHostname: a host name of its own, which the agent would tell the host).
NAMESPACED = {
    "BindLogSockets", "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories", "ExtensionImages",
    "InaccessiblePaths", "IPCNamespacePath", "JoinsNamespaceOf", "LogNamespace", "MountAPIVFS", "MountFlags", "MountImages",
    "NetworkNamespacePath", "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateNetwork", "PrivatePIDs",
    "PrivateTmp", "PrivateUsers", "ProcSubset", "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs",
    "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem", "ReadOnlyPaths", "ReadWritePaths",
    "RestrictFileSystems", "RootDirectory", "RootEphemeral", "RootImage", "TemporaryFileSystem",
}  # fmt: skip


@pytest.mark.parametrize("path", [UNIT, *DROPINS], ids=lambda p: p.name)
def test_no_directive_gives_the_service_a_view_of_its_own(path: Path) -> None:
    used = {name for name, _ in directives(path)} | {name for name, _ in directives(path, "Unit")}
    assert used.isdisjoint(NAMESPACED)
    assert {name for name, _ in directives(path)} <= HARMLESS  # whoever adds one has looked it up


def test_the_two_lists_know_what_they_are_for() -> None:
    assert HARMLESS.isdisjoint(NAMESPACED)


# -- the score


def findings(path: Path) -> list[dict[str, object]]:
    out = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--json=short", str(path)],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    found: list[dict[str, object]] = json.loads(out)
    assert len(found) > 60
    return [row for row in found if not row["set"] and row["exposure"]]


@needs_systemd
def test_the_score_does_not_rise() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    text = subprocess.run([*command, str(UNIT)], capture_output=True, text=True, check=False).stdout
    score = re.search(r"Overall exposure level for \S+: (\d+)\.(\d)", text)
    assert score is not None, text
    assert int(score[1]) * 10 + int(score[2]) <= RATCHET


@needs_systemd
def test_each_point_that_remains_is_explained_in_the_unit() -> None:
    comment = " ".join(line for line in UNIT.read_text().splitlines() if line.startswith("#"))
    words = set(re.findall(r"[\w@]+\*?", comment))
    for row in findings(UNIT):
        name = str(row["name"])
        key, _, what = name.partition("=")
        if what.startswith("~CAP_"):
            inside = re.fullmatch(r"~CAP_(\w*)(?:\((.*)\))?", what)
            assert inside is not None, name
            asked = [inside[1] + part.rstrip("*") for part in (inside[2] or "").split("|")]
            granted_here = [c for c in bounding(UNIT) if any(c.startswith(a) for a in asked)]
            assert granted_here, name
            assert set(granted_here) <= words, name
        elif what.startswith("~"):
            assert what[1:] in words, name
        else:
            assert key in words, name


@needs_systemd
@pytest.mark.parametrize("path", DROPINS, ids=lambda p: p.stem)
def test_systemd_reads_the_unit_with_each_drop_in(path: Path, tmp_path: Path) -> None:
    """As a package installs it; complaints are an error."""
    folder = tmp_path / "usr/lib/systemd/system"
    (folder / "privsep-ga.service.d").mkdir(parents=True)
    shutil.copy(UNIT, folder)
    shutil.copy(path, folder / "privsep-ga.service.d")
    for base in ("sysinit.target", "basic.target", "shutdown.target", "system.slice", "-.slice", "-.mount"):
        (folder / base).write_text("[Unit]\nDescription=for this test\n")
    for name in ("usr/sbin/privsep-ga", "usr/bin/privsep-gactl", "usr/libexec/privsep-ga/recover"):
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", "--man=no", "--recursive-errors=no", "privsep-ga.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "privsep-ga.service" not in done.stderr + done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


# -- what it says about life and death


def test_the_last_resort_reads_the_journal_that_the_agent_writes() -> None:
    words = value("ExecStopPost").lstrip("-").split(" ", 2)
    run = f"/run/{value('RuntimeDirectory')}"
    assert rundir.runtime_dir("/var/run", 0, {"RUNTIME_DIRECTORY": run}) == run
    assert words[:2] == ["/usr/libexec/privsep-ga/recover", f"{run}/journal"]
    assert value("RuntimeDirectoryPreserve") == "yes"
    program = Path(sys.executable).parent.parent / "libexec" / "privsep-ga" / "recover"
    assert subprocess.run([program, "/run/privsep-ga-is-not-there/journal", "x"], check=False).returncode == 0


def test_a_stop_has_time_for_the_thaw_hook() -> None:
    assert int(value("TimeoutStopSec")) > builtin("default").hook_limit + 10


def test_a_supervisor_that_hangs_is_killed_long_before_a_freeze_lapses() -> None:
    assert value("Type") == "notify"
    assert value("WatchdogSignal") == "SIGKILL"  # one that is stopped obeys no other
    assert int(value("WatchdogSec")) * 3 < builtin("default").auto_thaw
    assert value("KillMode") == "mixed"
    assert value("OOMPolicy") == "continue"


def test_it_comes_and_goes_with_the_port_and_takes_the_peers_place() -> None:
    device = r"dev-virtio\x2dports-org.qemu.guest_agent.0.device"
    assert value("BindsTo", "Unit") == value("After", "Unit") == value("WantedBy", "Install") == device
    assert value("Alias", "Install") == "qemu-guest-agent.service"
    assert 'ENV{SYSTEMD_WANTS}+="privsep-ga.service"' in (SYSTEMD / "60-privsep-ga.rules").read_text()


# -- a policy that needs more


def status(bnd: int, filters: int = 0, nnp: int = 0) -> dict[str, list[str]]:
    return {"CapBnd": [f"{bnd:x}"], "CapPrm": [f"{bnd:x}"], "Seccomp_filters": [str(filters)], "NoNewPrivs": [str(nnp)]}


FULL = (1 << 41) - 1
NARROW = sum(1 << CAPABILITIES[c] for c in bounding(UNIT))


@pytest.mark.parametrize("profile", ["minimal", "backup", "default"])
def test_the_unit_is_enough_for_these_profiles(profile: str) -> None:
    rows = orders.enabled_rows(builtin(profile), hook=False)
    assert granted.withheld(rows, status(NARROW, 12), status(FULL)) == {}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ({"user"}, "user"),
        ({"file"}, "file"),
        ({"exec"}, "exec"),
        ({"hook"}, "hook"),
        ({"exec", "file"}, "ansible"),
        ({"exec", "user"}, "qemu-ga"),
    ],
)
def test_the_complaint_names_the_narrowest_drop_in(rows: set[str], wanted: str) -> None:
    taken = granted.withheld({"front", *rows}, status(NARROW, 12), status(FULL))
    assert set(taken) == rows
    assert f" {wanted}.conf " in granted.complaint(taken)


def test_the_command_in_the_complaint_installs_the_drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(granted, "FOLDER", str(UNIT.parent / "drop-ins"))
    monkeypatch.setattr(granted, "SERVICE", str(tmp_path / "new" / "privsep-ga.service.d"))
    said = granted.complaint(granted.withheld({"exec", "file"}, status(NARROW, 12), status(FULL)))
    command = said[said.index("(install ") + 1 : said.index("; systemctl daemon-reload")]
    subprocess.run(command.split(), check=True)
    assert (tmp_path / "new" / "privsep-ga.service.d" / "ansible.conf").exists()


def test_what_the_service_manager_has_not_either_is_not_the_units_fault() -> None:
    assert granted.withheld({"exec", "file"}, status(NARROW, 1, 1), status(NARROW, 1, 1)) == {}


def test_a_filter_or_no_new_privs_is_in_the_way_of_programs_only() -> None:
    assert granted.withheld({"exec", "file"}, status(FULL, 1), status(FULL)) == {"exec": ["system calls"]}
    assert granted.withheld({"hook", "fs"}, status(FULL, 0, 1), status(FULL)) == {"hook": ["new privileges"]}


def test_a_unit_that_takes_what_the_supervisor_needs_is_named_as_such() -> None:
    taken = granted.withheld({"front"}, status(NARROW & ~(1 << CAPABILITIES["SETPCAP"])), status(FULL))
    assert taken == {"supervisor": ["CAP_SETPCAP"]}
    assert "compare it with the one that was shipped" in granted.complaint(taken)


class Narrow(Agent):
    """An agent that got the unit's capabilities, less `without`, and believes in a service manager."""

    def __init__(self, *args: str, without: str = "") -> None:
        super().__init__(*args, env={"NOTIFY_SOCKET": "@privsep-ga-test-nobody"})
        kept = sorted(bounding(UNIT) - {without})
        words = ",".join(["-all", *(f"+{c.lower()}" for c in kept)])
        self._prefix = ["setpriv", "--inh-caps=-all", f"--bounding-set={words}"]

    def command(self) -> list[str]:
        return [*self._prefix, *super().command()]


def manager_has_all() -> bool:
    mask = int(caps.parse_status(Path("/proc/1/status").read_bytes())["CapBnd"][0], 16)
    return not NARROW & ~mask and bool(mask >> CAPABILITIES["DAC_OVERRIDE"] & 1)


pytestmark_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not manager_has_all(), reason="process 1 is narrow itself, or not root"),
]


class TestStarted:
    pytestmark = pytestmark_root

    def test_the_default_policy_runs_on_what_the_unit_grants(self) -> None:
        with Narrow("--policy", "default") as agent:
            assert agent.call("guest-fsfreeze-status") == "thawed"
            assert agent.call("guest-get-osinfo")
            assert agent.call("guest-get-vcpus")
            assert agent.call("guest-network-get-interfaces")
            assert {"fs", "thawer", "inventory", "network"} <= set(agent.processes())

    @pytest.mark.parametrize("without", sorted(bounding(UNIT)))
    def test_none_of_it_is_spare(self, without: str) -> None:
        with pytest.raises(RuntimeError, match=f"CAP_{without}"):
            Narrow("--policy", "default", without=without).start()

    def test_a_policy_that_needs_more_fails_at_start_and_names_the_drop_in(self) -> None:
        with pytest.raises(RuntimeError, match=r"status 1\n(.|\n)*\bansible\.conf\b"):
            Narrow("--policy", "ansible").start()
        with pytest.raises(RuntimeError, match=r"status 1\n(.|\n)*\bhook\.conf\b"):
            Narrow("--policy", "default", "--fsfreeze-hook=/bin/true").start()
