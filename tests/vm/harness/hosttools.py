"""The programs that the harness runs on the host, and their Debian packages; installed when absent, as root."""

from __future__ import annotations

import os
import shutil
import subprocess

from tests.vm.harness.cache import HarnessError

IMAGE_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "cpio": "cpio",
    "modprobe": "kmod",
    "losetup": "mount",
}
FIRMWARE = {"/usr/share/seabios/bios-256k.bin": "seabios"}


def extend_path() -> None:
    """Administrators' programs may stand outside an ordinary PATH."""
    for place in ("/usr/sbin", "/sbin"):
        if place not in os.environ.get("PATH", "").split(":"):
            os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{place}"


def need(tools: dict[str, str], files: dict[str, str] | None = None) -> None:
    """Have these programs and files, by apt where they lack.  Raises HarnessError."""
    extend_path()

    def missing() -> list[str]:
        absent = [package for tool, package in tools.items() if shutil.which(tool) is None]
        return sorted({*absent, *(package for path, package in (files or {}).items() if not os.path.exists(path))})

    packages = missing()
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise HarnessError(f"install by:  apt-get install {' '.join(packages)}")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print(f"vm: installing {' '.join(packages)}", flush=True)
    for attempt in range(2):
        done = subprocess.run(install, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0:
            break
        if attempt == 0:  # the lists may be absent or old
            subprocess.run(["apt-get", "update", "-q"], env=environ, stdin=subprocess.DEVNULL, capture_output=True)
    if still := missing():
        raise HarnessError(f"apt-get could not install {' '.join(still)}: {done.stderr[-800:]}")
