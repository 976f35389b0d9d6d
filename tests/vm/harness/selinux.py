"""The enforcing guest: Debian's policy, the agent's module, and labels set when the image is built, so that no boot relabels."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.vm.harness.tree import Tree

MODULE = Path(__file__).resolve().parents[3] / "selinux"
SOURCES = tuple(f"privsep_ga.{kind}" for kind in ("te", "fc", "if"))
PACKAGES = """
    selinux-policy-default selinux-policy-dev selinux-utils policycoreutils policycoreutils-python-utils
    checkpolicy semodule-utils setools auditd m4 make
""".split()
CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"


def fingerprint() -> str:
    return "".join([Path(__file__).read_text(), *((MODULE / name).read_text() for name in SOURCES)])


def add_packages(tree: Tree) -> None:
    tree.apt_install(*PACKAGES)
    config = tree.path("/etc/selinux/config")
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("SELINUX=", "SELINUXTYPE="))]
    config.write_text("\n".join([*kept, "SELINUX=enforcing", "SELINUXTYPE=default", ""]))


def add_module(tree: Tree) -> None:
    """Compiled inside, by the tools of the policy that it is for; loaded by the boot."""
    folder = tree.path("/usr/local/src/privsep-ga-selinux")
    folder.mkdir(parents=True)
    for name in SOURCES:
        (folder / name).write_text((MODULE / name).read_text())
    inside = f"/{folder.relative_to(tree.root)}"
    make = f"make -s -C {inside} -f /usr/share/selinux/devel/Makefile NAME=default privsep_ga.pp"
    tree.run("sh", "-ec", f"{make} && semodule -n -s default -i {inside}/privsep_ga.pp")
    shutil.rmtree(folder)


def label(tree: Tree) -> None:
    """Every file as the policy in the tree says, by setfiles(8), which finds files through /proc."""
    subprocess.run(["mount", "-t", "proc", "proc", str(tree.path("/proc"))], check=True)
    try:
        tree.bare_run("setfiles", "-F", "-e", "/proc", CONTEXTS, "/")
    finally:
        subprocess.run(["umount", str(tree.path("/proc"))], check=True)
