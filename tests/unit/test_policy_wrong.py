"""What can be wrong with a policy file: each fault is told with its place and its remedy, all of them at once, and stops the start."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import load
from policy.builtin import COMMANDS, FROZEN, PROFILES
from policy.errors import PolicyError
from policy.keys import TABLES
from policy.read import read
from tests.support.agent import program

FILE = '[[file]]\npath = "/srv"\n'
EXEC = '[[exec]]\nprogram = "/bin/ls"\nuser = "nobody"\n'
USER = '[[user]]\nnames = ["ann"]\n'

# (text, "line:column: message" for each of its problems)
WRONG: list[tuple[str, list[str]]] = [
    # -- not TOML
    ("x = ", ["1:5: not TOML: Invalid value"]),
    ("[commands\n", ["1:10: not TOML: Expected ']' at the end of a table declaration"]),
    ('a = "\n', ["1:6: not TOML: Illegal character '\\n'"]),
    ("profile = 'default'\nprofile = 'backup'\n", ["2:19: not TOML: "]),
    ("[commands]\n[commands]\n", ["2:10: not TOML: "]),
    ('[[file]]\npath = "/a"\n[file]\n', ["3:6: not TOML: "]),
    ("= 1\n", ["1:1: not TOML: "]),
    ("profile = 'default' allow = 1\n", ["1:21: not TOML: Expected newline or end of document after a statement"]),
    # -- keys and tables that are none
    ("polcy = 1\n", ["1:1: unknown key or table polcy"]),
    ('profil = "default"\n', ["1:1: unknown key or table profil (did you mean profile?)"]),
    ('\n[comands]\nallow = ["*"]\n', ["2:1: unknown key or table comands (did you mean commands?)"]),
    ("[users]\n", ["1:1: unknown key or table users (did you mean user?)"]),
    ("[commands]\n\n  alow = []\n", ["3:3: unknown key alow in [commands] (did you mean allow?)"]),
    ("[fsfreeze]\nautothaw = 1\n", ["2:1: unknown key autothaw in [fsfreeze] (did you mean auto-thaw?)"]),
    ("fsfreeze.auto_thaw = 1\n", ["1:10: unknown key auto_thaw in [fsfreeze] (did you mean auto-thaw?)"]),
    ("fsfreeze = { hook = 1 }\n", ["1:14: unknown key hook in [fsfreeze] (did you mean hook-limit?)"]),
    (FILE + "mode = 1\n", ["3:1: unknown key mode in [[file]]"]),
    (EXEC + "argument = []\n", ["4:1: unknown key argument in [[exec]] (did you mean args?)"]),
    (USER + '"user name" = 1\n', ["3:1: unknown key user name in [[user]]"]),
    # -- tables of the wrong shape
    ("commands = 3\n", ["1:1: commands must be a table: write [commands]"]),
    ("[file]\npath = '/a'\n", ["1:1: file must be an array of tables: write [[file]] for each rule"]),
    ("exec = ['/bin/ls']\n", ["1:1: exec must be an array of tables: write [[exec]] for each rule"]),
    ("[[rates]]\nguest-exec = 1\n", ["1:1: rates must be a table: write [rates]"]),
    # -- profiles
    ('profile = "defualt"\n', ["1:1: unknown profile 'defualt' (did you mean default?)"]),
    ("profile = 1\n", ["1:1: profile must be a string of printable characters, not 1"]),
    ('lenient = "yes"\n', ["1:1: lenient must be true or false, not 'yes'"]),
    ('description = "a\\nb"\n', ["1:1: description must be a string of printable characters, not 'a\\nb'"]),
    # -- commands
    ('[commands]\nallow = "*"\n', ["2:1: allow must be a list of strings: write [...] around it"]),
    ("[commands]\nallow = [1]\n", ["2:10: allow must be a list of strings"]),
    (
        '[commands]\nallow = [\n  "guest-ping",\n  "guest-pong",\n]\n',
        ["4:3: unknown command guest-pong (did you mean guest-ping?)"],
    ),
    (
        '[commands]\nblock = ["@netwrok"]\n',
        ["2:10: no command belongs to @netwrok (did you mean @network?); there are @"],
    ),
    ('[commands]\nallow = ["guest-xx-*"]\n', ["2:10: the pattern guest-xx-* matches no command"]),
    (
        '[commands]\nallow = ["guest-ping,guest-info"]\n',
        ["2:10: unknown command guest-ping,guest-info (names are separated by commas, without blanks)"],
    ),
    ('[commands]\nallow = [" guest-ping"]\n', ["2:10: unknown command  guest-ping (did you mean guest-ping?)"]),
    (
        '[commands]\nallow = ["guest-fsfreeze-freeze"]\n',
        [
            "2: guest-fsfreeze-freeze is allowed but guest-fsfreeze-thaw is not (not allowed by unlisted at ",
            "2: guest-fsfreeze-freeze is allowed but guest-fsfreeze-status is not (not allowed by unlisted at ",
        ],
    ),
    (
        'profile = "backup"\n[commands]\nblock = ["guest-fsfreeze-status"]\n',
        [
            "3: guest-fsfreeze-freeze is allowed but guest-fsfreeze-status is not (not allowed by block:guest-fsfreeze-s",
            "3: guest-fsfreeze-freeze-list is allowed but guest-fsfreeze-status is not (not allowed by block:guest-",
        ],
    ),
    # -- numbers
    ("[fsfreeze]\nauto-thaw = -1\n", ["2:1: auto-thaw must be a number of seconds from 0 to 86400, not -1"]),
    ("[fsfreeze]\nauto-thaw = true\n", ["2:1: auto-thaw must be a number of seconds from 0 to 86400, not true"]),
    ("[fsfreeze]\nhook-limit = 0\n", ["2:1: hook-limit must be a number of seconds from 1 to 3600, not 0"]),
    (
        "[fsfreeze]\nauto-thaw-on-disconnect = 1.5\n",
        ["2:1: auto-thaw-on-disconnect must be a number of seconds from 0"],
    ),
    ('[fsfreeze]\nexpedite-rcu = "no"\n', ["2:1: expedite-rcu must be true or false, not 'no'"]),
    # -- mount points
    ('[fsfreeze]\nonly-mounts = "/"\n', ["2:1: only-mounts must be a list, not '/': write [...] around it"]),
    ('[fsfreeze]\nnever-mounts = ["srv"]\n', ["2:17: never-mounts must be mount points, absolute paths or patterns"]),
    ('[fstrim]\nonly-mounts = ["/srv/"]\n', ["2:16: the mount point '/srv/' ends in a '/': write '/srv'"]),
    ('[fstrim]\nonly-mounts = ["/a", "/a"]\n', ["2:22: only-mounts lists '/a' twice"]),
    (
        '[fsfreeze]\nonly-mounts = ["/a"]\nnever-mounts = ["/a"]\n',
        ["3:1: /a is both in only-mounts and in never-mounts of [fsfreeze]"],
    ),
    # -- power
    (
        '[power]\nmodes = ["shutdown"]\n',
        ["2:10: modes has no 'shutdown'; there are powerdown"],
    ),
    ('[power]\nmodes = "reboot"\n', ["2:1: modes must be a list, not 'reboot': write [...] around it"]),
    # -- rates
    ("[rates]\nguest-exec = -1\n", ["2:1: guest-exec must be a number from 0 to 60000, not -1"]),
    ("[rates]\nguest-exec = '5'\n", ["2:1: guest-exec must be a number from 0 to 60000, not '5'"]),
    ("[rates]\nguest-exek = 1\n", ["2:1: unknown command guest-exek (did you mean guest-exec?)"]),
    ("[rates]\nguest-ping = 5\n", ["2:1: guest-ping must always work, so that a freeze can be ended: it has no rate"]),
    (
        "[rates]\nguest-fsfreeze-thaw = 5\n",
        ["2:1: guest-fsfreeze-thaw must always work, so that a freeze can be ended"],
    ),
    ("[rates]\nguest-get-time = 5\n", ["2:1: guest-get-time is answered by the process that reads the host's bytes"]),
    ('[rates]\n"@front" = 5\n', ["2:1: @front means only commands that have no rate"]),
    # -- sizes
    (
        "[sizes]\nfile-read = 0\n",
        ['2:1: file-read must be bytes from 1 to 48M, as a number or like "64K", "10M", not 0'],
    ),
    ('[sizes]\nfile-read = "64k"\n', ["2:1: file-read must be bytes from 1 to 48M, as a number or like"]),
    ('[sizes]\nexec-output = "17M"\n', ["2:1: exec-output must be bytes from 0 to 16M, as a number or like"]),
    # -- file rules
    ("[[file]]\n", ["1:1: [[file]] needs path: a folder with all below it, or one file"]),
    ('[[file]]\npath = "srv"\n', ["2:1: path must be an absolute path, not 'srv'"]),
    ('[[file]]\npath = "/srv/../etc"\n', ["2:1: path must not have a '..' in it"]),
    ('[[file]]\npath = "/srv//a/"\n', ["2:1: path '/srv//a/' is not written as the kernel does: write '/srv/a'"]),
    (
        FILE + 'access = ["wirte"]\n',
        ["3:11: access has no 'wirte' (did you mean write?); there are read, write, create"],
    ),
    (FILE + "access = []\n", ["3:1: access is empty: the rule would allow nothing"]),
    (FILE + 'access = ["create"]\n', ["3:1: create without write makes files that nobody can fill: add write"]),
    (FILE + "owner = []\n", ["3:1: owner is empty: no file would do; leave the key out for any user's"]),
    (FILE + 'owner = ["a b"]\n', ["3:10: owner must be an account's name or number, not 'a b'"]),
    (FILE + "max-size = 0\n", ["3:1: max-size must be bytes from 1 to "]),
    # -- exec rules
    ('[[exec]]\nuser = "root"\n', ["1:1: [[exec]] needs program: the program, as the host has to name it"]),
    ('[[exec]]\nprogram = "/bin/ls"\n', ["1:1: [[exec]] needs user: who it runs as; root too has to be named"]),
    ('[[exec]]\nprogram = "ls"\nuser = 1\n', ["2:1: program must be an absolute path, not 'ls'"]),
    ('[[exec]]\nprogram = "/"\nuser = 1\n', ["2:1: program must be a file's path"]),
    (EXEC + 'args = "-l"\n', ["4:1: args must be a list, not '-l': write [...] around it"]),
    (EXEC + 'args = ["...", "-l"]\n', ['4:9: only the last of args may be "...": what comes after it would never']),
    (EXEC + "args = [1]\n", ["4:9: args must be a list of strings, not of 1"]),
    (EXEC + "time-limit = 0\n", ["4:1: time-limit must be a number of seconds from 1 to 86400, not 0"]),
    (EXEC + 'group = ""\n', ["4:1: group must be an account's name or number, not ''"]),
    (EXEC + 'writable = ["srv"]\n', ["4:13: writable must be an absolute path, not 'srv'"]),
    (EXEC + "network = 0\n", ["4:1: network must be true or false, not 0"]),
    (EXEC + "input = 1\n", ["4:1: input must be true or false, not 1"]),
    # -- user rules
    ("[[user]]\n", ["1:1: [[user]] needs names or uids: whose account?"]),
    ("[[user]]\nnames = []\n", ["1:1: [[user]] needs names or uids: whose account?"]),
    ('[[user]]\nuids = ["2000-1000"]\n', ["2:9: the range 2000-1000 is empty: the smaller number comes first"]),
    ('[[user]]\nuids = ["a"]\n', ["2:9: uids must be numbers and ranges like \"1000-59999\", not 'a'"]),
    ("[[user]]\nuids = [-1]\n", ['2:9: uids must be numbers and ranges like "1000-59999", not -1']),
    ("[[user]]\nuids = [4294967295]\n", ["2:9: uids must be numbers and ranges"]),
    (USER + 'for = ["key"]\n', ["3:8: for has no 'key' (did you mean keys?); there are password, keys"]),
    (USER + "for = []\n", ["3:1: for is empty: the rule would allow nothing"]),
    # -- ids
    (FILE + 'id = "a b"\n', ["3:1: id must be a name of letters, digits, '-', '_' and '.', not 'a b'"]),
    (FILE + 'id = "one"\n' + EXEC + 'id = "one"\n', ["7:1: the id one is that of the rule at {path}:1 too"]),
    # -- several at once, in the order of the file's tables
    (
        'profile = "x"\n[commands]\nallow = ["guest-a", "guest-ping", "@b"]\nblok = []\n[[file]]\npath = "a"\n[[file]]\n',
        [
            "1:1: unknown profile 'x'",
            "4:1: unknown key blok in [commands] (did you mean block?)",
            "3:10: unknown command guest-a",
            "3:35: no command belongs to @b",
            "6:1: path must be an absolute path, not 'a'",
            "7:1: [[file]] needs path",
        ],
    ),
]


def name(case: tuple[str, list[str]]) -> str:
    return case[0][:40]


def write(folder: Path, text: str) -> Path:
    path = folder / "p.toml"
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_there_are_enough() -> None:
    assert len(WRONG) >= 60


@pytest.mark.parametrize("case", WRONG, ids=map(name, WRONG))
def test_each_fault_is_told_with_its_place(tmp_path: Path, case: tuple[str, list[str]]) -> None:
    path = write(tmp_path, case[0])
    with pytest.raises(PolicyError) as e:
        load.from_files([str(path)])
    told = [str(p) for p in e.value.problems]
    assert len(told) == len(case[1]), told
    for line, wanted in zip(told, case[1], strict=True):
        assert line.startswith(f"{path}:{wanted.format(path=path) if '{path}' in wanted else wanted}"), line


@pytest.mark.parametrize("case", WRONG, ids=map(name, WRONG))
def test_the_agent_does_not_start_with_it(tmp_path: Path, case: tuple[str, list[str]]) -> None:
    path = write(tmp_path, case[0])
    words = [program(), "-m", "unix-listen", "-p", str(tmp_path / "s"), "-t", str(tmp_path), "--policy", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, env={"QGA_CONF": "/nonexistent"})
    assert done.returncode == 1
    assert not (tmp_path / "s").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("privsep-ga: critical: ")]
    assert sum(f"critical: {path}:" in line for line in lines) == len(case[1])


def test_drop_ins_are_all_read_before_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "policy.d"
    folder.mkdir()
    write(tmp_path, "").rename(tmp_path / "policy.toml")
    for number, text in enumerate(("x = ", "[a]\n", "[commands]\nallow = ['guest-x']\n")):
        (folder / f"{number}.toml").write_text(text)
        (folder / f"{number}.toml").chmod(0o644 if number else 0o666)
    (folder / "3.toml").write_bytes(b"\xff")
    (folder / "3.toml").chmod(0o644)
    with pytest.raises(PolicyError) as e:
        load.choose(None, str(tmp_path))
    assert [str(p).removeprefix(f"{folder}/") for p in e.value.problems] == [
        f"0.toml: others than its owner may write it (chmod go-w {folder}/0.toml)",
        "3.toml:1:1: not UTF-8",
        "1.toml:1:1: unknown key or table a",
        "2.toml:2:10: unknown command guest-x (did you mean guest-exec?)",
    ]


NAMES = st.sampled_from(
    [*(t.name for t in TABLES if t.name), *(k for t in TABLES for k in t.keys), "guest-exec", "guest-*", "@front", "x", "a b", ""]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["/srv", "/", "root", "*", "0-1", "64K", "guest-ping", "...", "minimal", "read", "\u20ac", "a\tb", ""]
)
VALUES = st.recursive(
    TEXTS | st.integers(-2, 70000) | st.booleans() | st.floats(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3),
    max_leaves=8,
)


def toml(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case float():
            return repr(value)
    return json.dumps(value)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_whatever_stands_in_a_file_it_is_read_or_refused_with_a_place(values: dict[str, object]) -> None:
    text = "\n".join(f"{json.dumps(k)} = {toml(v)}" for k, v in values.items())
    try:
        read([("p", text)], base=load._profile, commands=COMMANDS, profiles=PROFILES, unlimited=FROZEN)
    except PolicyError as e:
        assert all(p.path == "p" and p.line and p.column and p.text.isprintable() for p in e.problems), str(e)
