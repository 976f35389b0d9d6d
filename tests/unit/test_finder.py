"""The finder brings what the ordinary import would bring, and steps aside for whatever it is not sure of."""

from __future__ import annotations

import importlib.machinery
import os
import py_compile
import sys
from pathlib import Path

import pytest

from privsep import finder

PROJECT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for package in finder.PACKAGES
    for path in (PROJECT / package).rglob("*.py")
)


def compiled(tree: Path, text: str, **options: py_compile.PycInvalidationMode) -> Path:
    source = tree / "policy" / "some.py"
    source.parent.mkdir(exist_ok=True)
    source.write_text(text)
    py_compile.compile(str(source), doraise=True, **options)  # type: ignore[arg-type]
    return source


def test_every_module_is_found_as_the_path_finds_it() -> None:
    ours = finder.Finder(str(PROJECT))
    for name in MODULES:
        parent = str(PROJECT / name.replace(".", "/")).rpartition("/")[0]
        there = importlib.machinery.PathFinder.find_spec(name, [parent])
        assert there is not None and there.origin is not None
        py_compile.compile(there.origin, doraise=True)
        here = ours.find_spec(name)
        assert here is not None, name
        assert (here.origin, here.cached, here.has_location) == (there.origin, there.cached, True)
        assert here.submodule_search_locations == there.submodule_search_locations


def test_other_modules_are_left_to_others() -> None:
    ours = finder.Finder(str(PROJECT))
    assert ours.find_spec("os") is None
    assert ours.find_spec("policyx.model") is None
    assert ours.find_spec("policy.no_such_module") is None


def test_a_module_is_executed_with_its_place(tmp_path: Path) -> None:
    source = compiled(tmp_path, "place = __file__, __name__, __package__\n")
    spec = finder.Finder(str(tmp_path)).find_spec("policy.some")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    assert module.place == (str(source), "policy.some", "policy")


@pytest.mark.parametrize("change", ["edited", "touched", "damaged", "cut", "empty", "other version", "by hash", "gone"])
def test_what_was_not_made_from_this_source_by_this_interpreter_is_not_taken(tmp_path: Path, change: str) -> None:
    source = compiled(tmp_path, "x = 1\n")
    cached = Path(importlib.util.cache_from_source(str(source)))
    ours = finder.Finder(str(tmp_path))
    assert ours.find_spec("policy.some") is not None
    data = cached.read_bytes()
    if change == "edited":
        before = source.stat()
        source.write_text("x = 23\n")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "touched":
        os.utime(source, (1, 1))
    elif change == "damaged":
        cached.write_bytes(data[:16] + b"\xff" * 40)
    elif change == "cut":
        cached.write_bytes(data[:-5])
    elif change == "empty":
        cached.write_bytes(b"")
    elif change == "other version":
        cached.write_bytes(b"\0" + data[1:])
    elif change == "by hash":
        compiled(tmp_path, "x = 1\n", invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    elif change == "gone":
        cached.unlink()
    assert ours.find_spec("policy.some") is None


def test_it_stands_after_the_interpreters_own_and_before_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys,
        "meta_path",
        [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, importlib.machinery.PathFinder],
    )
    finder.install(str(PROJECT))
    assert isinstance(sys.meta_path[2], finder.Finder)
    assert sys.meta_path[3] is importlib.machinery.PathFinder
