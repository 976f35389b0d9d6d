"""The hosts' programs that PyPI has: qemu.qmp and ansible, in a virtual environment of their own, made once."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.harness import cache, hosttools

PACKAGES = ("qemu.qmp", "ansible")
FILES = {"/usr/lib/python3/dist-packages/libvirt.py": "python3-libvirt"}
SYSTEM_PYTHON = "/usr/bin/python3"  # libvirt's binding is a package of the distribution
PATIENCE = 1800.0


def programs() -> Path:
    """The folder of the programs."""
    place = cache.folder() / "clients"
    with cache.locked("clients", patience=PATIENCE):
        if not (place / "complete").exists():
            hosttools.need({}, FILES)
            subprocess.run([SYSTEM_PYTHON, "-m", "venv", "--clear", "--system-site-packages", str(place)], check=True)
            words = [str(place / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
            (place / "complete").touch()
    return place / "bin"
