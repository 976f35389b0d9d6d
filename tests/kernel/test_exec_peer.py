"""What the real qemu-ga says and does is what these workers say and do: start errors, search, odd base64, write modes.

The peer is started here on a socket of its own and is asked for files and programs only.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import CommandError
from workers import exec as worker
from workers.base64 import decode
from workers.launch import launch

PEER = "/usr/sbin/qemu-ga"
pytestmark = pytest.mark.peer


class Peer:
    """A qemu-ga of one's own."""

    def __init__(self, folder: Path) -> None:
        self.path = f"{folder}/s"
        self.process = subprocess.Popen([PEER, "-m", "unix-listen", "-p", self.path, "-t", str(folder)], cwd=folder)
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(200):
            try:
                self.socket.connect(self.path)
                break
            except OSError:
                time.sleep(0.02)
        self.stream = self.socket.makefile("rb")

    def ask(self, command: str, **arguments: object) -> object:
        """The value, or the error's text as a CommandError."""
        assert command.startswith(("guest-file-", "guest-exec"))
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self.stream.readline())
        if "error" in answer:
            raise CommandError(answer["error"]["desc"])
        return answer["return"]

    def end(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    agent = Peer(tmp_path)
    yield agent
    agent.end()


def test_odd_base64_decodes_to_the_peers_bytes(peer: Peer, tmp_path: Path) -> None:
    dice = random.Random(4711)
    texts = ["".join(dice.choices("AZaz+/09=\n", weights=[3] * 8 + [4, 1], k=dice.randrange(14))) for _ in range(300)]
    texts += ["=" * n for n in range(10)] + ["YWI=", "YWJ=", "YW==", "YX==", "Y===", "YWJj\0", "YWJj ", "é"]
    for text in texts:
        handle = peer.ask("guest-file-open", path=f"{tmp_path}/n", mode="w")
        try:
            peer.ask("guest-file-write", handle=handle, buf_b64=text)
        except CommandError as e:
            with pytest.raises(CommandError, match=f"^{e.desc}$"):
                decode(text)
        else:
            peer.ask("guest-file-close", handle=handle)
            assert decode(text) == (tmp_path / "n").read_bytes(), repr(text)


def make_programs(folder: Path) -> None:
    for name, text, mode in (
        ("a/tool", "#!/bin/sh\necho a\n", 0o644),
        ("b/tool", "#!/bin/sh\necho b $0\n", 0o755),
        ("b/shell", 'echo "shell $0 $1"\n', 0o755),
        ("c/tool", "#!/no/such/interpreter\n", 0o755),
        ("d/tool", "\x7fELF broken", 0o755),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (folder / "loop").mkdir()
    (folder / "loop/tool").symlink_to("tool")
    (folder / "e/tool").mkdir(parents=True)
    (folder / "plain").touch()


CASES: list[tuple[str, list[str] | None]] = [
    ("{0}/a/tool", None),
    ("{0}/b/tool", None),
    ("{0}/b/shell", None),
    ("{0}/c/tool", None),
    ("{0}/d/tool", None),
    ("{0}/e/tool", None),
    ("{0}/loop/tool", None),
    ("{0}/plain/tool", None),
    ("{0}/none", None),
    ("", None),
    (".", None),
    ("/", None),
    ("tool", None),
    ("tool", []),
    ("tool", ["PATH="]),
    ("tool", ["PATH={0}/a"]),
    ("tool", ["PATH={0}/a:{0}/b"]),
    ("tool", ["PATH={0}/a:{0}/c"]),
    ("tool", ["PATH={0}/c:{0}/b"]),
    ("tool", ["PATH={0}/c:{0}/plain"]),
    ("tool", ["PATH={0}/d:{0}/b"]),
    ("tool", ["PATH={0}/e:{0}/b"]),
    ("tool", ["PATH={0}/loop:{0}/b"]),
    ("tool", ["PATH={0}/plain:{0}/b"]),
    ("tool", ["PATH={0}/none:{0}/plain"]),
    ("tool", ["PATH={0}/b", "PATH={0}/a"]),
    ("shell", ["PATH={0}/b"]),
    ("tool", ["PATH=:/bin"]),
    ("b/tool", ["PATH=/none"]),
    ("true", ["X=1"]),
]


@pytest.mark.parametrize(("path", "env"), CASES)
def test_a_program_starts_or_fails_as_with_the_peer(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, env: list[str] | None
) -> None:
    make_programs(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments: dict[str, object] = {"path": path.format(tmp_path), "arg": ["one"], "capture_output": True}
    if env is not None:
        arguments["env"] = [e.format(tmp_path) for e in env]

    theirs: object
    try:
        pid = peer.ask("guest-exec", **arguments)["pid"]  # type: ignore[index]
        while not (theirs := peer.ask("guest-exec-status", pid=pid))["exited"]:  # type: ignore[index]
            time.sleep(0.01)
    except CommandError as e:
        theirs = e.desc.removeprefix("Guest agent command failed, error was '").removesuffix("'")
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    try:
        mine = launch(
            str(arguments["path"]),
            ["one"],
            arguments.get("env"),  # type: ignore[arg-type]
            stdin=null,
            stdout=write,
            stderr=write,
            account=None,
        )
    except CommandError as e:
        assert e.desc == theirs
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(mine, 0)[1])
        assert isinstance(theirs, dict), theirs
        assert code == theirs["exitcode"]
        os.set_blocking(read, False)
        os.close(write)
        write = -1
        said = base64.b64decode(theirs.get("out-data", "")) + base64.b64decode(theirs.get("err-data", ""))
        assert os.read(read, 4096) == said
    finally:
        os.close(read)
        os.close(null)
        if write >= 0:
            os.close(write)


def test_the_boolean_captures_both_streams_apart_as_with_the_peer(peer: Peer) -> None:
    """The names of the modes are newer than the peer that may be installed; the boolean is common to both."""
    assert worker._MODES[True] == worker._MODES["separated"]
    pid = peer.ask("guest-exec", path="sh", arg=["-c", "echo o; echo e >&2"], capture_output=True)["pid"]  # type: ignore[index]
    while not (status := peer.ask("guest-exec-status", pid=pid))["exited"]:  # type: ignore[index]
        time.sleep(0.01)
    assert status == {
        "exited": True,
        "exitcode": 0,
        "out-data": "bwo=",
        "out-truncated": False,
        "err-data": "ZQo=",
        "err-truncated": False,
    }
