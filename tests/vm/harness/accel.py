"""How QEMU runs the guest: KVM where it boots our kernel, its own translator elsewhere.

A /dev/kvm that opens proves little: in some clouds the firmware runs and the kernel never says a word.  So the first use
on a machine boots the kernel for a moment and looks at its console.  $PRIVSEP_GA_VM_ACCEL overrides (kvm, tcg).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.vm.harness import cache

# A processor that all of Debian's programs run on, and that the translator does quickly.
TCG = ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")
KVM = ("-accel", "kvm", "-cpu", "host")
FIRST_WORDS = b"Linux version"
TRIAL = 15.0


def options(kernel: Path) -> tuple[str, ...]:
    """QEMU's options; `kernel` is the folder of an image."""
    return KVM if name(kernel) == "kvm" else TCG


def name(kernel: Path) -> str:
    named = os.environ.get("PRIVSEP_GA_VM_ACCEL")
    if named in ("kvm", "tcg"):
        return named
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = cache.folder() / f"accel-{boot}"
    if not known.exists():
        found = "kvm" if _boots(kernel) else "tcg"
        known.write_text(found)
    return known.read_text()


def _boots(kernel: Path) -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryDirectory() as folder:
        console = Path(folder) / "console"
        words = ["qemu-system-x86_64", *KVM, "-machine", "q35", "-m", "256M", "-nodefaults", "-display", "none"]
        words += ["-kernel", str(kernel / "vmlinuz"), "-append", "console=ttyS0 panic=-1", "-no-reboot"]
        words += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            end = time.monotonic() + TRIAL
            while time.monotonic() < end and process.poll() is None:
                if console.exists() and FIRST_WORDS in console.read_bytes():
                    return True
                time.sleep(0.1)
            return console.exists() and FIRST_WORDS in console.read_bytes()
        finally:
            process.kill()
            process.wait()
