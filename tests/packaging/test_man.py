"""The man pages: what tables and parsers know stands in them, what they say of keys is true, and formatters have no complaint."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from policy.builtin import COMMANDS, PROFILES
from policy.keys import TABLES
from privsep import cli, ctl
from privsep.config import Config
from privsep.domains import DOMAINS

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "man.py"
_spec = importlib.util.spec_from_file_location("man", SCRIPT)
assert _spec is not None and _spec.loader is not None
man = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(man)

PAGES = ("privsep-ga.8", "privsep-gactl.1", "privsep-ga.conf.5", "privsep-ga-policy.5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man")
    man.main(["--out", str(made)])
    return made


def shown(folder: Path, page: str) -> str:
    """The page as a reader sees it, on one very wide line a paragraph."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    environ = {**os.environ, "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-rHY=0"}
    run = subprocess.run(
        ["man", "--no-hyphenation", "--no-justification", "-l", folder / page],
        capture_output=True, text=True, env=environ, check=True,
    )  # fmt: skip
    return re.sub(r".\x08", "", run.stdout)


def test_these_are_the_pages(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_no_part_was_left_out_and_groff_has_no_complaint(folder: Path, page: str) -> None:
    assert not re.search(r"@[A-Z]+@", (folder / page).read_text())
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    environ = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    run = subprocess.run(["man", "--warnings", "-l", folder / page], capture_output=True, text=True, env=environ)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_no_complaint(folder: Path, page: str) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    run = subprocess.run(["mandoc", "-T", "lint", "-W", "all", folder / page], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_option_of_the_agent_has_its_paragraph(folder: Path) -> None:
    text = shown(folder, "privsep-ga.8")
    for long, _, _ in cli.OPTIONS:
        assert re.search(rf"^ +(-\w, )?--{long}\b", text, re.M), long


def test_every_process_has_its_paragraph(folder: Path) -> None:
    text = shown(folder, "privsep-ga.8")
    for row in DOMAINS:
        assert re.search(rf"^ +{row.name}\b", text, re.M) and f"User {row.user};" in text, row.name


def test_every_command_of_the_tool_has_its_paragraph_and_its_options_are_in_it(folder: Path) -> None:
    text = shown(folder, "privsep-gactl.1")
    found = dict(man.leaves(ctl.parser()))
    assert {"status", "call", "policy check"} <= found.keys()
    for words, parser in found.items():
        head = re.search(rf"^ +{words}( .*)?$", text, re.M)
        assert head is not None, words
        for action in man.actions(parser):
            assert not action.option_strings or action.option_strings[-1] in head[0], (words, action)


def test_every_command_and_profile_of_the_protocol_is_in_the_policys_page(folder: Path) -> None:
    text = shown(folder, "privsep-ga-policy.5")
    for name in (*COMMANDS, *PROFILES):
        assert re.search(rf"^ +{name}\b", text, re.M), name


def test_every_key_of_the_policy_has_its_paragraph_below_its_table(folder: Path) -> None:
    text = shown(folder, "privsep-ga-policy.5").partition("KEYS")[2]
    for table in TABLES:
        if table.name:
            text = text.partition(f"[{table.name}]")[2]
        for key in table.keys:
            assert re.search(rf"^ +{key}\b", text, re.M), (table.name, key)


def test_the_configuration_files_page_has_the_keys_that_are_read(folder: Path, tmp_path: Path) -> None:
    full = tmp_path / "full.conf"
    full.write_text("[general]\nlogfile=/l\nfsfreeze-hook=/h\nallow-rpcs=guest-ping\nblock-rpcs=guest-info\n")
    config = Config()
    config.load(str(full), required=True)
    config.complete()
    known = {line.partition("=")[0] for line in config.dump().splitlines()[1:]}
    keys = (folder / "privsep-ga.conf.5").read_text().partition(".SH KEYS")[2].partition(".SH FILES")[0]
    told = {k.replace("\\-", "-") for k in re.findall(r"^\.TP\n\.B (\S+)$", keys, re.M)}
    assert told == known
