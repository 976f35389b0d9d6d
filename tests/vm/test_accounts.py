"""Passwords and SSH keys, proven by whoever checks them: the shadow file's hash, and a login by sshd."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator

import pytest

from tests.vm.harness.guestconfig import USER
from tests.vm.harness.hostagent import Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import set_policy
from tests.vm.harness.shell import Shell

KEY = "/etc/ssh/test_key"  # where ssh-keygen(1) may write and ssh(1) may read under SELinux too
LOGIN = (
    f"ssh -i {KEY} -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
    f" -o LogLevel=ERROR {USER}@127.0.0.1 id -un 2>&1 || :"
)


@pytest.fixture(scope="module", autouse=True)
def everything_is_allowed(guest: Guest) -> None:
    set_policy(guest, "qemu-ga", dropin="qemu-ga")


@pytest.fixture(scope="module")
def sshd(guest: Guest) -> Iterator[str]:
    """A server in the guest, and a key pair; the public half."""
    guest.check(f"ssh-keygen -q -A && ssh-keygen -q -t ed25519 -N '' -f {KEY}")
    guest.check("systemd-run --quiet --unit=test-sshd -p RuntimeDirectory=sshd /usr/sbin/sshd -D -e")
    end = time.monotonic() + 60
    while "listening" not in guest.check("journalctl -b --no-pager -o cat -u test-sshd"):
        assert time.monotonic() < end, guest.check("systemctl status test-sshd || :")
        time.sleep(0.5)
    yield guest.check(f"cat {KEY}.pub").strip()
    guest.check("systemctl stop test-sshd")


def matches(guest: Shell, password: str) -> bool:
    """Whether the shadow file's hash is this password's, by crypt(3)."""
    program = (
        "import crypt, sys, warnings\n"
        f"kept = next(l.split(':')[1] for l in open('/etc/shadow') if l.startswith('{USER}:'))\n"
        "sys.exit(crypt.crypt(sys.stdin.read(), kept) != kept)"
    )
    return guest.sh(f'python3 -W ignore -c "{program}"', stdin=password.encode()).status == 0


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_password(guest: Guest, seen: Seen) -> None:
    """guest-set-user-password: the shadow file has the new password's hash, and the log has neither"""
    with guest.agent() as agent:
        assert matches(guest, "old-password")
        agent.call("guest-set-user-password", username=USER, password=encoded("a new pässword"), crypted=False)
        assert matches(guest, "a new pässword")
        assert not matches(guest, "old-password")
        mode = guest.check("stat -c '%a %U:%G' /etc/shadow").strip()
        assert mode == "640 root:shadow"
    assert guest.sh(f"journalctl -b --no-pager | grep -e 'a new p' -e '{encoded('a new pässword')}'").status == 1
    seen(f"/etc/shadow is {mode}")


def test_an_encrypted_password(guest: Guest) -> None:
    """guest-set-user-password with a hash: the shadow file has that hash"""
    hashed = guest.check("python3 -W ignore -c \"import crypt; print(crypt.crypt('by hash', crypt.mksalt()))\"").strip()
    with guest.agent() as agent:
        agent.call("guest-set-user-password", username=USER, password=encoded(hashed), crypted=True)
    assert f"{USER}:{hashed}:" in guest.check("cat /etc/shadow")
    assert matches(guest, "by hash")


def test_a_user_that_there_is_not(guest: Guest, seen: Seen) -> None:
    """guest-set-user-password for nobody: an error, the file as it was"""
    before = guest.check("sha256sum /etc/shadow")
    with guest.agent() as agent:
        with pytest.raises(Refused) as refusal:
            agent.call("guest-set-user-password", username="nobody-here", password=encoded("x"), crypted=False)
    assert guest.check("sha256sum /etc/shadow") == before
    seen(refusal.value.desc)


def test_a_key(guest: Guest, sshd: str, seen: Seen) -> None:
    """guest-ssh-add-authorized-keys: sshd lets the key in; after the removal it does not"""
    with guest.agent() as agent:
        assert "Permission denied" in guest.check(LOGIN)
        agent.call("guest-ssh-add-authorized-keys", username=USER, keys=[sshd])
        assert guest.check(LOGIN).strip() == USER
        assert agent.call("guest-ssh-get-authorized-keys", username=USER)["keys"] == [sshd]
        owner = guest.check(f"stat -c '%U %a' ~{USER}/.ssh ~{USER}/.ssh/authorized_keys").split("\n")
        assert owner[:2] == [f"{USER} 700", f"{USER} 600"]
        agent.call("guest-ssh-remove-authorized-keys", username=USER, keys=[sshd])
        assert "Permission denied" in guest.check(LOGIN)
    seen(f"logged in as {USER}, then refused")
