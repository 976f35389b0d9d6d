"""privsep-gactl policy: check, show, explain, diff, test; for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from policy import diff
from policy.builtin import COMMANDS, PROFILES
from policy.load import choose
from policy.model import builtin
from privsep import ctl, ctlpolicy

TEXT = """profile = "default"
[commands]
allow = ["@exec", "guest-file-*", "@ssh"]
block = ["guest-get-users", "@trim"]
[[exec]]
id = "uptime"
program = "/usr/bin/uptime"
user = "nobody"
[[exec]]
program = "/bin/ls"
args = ["-l", "..."]
user = "nobody"
[[file]]
path = "/srv"
[fsfreeze]
never-mounts = ["/boot"]
[rates]
"guest-exec" = 5
"""


def write(path: Path, text: str = TEXT) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "policy.toml")


class Run:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str) -> tuple[int, str]:
        status = ctl.main(["policy", *words])
        out, self.err = self._capsys.readouterr()
        return status, out

    def json(self, *words: str) -> tuple[int, Any]:
        status, out = self(*words, "--json")
        return status, json.loads(out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


# -- check


def test_check_says_all_faults_at_once_with_their_places(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml", "[commands]\nallow = ['guest-pong']\n[fsfreze]\n[[exec]]\nprogram = 'ls'\n")
    assert run("check", path)[0] == 1
    lines = run.err.splitlines()
    assert any(line.startswith(f"privsep-gactl: {path}:2:") and "guest-ping" in line for line in lines), lines
    assert any(f"{path}:3:" in line and "fsfreeze" in line for line in lines), lines
    assert any(f"{path}:5:" in line for line in lines), lines
    status, found = run.json("check", path)
    assert (status, found["right"]) == (1, False)
    assert {(p["path"], p["line"]) for p in found["problems"]} >= {(path, 2), (path, 3), (path, 5)}
    assert all(p["column"] > 0 for p in found["problems"] if p["line"] == 2)


def test_check_takes_a_file_with_its_drop_ins_a_folder_and_a_profile(run: Run, tmp_path: Path) -> None:
    first, drop = write(tmp_path / "policy.toml"), tmp_path / "policy.d"
    drop.mkdir()
    second = write(drop / "10-more.toml", "[commands]\nblock = ['@exec']\n")
    assert "right" in run("check", first)[1]
    assert "@exec" not in json.dumps(run.json("check", first, second)[1]["allowed"])
    for words in ([first, second], [str(tmp_path)]):
        allowed = run.json("check", *words)[1]["allowed"]
        assert "guest-exec" not in allowed and "guest-file-open" in allowed
    assert run.json("check", "minimal")[1]["allowed"] == sorted(PROFILES["minimal"][1])
    write(drop / "20-bad.toml", "[commands]\nallow = ['nothing']\n")
    assert run("check", str(tmp_path))[0] == 1 and "20-bad.toml:2" in run.err


def test_what_has_no_effect_is_noted(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml", TEXT.replace('"@exec", ', ""))
    status, out = run("check", path)
    assert status == 0 and "note: " in out and "has no effect" in out


# -- show


def test_show_has_every_command_with_its_rule_and_place(run: Run, file: str) -> None:
    status, out = run("show", "--policy", file)
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[: len(COMMANDS)]}
    assert rows.keys() == COMMANDS.keys()
    assert rows["guest-exec"] == ["allowed", "allow:@exec", f"{file}:3"]
    assert rows["guest-fstrim"] == ["-", "block:@trim", f"{file}:4"]
    assert rows["guest-ping"] == ["allowed", "profile:default", f"{file}:1"]
    assert f"uptime                 {file}:5" in out and "auto-thaw" in out
    assert len(run("show", "--policy", file, "--blocked")[1].splitlines()) == len(COMMANDS) - len(choose(file).allowed)
    shown = run("show", "--policy", "minimal", "--allowed")[1].splitlines()
    assert [line.split()[0] for line in shown] == list(PROFILES["minimal"][1])
    found = run.json("show", "--policy", file)[1]
    assert {r["id"] for r in found["rules"]} >= {"uptime", "exec-2", "file-1", "rates.guest-exec"}
    assert next(c for c in found["commands"] if c["command"] == "guest-exec")["origin"] == f"{file}:3"


# -- explain


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["guest-ping"], 0, ["allowed", "profile:default (FILE:1)"]),
        (["guest-exec"], 0, ["exec rule uptime (FILE:5)", "not more than 5 a minute", "not while file systems are frozen"]),
        (['{"execute": "guest-exec", "arguments": {"path": "/usr/bin/uptime"}}'], 0, ["decided by uptime (FILE:5)", "not more than 5 a minute"]),
        (["guest-exec", "path=/bin/ls", 'arg=["-x"]'], 1, ["decided by exec-2 (FILE:9)", "another [[exec]] rule"]),
        (["guest-exec", "path=/bin/sh"], 1, ["because no exec rule has this program", "a [[exec]] rule that admits"]),
        (["guest-file-open", "path=/srv/x"], 0, ["file-1 (FILE:13)", "provided: the file has one name"]),
        (["guest-file-open", "path=/srv/x", "mode=w"], 1, ["file-1 (FILE:13)", "may not be opened to write"]),
        (["guest-file-open", "path=/etc/passwd"], 1, ["no file rule has this path"]),
        (["guest-fstrim"], 1, ["block:@trim (FILE:4)", "take @trim out of `block` (FILE:4)"]),
        (["guest-set-user-password"], 1, ['allow = ["guest-set-user-password"] below [commands] in FILE']),
        (["guest-ssh-get-authorized-keys", "username=root"], 1, ["uid is 0", "a [[user]] rule that names the account"]),
        (["guest-fsfreeze-freeze", "{}"], 2, []),
        (['{"execute": "guest-fsfreeze-freeze"}'], 0, ["fsfreeze.never-mounts (FILE:16)"]),
    ],
)  # fmt: skip
def test_explain(run: Run, file: str, words: list[str], status: int, said: list[str]) -> None:
    if status == 2:
        assert run("explain", "--policy", file, *words)[0] == 0  # one JSON object of arguments, as `call` takes it
        return
    found, out = run("explain", "--policy", file, *words)
    assert found == status, out
    for text in said:
        assert text.replace("FILE", file) in out, out
    status, plain = run.json("explain", "--policy", file, *words)
    assert plain["allowed"] == (found == 0) and plain["changes"]


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_explain_agrees_with_each_profile_and_says_what_to_change(run: Run, name: str, command: str) -> None:
    status, found = run.json("explain", "--policy", name, command)
    assert found["allowed"] == builtin(name).allows(command) == (status == 0)
    assert found["changes"] and (found["allowed"] or f'profile = "{name}"' in found["changes"][0])


def test_what_the_advice_says_does_what_it_promises(tmp_path: Path) -> None:
    """The line that explain gives for a refusal by the profile, put into a file, allows the command."""
    for command in ("guest-exec", "guest-set-user-password"):
        path = write(tmp_path / "p.toml", f'profile = "default"\n[commands]\nallow = ["{command}"]\n')
        assert choose(path).allows(command)


def test_what_is_no_request_is_said(run: Run, file: str) -> None:
    for words, text in (
        (["guest-pong"], "did you mean guest-ping"),
        (["{"], "not JSON"),
        (['{"execute": 1}'], "a request is"),
        (['{"execute": "guest-exec", "arguments": {}}'], "Parameter 'path' is missing"),
        (["guest-exec", "nonsense"], "nonsense"),
    ):
        assert run("explain", "--policy", file, *words)[0] == 1
        assert text in run.err


# -- diff


def changes(old: str, new: str) -> list[str]:
    return [str(c) for c in diff.compare(choose(old), choose(new))]


def test_a_policy_differs_from_itself_in_nothing(run: Run, file: str, tmp_path: Path) -> None:
    assert run("diff", file, file)[0] == 0
    # Where rules stand and how they are called is no difference.
    other = write(tmp_path / "other.toml", "# a comment\n" + TEXT.replace('id = "uptime"', 'id = "load"'))
    assert changes(file, other) == []


@pytest.mark.parametrize(
    ("text", "with_", "what"),
    [
        ('block = ["guest-get-users", "@trim"]', 'block = ["@trim"]', "+ guest-get-users, by profile:default"),
        ('"@ssh"]', "]", "- guest-ssh-get-authorized-keys, by profile:default"),
        ('args = ["-l", "..."]', 'args = ["..."]', "+ exec program=/bin/ls args=..."),
        ('[[file]]\npath = "/srv"\n', "", "+ file: whatever the commands can do"),
        ('never-mounts = ["/boot"]', "", "+ without never-mounts points=/boot"),
        ('never-mounts = ["/boot"]', 'never-mounts = ["/boot", "/a"]', "~ never-mounts points=/boot becomes"),
        ('"guest-exec" = 5', '"guest-exec" = 6', "+ rate of guest-exec: 5 becomes 6"),
        ('"guest-exec" = 5', '"guest-exec" = 4', "- rate of guest-exec: 5 becomes 4"),
        ('"guest-exec" = 5', "", "+ rate of guest-exec: no limit of 5"),
        ("[fsfreeze]", "[fsfreeze]\nauto-thaw = 0", "+ auto-thaw: 300 s becomes 0 s"),
        ("[fsfreeze]", "[fsfreeze]\nauto-thaw = 10", "- auto-thaw: 300 s becomes 10 s"),
        ("[fsfreeze]", "[fsfreeze]\nhook-limit = 10", "~ hook-limit: 60 becomes 10"),
        ("[rates]", "[power]\nmodes = ['halt']\n[rates]", "- with power modes=halt"),
    ],
)
def test_each_difference_is_said(file: str, tmp_path: Path, text: str, with_: str, what: str) -> None:
    assert text in TEXT
    other = write(tmp_path / "other.toml", TEXT.replace(text, with_))
    there, back = changes(file, other), changes(other, file)
    assert any(line.startswith(what) for line in there), there
    assert back and all("+-~".index(line[0]) >= 0 for line in back)
    if what[0] in "+-":
        assert any(line[0] == {"+": "-", "-": "+"}[what[0]] for line in back), back


def test_what_needs_a_restart_is_said(run: Run, file: str) -> None:
    assert ctlpolicy.needs_restart(builtin("default"), builtin("qemu-ga")) == ["user", "file", "exec"]
    assert ctlpolicy.needs_restart(builtin("qemu-ga"), builtin("default")) == []
    status, found = run.json("diff", "default", file)
    assert status == 1 and found["restart"] == ["file", "exec"]
    assert {c["change"] for c in found["changes"]} == {"gains", "loses"}


# -- test

CASES = """policy = "policy.toml"
[[case]]
request = '{"execute": "guest-exec", "arguments": {"path": "/usr/bin/uptime"}}'
expect = "allowed"
rule = "uptime"
[[case]]
execute = "guest-exec"
arguments = { path = "/bin/sh" }
expect = "refused"
why = "no shell"
[[case]]
execute = "guest-fsfreeze-freeze"
superblocks = [["/"], ["/boot"]]
expect = "refused"
rule = "fsfreeze.never-mounts"
[[case]]
execute = "guest-fsfreeze-freeze"
superblocks = [["/"], ["/srv"]]
expect = "allowed"
"""


def test_expectations_that_hold(run: Run, file: str, tmp_path: Path) -> None:
    path = write(tmp_path / "cases.toml", CASES)
    assert run("test", path) == (0, "4 of 4 expectations hold\n")
    status, out = run("test", path, "--policy", "minimal")
    assert status == 1
    assert f"{path}:2: guest-exec is refused, not allowed, by profile:minimal (built in)" in out.splitlines()
    assert run.json("test", path)[1]["failed"] == 0


def test_expectations_that_do_not(run: Run, file: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "cases.toml", CASES.replace('"uptime"', '"other"', 1).replace('"/bin/sh"', '"/usr/bin/uptime"')
    )
    status, out = run("test", path)
    assert status == 1
    assert f"{path}:2: guest-exec is allowed by uptime ({file}:5), not by other" in out
    assert f"{path}:6: guest-exec is allowed, not refused, by uptime" in out
    assert out.splitlines()[-1] == "2 of 4 expectations hold"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no [[case]]"),
        ("[[case]]\nexpct = 1", ":1: unknown key expct (did you mean expect?)"),
        ("[[case]]\nexpect = 'yes'", ':1: expect must be "allowed" or "refused"'),
        ("[[case]]\nexpect = 'allowed'", "either request, or execute"),
        ("[[case]]\nexpect = 'allowed'\nrequest = '{'", "request: not JSON"),
        ("[[case]]\nexpect = 'allowed'\nexecute = 'guest-ping'\nsuperblocks = ['/']", "list of lists"),
        ("[[case]", "not TOML"),
        ("polcy = 1\n[[case]]\nexpect = 'allowed'\nexecute = 'x'", "did you mean policy?"),
    ],
)
def test_faults_of_a_file_of_expectations(run: Run, tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "cases.toml", text)
    assert run("test", path)[0] == 1
    assert said in run.err and path in run.err


def test_an_unknown_command_fails_its_case(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "cases.toml", 'policy = "minimal"\n[[case]]\nexecute = "guest-pong"\nexpect = "refused"\n')
    status, out = run("test", path)
    assert status == 1 and "unknown command" in out


def test_profiles_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["profiles", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p["name"]: len(p["allowed"]) for p in found} == {n: len(row[1]) for n, row in PROFILES.items()}
