"""The SSH key commands as the user they act for, with exactly the row's privileges, and what a hostile home can do: nothing.

The home is made in a folder of its own; the user is thrown away afterwards."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext, confined
from workers import asuser, ssh
from workers.homefile import FILE_LIMIT

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")]

NAME = f"psga-ssh-{os.getpid()}"
KEY1, KEY2 = "ssh-ed25519 AAAAkey1 one", "ssh-rsa AAAAkey2 two"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)
ROOTS_OWN = "roots-own-line\n"


class Home:
    """The throw-away user's home, and a folder beside it that is none of the user's business."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "home"
        self.ssh = self.path / ".ssh"
        self.file = self.ssh / "authorized_keys"
        self.private = base / "private"
        entry = pwd.getpwnam(NAME)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid

    def make(self) -> None:
        if self.path.is_symlink():
            self.path.unlink()
        for path in (self.path, self.private):
            shutil.rmtree(path, ignore_errors=True)
        self.path.mkdir(mode=0o700)
        self.own(self.path)
        self.private.mkdir(mode=0o700)
        (self.private / "secret").write_text(ROOTS_OWN)
        (self.private / "secret").chmod(0o600)

    def own(self, path: Path, uid: int | None = None) -> Path:
        os.chown(path, self.uid if uid is None else uid, self.gid, follow_symlinks=False)
        return path

    def folder(self, uid: int | None = None) -> None:
        self.ssh.mkdir(mode=0o700)
        self.own(self.ssh, uid)

    def keys(self, text: str, mode: int = 0o600) -> None:
        if not self.ssh.exists():
            self.folder()
        self.file.write_text(text)
        self.own(self.file)
        self.file.chmod(mode)

    def secret_is_untouched(self) -> bool:
        secret = self.private / "secret"
        status = secret.stat()
        return (
            secret.read_text() == ROOTS_OWN
            and os.listdir(self.private) == ["secret"]
            and (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
        )


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    # Not below pytest's own folder, which only root may enter.
    base = Path(tempfile.mkdtemp(prefix="psga-ssh."))
    base.chmod(0o755)
    subprocess.run(["useradd", "-M", "-d", str(base / "home"), "-s", "/usr/sbin/nologin", NAME], check=True)
    try:
        yield base
    finally:
        subprocess.run(["userdel", NAME], check=True, stderr=subprocess.DEVNULL)
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def home(base: Path) -> Home:
    home = Home(base)
    home.make()
    return home


def call(command: Any, without: str = "", **arguments: Any) -> Any:
    answer = confined("ssh", lambda: command(BareContext(), username=NAME, **arguments), without=without)
    if isinstance(answer, Exception):
        raise answer
    return answer


def get() -> list[str]:
    keys: list[str] = call(ssh.guest_ssh_get_authorized_keys)["keys"]
    return keys


def add(*keys: str, **more: Any) -> None:
    assert call(ssh.guest_ssh_add_authorized_keys, keys=list(keys), **more) == {}


def remove(*keys: str) -> None:
    assert call(ssh.guest_ssh_remove_authorized_keys, keys=list(keys)) == {}


def refused(function: Any, *arguments: Any) -> str:
    with pytest.raises(CommandError) as e:
        function(*arguments)
    return e.value.desc


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_add_get_remove(home: Home) -> None:
    add(KEY1, KEY2)
    assert home.file.read_bytes() == f"{KEY1}\n{KEY2}".encode()
    assert (mode(home.ssh), mode(home.file)) == (0o700, 0o600)
    for path in (home.ssh, home.file):
        assert (path.stat().st_uid, path.stat().st_gid) == (home.uid, home.gid)
    assert get() == [KEY2, KEY1]
    add(KEY1)
    assert home.file.read_bytes() == f"{KEY1}\n{KEY2}".encode()
    remove(KEY1)
    assert home.file.read_bytes() == KEY2.encode()
    add(KEY1, reset=True)
    assert home.file.read_bytes() == KEY1.encode()
    remove(KEY1)
    assert home.file.read_bytes() == b""
    assert os.listdir(home.ssh) == ["authorized_keys"]


def test_missing_file_is_an_error_for_get_and_none_for_remove(home: Home) -> None:
    want = f"failed to read '{home.file}': Failed to open file \u201c{home.file}\u201d: No such file or directory"
    assert refused(get) == want
    remove(KEY1)
    assert os.listdir(home.path) == []
    home.folder()
    assert refused(get) == want
    remove(KEY1)
    assert os.listdir(home.ssh) == []


def test_missing_home(home: Home) -> None:
    shutil.rmtree(home.path)
    assert "No such file or directory" in refused(get)
    assert refused(add, KEY1) == f"failed to create directory '{home.ssh}': No such file or directory"
    remove(KEY1)
    assert not home.path.exists()


@pytest.mark.parametrize("capability", ["SETUID", "SETGID"])
def test_each_declared_capability_is_needed(home: Home, capability: str) -> None:
    home.keys(KEY1)
    with pytest.raises(CommandError, match="Operation not permitted"):
        call(ssh.guest_ssh_get_authorized_keys, without=capability)


def test_the_child_is_the_user_with_no_way_back(home: Home) -> None:
    def look() -> bytes:
        # What the child is, as seen by itself just before it would touch the home.
        found = []
        with open("/proc/self/status") as f:
            found += [line.split(":")[1].split() for line in f if line.startswith(("Uid", "Gid", "CapPrm", "CapEff"))]
        for back in (lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.listdir(home.private)):
            try:
                back()
            except PermissionError:
                continue
            found.append(["a way back"])
        found.append(sorted(fd for fd in os.listdir("/proc/self/fd")))
        return repr(found).encode()

    account = asuser.Account(NAME, home.uid, home.gid, [home.gid], str(home.path))
    spare = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(spare, True)
    got = eval(confined("ssh", lambda: asuser.as_user(account, look), walls=False))
    os.close(spare)
    assert got[:4] == [[str(home.uid)] * 4, [str(home.gid)] * 4, ["0" * 16], ["0" * 16]]
    assert len(got) == 5 and len(got[4]) <= 6  # 0 1 2, the pipe, the status file or the folder just read


def test_stricter_mode_stays_and_looser_is_tightened(home: Home) -> None:
    home.keys(KEY1, 0o644)
    add(KEY2)
    assert mode(home.file) == 0o600
    home.keys(KEY1, 0o400)
    add(KEY2)
    assert mode(home.file) == 0o400 and KEY2 in home.file.read_text()


def test_an_administrator_s_folder_is_not_replaced_but_the_user_s_file_is_written(home: Home) -> None:
    home.folder(uid=0)
    home.ssh.chmod(0o755)
    home.keys(f"# c\n{KEY1}")
    inode = home.file.stat().st_ino
    add(KEY2)
    assert home.file.read_text() == f"# c\n{KEY1}\n{KEY2}"
    remove(KEY1)
    assert home.file.read_text() == f"# c\n{KEY2}"
    assert home.file.stat().st_ino == inode
    os.chown(home.file, 0, 0)
    home.file.chmod(0o644)
    assert get() == [KEY2]
    assert refused(add, KEY1) == f"failed to write to '{home.file}': Permission denied"
    home.file.unlink()
    assert refused(add, KEY1) == f"failed to write to '{home.file}': Permission denied"


# What a hostile user can put into the home.


def test_ssh_folder_is_a_link_to_somebody_s_private_folder(home: Home) -> None:
    home.ssh.symlink_to(home.private)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "symbolic links are not followed" in refused(*attempt)
    assert home.secret_is_untouched()


def test_ssh_folder_is_a_link_to_the_user_s_own_folder(home: Home) -> None:
    other = home.path / "other"
    other.mkdir()
    home.own(other)
    home.ssh.symlink_to("other")
    assert "symbolic links are not followed" in refused(add, KEY1)
    assert os.listdir(other) == []


@pytest.mark.parametrize("target", ["private/secret", "no/such/file", "/etc/shadow"])
def test_file_is_a_link(home: Home, target: str) -> None:
    home.folder()
    home.file.symlink_to(home.base / target)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "symbolic links are not followed" in refused(*attempt)
    assert home.secret_is_untouched()
    assert KEY1 not in Path("/etc/shadow").read_text()
    assert home.file.is_symlink() and os.listdir(home.ssh) == ["authorized_keys"]


def test_home_is_a_link_to_a_folder_that_the_user_may_not_enter(home: Home) -> None:
    home.path.rmdir()
    home.path.symlink_to(home.private)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "Permission denied" in refused(*attempt) or "belongs to neither" in refused(*attempt)
    assert home.secret_is_untouched()


def test_hard_link_to_a_file_of_root_s(home: Home) -> None:
    home.folder()
    # A kernel with protected_hardlinks off lets the user do this.
    os.link(home.private / "secret", home.file)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "Permission denied" in refused(*attempt)
    os.chmod(home.file, 0o644)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "hard link" in refused(*attempt)
    assert (home.private / "secret").read_text() == ROOTS_OWN


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFDIR])
def test_file_is_no_file(home: Home, kind: int) -> None:
    home.folder()
    if kind == stat.S_IFDIR:
        home.file.mkdir()
    else:
        os.mknod(home.file, kind | 0o600, os.makedev(1, 5))  # /dev/zero's number
    home.own(home.file)
    began = time.monotonic()
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        got = refused(*attempt)
        assert "not a regular file" in got or "No such device" in got
    assert time.monotonic() - began < 5


def test_file_and_folders_of_a_third_user(home: Home) -> None:
    home.keys(KEY1, 0o666)
    home.own(home.file, 65534)
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert "belongs to neither the user nor root" in refused(*attempt)
    home.own(home.file)
    home.own(home.ssh, 65534)
    home.ssh.chmod(0o777)
    assert "belongs to neither the user nor root" in refused(add, KEY2)
    home.own(home.ssh)
    home.own(home.path, 65534)
    home.path.chmod(0o777)
    assert "belongs to neither the user nor root" in refused(add, KEY2)
    assert home.file.read_text() == KEY1


def test_huge_and_endless_files(home: Home) -> None:
    home.keys("")
    with open(home.file, "wb") as f:
        f.truncate(1 << 40)  # sparse
    for attempt in ((get,), (add, KEY1), (remove, KEY1)):
        assert refused(*attempt) == f"failed to read '{home.file}': File too large"
    home.keys("x" * (FILE_LIMIT - 10))
    assert len(get()[0]) == FILE_LIMIT - 10
    assert refused(add, KEY1) == f"failed to write to '{home.file}': File too large"
    assert home.file.stat().st_size == FILE_LIMIT - 10
    add(KEY1, reset=True)
    assert home.file.read_text() == KEY1


def test_content_that_is_not_utf_8_survives(home: Home) -> None:
    home.keys("")
    home.file.write_bytes(b"# \xff\nkey \xfe\n")
    assert get() == ["key \udcfe"]
    add(KEY1)
    assert home.file.read_bytes() == b"# \xff\nkey \xfe\n\n" + KEY1.encode()


def test_a_race_of_renames_reaches_nothing_outside(home: Home) -> None:
    """The user swaps .ssh and the file for links as fast as it can while keys are added."""
    home.keys(KEY1)
    racer = os.fork()
    if racer == 0:
        try:
            os.setgroups([])
            os.setresgid(home.gid, home.gid, home.gid)
            os.setresuid(home.uid, home.uid, home.uid)
            os.chdir(home.path)
            os.symlink(home.private, "link")
            os.symlink(home.private / "secret", "filelink")
            libc = ctypes.CDLL(None)
            end = time.monotonic() + 4
            while time.monotonic() < end:
                for a, b in ((b".ssh", b"link"), (b".ssh/authorized_keys", b"filelink")) * 2:
                    libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
        finally:
            os._exit(0)
    kinds = set()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        for attempt in ((add, KEY2), (get,), (remove, KEY2)):
            try:
                attempt[0](*attempt[1:])
                kinds.add("done")
            except CommandError as e:
                kinds.add(e.desc)
            assert home.secret_is_untouched()
    os.kill(racer, 9)
    os.waitpid(racer, 0)
    assert "done" in kinds and len(kinds) > 1, f"the race never hit: {kinds}"


def test_a_child_that_the_user_stops_is_given_up_and_killed(home: Home) -> None:
    account = asuser.Account(NAME, home.uid, home.gid, [home.gid], str(home.path))

    def act() -> tuple[str, float]:
        asuser.LIMIT = 0.5  # type: ignore[misc]
        began = time.monotonic()
        try:
            asuser.as_user(account, lambda: os.kill(os.getpid(), 19) or b"")  # SIGSTOP
        except CommandError as e:
            assert asuser._leftover == []
            return e.desc, time.monotonic() - began
        return "nothing", 0.0

    words, took = confined("ssh", act)
    assert "took longer than" in words and took < 3


def test_a_child_that_the_user_kills_is_an_error(home: Home) -> None:
    account = asuser.Account(NAME, home.uid, home.gid, [home.gid], str(home.path))
    answer = confined("ssh", lambda: asuser.as_user(account, lambda: os.kill(os.getpid(), 9) or b""))
    assert isinstance(answer, CommandError) and "ended without an answer" in answer.desc


def test_a_child_that_says_too_much_is_not_listened_to(home: Home) -> None:
    account = asuser.Account(NAME, home.uid, home.gid, [home.gid], str(home.path))
    answer = confined("ssh", lambda: asuser.as_user(account, lambda: b"x" * (asuser.ANSWER_LIMIT + 1)))
    assert isinstance(answer, CommandError)


def test_no_descriptor_and_no_child_is_left(home: Home) -> None:
    def act() -> tuple[int, int, bool]:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ssh.guest_ssh_add_authorized_keys(BareContext(), username=NAME, keys=[KEY1])  # type: ignore[arg-type]
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return before, len(os.listdir("/proc/self/fd")), True
        return before, len(os.listdir("/proc/self/fd")), False

    before, after, reaped = confined("ssh", act, walls=False)
    assert before == after and reaped
