"""The parts of a decision by themselves: patterns, paths, a minute's requests, where a fault stands."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import build, cases, checks, load
from policy.errors import PolicyError
from policy.keys import TABLES, bytes_of
from policy.model import builtin
from policy.patterns import beneath, is_pattern, matches
from policy.positions import Positions
from policy.rates import WORDS, admit
from policy.rules import KINDS, Rule, parse, scope_of
from policy.schema import schema
from policy.seal import slice_for
from privsep import counters
from privsep.domains import DOMAINS
from protocol.commands import verbs_of

# -- patterns


def expression(pattern: str) -> str:
    """What the pattern means, in the words of another matcher."""
    out, at = "", 0
    while at < len(pattern):
        if pattern[at] == "\\" and at + 1 < len(pattern):
            at += 1
            out += re.escape(pattern[at])
        else:
            out += {"*": ".*", "?": "."}.get(pattern[at], re.escape(pattern[at]))
        at += 1
    return out


@given(st.text("ab*?\\/", max_size=12), st.text("ab*?\\/", max_size=12))
def test_patterns_mean_what_an_expression_says(pattern: str, text: str) -> None:
    assert matches(pattern, text) == (re.fullmatch(expression(pattern), text, re.DOTALL) is not None)
    if not is_pattern(pattern):
        assert matches(pattern, text) == (pattern == text)


@pytest.mark.parametrize("name", ["A", "BACKUP_DIR", "x1", "_y"])
def test_a_pattern_means_ordinary_variables(name: str) -> None:
    assert checks._variable_fits(["*"], f"{name}=x")


@pytest.mark.parametrize(
    "name",
    ["BASH_FUNC_date%%", "BASH_ENV", "SHELLOPTS", "PS4", "PATH", "LD_PRELOAD", "RUBYOPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS",
     "_JAVA_OPTIONS", "LUA_INIT", "OPENSSL_CONF", "GIT_SSH_COMMAND", "LESSOPEN", "PAGER", "a b", "\u00e4", "1A", "a-b", "a()"],
)  # fmt: skip
def test_a_pattern_does_not_mean_what_interpreters_obey(name: str) -> None:
    assert not checks._variable_fits(["*", f"{name[:1]}*", "*S"], f"{name}=x")
    assert checks._variable_fits([name], f"{name}=x")


def test_a_hostile_text_costs_no_time() -> None:
    assert not matches("*a" * 20 + "b", "a" * 4000)


@pytest.mark.parametrize(
    ("folder", "path", "is_in"),
    [("/", "/x", True), ("/a", "/a", True), ("/a", "/a/b", True), ("/a", "/ab", False), ("/a/b", "/a", False)],
)
def test_beneath(folder: str, path: str, is_in: bool) -> None:
    assert beneath(folder, path) == is_in


def test_sizes_in_words() -> None:
    assert [bytes_of(t) for t in ("0", "10", "64K", "3M", "1G")] == [0, 10, 65536, 3 << 20, 1 << 30]
    assert [bytes_of(t) for t in ("", "K", "1k", "-1", "1.5M", "1KB", "\u0661", "9" * 30)] == [None] * 8


# -- a minute's requests


@given(st.integers(0, 5), st.lists(st.floats(0, 40), max_size=60))
def test_never_more_than_so_many_in_any_minute(limit: int, pauses: list[float]) -> None:
    words = [0] * WORDS
    now, let_through = 1000.5, []
    for pause in pauses:
        now += pause
        if admit(words, limit, now):
            let_through.append(now)
        else:  # the least that had to be let through was
            assert sum(1 for t in let_through if t > now - 62) >= limit
    for number, first in enumerate(let_through):
        assert sum(1 for t in let_through[number:] if t < first + 60) <= limit


def test_a_clock_that_went_back_forgets() -> None:
    words = [0] * WORDS
    assert admit(words, 1, 5000.0) and not admit(words, 1, 5001.0)
    assert admit(words, 1, 10.0) and not admit(words, 1, 11.0)


def test_a_page_has_room_for_each_command_of_each_domain() -> None:
    assert WORDS * 4 <= counters.RATE
    assert max(len(verbs_of(d.name)) for d in DOMAINS) <= counters.COMMANDS
    page = counters.Page.create("test")
    slots = [page.seconds(n) for n in range(counters.COMMANDS)]
    for number, slot in enumerate(slots):
        slot[WORDS - 1] = number + 1
    page.refused_by("rule")
    assert [slot[WORDS - 1] for slot in slots] == list(range(1, counters.COMMANDS + 1))
    assert list(counters.rules_in(page._page[:])) == [("rule", 1)]


# -- rules in slices


@given(
    st.text(max_size=8), st.text(max_size=20),
    st.dictionaries(st.text("abc-", min_size=1, max_size=4), st.lists(st.text(max_size=8), max_size=3).map(tuple), max_size=3),
)  # fmt: skip
def test_a_rule_arrives_as_it_was(id: str, origin: str, values: dict[str, tuple[str, ...]]) -> None:
    rule = Rule("exec", id, origin, values)
    assert "\n" not in rule.line()
    again = parse(rule.line())
    assert (again.kind, again.id, again.origin, again.values) == ("exec", id, origin, values)


@pytest.mark.parametrize("line", ["rule ", "rule exec", "rule exec\tid", "rule none\tid\tx", "rule exec\t%zz\tx", "x"])
def test_what_is_no_rule_is_refused(line: str) -> None:
    with pytest.raises(PolicyError):
        parse(line)


def test_a_profile_s_slices_have_no_rules_but_the_one_about_root() -> None:
    for name in ("minimal", "backup", "default", "ansible", "qemu-ga"):
        for row in DOMAINS:
            scope = scope_of(slice_for(row.name, builtin(name), {}))
            if name != "qemu-ga" and row.name in ("user", "ssh"):
                assert scope is not None and [r.kind for r in scope.rules] == ["root-account"]
            else:
                assert scope is None


# -- places in a text

TEXT = """\
# a comment = "not a key"
top = 1
"quoted key" = "a # b"
[one] # two
a.b.c = 'x'
list = [ 1, # [2]
  "three", [4, 5], { in = 6, "out" = [7] } ]
multi = \"\"\"
[not] = "a table"
\\\"\"\" still\"\"\"\"
raw = '''
x = 1''''
[ two . "three" ]
date = 1979-05-27 07:32:00
after=true
[[many]]
x = 1
[[many]]
x = 2
[many.sub]
y = 3
[[many.deep]]
z = 4
[[many.deep]]
z = 5"""


def everything(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from everything(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from everything(one, (*path, number))


def test_places_of_everything() -> None:
    lines = TEXT.split("\n")
    found = Positions(TEXT)
    starts = {
        path: lines[line - 1][column - 1 :]
        for path in everything(tomllib.loads(TEXT))
        for line, column in [found.of(path)]
    }
    assert starts["top",].startswith("top = 1")
    assert starts["quoted key",].startswith('"quoted key"')
    assert starts["one",].startswith("[one]") and starts["one", "a", "b", "c"] == "c = 'x'"
    assert starts["one", "list", 1].startswith('"three"') and starts["one", "list", 2, 1].startswith("5]")
    assert starts["one", "list", 3, "in"].startswith("in = 6") and starts["one", "list", 3, "out", 0].startswith("7]")
    assert starts["one", "raw"] == "raw = '''"
    assert starts["two", "three"].startswith("[ two") and starts["two", "three", "after"] == "after=true"
    assert found.of(("many", 1)) == (18, 1) and found.of(("many", 1, "x")) == (19, 1)
    assert starts["many", 1, "sub", "y"] == "y = 3"
    assert found.of(("many", 1, "deep", 1, "z")) == (25, 1)
    assert found.of(("many", 0, "none")) == (16, 1) and found.of(("none", 1)) == (1, 1)


SCALARS = st.integers() | st.booleans() | st.text(st.characters(codec="ascii"), max_size=6)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3), max_leaves=6)
BARE = st.text("ab-_1", min_size=1, max_size=3)


@given(
    st.dictionaries(
        BARE, VALUES | st.lists(st.dictionaries(BARE, VALUES, max_size=2), min_size=1, max_size=3), max_size=4
    )
)
def test_any_text_that_the_parser_takes_is_walked_to_its_end(values: dict[str, object]) -> None:
    plain, tables = [], []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for one in value:
                tables += [f"[[{key}]]", *(f"{k} = {json.dumps(v)} # {k}" for k, v in one.items())]
        else:
            plain.append(f"{key} = {json.dumps(value)}")
    text = "\r\n".join(plain + tables).replace("\\/", "/").replace("\\u007f", "\\u007F")
    found = Positions(text)
    parsed = tomllib.loads(text)
    for path in everything(parsed):
        assert found._at.get(path) is not None, (text, path)


# -- the schema


def test_the_schema_has_each_key_with_its_meaning() -> None:
    made = schema()
    for table in TABLES:
        place = made["properties"][table.name] if table.name else made
        if table.many:
            place = place["items"]
        assert place["description"] == table.doc
        if table.any_key is None:
            assert place["additionalProperties"] is False
            for key in table.keys.values():
                assert place["properties"][key.name]["description"].startswith(key.doc)


# -- the guide


def test_each_example_of_the_guide_is_a_policy(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 6
    kinds = set()
    for number, example in enumerate(examples):
        if "[[case]]" in example:  # expectations about one
            assert len(cases.read("cases.toml", example)[1]) == example.count("[[case]]")
            continue
        path = tmp_path / f"{number}.toml"
        path.write_text(example)
        path.chmod(0o644)
        policy = load.from_files([str(path)])
        assert not policy.notes
        kinds |= {rule.kind for rule in policy.rules}
    assert kinds == KINDS - {"root-account"}


def test_what_the_profiles_show_in_comments_is_right(tmp_path: Path) -> None:
    shown = 0
    for source in sorted(build.PROFILES.glob("*.toml")):
        for example in re.findall(r"(?:^#(?:     .*)?\n)+", source.read_text(), re.MULTILINE):
            lines = [line[6:] for line in example.splitlines()]
            if not any(line.strip() for line in lines):
                continue
            if "never-mounts" in example:
                lines.insert(0, "[fsfreeze]")
            path = tmp_path / "example.toml"
            path.write_text("\n".join(lines))
            path.chmod(0o644)
            load.from_files([str(path)], start=None if "profile =" in example else "default")
            shown += 1
    assert shown >= 4


# -- what only the moment can say


def test_conditions_tell_what_is_left_to_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        'profile = "ansible"\n[fsfreeze]\nnever-mounts = ["/srv"]\n[fstrim]\nonly-mounts = ["/"]\n'
        '[rates]\nguest-fstrim = 3\nguest-set-time = 0\n[[file]]\npath = "/srv"\nowner = ["root"]\n'
    )
    path.chmod(0o644)
    policy = load.from_files([str(path)])
    freeze = policy.decide("guest-fsfreeze-freeze", {})
    assert freeze.allowed and f"fsfreeze.never-mounts ({path}:3)" in freeze.conditions[0]
    assert not policy.decide("guest-fsfreeze-freeze", {}, superblocks=[["/"], ["/mnt", "/srv"]]).allowed
    assert policy.decide("guest-fsfreeze-freeze", {}, superblocks=[["/"]]).conditions == ()
    trim = policy.decide("guest-fstrim", {})
    assert trim.conditions == (
        f"without the file systems that fstrim.only-mounts ({path}:5) leaves out",
        f"not more than 3 a minute by rates.guest-fstrim ({path}:7)",
    )
    never = policy.decide("guest-set-time", {})
    assert (never.allowed, never.rule, never.reason) == (False, "rates.guest-set-time", "more than 0 a minute")
    opened = policy.decide("guest-file-open", {"path": "/srv/x", "mode": "w"})
    assert not opened.allowed and opened.rule == "file-1" and opened.origin == f"{path}:9"
    opened = policy.decide("guest-file-open", {"path": "/srv/x"})
    assert opened.allowed and "the file belongs to root" in opened.conditions
