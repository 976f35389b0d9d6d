"""The unit in a real service manager: what it grants and takes, that a freeze reaches every file system, who thaws at the end.

systemd runs as process 1 of namespaces of its own (tests/support/manager.py).  The unit is the shipped one, but for the port that
it is bound to, which only a virtual machine has.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privsep.kernelview import names
from tests.packaging.test_unit import DROPINS, UNIT, bounding
from tests.support import manager as managers
from tests.support.agent import AgentError, Client, wait_for
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.manager import SERVICE, Manager
from tests.support.namespace import isolated

pytestmark = [
    pytest.mark.root,
    pytest.mark.loop,
    pytest.mark.skipif(bool(managers.why_not()), reason=managers.why_not() or "-"),
    pytest.mark.timeout(180),
]

OPTIONS = "-m unix-listen -p /tmp/ga.sock -t /tmp/state"
GACTL = str(Path(sys.executable).parent / "privsep-gactl")
KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))).decode() + " one"
LOGGED = "[Service]\nStandardError=append:/tmp/agent.log\n"


def unit() -> str:
    """Without the port."""
    lines = [
        x for x in UNIT.read_text().splitlines() if not x.startswith(("BindsTo=", "After=", "WantedBy=", "Alias="))
    ]
    return "\n".join(lines) + "\n"


def start(manager: Manager, options: str = OPTIONS, **dropins: str) -> Client:
    os.makedirs("/tmp/state", exist_ok=True)
    manager.install(unit(), options, dropins)
    manager.systemctl("start", SERVICE)
    return connected()


def connected() -> Client:
    """To an agent that answers: the socket of one that is being ended takes connections too."""

    def attempt() -> Client | None:
        try:
            client = Client("/tmp/ga.sock", 5)
            client.sync(1)
        except (OSError, EOFError):
            return None
        return client

    client: Client = wait_for(attempt, 30)
    return client


def field(pid: int, name: str) -> str:
    return next(x.split()[1] for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(f"{name}:"))


@isolated
def test_the_default_policy_works_under_the_unit_and_a_freeze_reaches_every_file_system() -> None:
    with LoopFs("ext4", "xfs", "btrfs") as disks, Manager() as manager:
        client = start(manager)
        assert manager.systemctl("is-active", SERVICE).strip() == "active"
        main = manager.main_pid()
        # No mount namespace of its own: what process 1 sees, it sees, whenever it is mounted.
        assert os.readlink(f"/proc/{main}/ns/mnt") == os.readlink(f"/proc/{manager.pid}/ns/mnt")
        assert os.readlink(f"/proc/{main}/ns/uts") == os.readlink(f"/proc/{manager.pid}/ns/uts")
        assert set(names(int(field(main, "CapBnd"), 16))) == bounding(UNIT)
        assert int(field(main, "Seccomp_filters")) > 1
        for name in (
            "guest-get-osinfo", "guest-get-fsinfo", "guest-get-disks", "guest-get-vcpus", "guest-get-users", "guest-get-load",
            "guest-network-get-interfaces", "guest-network-get-route", "guest-get-host-name", "guest-get-timezone",
        ):  # fmt: skip
            assert client.call(name) is not None, name
        assert {p["path"] for p in client.call("guest-fstrim")["paths"]} == set(disks.points)
        with pytest.raises(AgentError, match="disabled"):
            client.call("guest-exec", path="/bin/true")
        assert client.call("guest-fsfreeze-freeze") == 3
        assert all(frozen(p) for p in disks.points)
        assert client.call("guest-fsfreeze-thaw") == 3
        assert all(takes_writes(p) for p in disks.points)
        for row in ("guest-set-time", "guest-set-vcpus"):  # a worker of each that starts at all
            with pytest.raises(AgentError) as caught:
                client.call(
                    row,
                    **({"time": -1} if row == "guest-set-time" else {"vcpus": [{"logical-id": 99999, "online": True}]}),
                )
            assert "worker" not in caught.value.desc, caught.value.desc
        checked = json.loads(manager.run(GACTL, "selfcheck", "--json", "--rundir", "/run/privsep-ga"))
        assert checked["differences"] == [] and {"fs", "thawer", "trim", "time", "hotplug"} <= set(checked["processes"])
        begun = time.monotonic()
        manager.systemctl("stop", SERVICE)
        assert time.monotonic() - begun < 10
        assert manager.systemctl("show", "-P", "Result", SERVICE).strip() == "success"


@pytest.mark.parametrize(
    "directive", ["PrivateMounts=yes", "ProtectKernelTunables=yes", "ProtectHome=yes", "PrivateDevices=yes"]
)
@isolated
def test_a_directive_that_gives_a_mount_namespace_would_be_seen(directive: str) -> None:
    with Manager() as manager:
        start(manager, other=f"[Service]\n{directive}\n")
        assert os.readlink(f"/proc/{manager.main_pid()}/ns/mnt") != os.readlink(f"/proc/{manager.pid}/ns/mnt")


@isolated
def test_when_every_process_is_killed_the_manager_thaws_and_the_next_agent_tells() -> None:
    with LoopFs("ext4", "xfs") as disks, Manager() as manager:
        client = start(manager)
        assert client.call("guest-fsfreeze-freeze") == 2
        main = manager.main_pid()
        everybody = [main, *(p for p in manager.processes() if p != main)]
        for pid in everybody:
            with contextlib.suppress(ProcessLookupError):  # some end with the supervisor, by themselves
                os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        assert all(takes_writes(p) for p in disks.points)
        assert time.monotonic() - begun < 5
        again = connected()
        assert manager.main_pid() not in (0, main)
        with pytest.raises(AgentError, match="couldn't hold writes"):
            again.call("guest-fsfreeze-thaw")


@isolated
def test_a_supervisor_that_is_stopped_is_killed_by_the_watchdog_and_the_manager_thaws() -> None:
    with LoopFs("ext4") as disks, Manager() as manager:
        client = start(manager, quick="[Service]\nWatchdogSec=1\n")
        assert client.call("guest-fsfreeze-freeze") == 1
        for pid in manager.processes():  # everybody, so that nobody else does it
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        assert all(takes_writes(p, 15) for p in disks.points)
        assert time.monotonic() - begun < 12
        connected().call("guest-ping")


@isolated
def test_a_stop_while_frozen_thaws_at_once() -> None:
    with LoopFs("ext4") as disks, Manager() as manager:
        client = start(manager)
        assert client.call("guest-fsfreeze-freeze") == 1
        begun = time.monotonic()
        manager.systemctl("stop", SERVICE)
        assert time.monotonic() - begun < 5
        assert all(takes_writes(p) for p in disks.points)
        assert manager.systemctl("show", "-P", "Result", SERVICE).strip() == "success"


@isolated
def test_what_is_mounted_after_the_start_is_frozen_too() -> None:
    make = "truncate -s 64M /tmp/later.img && mkfs.ext4 -q /tmp/later.img && mkdir /tmp/later && mount -o loop /tmp/later.img /tmp/later"
    with LoopFs("ext4") as disks, Manager() as manager:
        client = start(manager)
        assert client.call("guest-fsfreeze-freeze") == 1
        assert client.call("guest-fsfreeze-thaw") == 1
        manager.run("sh", "-c", make)
        try:
            assert client.call("guest-fsfreeze-freeze") == 2
            assert client.call("guest-fsfreeze-thaw") == 2
            assert {p["mountpoint"] for p in client.call("guest-get-fsinfo")} >= {"/tmp/later", *disks.points}
        finally:
            manager.run("fsfreeze", "-u", "/tmp/later", check=False)  # whatever became of the above
            manager.run("umount", "/tmp/later")


@isolated
def test_a_reload_by_the_manager_is_checked_and_takes_effect() -> None:
    policy = Path("/etc/privsep-ga/policy.toml")
    policy.parent.mkdir(exist_ok=True)
    with Manager() as manager:
        policy.write_text('profile = "default"\n')
        client = start(manager)
        assert client.call("guest-get-osinfo")
        policy.write_text('profile = "default"\n[commands]\nallow = ["guest-no-such"]\n')
        said = manager.systemctl("reload", SERVICE, check=False)
        assert "failed" in said
        assert client.call("guest-get-osinfo")
        policy.write_text('profile = "minimal"\n')
        manager.systemctl("reload", SERVICE)
        with pytest.raises(AgentError, match="disabled"):
            client.call("guest-get-osinfo")


@isolated
def test_a_policy_that_needs_more_fails_and_names_the_drop_in_which_then_is_enough() -> None:
    shipped = {path.stem: path.read_text() for path in DROPINS}
    with Manager() as manager:
        options = f"{OPTIONS} --policy ansible"
        os.makedirs("/tmp/state", exist_ok=True)
        manager.install(unit(), options, {"log": LOGGED})
        manager.systemctl("start", SERVICE, check=False)
        assert manager.systemctl("is-active", SERVICE, check=False).strip() != "active"
        assert "install the drop-in ansible.conf" in Path("/tmp/agent.log").read_text()
        manager.systemctl("reset-failed", SERVICE)
        client = start(manager, options, log=LOGGED, ansible=shipped["ansible"])
        pid = client.call("guest-exec", path="/bin/cat", arg=["/proc/self/status"], **{"capture-output": True})["pid"]
        status = wait_for(lambda: (r := client.call("guest-exec-status", pid=pid)) and r["exited"] and r)
        shown = base64.b64decode(status["out-data"]).decode()
        assert f"CapBnd:\t{field(manager.pid, 'CapBnd')}" in shown
        assert "Seccomp:\t0" in shown


@isolated
def test_the_small_drop_ins_are_enough_for_passwords_files_and_keys() -> None:
    shipped = {path.stem: path.read_text() for path in DROPINS}
    policy = Path("/etc/privsep-ga/policy.toml")
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('profile = "default"\n[commands]\nallow = ["@user", "@file", "@ssh"]\n')
    subprocess.run(["useradd", "-m", "served"], check=True, capture_output=True)
    with Manager() as manager:
        client = start(manager, user=shipped["user"], file=shipped["file"])
        before = Path("/etc/shadow").read_text()
        password = base64.b64encode(b"a new one").decode()
        client.call("guest-set-user-password", username="served", password=password, crypted=False)
        assert Path("/etc/shadow").read_text() != before
        client.call("guest-ssh-add-authorized-keys", username="served", keys=[KEY])
        assert KEY in Path("/home/served/.ssh/authorized_keys").read_text()
        assert os.stat("/home/served/.ssh/authorized_keys").st_uid == os.stat("/home/served").st_uid
        Path("/home/served/private").write_text("x")
        os.chmod("/home/served/private", 0o600)
        os.chown("/home/served/private", os.stat("/home/served").st_uid, -1)
        handle = client.call("guest-file-open", path="/home/served/private", mode="r")
        assert client.call("guest-file-read", handle=handle)["buf-b64"] == "eA=="
        assert json.loads(manager.run(GACTL, "selfcheck", "--json", "--rundir", "/run/privsep-ga"))["differences"] == []


@isolated
def test_systemctl_reload_puts_a_policy_in_force_and_fails_where_the_old_one_stays() -> None:
    policy = Path("/etc/privsep-ga/policy.toml")
    policy.parent.mkdir(parents=True, exist_ok=True)

    def write(text: str) -> None:
        policy.write_text(f'profile = "default"\n{text}')
        policy.chmod(0o644)

    write("")
    with Manager() as manager:
        client = start(manager)
        main = manager.main_pid()
        assert client.call("guest-get-load")
        write('[commands]\nblock = ["guest-get-load"]\n')
        manager.systemctl("reload", SERVICE)
        with pytest.raises(AgentError, match="disabled"):
            client.call("guest-get-load")
        write('[commands]\nblock = ["guest-get-lode"]\n')
        assert "failed" in manager.systemctl("reload", SERVICE, check=False)
        with pytest.raises(AgentError, match="disabled"):
            client.call("guest-get-load")
        write('[commands]\nallow = ["guest-set-user-password"]\n')  # for which the unit grants too little
        assert "failed" in manager.systemctl("reload", SERVICE, check=False)
        assert client.call("guest-ping") == {}
        write("")
        manager.systemctl("reload", SERVICE)
        assert client.call("guest-get-load")
        assert manager.systemctl("is-active", SERVICE).strip() == "active"
        assert manager.main_pid() == main
