"""What makes Debian a test guest: mounts, an address, the control port, fewer services, an account to play with."""

from __future__ import annotations

from pathlib import Path

from tests.vm.harness import guestctl
from tests.vm.harness.tree import Tree

HOST_NAME = "guest"
ADDRESS = "10.0.2.15"
CONTROL = "/usr/local/sbin/test-control"
USER, PASSWORD = "tester", "old-password"

FSTAB = """\
/dev/vda /         ext4 defaults,errors=remount-ro 0 0
/dev/vdb /mnt/ext4 ext4 defaults,nofail,x-systemd.device-timeout=600 0 0
/dev/vdc /mnt/xfs  xfs  defaults,nofail,x-systemd.device-timeout=600 0 0
"""
NETWORK = f"""\
[Match]
Name=eth*
[Network]
Address={ADDRESS}/24
Gateway=10.0.2.2
IPv6AcceptRA=no
"""
CONTROL_UNIT = f"""\
[Unit]
Description=Runs what the tests ask, as root
DefaultDependencies=no
After=systemd-remount-fs.service
Before=sysinit.target
[Service]
ExecStart=/usr/bin/python3 -IS {CONTROL}
KillMode=process
OOMScoreAdjust=-900
Restart=always
RestartSec=1
StandardOutput=null
StandardError=null
"""
# Work of their own would disturb what is measured.
MASKED = """
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    man-db.timer systemd-networkd-wait-online.service systemd-hwdb-update.service systemd-update-utmp-runlevel.service
    getty@tty1.service systemd-pstore.service ssh.service
""".split()


def fingerprint() -> str:
    return Path(__file__).read_text() + Path(guestctl.__file__).read_text()


def configure(tree: Tree) -> None:
    units = "/etc/systemd/system"
    tree.write("/etc/hostname", f"{HOST_NAME}\n")
    tree.write("/etc/hosts", f"127.0.0.1 localhost {HOST_NAME}\n")
    tree.write("/etc/resolv.conf", "")
    tree.write("/etc/machine-id", "5e" * 16 + "\n")  # known, so that no boot is the first
    tree.write("/etc/fstab", FSTAB)
    tree.write("/etc/systemd/network/10-test.network", NETWORK)
    for folder in ("/mnt/ext4", "/mnt/xfs", "/mnt/more", "/var/log/journal"):  # the last: the journal is kept on disk
        tree.path(folder).mkdir(parents=True, exist_ok=True)
    tree.link(
        f"{units}/multi-user.target.wants/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service"
    )
    for unit in MASKED:
        tree.link(f"{units}/{unit}", "/dev/null")
    tree.write(CONTROL, Path(guestctl.__file__).read_text(), 0o755)
    tree.write(f"{units}/test-control.service", CONTROL_UNIT)
    tree.link(f"{units}/sysinit.target.wants/test-control.service", "../test-control.service")
    # The audit daemon is of use where SELinux is on.
    tree.write(f"{units}/auditd.service.d/test.conf", "[Unit]\nConditionSecurity=selinux\n")
    tree.run(
        "sh", "-ec", f"id {USER} >/dev/null 2>&1 || useradd -m -s /bin/bash {USER}; echo {USER}:{PASSWORD} | chpasswd"
    )
