"""ansible-playbook over libvirt, with nothing of the user's own settings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.harness.libvirt import Domain

LIMIT = 1500.0


def environ(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
        "PWD": str(folder),
    }


def run(programs: Path, folder: Path, domains: Sequence[Domain], *words: str) -> subprocess.CompletedProcess[str]:
    """`folder` is where it runs, and gets the inventory."""
    lines = [
        f"{domain.name} ansible_connection=community.libvirt.libvirt_qemu ansible_libvirt_uri={domain.uri}"
        " ansible_python_interpreter=/usr/bin/python3 ansible_remote_tmp=/root/.ansible/tmp\n"
        for domain in domains
    ]
    (folder / "inventory.ini").write_text("".join(lines))
    command = [str(programs / "ansible-playbook"), "-i", "inventory.ini", *words]
    return subprocess.run(command, cwd=folder, env=environ(folder), capture_output=True, text=True, timeout=LIMIT)


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """Host -> what the last lines count: ok, changed, failed and so on."""
    found = {}
    for line in done.stdout.splitlines():
        name, colon, rest = line.partition(":")
        if colon and "ok=" in rest:
            found[name.strip()] = {k: int(v) for k, v in (word.split("=") for word in rest.split())}
    return found


def version(programs: Path, folder: Path) -> str:
    done = subprocess.run([str(programs / "ansible"), "--version"], env=environ(folder), capture_output=True, text=True)
    return done.stdout.split("]")[0].replace("[", "")
