"""The agent into an image, as anybody gets it: the Debian package of this tree, installed by dpkg."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.vm.harness import cache
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.tree import Tree

PROJECT = Path(__file__).resolve().parents[3]
# What the package is made of; a change elsewhere builds no other.
PARTS = ("privsep", "protocol", "workers", "policy", "packaging", "selinux", "CHANGELOG.md", "README.md", "docs")
KEPT = 4


def fingerprint() -> str:
    return Path(__file__).read_text()


def _state() -> str:
    """A digest of the parts as they are on disk now."""
    found = hashlib.sha256()
    for part in PARTS:
        path = PROJECT / part
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" not in file.parts:
                found.update(f"{file.relative_to(PROJECT)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def package() -> Path:
    """The .deb of this tree, built when the tree has changed since the last time."""
    state = _state()
    folder = cache.folder() / "packages"
    folder.mkdir(exist_ok=True)
    place = folder / f"privsep-ga-{state[:16]}.deb"
    if place.exists():
        return place
    print("vm: building the Debian package", flush=True)
    out = folder / f"out-{state[:16]}"
    shutil.rmtree(out, ignore_errors=True)
    words = [str(PROJECT / "packaging/deb.sh"), "--out", str(out)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise HarnessError(f"packaging/deb.sh: {done.stderr[-3000:]}")
    built = Path(done.stdout.split()[-1])
    built.rename(place)
    shutil.rmtree(out)
    for old in sorted(folder.glob("privsep-ga-*.deb"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        old.unlink()
    return place


def install(tree: Tree, package: Path) -> None:
    inside = "/tmp/agent.deb"
    shutil.copy(package, tree.path(inside))
    tree.run("dpkg", "-i", inside)
    tree.path(inside).unlink()
