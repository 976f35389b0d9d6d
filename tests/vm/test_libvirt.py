"""libvirt's own commands about a guest with an agent, by virsh and a libvirtd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.guestconfig import ADDRESS, HOST_NAME, USER
from tests.vm.harness.libvirt import Domain
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import FILE_SYSTEMS, Writers, set_policy
from tests.vm.test_accounts import matches


@pytest.fixture(scope="module")
def domain(image: str) -> Iterator[Domain]:
    with Domain(image) as booted:
        booted.wait_booted()
        set_policy(booted, "qemu-ga", dropin="qemu-ga")
        booted.wait_agent()
        yield booted


def test_agent_command(domain: Domain) -> None:
    """virsh qemu-agent-command"""
    answer = json.loads(domain.virsh("qemu-agent-command", '{"execute": "guest-get-host-name"}'))
    assert answer == {"return": {"host-name": HOST_NAME}}


def test_guestinfo(domain: Domain, seen: Seen) -> None:
    """virsh guestinfo, every part"""
    text = domain.virsh("guestinfo")
    rows = {name.strip(): value for name, value in (line.split(":", 1) for line in text.splitlines() if ":" in line)}
    found = {name.split(".")[0] for name in rows}
    assert found >= {"os", "timezone", "hostname", "fs", "disk", "if"}, text
    assert rows["hostname"].strip() == HOST_NAME
    parts = ("user", "os", "timezone", "hostname", "filesystem", "disk", "interface")
    for part in parts:
        domain.virsh("guestinfo", f"--{part}")
    seen(f"{len(rows)} values, parts {', '.join(parts)}")


def test_addresses_and_names(domain: Domain, seen: Seen) -> None:
    """virsh domifaddr --source agent, domhostname, domtime, domfsinfo"""
    assert f"{ADDRESS}/24" in domain.virsh("domifaddr", "--source", "agent")
    assert domain.virsh("domhostname", "--source", "agent") == HOST_NAME
    text = domain.virsh("domfsinfo")
    assert {"vda", "vdb", "vdc"} <= set(text.split()), text
    assert {*FILE_SYSTEMS} <= set(text.split()), text
    seen("address, host name, three file systems with their disks")


def test_freeze_and_thaw(domain: Domain, seen: Seen) -> None:
    """virsh domfsfreeze, domfsthaw, all and one"""
    writers = Writers(domain)
    assert domain.virsh("domfsfreeze") == f"Froze {len(FILE_SYSTEMS)} filesystem(s)"
    frozen = writers.now()
    time.sleep(1)
    writers.blocked_since(frozen)
    assert domain.virsh("domfsthaw") == f"Thawed {len(FILE_SYSTEMS)} filesystem(s)"
    writers.thawed(frozen)
    assert domain.virsh("domfsfreeze", "--mountpoint", "/mnt/xfs") == "Froze 1 filesystem(s)"
    assert domain.virsh("domfsthaw") == "Thawed 1 filesystem(s)"  # libvirt takes no mount point here


def test_trim(domain: Domain) -> None:
    """virsh domfstrim"""
    domain.virsh("domfstrim")
    domain.virsh("domfstrim", "--minimum", "1048576")


def test_time(domain: Domain, seen: Seen) -> None:
    """virsh domtime: read, set, from now, from the chip"""
    domain.virsh("domtime", "--time", "1893456000")
    assert 0 <= int(domain.virsh("domtime").split()[-1]) - 1893456000 < 60
    domain.virsh("domtime", "--now")
    off = abs(int(domain.virsh("domtime").split()[-1]) - time.time())
    assert off < 30
    domain.virsh("domtime", "--sync")
    seen(f"{off:.0f} s off after --now")


def test_accounts(domain: Domain) -> None:
    """virsh set-user-password, set-user-sshkeys, get-user-sshkeys"""
    domain.virsh("set-user-password", USER, "by libvirt")
    assert matches(domain, "by libvirt")
    with pytest.raises(HarnessError):
        domain.virsh("set-user-password", "nobody-here", "x")
    key = domain.check("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/test_key && cat /etc/ssh/test_key.pub").strip()
    (domain.folder / "keys").write_text(key + "\n")
    domain.virsh("set-user-sshkeys", USER, str(domain.folder / "keys"))
    assert domain.virsh("get-user-sshkeys", USER) == key
    domain.virsh("set-user-sshkeys", USER, str(domain.folder / "keys"), "--remove")
    assert domain.virsh("get-user-sshkeys", USER) == ""


def test_processors(domain: Domain, seen: Seen) -> None:
    """virsh guestvcpus, setvcpus --guest, vcpucount --guest"""
    text = domain.virsh("guestvcpus")
    assert dict(line.split(":") for line in text.replace(" ", "").splitlines() if ":" in line)["online"] == "0-1"
    domain.virsh("guestvcpus", "--cpulist", "1", "--disable")
    assert domain.check("nproc").strip() == "1"
    assert domain.virsh("vcpucount", "--guest") == "1"
    domain.virsh("setvcpus", "2", "--guest")
    assert domain.check("nproc").strip() == "2"
    seen("2, 1, 2")


def test_a_quiesced_snapshot(domain: Domain, seen: Seen) -> None:
    """virsh snapshot-create-as --disk-only --quiesce: frozen around the snapshot, thawed after it"""
    writers = Writers(domain)
    begun = time.monotonic()
    domain.virsh("snapshot-create-as", "first", "--disk-only", "--quiesce", "--no-metadata")
    took = time.monotonic() - begun
    for mount in FILE_SYSTEMS:
        domain.check(f"touch {mount}/after && sync {mount}/after", 20)
    said = domain.check("journalctl -b --no-pager -o cat -u privsep-ga")
    assert f"froze {len(FILE_SYSTEMS)}" in said
    assert f"thawed {len(FILE_SYSTEMS)}" in said
    assert writers.paths
    seen(
        f"{took:.1f} s for the snapshot of three disks; "
        + next(x for x in reversed(said.splitlines()) if "thawed" in x)
    )


def test_reboot_and_shutdown(domain: Domain, seen: Seen) -> None:
    """virsh reboot --mode agent, shutdown --mode agent"""
    first = domain.check("cat /proc/sys/kernel/random/boot_id")
    domain.virsh("reboot", "--mode", "agent")
    end = time.monotonic() + 240
    while True:
        try:
            if domain.check("cat /proc/sys/kernel/random/boot_id", 5) != first:
                break
        except HarnessError:
            pass
        assert time.monotonic() < end, "no reboot"
        time.sleep(1)
    domain.wait_booted()
    domain.wait_agent()
    domain.virsh("shutdown", "--mode", "agent")
    end = time.monotonic() + 120
    while domain.virsh_result("domstate", domain.name).returncode == 0:
        assert time.monotonic() < end, domain.virsh("domstate")
        time.sleep(0.5)
    seen("booted again; then off")
