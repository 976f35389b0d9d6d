"""docs/profiles.md is what the profiles and the tables say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from policy.builtin import COMMANDS, PROFILES
from policy.model import builtin

TREE = Path(__file__).resolve().parents[2]
PAGE = TREE / "docs" / "profiles.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("profiles_page", TREE / "packaging" / "profiles.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(tool: ModuleType) -> None:
    assert PAGE.read_text(encoding="utf-8") == tool.render(), "run packaging/profiles.py"


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_has_every_command_as_the_agent_decides_it(name: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"(?m)^\| `(guest-[\w-]+)` \| \w+ \| (yes|no) \|", section))
    assert rows == {c: "yes" if builtin(name).allows(c) else "no" for c in COMMANDS}


@pytest.mark.parametrize("name", PROFILES)
def test_the_entry_that_decides_stands_in_the_line_that_is_named(name: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    named = re.findall(r"(?:allow|block) \[`([^`]+)`\]\(\.\./(\S+)#L(\d+)\)", section)
    assert len(named) >= len(builtin(name).allowed)
    for entry, path, line in named:
        assert f'"{entry}"' in (TREE / path).read_text().splitlines()[int(line) - 1], (entry, path, line)
