"""SELinux enforcing: a type for each process, every command without a denial, and no worker can do another's work.

The other modules run in this image too; here is what only it has.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from privsep.domains import DOMAINS
from tests.vm.harness import forced
from tests.vm.harness.hostagent import HostAgent, Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import BOOLEANS, UNIT, set_policy

IMAGES = ("selinux",)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKjYDBZ4Fz8hCqtZ2mYkQv7l9m0j3qLw0h1Gm6s7Yk1a somebody@somewhere"
HOOK = """#!/bin/sh
echo "$1 $(cat /proc/self/attr/current)" >> /run/hook-was-here
"""
LIBEXEC = "/usr/libexec/privsep-ga"


@pytest.fixture(scope="module")
def enforcing(guest: Guest) -> Guest:
    """Everything allowed by the agent's own policy, and a hook."""
    assert guest.check("getenforce").strip() == "Enforcing"
    guest.put(HOOK, "/etc/qemu/fsfreeze-hook", 0o755)
    guest.put("[general]\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\n", "/etc/qemu/qemu-ga.conf")
    set_policy(guest, "qemu-ga", dropin="qemu-ga")
    return guest


def types(guest: Guest) -> dict[str, str]:
    """The agent's processes now, and the type of each."""
    found = {}
    for line in guest.check("ps -eo label,args | grep -E 'privsep-ga( |/|$)' | grep -v grep").splitlines():
        label, _, rest = line.partition(" ")
        if label.count(":") < 2:
            continue  # it ended while ps(1) looked
        match = re.search(rf"{LIBEXEC}/(\w+)", rest)
        found[match[1] if match else "supervisor"] = label.split(":")[2]
    return found


def ask_everything(agent: HostAgent, look: Callable[[], None]) -> None:
    """Each worker does what it is for; `look` while it is there, as it leaves when it is idle."""
    for name in """
        guest-ping guest-info guest-get-host-name guest-get-time guest-network-get-interfaces guest-network-get-route
        guest-get-osinfo guest-get-users guest-get-timezone guest-get-vcpus guest-get-disks guest-get-fsinfo
        guest-get-diskstats guest-get-cpustats guest-get-load guest-get-memory-blocks guest-get-memory-block-info
    """.split():
        agent.call(name)
        if name in ("guest-network-get-route", "guest-get-osinfo"):
            look()
    assert agent.call("guest-fsfreeze-freeze") == 3
    assert agent.call("guest-fsfreeze-status") == "frozen"
    assert agent.call("guest-fsfreeze-thaw") == 3
    assert agent.call("guest-fsfreeze-freeze-list", mountpoints=["/mnt/ext4"]) == 1
    assert agent.call("guest-fsfreeze-thaw") == 1
    look()
    assert len(agent.call("guest-fstrim")["paths"]) == 3
    look()
    agent.call("guest-set-time", time=time.time_ns())
    look()
    agent.call("guest-set-time")
    look()
    agent.call("guest-ssh-add-authorized-keys", username="tester", keys=[KEY])
    assert agent.call("guest-ssh-get-authorized-keys", username="tester") == {"keys": [KEY]}
    agent.call("guest-ssh-remove-authorized-keys", username="tester", keys=[KEY])
    look()
    for online in (False, True):
        assert agent.call("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": online}]) == 1
    look()
    for crypted, password in ((False, b"Correct-h0rse"), (True, b"$6$salt$" + b"x" * 86)):
        word = base64.b64encode(password).decode()
        agent.call("guest-set-user-password", username="tester", password=word, crypted=crypted)
    look()


def test_each_process_has_its_type(enforcing: Guest, seen: Seen) -> None:
    """Every command is carried out by a process of its own type"""
    found: dict[str, str] = {}

    def look() -> None:
        found.update(types(enforcing))

    with enforcing.agent() as agent:
        ask_everything(agent, look)
        with contextlib.suppress(Refused):
            agent.call("guest-suspend-disk")  # there is no swap: asks the init system
        look()
        handle = agent.call("guest-file-open", path="/etc/forced-file", mode="w+")
        agent.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(b"x" * 300_000).decode())
        agent.call("guest-file-seek", handle=handle, offset=0, whence="set")
        assert agent.call("guest-file-read", handle=handle, count=300_000)["count"] == 300_000
        agent.call("guest-file-close", handle=handle)
        look()
        done = agent.run("/bin/sh", "-c", "cat /proc/self/attr/current; cat /etc/shadow | wc -l")
        assert done["out-data"].startswith(b"system_u:system_r:privsep_ga_exec_program_t:s0")
        look()
    assert found.pop("supervisor") == "privsep_ga_t"
    assert found == {row.name: row.selinux_type for row in DOMAINS}
    seen(f"{len(found) + 1} processes, {len(set(found.values())) + 1} types")


def test_the_hook_and_passwords_are_where_they_should_be(enforcing: Guest) -> None:
    """The hook ran unconfined, the new shadow file has its label, the key its own"""
    said = enforcing.check("cat /run/hook-was-here")
    assert said.count("privsep_ga_hook_program_t") == 4 and said.startswith("freeze ")
    assert ":shadow_t:" in enforcing.check("stat -c %C /etc/shadow")
    assert "tester:$6$salt$xxx" in enforcing.check("grep ^tester /etc/shadow")
    assert ":ssh_home_t:" in enforcing.check("stat -c %C ~tester/.ssh ~tester/.ssh/authorized_keys")


def test_booleans_that_are_off(enforcing: Guest, seen: Seen) -> None:
    """Programs and files are refused by SELinux until their booleans are set, and the denial says so"""
    enforcing.check(f"setsebool {' '.join(f'{name}=off' for name in BOOLEANS)}")
    with enforcing.agent() as agent:
        with pytest.raises(Refused, match="Permission denied"):
            agent.call("guest-file-open", path="/etc/passwd", mode="a")
        with pytest.raises(Refused, match="Permission denied"):
            agent.call("guest-exec", path="/usr/bin/true")
    found = enforcing.denials()
    assert any("privsep_ga_file_t" in line for line in found) and any("privsep_ga_exec_t" in line for line in found)
    seen(f"{len(found)} denials, each names its worker")


# What comes through to a process that has a worker's label, all capabilities, and no other wall.
FORCED: dict[str, set[str]] = {
    "front": set(),
    "network": set(),
    "inventory": set(),
    "trim": {"trim"},
    "time": {"set the clock"},
    "hotplug": {"write to a processor"},
    "ssh": {"become another user"},
    "user": {"read the passwords", "make a file in /etc"},
    # All of sysfs has one type: what may write one file of it may, as far as that goes, write the others.
    "fs": {"thaw", "write to a processor"},
    "thawer": set(),  # it thaws what fs hands it, and finds nothing by itself
    "power": {"start a program", "write to a processor"},
    "file": {"make a file in /etc", "write to a processor"},
}
# What has it started; the front is started with the service.
TRIGGER: dict[str, tuple[str, dict[str, object]]] = {
    "network": ("guest-network-get-interfaces", {}),
    "inventory": ("guest-get-osinfo", {}),
    "trim": ("guest-fstrim", {}),
    "time": ("guest-set-time", {"time": 1}),
    "hotplug": ("guest-set-vcpus", {"vcpus": [{"logical-id": 1, "online": True}]}),
    "ssh": ("guest-ssh-get-authorized-keys", {"username": "tester"}),
    "user": ("guest-set-user-password", {"username": "tester", "password": "", "crypted": False}),
    "fs": ("guest-fsfreeze-status", {}),
    "thawer": ("guest-fsfreeze-freeze-list", {"mountpoints": ["/mnt/ext4"]}),
    "power": ("guest-suspend-disk", {}),
    "file": ("guest-file-open", {"path": "/etc/hostname"}),
}


@pytest.mark.parametrize("name", FORCED)
def test_a_worker_forced_to_anothers_work(enforcing: Guest, seen: Seen, name: str) -> None:
    """A program in a worker's place, with its label and no other wall, does that worker's work and no other"""
    script = Path(forced.__file__).read_bytes()
    enforcing.check(f"rm -f /etc/forced; setsebool {' '.join(f'{boolean}=on' for boolean in BOOLEANS)}")
    saved = enforcing.get(f"{LIBEXEC}/{name}")
    enforcing.check(f"systemctl stop {UNIT}")
    enforcing.put(script, f"{LIBEXEC}/{name}", 0o755)  # in place: the label stays
    try:
        enforcing.sh(f"systemctl start --no-block {UNIT}")
        if name in TRIGGER:
            command, arguments = TRIGGER[name]
            with enforcing.agent() as agent, contextlib.suppress(Refused):
                agent.call(command, **arguments)
        found = _told(enforcing, name)
    finally:
        enforcing.put(saved, f"{LIBEXEC}/{name}", 0o755)
        enforcing.check(f"systemctl reset-failed {UNIT}; systemctl restart {UNIT}")
    assert {what for what, through in found.items() if through} == FORCED[name]
    lines = enforcing.denials()
    assert lines and all(f"privsep_ga_{name}_t" in line for line in lines)
    seen(f"{name}: {', '.join(FORCED[name]) or 'nothing'} came through, {len(lines)} denials name it")


def _told(guest: Guest, name: str) -> dict[str, bool]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        log = guest.check(f"journalctl -b --no-pager -o cat -u {UNIT} | grep '^forced {name} ' || :")
        if log:
            found: dict[str, bool] = json.loads(log.splitlines()[-1].split(" ", 2)[2])
            return found
        time.sleep(0.5)
    raise AssertionError(f"{name} was not started")
