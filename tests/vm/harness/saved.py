"""Guests that have booted, saved as QEMU migrates them: a test's own guest goes on from there.

A saved guest stands beside its image, for one QEMU and one way to run it: memory and devices in `state`, and the overlays of its
disks, on which those of each guest stand.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from tests.vm.harness import accel, cache
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.qmp import Qmp

DISKS = ("root", "ext4", "xfs")
PATIENCE = 1800.0
LIMIT = 120.0  # seconds for the memory of one guest


def state(name: str, folder: Path) -> Path:
    """The folder of the image's saved guest, which is made when it has to be.  Raises HarnessError."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], check=True, capture_output=True).stdout
    source = b"".join(Path(__file__).with_name(file).read_bytes() for file in ("saved.py", "machine.py"))
    digest = hashlib.sha256(version + source + " ".join(accel.options(folder)).encode()).hexdigest()
    place = folder / f"booted-{digest[:16]}"
    with cache.locked(f"booted-{name}", patience=PATIENCE):
        if not place.exists():
            draft = folder / ".booted"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            _save(name, draft)
            draft.rename(place)
    return place


def _save(name: str, draft: Path) -> None:
    from tests.vm.harness.machine import Guest

    print(f"vm: booting {name}, to be saved", flush=True)
    with Guest(name, boot=True) as guest:
        guest.wait_booted()
        with guest.agent() as agent:
            agent.call("guest-ping")
        guest.ends(well=True)
        guest.qmp.call("stop")
        guest.qmp.call("migrate-set-parameters", max_bandwidth=1 << 40)
        guest.qmp.call("migrate", uri=f"exec:cat > {draft / 'state'}")
        end = time.monotonic() + LIMIT
        while (status := guest.qmp.call("query-migrate"))["status"] != "completed":
            if status["status"] in ("failed", "cancelled") or time.monotonic() > end:
                raise HarnessError(f"the guest cannot be saved: {status}")
            time.sleep(0.2)
        guest.qmp.send_json({"execute": "quit"})
        guest.wait_exit()
        for disk in DISKS:
            shutil.copy(guest.disk(disk), draft)


def go_on(qmp: Qmp) -> None:
    """QEMU was started with what was saved: wait for it, and let it run.  Raises HarnessError."""
    end = time.monotonic() + LIMIT
    while (status := qmp.call("query-status"))["status"] == "inmigrate":
        if time.monotonic() > end:
            raise HarnessError(f"the saved guest does not come up: {status}")
        time.sleep(0.05)
    if not status["running"]:
        qmp.call("cont")
