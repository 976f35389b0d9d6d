"""The command line: options, abbreviations, texts and exit statuses of the peer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from policy.builtin import COMMANDS
from privsep import cli
from privsep.cli import Stop, command_line
from privsep.config import Config

PROJECT = Path(__file__).resolve().parents[2]
NO_FILE = {"QGA_CONF": "/nonexistent"}


def parse(*words: str) -> Config:
    return command_line(words, "qemu-ga", NO_FILE)


def stopped(*words: str) -> Stop:
    with pytest.raises(Stop) as caught:
        parse(*words)
    return caught.value


def dumped(*words: str) -> dict[str, str]:
    stop = stopped("-D", *words)
    assert stop.status == 0 and not stop.err
    return dict(line.split("=", 1) for line in stop.out.splitlines()[1:])


def test_defaults_as_dumped() -> None:
    assert stopped("-D").out == (
        "[general]\ndaemon=false\nmethod=virtio-serial\npath=/dev/virtio-ports/org.qemu.guest_agent.0\n"
        "pidfile=/var/run/qemu-ga.pid\nstatedir=/var/run\nverbose=false\nretry-path=false\nblock-rpcs=\nallow-rpcs=\n"
    )


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--fs"], "fsfreeze-hook", "/etc/qemu/fsfreeze-hook"),
        (["--fs=/x"], "fsfreeze-hook", "/x"),
        (["-F", "/x"], "fsfreeze-hook", "/etc/qemu/fsfreeze-hook"),
        (["-F/x"], "fsfreeze-hook", "/x"),
        (["-dvF"], "verbose", "true"),
        (["-p/x"], "path", "/x"),
        (["-vp", "/x"], "path", "/x"),
        (["--stat", "/x"], "statedir", "/x"),
        (["extra", "-v", "words"], "verbose", "true"),
        (["--", "-v"], "verbose", "false"),
        (["-", "-v"], "verbose", "true"),
        (["-b", "a,b", "-b", "c,d"], "block-rpcs", "b,a,d,c"),
        (["--bl", "a"], "block-rpcs", "a"),
        (["-a", "x", "--allow=y,z"], "allow-rpcs", "x,z,y"),
        (["--policy", "minimal", "-v"], "verbose", "true"),
        (["-p", ""], "path", ""),
    ],
)
def test_options(words: list[str], key: str, value: str) -> None:
    assert dumped(*words)[key] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "qemu-ga: unrecognized option '--bogus'"),
        (["-Z"], "qemu-ga: invalid option -- 'Z'"),
        (["-m"], "qemu-ga: option requires an argument -- 'm'"),
        (["--method"], "qemu-ga: option '--method' requires an argument"),
        (["--ver"], "qemu-ga: option '--ver' is ambiguous; possibilities: '--version' '--verbose'"),
        (["--d"], "qemu-ga: option '--d' is ambiguous; possibilities: '--dump-conf' '--daemonize'"),
        (["--verb=1"], "qemu-ga: option '--verbose' doesn't allow an argument"),
    ],
)
def test_errors_are_getopts(words: list[str], message: str) -> None:
    stop = stopped(*words)
    assert stop.status == 1
    assert stop.err == message + "\n"
    assert stop.out == "Unknown option, try 'qemu-ga --help' for more information.\n"


def test_the_first_of_several_decides() -> None:
    assert stopped("-V", "--bogus").status == 0
    assert stopped("--bogus", "-V").status == 1


def test_help_lists_and_version() -> None:
    assert stopped("-V").out == "QEMU Guest Agent 10.2.2\n"
    assert stopped("-b", "?").out.split() == list(COMMANDS)
    assert stopped("-a", "help").out.split() == list(COMMANDS)
    for name, _, _ in cli.OPTIONS:
        assert f"--{name}" in stopped("-h").out


def test_posixly_correct_ends_options_at_the_first_word() -> None:
    config = command_line(["-v", "x", "-d"], "qemu-ga", {**NO_FILE, "POSIXLY_CORRECT": "1"})
    assert config.verbose and not config.daemonize


def test_config_option_beats_environment(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[general]\nmethod=isa-serial\nblock-rpcs=a\nverbose=false\n")
    (tmp_path / "b").write_text("[general]\nmethod=virtio-serial\n")
    environ = {"QGA_CONF": str(tmp_path / "b")}
    config = command_line(["-b", "b", "-v", "-c", str(tmp_path / "a")], "qemu-ga", environ)
    assert (config.method, config.block, config.verbose) == ("isa-serial", ["a", "b"], True)


def test_entry_scripts_are_found_from_the_program(tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    program = tmp_path / "sbin" / "privsep-ga"
    program.touch()
    link = tmp_path / "qemu-ga"
    link.symlink_to(program)
    assert cli.beside(str(link)) == str(tmp_path / "libexec" / "privsep-ga")


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from privsep.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(PROJECT), *words],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, **NO_FILE, **(env or {})},
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--policy", "ansibel"], "did you mean ansible?"),
        (["--policy", "default", "-b", "guest-pong"], "did you mean guest-ping?"),
        (["--policy", "default", "-b", "guest-fsfreeze-thaw"], "guest-fsfreeze-thaw is not"),
        (["--policy", "/nonexistent/p.toml"], "/nonexistent/p.toml: No such file"),
        (["-m", "unix-listen"], "must specify a path"),
        (["-c", "/nonexistent"], "error loading configuration"),
    ],
)
def test_a_start_that_cannot_be_says_why(words: list[str], text: str) -> None:
    done = run(*words)
    assert done.returncode == 1
    assert text in done.stderr
    assert not done.stdout


def test_bytes_that_are_no_text_come_out_as_they_came() -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from privsep.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable.encode(), b"-I", b"-c", code.encode(), os.fsencode(PROJECT), b"-D", b"-p", b"/\xff"],
        capture_output=True,
        timeout=20,
        env={**os.environ, **NO_FILE},
    )
    assert b"path=/\xff\n" in done.stdout


def test_the_start_path_imports_nothing_expensive() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from privsep import cli\n"
        "c = cli.command_line(['--policy', 'qemu-ga', '-m', 'unix-listen', '-p', '/x', '-t', '/y'], 'p', {'QGA_CONF': '/n'})\n"
        "cli.effective_policy(c)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code, str(PROJECT)], capture_output=True, text=True, timeout=20)
    modules = set(done.stdout.split())
    assert "privsep.cli" in modules, done.stderr
    for name in (
        "re",
        "typing",
        "enum",
        "getopt",
        "argparse",
        "tomllib",
        "json",
        "socket",
        "protocol.commands",
        "policy.read",
    ):
        assert name not in modules


@pytest.mark.peer
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-m", "isa-serial", "-DvF"],
        ["-b", ",a,,b", "-b", "c,d"],
        ["--fs=/x", "--log", "/l"],
        ["-p", "", "extra", "--pidf=/q", "--", "-v"],
        ["--blacklist", "x,y"],
        ["-F/h"],
        ["-m", "foo", "-p", "/x"],
    ],
)
@pytest.mark.parametrize(
    "conf", ["", "[general]\npath=/a\\\\b \nblock-rpcs=x,y\nverbose=1\n", "[general]\nfsfreeze-hook=\n"]
)
def test_dump_is_the_peers(words: list[str], conf: str, tmp_path: Path) -> None:
    peer = shutil.which("qemu-ga")
    if peer is None:
        pytest.skip("qemu-ga is not installed")
    (tmp_path / "conf").write_text(conf)
    env = {"QGA_CONF": str(tmp_path / "conf")}
    want = subprocess.run([peer, "-D", *words], capture_output=True, text=True, timeout=20, env={**os.environ, **env})
    got = run("-D", *words, env=env)
    # 7.2 has no allow list and writes none.
    assert (got.returncode, got.stdout.replace("allow-rpcs=\n", "")) == (
        want.returncode,
        want.stdout.replace("allow-rpcs=\n", ""),
    )
