"""The Debian package in Debian: it runs with the distribution's own libraries, takes the peer's place, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from privsep.domains import DOMAINS
from privsep.version import VERSION
from tests.packaging.debianroot import Root, mirror

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]

TREE = Path(__file__).resolve().parents[2]
OLD, NEW = "0.0.1~old", "0.0.1"
SOCKET = "/run/ga.sock"
BAD = ('{"execute": "guest-ping",}', '{"execute": "a\tb"}', '{"execute" "guest-ping"}', '{"execute": "a" "b": 1}')
GARBAGE = f"""
import socket
for text in {BAD!r}:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect({SOCKET!r})
        s.sendall(text.encode() + b"\\n")
        print(s.makefile().readline())
"""
ASK = ("privsep-gactl", "call", "--socket", SOCKET)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions, built by `packaging/deb.sh`, which also runs lintian and fails on what it finds."""
    if shutil.which("dpkg-buildpackage") is None:
        pytest.skip("the tools for Debian packages are not installed (make deb)")
    out = tmp_path_factory.mktemp("deb")
    found = {}
    for version in (OLD, NEW):
        run = subprocess.run(
            [TREE / "packaging/deb.sh", "--version", version, "--out", out], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        found[version] = Path(run.stdout.strip())
    return found


@pytest.fixture(params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, tmp_path: Path, packages: dict[str, Path]) -> Iterator[Root]:
    made = Root(tmp_path / "root", request.param)
    for version, path in packages.items():
        shutil.copy(path, made.folder / "tmp" / f"{version}.deb")
    with made:
        yield made
    shutil.rmtree(made.folder)


def install(root: Root, version: str) -> str:
    return root.run("dpkg", "-i", f"/tmp/{version}.deb")


def ask(root: Root, *words: str) -> object:
    return json.loads(root.run(*ASK, *words))


def wait_for(root: Root, path: str) -> None:
    end = time.monotonic() + 20
    while not root.run("sh", "-c", f"[ -e {path} ] && echo there || true"):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def test_the_agent_runs_with_the_distributions_own_libraries(root: Root) -> None:
    install(root, NEW)
    assert root.run("qemu-ga", "--version").startswith("QEMU Guest Agent ")
    with root.running("privsep-ga", "-m", "unix-listen", "-p", SOCKET, "-t", "/run", "--policy", "qemu-ga"):
        wait_for(root, SOCKET)
        assert ask(root, "guest-ping") == {}
        assert str(ask(root, "guest-info")["version"]).endswith(f"+privsep-ga.{VERSION}")  # type: ignore[index]
        assert ask(root, "guest-get-osinfo")["id"] == "debian"  # type: ignore[index]
        assert "lo" in [i["name"] for i in ask(root, "guest-network-get-interfaces")]  # type: ignore[attr-defined]
        assert len(ask(root, "guest-get-vcpus")) == os.cpu_count()  # type: ignore[arg-type]
        assert ask(root, "guest-fsfreeze-status") == "thawed"
        # What Python's own scanner refuses: from 3.12 on it imports a module to say so, unless that is forbidden.
        refused = root.run("python3", "-c", GARBAGE)
        assert refused.count("JSON parse error") == len(BAD), refused
        root.run("sh", "-c", "printf 'what a host may read' >/tmp/text")
        handle = ask(root, "guest-file-open", "path=/tmp/text")
        read = ask(root, "guest-file-read", f"handle={handle}")
        assert read == {"count": 20, "buf-b64": "d2hhdCBhIGhvc3QgbWF5IHJlYWQ=", "eof": True}
        pid = ask(root, "guest-exec", "path=/bin/echo", 'arg=["hello"]', "capture-output=true")["pid"]  # type: ignore[index]
        status = ask(root, "guest-exec-status", f"pid={pid}")
        assert status == {"exited": True, "exitcode": 0, "out-data": "aGVsbG8K", "out-truncated": False}
        ask(root, "guest-set-user-password", "username=games", "password=c2VjcmV0", "crypted=false")
        assert "games:$" in root.run("cat", "/etc/shadow")
        ask(root, "guest-get-fsinfo")
        check = root.run("privsep-gactl", "selfcheck")
        assert "are as the table says" in check and "degraded" not in check, check


def test_it_has_its_accounts_its_service_and_compiled_modules(root: Root) -> None:
    install(root, NEW)
    passwd = {line.split(":")[0] for line in (root.folder / "etc/passwd").read_text().splitlines()}
    assert {d.user for d in DOMAINS} <= passwd
    system = root.folder / "etc/systemd/system"
    for link in (
        "qemu-guest-agent.service",
        "dev-virtio\\x2dports-org.qemu.guest_agent.0.device.wants/privsep-ga.service",
    ):
        assert os.readlink(system / link).endswith("/systemd/system/privsep-ga.service")
    modules = root.folder / "usr/share/privsep-ga"
    sources = {p.relative_to(modules).with_suffix("") for p in modules.rglob("*.py")}
    compiled = {
        p.relative_to(modules).parent.parent / p.name.partition(".")[0] for p in modules.rglob("__pycache__/*.pyc")
    }
    assert sources == compiled and len(sources) > 50


def test_remove_and_purge_leave_nothing_behind(root: Root) -> None:
    before = root.files()
    install(root, OLD)
    with root.running("privsep-ga", "-m", "unix-listen", "-p", SOCKET):
        wait_for(root, SOCKET)
        ask(root, "guest-get-osinfo")
    install(root, NEW)
    assert "__pycache__" in "".join(root.files())
    root.run("dpkg", "--remove", "privsep-ga")
    alias = root.folder / "etc/systemd/system/qemu-guest-agent.service"
    assert not os.path.lexists(alias), "it would hide the peer's unit"
    install(root, NEW)
    assert os.path.lexists(alias)
    alias.unlink()  # an administrator's decision
    install(root, NEW)
    assert not os.path.lexists(alias)
    root.run("dpkg", "--remove", "privsep-ga")
    install(root, NEW)
    assert not os.path.lexists(alias)
    root.run("dpkg", "--remove", "privsep-ga")
    configuration = {p for p in root.files().keys() - before.keys() if not p.startswith("/etc/systemd/system/")}
    assert {p for p in configuration if not p.startswith(("/etc/", "/var/lib/systemd/"))} == set(), "after remove"
    root.run("dpkg", "--purge", "privsep-ga")
    assert root.files() == before
    assert root.run("ls", "/run").split() == [os.path.basename(SOCKET)]
    for name in ("passwd", "group", "shadow"):
        assert "privsep" not in (root.folder / "etc" / name).read_text()


def test_an_upgrade_keeps_what_the_administrator_wrote(root: Root) -> None:
    install(root, OLD)
    policy = root.folder / "etc/privsep-ga/policy.toml"
    policy.write_text('profile = "backup"\n')
    (root.folder / "etc/privsep-ga/policy.d/10-mine.toml").write_text('[commands]\nblock = ["guest-fstrim"]\n')
    root.run("dpkg", "-i", "--force-confold", f"/tmp/{NEW}.deb")
    assert policy.read_text() == 'profile = "backup"\n'
    assert "10-mine.toml:2" in root.run("privsep-gactl", "policy", "explain", "guest-fstrim", fails=True)


def test_it_takes_the_peers_place_and_gives_it_back(root: Root) -> None:
    release = "bookworm" if "bookworm" in (root.folder / "etc/os-release").read_text() else "trixie"
    shutil.copy("/etc/resolv.conf", root.folder / "etc/resolv.conf")
    shutil.copy("/etc/hosts", root.folder / "etc/hosts")
    (root.folder / "etc/apt/sources.list").write_text(f"deb {mirror()} {release} main\n")
    root.run("apt-get", "update", "-q")
    root.run("apt-get", "install", "-y", "-q", "--no-install-recommends", "qemu-guest-agent")
    hook = root.folder / "etc/qemu/fsfreeze-hook.d/database"
    hook.write_text("#!/bin/sh\n")
    changed = root.folder / "etc/qemu/fsfreeze-hook"
    changed.write_text(changed.read_text() + "# changed\n")
    keep = "Dpkg::Options::=--force-confold"
    assert "privsep-ga" in root.run("apt-get", "install", "-y", "-q", "-o", keep, f"/tmp/{NEW}.deb")
    assert changed.read_text().endswith("# changed\n")
    assert "deinstall" in root.run("dpkg-query", "-W", "-f", "${Status}", "qemu-guest-agent")
    assert hook.exists()
    assert os.readlink(root.folder / "etc/systemd/system/qemu-guest-agent.service").endswith("/privsep-ga.service")
    assert "privsep-ga" in root.run("qemu-ga", "--help")
    # The rest of the peer may go without taking anything of ours along.
    root.run("dpkg", "--purge", "qemu-guest-agent")
    assert "fsfreeze-hook" in root.run("dpkg", "--verify", "privsep-ga")  # changed, and nothing else is
    alias = root.folder / "etc/systemd/system/qemu-guest-agent.service"
    assert os.path.lexists(alias)
    assert hook.exists()
    root.run("apt-get", "install", "-y", "-q", "-o", keep, "--no-install-recommends", "qemu-guest-agent")
    assert changed.read_text().endswith("# changed\n")
    assert not os.path.lexists(alias)
    assert not (root.folder / "usr/libexec/privsep-ga").exists()
    assert "privsep" not in root.run("qemu-ga", "--help")
    state = root.folder / "run/qga.state"  # the peer's
    state.write_text("[general]\nfd_counter=1001\n")
    root.run("dpkg", "--purge", "privsep-ga")
    assert state.exists()
    assert "privsep-ga" not in root.run("sh", "-c", "ls -a /etc")
