"""A service manager of a test's own: systemd as process 1 of a pid, cgroup and mount namespace, in a private root.

    with Manager() as manager:                       # inside tests.support.namespace.isolated
        manager.install(UNIT, "-m unix-listen -p /tmp/ga.sock")
        manager.systemctl("start", "privsep-ga.service")

It starts nothing but what it is asked for: its default target is an empty one, and what a boot consists of (sysctl, tmpfiles, swap,
udev: the machine's, or none of a test's business) is masked, so a service that would pull it in fails; `install` takes the service
out of it.  It sees `container` in its environment, so it sets no clock and loads no module; its host name and its
control groups are its own.  Mounts that were made before it started are there too.  It is ended by SIGKILL, which ends every
process in its namespace.

Facts: systemd(1), the container interface (systemd.io/CONTAINER_INTERFACE), pid_namespaces(7), cgroup_namespaces(7).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.support.agent import children, program, wait_for

SYSTEMD = "/lib/systemd/systemd"
SERVICE = "privsep-ga.service"
_GROUPS = "/tmp/control-groups"
_MASKED = (
    "sysinit.target basic.target local-fs.target swap.target systemd-sysctl.service systemd-tmpfiles-setup.service"
)
_INSIDE = (
    f"umount {_GROUPS}; mount -t proc proc /proc && mount -t cgroup2 none /sys/fs/cgroup && "
    f"exec {SYSTEMD} --system --unit=trial.target --log-target=console --show-status=no --default-standard-output=null"
)


def why_not() -> str:
    """Why there can be none; empty if there can."""
    if os.geteuid() != 0:
        return "a service manager needs root"
    if not os.path.exists(SYSTEMD):
        return "systemd is not installed"
    if "\tcgroup2\n" not in Path("/proc/filesystems").read_text():
        return "a service manager needs cgroup2"
    return ""


class Manager:
    def __init__(self) -> None:
        self.log = Path("/tmp/systemd.log")
        self._group = Path(_GROUPS) / f"privsep-ga-test-{os.getpid()}"
        self._unshare: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Manager:
        os.makedirs(_GROUPS, exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup2", "none", _GROUPS], check=True)
        self._group.mkdir()
        os.makedirs("/etc/systemd/system", exist_ok=True)
        Path("/etc/systemd/system/trial.target").write_text("[Unit]\nDescription=nothing\nDefaultDependencies=no\n")
        for name in _MASKED.split():
            path = Path("/etc/systemd/system") / name
            path.unlink(missing_ok=True)
            path.symlink_to("/dev/null")
        with open(self.log, "wb") as log:
            self._unshare = subprocess.Popen(
                [
                    "sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec unshare --cgroup --pid --fork --kill-child --uts --ipc --mount '
                    'sh -c "$1"', str(self._group), _INSIDE,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "container": "other"},
            )  # fmt: skip
        try:
            (self.pid,) = wait_for(lambda: children(self._unshare.pid) if self._unshare else None, 10)
            wait_for(
                lambda: self.systemctl("is-system-running", check=False).strip() in ("running", "degraded"),
                30,
                "a running systemd",
            )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._end()
        if kind is not None:
            print(f"--- systemd\n{self.log.read_text(errors='replace')}---", flush=True)

    def _end(self) -> None:
        assert self._unshare is not None
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()
        end = time.monotonic() + 10
        while self._group.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(self._group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            time.sleep(0.02)

    def run(self, *words: str, check: bool = True) -> str:
        """A command among its processes; what it wrote.  Raises CalledProcessError."""
        command = ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", "--", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: status {done.returncode}: {done.stdout}")
        return done.stdout

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check)

    def install(self, unit: str, options: str, dropins: dict[str, str] | None = None) -> None:
        """The service as a package would install it, but with this tree's programs."""
        for target, name in (
            (program(), "/usr/sbin/privsep-ga"),
            (str(Path(program()).with_name("privsep-gactl")), "/usr/bin/privsep-gactl"),
            (
                str(Path(program()).resolve().parents[1] / "libexec/privsep-ga/recover"),
                "/usr/libexec/privsep-ga/recover",
            ),
        ):
            os.makedirs(os.path.dirname(name), exist_ok=True)
            if not os.path.lexists(name):
                os.symlink(target, name)
        Path("/etc/default").mkdir(exist_ok=True)
        Path("/etc/default/privsep-ga").write_text(f'PRIVSEP_GA_OPTIONS="{options}"\n')
        head, section, rest = unit.partition("[Unit]\n")
        assert section, unit
        Path(f"/etc/systemd/system/{SERVICE}").write_text(f"{head}{section}DefaultDependencies=no\n{rest}")
        folder = Path(f"/etc/systemd/system/{SERVICE}.d")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in (dropins or {}).items():
            (folder / f"{name}.conf").write_text(text)
        self.systemctl("daemon-reload")

    def main_pid(self) -> int:
        """The service's main process as this namespace numbers it; 0 when there is none."""
        inside = int(self.systemctl("show", "-P", "MainPID", SERVICE).strip())
        if not inside:
            return 0
        for pid in self.processes():
            line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("NSpid:"))
            if line.split()[-1] == str(inside):
                return pid
        return 0

    def processes(self) -> list[int]:
        """Those of the service, as this namespace numbers them."""
        path = self._group / "system.slice" / SERVICE / "cgroup.procs"
        try:
            return [int(x) for x in path.read_text().split()]
        except FileNotFoundError:
            return []
