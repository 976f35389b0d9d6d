"""The enforcing guest: Debian's policy, and labels set when the image is built, so that no boot relabels."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.vm.harness.tree import Tree

PACKAGES = """
    selinux-policy-default selinux-policy-dev selinux-utils policycoreutils policycoreutils-python-utils
    checkpolicy semodule-utils setools auditd m4 make
""".split()
CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"


def fingerprint() -> str:
    return Path(__file__).read_text()


def add_packages(tree: Tree) -> None:
    tree.apt_install(*PACKAGES)
    config = tree.path("/etc/selinux/config")
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("SELINUX=", "SELINUXTYPE="))]
    config.write_text("\n".join([*kept, "SELINUX=enforcing", "SELINUXTYPE=default", ""]))


def label(tree: Tree) -> None:
    """Every file as the policy in the tree says, by setfiles(8), which finds files through /proc."""
    subprocess.run(["mount", "-t", "proc", "proc", str(tree.path("/proc"))], check=True)
    try:
        tree.bare_run("setfiles", "-F", "-e", "/proc", CONTEXTS, "/")
    finally:
        subprocess.run(["umount", str(tree.path("/proc"))], check=True)
