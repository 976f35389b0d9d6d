"""An image's root file system, mounted on the host, and programs run inside it by chroot."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.vm.harness.cache import HarnessError

ENVIRON = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
NODES = ("null", "zero", "full", "random", "urandom", "tty")


class Tree:
    """`root` is where the image is mounted.  Nothing inside is started by the programs that run there (policy-rc.d(8))."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._stack = ExitStack()
        self.root = Path()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.root = Path(tempfile.mkdtemp(prefix="privsep-ga-tree-"))
            stack.callback(self.root.rmdir)
            self._mount(stack, "-o", "loop,discard", str(self._image), str(self.root))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            # What was deleted leaves holes: the next image is a copy of this one.
            subprocess.run(["fstrim", str(self.root)], capture_output=True)
        self._stack.close()

    @staticmethod
    def _mount(stack: ExitStack, *words: str) -> None:
        subprocess.run(["mount", *words], check=True)
        stack.callback(subprocess.run, ["umount", words[-1]], check=True)

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def link(self, inside: str, target: str) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def bare_run(self, *words: str) -> str:
        """A program inside, on the tree as it is.  Raises HarnessError."""
        done = subprocess.run(
            ["chroot", str(self.root), *words],
            env=ENVIRON,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            raise HarnessError(f"{' '.join(words)} in the image: status {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def run(self, *words: str) -> str:
        """The same with /proc, /dev and /run, for package scripts; no service is started."""
        root = self.root
        policy = root / "usr/sbin/policy-rc.d"
        with ExitStack() as stack:
            self._mount(stack, "-t", "proc", "proc", str(root / "proc"))
            self._mount(stack, "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
            for node in NODES:
                stat = os.stat(f"/dev/{node}")
                os.mknod(root / "dev" / node, stat.st_mode, stat.st_rdev)
                os.chmod(root / "dev" / node, 0o666)
            for folder in ("shm", "pts"):
                (root / "dev" / folder).mkdir()
            (root / "dev/fd").symlink_to("/proc/self/fd")
            self._mount(stack, "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "run"))
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            stack.callback(policy.unlink)
            return self.bare_run(*words)

    def apt_install(self, *packages: str) -> None:
        """From the archive that this machine's own apt takes Debian from."""
        from tests.vm.harness.debian import sources

        lent = self.root / "tmp/lent"
        shutil.rmtree(lent, ignore_errors=True)
        lent.mkdir()
        for source in sources():
            shutil.copy(source, lent)
        for name in ("resolv.conf", "hosts"):
            shutil.copy(f"/etc/{name}", self.root / "etc" / name)
        options = ["-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=/tmp/lent"]
        try:
            self.run("apt-get", *options, "update")
            self.run("apt-get", *options, "install", "-y", "--no-install-recommends", *packages)
            self.run("apt-get", *options, "clean")
        finally:
            for name in ("resolv.conf", "hosts"):
                (self.root / "etc" / name).unlink()
            shutil.rmtree(lent)
        shutil.rmtree(self.root / "var/lib/apt/lists")
