"""The guest's Debian 12: which packages, from where."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.vm.harness.cache import HarnessError
from tests.vm.harness.tree import Tree

SUITE = "bookworm"
PACKAGES = """
    systemd-sysv dbus udev kmod libpam-systemd login passwd util-linux iproute2 procps sudo
    linux-image-cloud-amd64 busybox-static
    e2fsprogs xfsprogs btrfs-progs fdisk lvm2 dmsetup strace file libcap2-bin libseccomp2
    openssh-server openssh-client
    python3 python3-prctl python3-pyroute2 python3-msgpack
""".split()
# Test guests are read by programs only.
LEFT_OUT = ("doc", "man", "locale", "info")


def fingerprint() -> str:
    return " ".join([SUITE, *PACKAGES, *LEFT_OUT])


def sources() -> list[Path]:
    """The files of this machine's apt configuration that name Debian's own archive for the suite.  Raises HarnessError."""
    candidates = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = []
    for path in candidates:
        text = path.read_text(errors="replace") if path.is_file() else ""
        if re.search(rf"^[^#]*\b{SUITE}\b(?!/)", text, re.MULTILINE) and re.search(r"debian\.org|/debian\b", text):
            found.append(path)
    if not found:
        raise HarnessError(f"apt on this machine has no source for Debian {SUITE}")
    return found


def bootstrap(tree: Tree) -> None:
    """Fill an empty tree."""
    words = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=check/empty"]
    words += [f"--include={','.join(PACKAGES)}", '--aptopt=APT::Install-Recommends "false"']
    words += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    words += [SUITE, str(tree.root), *map(str, sources())]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise HarnessError(f"mmdebstrap: {done.stderr[-3000:]}")
    for left in (*tree.path("/boot").glob("initrd.img-*"), *tree.path("/etc/apt/sources.list.d").glob("*")):
        left.unlink()
    tree.write("/etc/apt/sources.list", "")
    tree.path("/etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
