"""The agent into an image: as the Debian package where the tree can build one, else the same files by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.vm.harness import cache
from tests.vm.harness.tree import Tree

PROJECT = Path(__file__).resolve().parents[3]
UNIT = """\
[Unit]
Description=Privilege-separated guest agent
BindsTo=dev-virtio\\x2dports-org.qemu.guest_agent.0.device
After=dev-virtio\\x2dports-org.qemu.guest_agent.0.device
[Service]
Type=notify
ExecStart=/usr/sbin/privsep-ga
ExecStopPost=-/usr/libexec/privsep-ga/recover /run/privsep-ga/journal "the agent was killed"
Restart=always
RestartSec=1
TimeoutStopSec=90
WatchdogSec=20
WatchdogSignal=SIGKILL
KillMode=mixed
RuntimeDirectory=privsep-ga
RuntimeDirectoryPreserve=yes
OOMPolicy=continue
OOMScoreAdjust=-900
[Install]
WantedBy=dev-virtio\\x2dports-org.qemu.guest_agent.0.device
"""
RULE = 'SUBSYSTEM=="virtio-ports", ATTR{name}=="org.qemu.guest_agent.0", TAG+="systemd", ENV{SYSTEMD_WANTS}+="privsep-ga.service"\n'


def fingerprint() -> str:
    return Path(__file__).read_text()


def _neutral(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in info.name:
        return None
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def package() -> Path:
    """The file that holds the agent, built anew."""
    with tempfile.TemporaryDirectory() as name:
        draft = Path(name)
        modules = draft / "usr/share/privsep-ga"
        for package in ("privsep", "protocol", "workers", "policy"):
            shutil.copytree(PROJECT / package, modules / package, ignore=shutil.ignore_patterns("__pycache__"))
        scripts = ["--prefix", "/usr", "--destdir", name, "--python", "/usr/bin/python3", "--bindir", "/usr/sbin"]
        scripts += ["--modules", "/usr/share/privsep-ga", "--libraries", "/usr/lib/python3/dist-packages"]
        for words in (
            ["launchers.py", *scripts],
            ["filters.py", "--destdir", name, "--libexecdir", "/usr/libexec/privsep-ga"],
        ):
            program = [sys.executable, str(PROJECT / "packaging" / words[0]), *words[1:]]
            subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
        for place, text in (
            ("usr/lib/systemd/system/privsep-ga.service", UNIT),
            ("usr/lib/udev/rules.d/60-privsep-ga.rules", RULE),
        ):
            (draft / place).parent.mkdir(parents=True, exist_ok=True)
            (draft / place).write_text(text)
        out = cache.folder() / "agent.tar"
        with tarfile.open(out, "w") as tar:
            for path in sorted(draft.rglob("*")):
                tar.add(path, str(path.relative_to(draft)), recursive=False, filter=_neutral)
    return out


def install(tree: Tree, package: Path) -> None:
    sys.path.insert(0, str(PROJECT))
    from privsep.domains import DOMAINS

    subprocess.run(
        ["tar", "-C", str(tree.root), "--keep-directory-symlink", "--no-overwrite-dir", "-xf", str(package)], check=True
    )
    for user in sorted({row.user for row in DOMAINS} - {"root"}):
        tree.run("useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", user)
    tree.run("python3", "-m", "compileall", "-q", "/usr/share/privsep-ga")
