"""A Debian system in a folder, to install the package into: no service manager, no device, its own processes and mounts.

The base system is made once (mmdebstrap, from the mirrors that apt has here) and kept in the cache
(`$XDG_CACHE_HOME/privsep-ga-deb`); each `Root` is an unpacked copy of it.  Needs root.

It lies on this machine's own file system: nothing in it may be frozen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = "systemd systemd-sysv udev passwd procps python3 python3-prctl python3-msgpack python3-pyroute2".split()
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "privsep-ga-deb"


def mirror() -> str:
    """The first mirror in apt's configuration that has Debian itself."""
    text = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith("Debian Debian ")]
    if not found:
        pytest.skip("apt knows no mirror of Debian here (apt-get update)")
    return found[0]


def base(release: str) -> Path:
    """The archive of the base system; made where it is not there yet."""
    path = cache() / f"{release}.tar"
    if path.exists():
        return path
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    line = f"deb [signed-by={KEYRING}] {mirror()} {release} main"
    run = subprocess.run([*command, release, str(draft), line], capture_output=True, text=True)
    if run.returncode:
        draft.unlink(missing_ok=True)
        pytest.skip(f"no {release} from {mirror()}: {run.stderr.strip().splitlines()[-1]}")
    draft.rename(path)
    return path


class Root:
    """An unpacked system; with `with`: its mounts are up and `run` runs programs in it."""

    def __init__(self, folder: Path, release: str) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run(["tar", "-C", folder, "-xf", base(release), "--exclude=./dev/*"], check=True)
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Root:
        r = self.folder
        script = f"""
            set -e
            mount -t proc proc {r}/proc; mount -t sysfs -o ro sysfs {r}/sys
            mount -t tmpfs -o mode=755 tmpfs {r}/dev; mount -t tmpfs -o mode=755 tmpfs {r}/run
            for n in null zero full random urandom tty; do cp -a /dev/$n {r}/dev/; done
            mkdir {r}/dev/shm
            echo up
            exec sleep infinity
        """
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", script],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._holder is not None and self._holder.stdout is not None
        self._holder.kill()
        self._holder.wait()
        self._holder.stdout.close()

    def _inside(self, words: tuple[str, ...]) -> list[str]:
        assert self._holder is not None
        pid = self._holder.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        environ = ["env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        return ["nsenter", f"--target={child}", "--all", "chroot", str(self.folder), *environ, *words]

    def run(self, *words: str, fails: bool = False) -> str:
        """The output, both streams, of a program that ends well (or, with `fails`, that does not)."""
        run = subprocess.run(
            self._inside(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert (run.returncode != 0) == fails, f"{words}: exit status {run.returncode}\n{run.stdout}"
        return run.stdout

    @contextlib.contextmanager
    def running(self, *words: str):  # type: ignore[no-untyped-def]
        """A program that runs meanwhile and is ended by SIGTERM."""
        # `--fork` of nsenter stays in between, so the signal goes to the program by its name inside.
        process = subprocess.Popen(self._inside(words), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in inside:
                os.kill(int(pid), 15)
            process.wait(20)

    def files(self) -> dict[str, str]:
        """What there is, with owner and mode; without what package management and logs are."""
        left_out = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/lib/dpkg", "/var/cache", "/var/log", "/var/lib/apt")
        backups = {"/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/.pwd.lock"}
        found = {}
        for line in self.run("find", "/", "-xdev", "-printf", "%p\t%M %u %g %l\n").splitlines():
            path, _, rest = line.partition("\t")
            if not path.startswith(left_out) and path not in backups:
                found[path] = rest
        return found
