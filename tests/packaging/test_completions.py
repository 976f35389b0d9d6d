"""Completions: made of the programs' own parsers; the one for bash in a real bash, those for zsh and fish where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from policy.builtin import COMMANDS, PROFILES
from privsep import cli, ctl
from privsep.domains import DOMAINS

TREE = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TREE / "packaging" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


completions = load("completions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("completions")
    assert completions.main(["--out", str(made)]) == 0
    return made


# As readline asks: the line is split at blanks and at COMP_WORDBREAKS, then the function that `complete -F` named is called.
_DRIVER = r"""
source "$1"; shift
program=$1; spec=$(complete -p "$program"); spec=${spec#*-F }; function=${spec%% *}
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$function" "$program" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


def bash(folder: Path, cwd: Path, *words: str) -> set[str]:
    run = subprocess.run(
        ["bash", "--norc", "--noprofile", "-u", "-c", _DRIVER, "driver", folder / "bash" / words[0], *words],
        capture_output=True, text=True, cwd=cwd, timeout=20,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return set(run.stdout.split())


GACTL = "privsep-gactl"
TOP = {"call", "status", "selfcheck", "reload", "policy", "profiles", "audit", "metrics", "commands", "version"}


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ([GACTL, ""], TOP),
        ([GACTL, "re"], {"reload"}),
        ([GACTL, "policy", ""], {"check", "show", "explain", "diff", "test"}),
        ([GACTL, "policy", "ex"], {"explain"}),
        ([GACTL, "policy", "explain", "guest-fst"], {"guest-fstrim"}),
        ([GACTL, "policy", "explain", "guest-fstrim", ""], set()),
        ([GACTL, "policy", "explain", "--policy", "mini"], {"minimal"}),
        ([GACTL, "policy", "explain", "--policy", "="], {*PROFILES, "policy.toml", "folder", "other"}),
        ([GACTL, "policy", "explain", "--policy", "=", "an"], {"ansible"}),
        ([GACTL, "policy", "explain", "--policy", "minimal", "guest-fst"], {"guest-fstrim"}),
        ([GACTL, "policy", "check", "pol"], {"policy.toml"}),
        ([GACTL, "policy", "check", "policy.toml", "oth"], {"other"}),
        ([GACTL, "policy", "diff", "def"], {"default"}),
        ([GACTL, "policy", "diff", "default", "po"], {"policy.toml"}),
        ([GACTL, "policy", "show", "--b"], {"--blocked"}),
        ([GACTL, "call", "guest-pi"], {"guest-ping"}),
        ([GACTL, "call", "--timeout", "5", "guest-pi"], {"guest-ping"}),
        ([GACTL, "call", "--timeout", ""], set()),
        ([GACTL, "call", "--rundir", ""], {"folder"}),
        ([GACTL, "audit", "--result", "r"], {"refused"}),
        ([GACTL, "audit", "--domain", ""], {d.name for d in DOMAINS}),
        (["privsep-ga", "--pol"], {"--policy"}),
        (["privsep-ga", "--method", ""], {"virtio-serial", "isa-serial", "unix-listen", "vsock-listen"}),
        (["privsep-ga", "-m", "u"], {"unix-listen"}),
        (["privsep-ga", "--block-rpcs", "guest-fst"], {"guest-fstrim"}),
        (["privsep-ga", "--block-rpcs", "guest-ping,guest-fst"], {"guest-ping,guest-fstrim"}),
        (["privsep-ga", "-t", ""], {"folder"}),
        (["privsep-ga", "--fsfreeze-hook", "=", "pol"], {"policy.toml"}),
        (["privsep-ga", "--fsfreeze-hook", ""], set()),
        (["privsep-ga", "-l", "ot"], {"other"}),
    ],
)
def test_bash_completes(folder: Path, tmp_path: Path, words: list[str], want: set[str]) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("policy.toml", "other"):
        (tmp_path / name).touch()
    assert bash(folder, tmp_path, *words) == want


def test_every_option_of_every_command_is_offered(folder: Path, tmp_path: Path) -> None:
    for words, parser in load("man").leaves(ctl.parser()):
        offered = bash(folder, tmp_path, GACTL, *words.split(), "-")
        assert offered == {name for action in parser._actions for name in action.option_strings}, words
    offered = bash(folder, tmp_path, "privsep-ga", "-")
    assert {f"--{long}" for long, _, _ in cli.OPTIONS} <= offered


def test_every_command_of_the_protocol_is_offered(folder: Path, tmp_path: Path) -> None:
    assert bash(folder, tmp_path, GACTL, "call", "") == set(COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["privsep-ga", GACTL])
def test_the_shell_reads_it(folder: Path, shell: str, program: str) -> None:
    binary = shutil.which(shell)
    if binary is None:
        pytest.skip(f"{shell} is not installed")
    name = completions.SHELLS[shell][1].format(program)
    run = subprocess.run([binary, "-n", folder / shell / name], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stderr) == (0, "")


FISH = [
    ("privsep-gactl ", TOP),
    ("privsep-gactl policy ", {"check", "show", "explain", "diff", "test"}),
    ("privsep-gactl policy explain guest-fst", {"guest-fstrim"}),
    ("privsep-gactl policy show --policy mini", {"minimal"}),
    ("privsep-ga --method u", {"unix-listen"}),
]


@pytest.mark.parametrize(("line", "want"), FISH)
def test_fish_completes(folder: Path, tmp_path: Path, line: str, want: set[str]) -> None:
    binary = shutil.which("fish")
    if binary is None:
        pytest.skip("fish is not installed")
    script = f"source {folder}/fish/{line.split()[0]}.fish; complete -C '{line}'"
    run = subprocess.run(
        [binary, "--no-config", "-c", script], capture_output=True, text=True, timeout=20, cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.stderr == ""
    assert {row.split("\t")[0] for row in run.stdout.splitlines()} == want
