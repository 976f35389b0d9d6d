"""The first root of the guest: busybox and the modules that lead to the disk and the virtio ports."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_console", "virtio_net")

INIT = """\
#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
for module in $($busybox cat /modules/order); do
    $busybox insmod /modules/$module || echo "initrd: $module cannot be loaded"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 400 ]; do
    $busybox usleep 25000
    tries=$((tries + 1))
done
$busybox mount -t ext4 -o ro /dev/vda /newroot || exec $busybox sh
for place in proc sys dev; do
    $busybox mount --move /$place /newroot/$place
done
exec $busybox switch_root /newroot /sbin/init
"""


def newest_kernel(root: Path) -> str:
    """The release of the kernel that is installed in this tree."""
    return sorted(p.name for p in (root / "lib/modules").iterdir())[-1]


def build(root: Path, kernel: str, out: Path) -> None:
    """Write the archive (newc, not compressed: unpacking is what a translated processor is slow at)."""
    with tempfile.TemporaryDirectory() as name:
        draft = Path(name)
        for folder in ("bin", "modules", "proc", "sys", "dev", "newroot"):
            (draft / folder).mkdir()
        shutil.copy(root / "bin/busybox", draft / "bin/busybox")
        order: list[str] = []
        for module in MODULES:
            words = ["modprobe", "-d", str(root), "-S", kernel, "--show-depends", module]
            for line in subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines():
                kind, _, rest = line.partition(" ")
                path = Path(rest.split()[0]) if kind == "insmod" else None
                if path is not None and path.name not in order:
                    shutil.copy(path, draft / "modules" / path.name)
                    order.append(path.name)
        (draft / "modules/order").write_text("\n".join(order) + "\n")
        (draft / "init").write_text(INIT)
        (draft / "init").chmod(0o755)
        listing = subprocess.run(["find", "."], cwd=draft, check=True, capture_output=True).stdout
        with open(out, "wb") as file:
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=draft, input=listing, stdout=file, check=True)
