"""Images by name, built when they are not in the cache or when what they are made of has changed.

    packages            Debian 12 and what the tests use             minutes, once
    packages-selinux    the same and Debian's SELinux policy         minutes, once
    bare                packages, configured as a test guest
    plain, selinux      the same with the agent's package installed; selinux: with its policy module and labels, to be
                        booted enforcing

Each image is a folder: root.img (raw ext4), vmlinuz, initrd.  Its name ends in a digest of what went into it, so a
change of the agent makes a new `plain` in seconds and leaves the packages alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.vm.harness import cache, debian, guestconfig, hosttools, initrd, install, selinux
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.tree import Tree

ROOT_MIB = 3072
DATA_MIB = 320  # mkfs.xfs wants 300 at least
BUILD_PATIENCE = 3600.0
NAMES = ("bare", "plain", "selinux")
COMMON_WORDS = "root=/dev/vda rw console=ttyS0 quiet panic=-1 net.ifnames=0 random.trust_cpu=on"
SELINUX_WORDS = "security=selinux selinux=1 enforcing=1"


def kernel_words(name: str, more: str = "") -> str:
    """The kernel's command line for an image."""
    return " ".join(w for w in (COMMON_WORDS, SELINUX_WORDS if name == "selinux" else "selinux=0", more) if w)


def _digest(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        found.update(len(data).to_bytes(8, "big") + data)
    return found.hexdigest()


def image(name: str) -> Path:
    """The folder of the image, which is made when it has to be.  Raises HarnessError."""
    if name not in NAMES:
        raise HarnessError(f"no image {name}: there are {', '.join(NAMES)}")
    hosttools.need(hosttools.IMAGE_TOOLS, hosttools.FIRMWARE)
    with cache.locked("build", patience=BUILD_PATIENCE):
        base = _packages(enforcing=name == "selinux")
        package = None if name == "bare" else install.package()
        parts: list[str | bytes] = [base.name, guestconfig.fingerprint(), selinux.fingerprint(), install.fingerprint()]
        digest = _digest(*parts, b"" if package is None else package.read_bytes())

        def finish(tree: Tree) -> None:
            guestconfig.configure(tree)
            if package is not None:
                install.install(tree, package)
            if name == "selinux":
                selinux.add_module(tree)
                selinux.label(tree)

        return _make(name, digest, base, finish)


def _packages(*, enforcing: bool) -> Path:
    digest = _digest(debian.fingerprint(), str(ROOT_MIB))
    base = _make("packages", digest, None, debian.bootstrap)
    if not enforcing:
        return base
    return _make("packages-selinux", _digest(base.name, *selinux.PACKAGES), base, selinux.add_packages)


def _make(name: str, digest: str, base: Path | None, work: Callable[[Tree], None]) -> Path:
    """Build below a name of its own, then rename: an image that exists is whole."""
    place = cache.place(name, digest)
    if place.exists():
        os.utime(place)
        return place
    if os.geteuid() != 0:
        raise HarnessError("building an image mounts it: run as root once")
    print(f"vm: building the image {name}", flush=True)
    draft = place.with_name(f".{place.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    root = draft / "root.img"
    if base is None:
        with open(root, "wb") as file:
            file.truncate(ROOT_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", str(root)], check=True)
    else:
        subprocess.run(["cp", "--sparse=always", str(base / "root.img"), str(root)], check=True)
        for kept in ("vmlinuz", "initrd"):
            os.link(base / kept, draft / kept)
    with Tree(root) as tree:
        work(tree)
        if base is None:
            kernel = initrd.newest_kernel(tree.root)
            shutil.copy(tree.root / f"boot/vmlinuz-{kernel}", draft / "vmlinuz")
            initrd.build(tree.root, kernel, draft / "initrd")
    draft.rename(place)
    cache.prune(name)
    return place


def data_disk(kind: str) -> Path:
    """An empty file system of this kind (ext4, xfs), for an overlay to stand on."""
    place = cache.folder() / f"data-{kind}-{DATA_MIB}.img"
    if not place.exists():
        draft = place.with_suffix(".new")
        with open(draft, "wb") as file:
            file.truncate(DATA_MIB << 20)
        quiet = ["-q", "-F"] if kind == "ext4" else ["-q", "-f"]
        subprocess.run([f"mkfs.{kind}", *quiet, "-L", kind, str(draft)], check=True)
        draft.rename(place)
    return place
