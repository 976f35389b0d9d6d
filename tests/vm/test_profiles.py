"""What each profile lets the host do with programs and files."""

from __future__ import annotations

import base64
import hashlib
import os
import time

import pytest

from tests.vm.harness.hostagent import HostAgent, Refused
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import POLICY, UNIT, WITH_PROGRAMS, log, processes, set_policy

SHIPPED = ("minimal", "backup", "default", "ansible", "qemu-ga")
LARGE = 4 << 20  # bytes
DROPINS = {"ansible": "ansible", "qemu-ga": "qemu-ga"}


def write(agent: HostAgent, path: str, data: bytes) -> None:
    handle = agent.call("guest-file-open", path=path, mode="w")
    try:
        agent.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(data).decode())
    finally:
        agent.call("guest-file-close", handle=handle)


def read(agent: HostAgent, path: str) -> bytes:
    handle = agent.call("guest-file-open", path=path)
    data = b""
    while True:
        piece = agent.call("guest-file-read", handle=handle, count=1 << 20)
        data += base64.b64decode(piece["buf-b64"])
        if piece["eof"]:
            break
    agent.call("guest-file-close", handle=handle)
    return data


@pytest.mark.parametrize("profile", SHIPPED)
def test_programs_and_files(guest: Guest, seen: Seen, profile: str) -> None:
    """Programs and files by profile"""
    set_policy(guest, profile, dropin=DROPINS.get(profile, ""))
    payload = bytes(range(256)) * 3000
    with guest.agent() as agent:
        allowed = [c["name"] for c in agent.call("guest-info")["supported_commands"] if c["enabled"]]
        if profile in WITH_PROGRAMS:
            status = agent.run("/bin/sh", "-c", "id -u; cat; echo complaint >&2; exit 3", stdin=b"to its input")
            assert (status["exitcode"], status["out-data"], status["err-data"]) == (
                3,
                b"0\nto its input",
                b"complaint\n",
            )
            write(agent, "/root/by-the-host", payload)
            assert guest.get("/root/by-the-host") == payload
            assert read(agent, "/root/by-the-host") == payload
            word = "programs run, files are written and read"
        else:
            for name, arguments in (
                ("guest-exec", {"path": "/bin/true"}),
                ("guest-file-open", {"path": "/etc/hostname"}),
            ):
                with pytest.raises(Refused, match="has been disabled"):
                    agent.call(name, 60.0, **arguments)
            word = "both refused"
    workers = guest.check(f"systemctl show {UNIT} -p TasksCurrent --value").strip()
    seen(f"{profile}: {len(allowed)} commands, {word}; {workers} processes and threads")


def test_large_files_through_the_port(guest: Guest, seen: Seen) -> None:
    """A file written and read through the virtio port, 64 KiB, 1 MiB and all of it at a time, is what it was"""
    set_policy(guest, "qemu-ga", dropin=DROPINS["qemu-ga"])
    path, rates = "/root/large", []
    with guest.agent() as agent:
        for size in (65536, 1 << 20, LARGE):
            data = os.urandom(LARGE)
            begun = time.monotonic()
            handle = agent.call("guest-file-open", path=path, mode="w+")
            for at in range(0, LARGE, size):
                text = base64.b64encode(data[at : at + size]).decode()
                assert agent.call("guest-file-write", handle=handle, buf_b64=text)["count"] == size
            middle = time.monotonic()
            agent.call("guest-file-seek", handle=handle, offset=0, whence="set")
            for at in range(0, LARGE, size):
                piece = agent.call("guest-file-read", handle=handle, count=size)
                assert (base64.b64decode(piece["buf-b64"]), piece["count"]) == (data[at : at + size], size)
            end = time.monotonic()
            agent.call("guest-file-close", handle=handle)
            assert guest.check(f"sha256sum {path}").split()[0] == hashlib.sha256(data).hexdigest()
            rates.append(
                f"{size >> 10} KiB: {LARGE / (middle - begun) / 1e6:.1f} and {LARGE / (end - middle) / 1e6:.1f}"
            )
    guest.check(f"rm {path}")
    seen(f"written and read, MB/s: {', '.join(rates)}")


def test_another_policy_by_a_reload(guest: Guest, seen: Seen) -> None:
    """systemctl reload: the next request is judged by the new policy, and front and supervisor are the same processes"""
    set_policy(guest, "default")
    with guest.agent() as agent:
        assert agent.call("guest-get-osinfo")
        before = processes(guest)
        guest.put('profile = "default"\n[commands]\nblock = ["guest-get-osinfo", "guest-get-host-name"]\n', POLICY)
        guest.check(f"systemctl reload {UNIT}")
        for name in ("guest-get-osinfo", "guest-get-host-name"):  # one that a worker answers, one that the front does
            with pytest.raises(Refused, match="has been disabled"):
                agent.call(name)
        assert agent.call("guest-get-load")
        after = processes(guest)
    assert [after[name] for name in ("supervisor", "front")] == [before[name] for name in ("supervisor", "front")]
    set_policy(guest, "default")
    seen("refused from the next request on, on the same connection")


def test_a_policy_that_the_unit_does_not_grant(guest: Guest, seen: Seen) -> None:
    """The profile qemu-ga without its drop-in: the service does not start, and says which drop-in is missing"""
    with pytest.raises(Exception, match="systemctl"):
        set_policy(guest, "qemu-ga")
    said = [line for line in log(guest).splitlines() if "drop-in" in line]
    assert said
    assert "qemu-ga.conf" in said[-1]
    set_policy(guest, "qemu-ga", dropin="qemu-ga")
    with guest.agent() as agent:
        assert agent.call("guest-ping") == {}
    seen(said[-1].removeprefix("supervisor: "))
