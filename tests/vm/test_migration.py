"""From the peer to us and back, in one guest: whoever is installed answers on the port."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.vm.harness import install
from tests.vm.harness.debian import SUITE
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import UNIT

IMAGES = ("plain",)  # what Debian's SELinux policy lets the peer do is not ours to test
PEER = "qemu-guest-agent"
SLOW = 600.0  # dpkg and the compilation of the modules in an emulated guest
PATIENCE = 120.0


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Debian's own package with what it needs, as files of the guest's release."""
    folder = tmp_path_factory.mktemp("peer")
    words = [
        "apt-get",
        "download",
        "-q",
        *(f"{name}/{SUITE}" for name in (PEER, "libglib2.0-0", "liburing2", "libnuma1")),
    ]
    if subprocess.run(words, cwd=folder, capture_output=True).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        run = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    return {path.name: path.read_bytes() for path in folder.glob("*.deb")}


def answers(guest: Guest) -> str:
    """The version of whoever answers on the port."""
    with guest.agent() as agent:
        return str(agent.call("guest-info")["version"])


def until_active(guest: Guest) -> None:
    end = time.monotonic() + PATIENCE
    while guest.check(f"systemctl show -P ActiveState {UNIT}").strip() != "active":
        assert time.monotonic() < end, guest.check("journalctl -n 40 --no-pager")
        time.sleep(1)


def test_the_peer_in_our_place_and_we_in_its(guest: Guest, peer: dict[str, bytes], seen: Seen) -> None:
    """Back to qemu-guest-agent: it answers on the port; and to us again, by its own guest-exec: its package goes as ours comes, and we answer"""
    ours = answers(guest)
    guest.check("dpkg --remove privsep-ga", SLOW)
    guest.check("mkdir -p /root/peer")
    for name, data in peer.items():
        guest.put(data, f"/root/peer/{name}")
    guest.check("dpkg -i /root/peer/*.deb", SLOW)
    guest.check(f"systemctl start {PEER}.service")  # Debian 12's package leaves that to the next boot
    theirs = answers(guest)
    assert theirs != ours
    assert guest.check(f"systemctl show -P Id {PEER}.service").strip() == f"{PEER}.service"
    guest.put(install.package().read_bytes(), "/root/ours.deb")
    with guest.agent() as agent:  # as docs/migration.md has it: whatever the peer runs itself ends with its service
        exchange = ["--collect", "--unit=exchange", "dpkg", "-i", "/root/ours.deb"]
        agent.call("guest-exec", path="/usr/bin/systemd-run", arg=exchange)
    end = time.monotonic() + SLOW
    while guest.check("dpkg-query -W -f '${Status}' privsep-ga").strip() != "install ok installed":
        assert time.monotonic() < end, guest.check("journalctl -n 40 --no-pager -u exchange")
        time.sleep(2)
    assert guest.sh(f"dpkg-query -W -f '${{Status}}' {PEER}").out.strip() != "install ok installed"
    until_active(guest)
    assert answers(guest) == ours
    assert guest.check(f"systemctl show -P Id {PEER}.service").strip() == UNIT  # their name is an alias of ours
    seen(f"{ours}, theirs {theirs}, ours again")
