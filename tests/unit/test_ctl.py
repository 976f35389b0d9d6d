"""privsep-gactl: asking, looking, comparing, and reading policies."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from privsep import ctl, kernelview
from privsep.caller import Caller, CallError, arguments_of
from privsep.degraded import degraded
from privsep.domains import DOMAINS
from privsep.kernelview import NoAgent, find, look, names, parse_report


class Host:
    """The agent's end of a socket: answers syncs, and what else it is told to."""

    def __init__(self, path: str, answer: bytes, before: bytes = b"") -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(1)
        self.answer = answer
        self.before = before
        self.got: list[bytes] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        client, _ = self.socket.accept()
        with client, client.makefile("rb") as lines:
            for line in lines:
                self.got.append(line)
                if b"guest-sync-delimited" in line:
                    number = json.loads(line.lstrip(b"\xff"))["arguments"]["id"]
                    client.sendall(self.before + b"\xff" + json.dumps({"return": number}).encode() + b"\n")
                else:
                    client.sendall(self.answer)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "s")


def test_call_syncs_then_asks(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    stale = b'{"return": 17}\n{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'
    host = Host(place, b'{"return": {"a": "\\u00e9"}}\n', before=stale)
    assert ctl.main(["call", "--socket", place, "guest-exec", "path=/bin/true", 'arg=["x"]', "count=3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": "é"}
    assert host.got[0].startswith(b"\xff")
    assert json.loads(host.got[1]) == {
        "execute": "guest-exec",
        "arguments": {"path": "/bin/true", "arg": ["x"], "count": 3},
    }


def test_an_error_reply_is_exit_status_1(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    Host(place, b'{"error": {"class": "GenericError", "desc": "no"}}\n')
    assert ctl.main(["call", "--socket", place, "guest-ping"]) == 1
    assert capsys.readouterr().err == "privsep-gactl: GenericError: no\n"


def test_a_command_that_answers_only_errors_is_not_waited_for(place: str) -> None:
    Host(place, b"")
    assert ctl.main(["call", "--socket", place, "--timeout", "0.2", "guest-shutdown"]) == 0


def test_silence_and_absence_are_errors(place: str, tmp_path: Path) -> None:
    Host(place, b"")
    assert ctl.main(["call", "--socket", place, "--timeout", "0.2", "guest-ping"]) == 1
    with pytest.raises(CallError):
        Caller(str(tmp_path / "none"), 1)


def test_arguments() -> None:
    assert arguments_of(['{"a": 1}']) == {"a": 1}
    assert arguments_of(["a=1", "b=x y", "c=true", 'd="1"', "e=", "f=a=b"]) == {
        "a": 1,
        "b": "x y",
        "c": True,
        "d": "1",
        "e": "",
        "f": "a=b",
    }
    for words in (["a"], ["=1"], ["a=1", "a=2"], ["{"]):
        with pytest.raises(ValueError):
            arguments_of(words)


STATUS = """\
policy profile default
frozen 1
process supervisor 12
process front 34
restarts front 2
deadline 99.5
landlock fs 6
auto-thaw 0
new thing
"""


def test_the_supervisors_report() -> None:
    report = parse_report(STATUS)
    assert (report.policy, report.frozen, report.deadline) == ("profile default", True, 99.5)
    assert report.processes == {"supervisor": 12, "front": 34}
    assert (report.restarts, report.landlock, report.auto_thaw) == ({"front": 2}, {"fs": "6"}, 0)


def test_finding_the_agent(tmp_path: Path) -> None:
    top = tmp_path / "privsep-ga"
    top.mkdir()
    with pytest.raises(NoAgent, match="no agent runs"):
        find(str(top))
    for name in ("aaaaaaaa", "bbbbbbbb"):
        (top / name).mkdir()
        (top / name / "status").write_text(f"process supervisor {os.getpid()}\n")
    with pytest.raises(NoAgent, match="several"):
        find(str(top))
    (top / "aaaaaaaa" / "status").unlink()
    assert find(str(top))[0] == str(top / "bbbbbbbb")
    (top / "status").write_text(f"process supervisor {os.getpid()}\n")
    assert find(str(top))[0] == str(top)
    # What a killed agent left is passed over.
    (top / "status").write_text("process supervisor 999999999\n")
    assert find(str(top))[0] == str(top / "bbbbbbbb")
    (top / "bbbbbbbb" / "status").unlink()
    with pytest.raises(NoAgent, match="was killed"):
        find(str(top))


def test_a_process_as_the_kernel_sees_it() -> None:
    me = look("front", os.getpid())
    assert me.number("Uid") == os.geteuid()
    assert me.files is not None and me.files >= 3
    assert me.pss is not None and me.pss > 1 << 20
    assert me.age is not None and 0 <= me.age < 86400
    assert set(me.namespaces) >= {"net", "mnt"}


def test_capability_names() -> None:
    assert names(0) == []
    assert names(1 << 21 | 1 << 2 | 1 << 12) == ["DAC_READ_SEARCH", "NET_ADMIN", "SYS_ADMIN"]
    assert names(kernelview.full_mask()) == ["ALL"]


def process(name: str, **changes: list[str]) -> kernelview.Process:
    row = next(d for d in DOMAINS if d.name == name)
    ids, _ = kernelview.resolve(Path("/etc/passwd").read_bytes())
    uid, gid = ids[name]
    mask = f"{row.mask(kernelview.full_mask()):016x}"
    status = {
        "Uid": [str(uid)] * 4,
        "Gid": [str(gid)] * 4,
        "Groups": [],
        "CapInh": ["0"],
        "CapPrm": [mask],
        "CapEff": [mask],
        "CapBnd": [mask],
        "CapAmb": ["0"],
        "NoNewPrivs": ["1"],
        "Seccomp": ["2"],
    }
    return kernelview.Process(name, 1, {**status, **changes}, {}, None, None, None)


@pytest.mark.parametrize("name", [d.name for d in DOMAINS])
def test_a_process_that_is_as_its_row_has_no_difference(name: str) -> None:
    assert kernelview.differences(process(name), privileged=True) == []


@pytest.mark.parametrize(
    ("cell", "value", "said"),
    [
        ("Uid", ["0"] * 4, "Uid"),
        ("Gid", ["0"] * 4, "Gid"),
        ("Groups", ["4"], "Groups"),
        ("CapEff", ["200000"], "effective"),
        ("CapPrm", ["200000"], "permitted"),
        ("CapInh", ["1"], "inheritable"),
        ("CapBnd", ["1"], "bounding"),
        ("CapAmb", ["1"], "ambient"),
        ("NoNewPrivs", ["0"], "NoNewPrivs"),
        ("Seccomp", ["0"], "Seccomp"),
    ],
)
def test_each_cell_that_differs_is_named(cell: str, value: list[str], said: str) -> None:
    found = kernelview.differences(process("front", **{cell: value}), privileged=True)
    assert any(str(difference).startswith(f"front: {said} is ") for difference in found)


def test_limits_landlock_filters_parent_and_namespaces_are_cells_too() -> None:
    supervisor = kernelview.Process("supervisor", 7, {"Seccomp_filters": ["2"]}, {"net": "net:[1]"}, None, None, None)
    front = process("front", PPid=["7"], Seccomp_filters=["2"])
    front.namespaces = {"net": "net:[2]"}
    front.limits = {"NPROC": 0, "FSIZE": 0, "CORE": 0, "NOFILE": 64}

    def cells(**more: str | None) -> list[str]:
        return [d.cell for d in kernelview.differences(front, privileged=True, supervisor=supervisor, **more)]

    assert cells(landlock="6") == []
    assert cells(landlock="0") == ["Landlock (as it says itself)"]
    front.limits["NPROC"] = 10
    assert cells() == ["Max processes"]
    front.limits["NPROC"] = 0
    front.namespaces = {"net": "net:[1]"}
    assert cells() == ["network namespace"]
    front.namespaces = {"net": "net:[2]"}
    front.status["PPid"] = ["1"]
    front.status["Seccomp_filters"] = ["1"]
    assert cells() == ["PPid", "Seccomp_filters"]


def test_what_could_not_be_had_is_named(tmp_path: Path) -> None:
    report = parse_report("frozen 1\nlandlock fs 6\nlandlock thawer 3\nlandlock front 6\nlandlock hook none\n")
    fs, thawer = process("fs", VmLck=["5000", "kB"]), process("thawer", VmLck=["0", "kB"])
    front, supervisor = process("front"), process("fs")
    supervisor.name = "supervisor"
    for one in (fs, thawer, front, supervisor):
        one.pid = os.getpid()
        one.namespaces["net"] = "net:[1]"
    lines = degraded(report, [supervisor, fs, thawer, front, process("hook")])
    with open("/proc/self/oom_score_adj") as f:
        chosen = int(f.read()) >= 0
    assert [line for line in lines if "memory is short" not in line] == [
        "thawer: this kernel has level 3 of 6 of Landlock",
        "thawer: its memory is not locked (LimitMEMLOCK= or CAP_IPC_LOCK is missing)",
        "front: it has no network namespace of its own",
    ]
    assert sum("memory is short" in line for line in lines) == 2 * chosen
    # fs locks its memory when it freezes.
    fs = process("fs", VmLck=["0", "kB"])
    assert any("not locked" in line for line in degraded(report, [fs]))
    report.frozen = False
    assert not any("not locked" in line for line in degraded(report, [fs]))


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["profiles"], ["commands"], ["version"]):
        assert ctl.main(words) == 0
    out = capsys.readouterr().out
    assert "ansible" in out and "guest-fsfreeze-thaw" in out and "privsep-ga 0.1.0" in out


def test_wrong_usage_is_exit_status_2() -> None:
    with pytest.raises(SystemExit) as caught:
        ctl.main(["no-such"])
    assert caught.value.code == 2


def test_status_and_selfcheck_without_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("status", "selfcheck"):
        assert ctl.main([name, "--rundir", str(tmp_path)]) == 1
        assert "no agent runs" in capsys.readouterr().err


def test_status_of_processes_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "status").write_text(
        f"policy profile x\nfrozen 0\nprocess supervisor {os.getpid()}\nprocess front 999999999\n"
    )
    assert ctl.main(["status", "--rundir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in found["processes"]] == ["supervisor"]
    assert found["processes"][0]["pid"] == os.getpid()
    assert ctl.main(["status", "--rundir", str(tmp_path)]) == 0
    assert "profile x" in capsys.readouterr().out
