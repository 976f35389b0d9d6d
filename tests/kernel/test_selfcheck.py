"""privsep-gactl status and selfcheck on running agents: the kernel's view, and the cell that is not as the table says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privsep.domains import BY_NAME
from privsep.rundir import runtime_dir
from tests.sandbox import stage
from tests.sandbox.test_hostile_front import hostile_program
from tests.support.agent import Agent, AgentError, wait_for
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]

GACTL = Path(sys.executable).parent / "privsep-gactl"


def gactl(agent: Agent, *words: str) -> tuple[int, str]:
    rundir = runtime_dir(agent.directory, 0, {})
    done = subprocess.run([GACTL, *words, "--rundir", rundir], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def staying(folder: Path, profile: str = "default") -> str:
    """A policy whose workers do not leave while the programs look at them."""
    path = folder / "policy.toml"
    path.write_text(f'profile = "{profile}"\n[workers]\npreload = ["inventory", "network", "fs"]\n')
    path.chmod(0o644)
    return str(path)


def wake(agent: Agent) -> None:
    """A worker of each kind that this machine can have without harm."""
    for name in ("guest-get-osinfo", "guest-network-get-interfaces", "guest-fsfreeze-status"):
        agent.call(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
@pytest.mark.parametrize("profile", ["minimal", "default", "qemu-ga"])
def test_a_running_agent_is_as_the_table_says(profile: str, tmp_path: Path) -> None:
    with Agent("--policy", staying(tmp_path, profile)) as agent:
        if profile != "minimal":
            wake(agent)
        assert gactl(agent, "selfcheck")[0] == 0, gactl(agent, "selfcheck")
        status, text = gactl(agent, "selfcheck", "--json")
        found = json.loads(text)
        assert (status, found["differences"], found["privileged"]) == (0, [], True)
        assert {"supervisor", "front"} <= set(found["processes"])
        if profile != "minimal":
            assert {"fs", "thawer", "inventory", "network"} <= set(found["processes"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_status_has_every_column(tmp_path: Path) -> None:
    with Agent("--policy", staying(tmp_path)) as agent:
        wake(agent)
        status, text = gactl(agent, "status")
        assert status == 0
        head = next(line for line in text.splitlines() if line.startswith("PROCESS")).split()
        assert head == (
            "PROCESS PID UID HOLDS BOUND NNP SECCOMP LANDLOCK* NAMESPACES FDS MEMORY RESTARTS UPTIME".split()
        )
        assert "* as the process says itself" in text
        rows: dict[str, dict[str, Any]] = {
            row["name"]: row for row in json.loads(gactl(agent, "status", "--json")[1])["processes"]
        }
        front, fs = rows["front"], rows["fs"]
        pids = agent.processes()
        assert (front["pid"], fs["pid"]) == (pids["front"], pids["fs"])
        assert front["uid"] not in (0, fs["uid"])
        assert set(front["capabilities"]) == {"effective", "permitted", "inheritable", "bounding", "ambient"}
        assert all(not names for names in front["capabilities"].values())
        assert set(fs["capabilities"]["effective"]) == set(BY_NAME["fs"].caps)
        assert front["no-new-privs"] is True
        assert front["seccomp"] == 2
        assert front["seccomp-filters"] == rows["supervisor"]["seccomp-filters"] + 1
        assert front["landlock"]["self-reported"] is True
        assert "net" in front["own-namespaces"] and fs["own-namespaces"] == []
        assert front["limits"] == {"CORE": 0, "FSIZE": 0, "NOFILE": 64, "NPROC": 0}
        assert front["files"] > 3 and front["pss"] > 1 << 20 and front["rss"] >= front["pss"]
        assert 0 <= front["uptime"] < 60 and front["restarts"] == 0
        os.kill(pids["fs"], signal.SIGKILL)
        wait_for(lambda: pids["fs"] not in agent.processes().values())
        wake(agent)
        rows = {row["name"]: row for row in json.loads(gactl(agent, "status", "--json")[1])["processes"]}
        assert rows["fs"]["restarts"] == 1 and rows["fs"]["pid"] != pids["fs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_so_is_one_whose_front_was_started_before_the_supervisor_had_its_filter() -> None:
    """As under a service manager or on a terminal: where the log is no file, the front has a head start."""

    class Piped(Agent):
        def command(self) -> list[str]:
            return [
                "sh",
                "-c",
                'mkfifo "$0"; (cat "$0" >&2 &); exec "$@" 2>"$0"',
                f"{self.directory}/fifo",
                *super().command(),
            ]

    with Piped("--policy", "default") as agent:
        wake(agent)
        status, text = gactl(agent, "selfcheck")
        rows = {row["name"]: row for row in json.loads(gactl(agent, "status", "--json")[1])["processes"]}
        assert rows["front"]["seccomp-filters"] == rows["supervisor"]["seccomp-filters"] == 1
        assert status == 0, text


# A supervisor that compares nothing (else it would end the process itself), and a worker that keeps what it should not.
BLIND = """
from privsep import children
children.Child.compare = lambda self, available: []
from privsep.cli import main
sys.exit(main(libexec={libexec!r}))
"""
GREEDY = """
import os, _prctl
from privsep.sandbox import apply, caps
{act}
apply._compare = lambda *args, **kwargs: None
from privsep.child import main
main("inventory", {filters!r})
"""
ACTS = {
    # What is replaced in the worker -> the cell that selfcheck names.
    "a-capability-more": (
        """
keep = 1 << 25
bounding, sets = caps.limit_bounding, caps.limit_to
def limit_bounding(mask, last):
    _prctl.prctl(_prctl.PR_SET_KEEPCAPS, 1)
    bounding(mask | keep, last)
caps.limit_bounding = limit_bounding
caps.limit_to = lambda mask, last: sets(mask | keep, last)
""",
        {"effective": (["SYS_TIME"], []), "permitted": (["SYS_TIME"], []), "bounding": (["SYS_TIME"], [])},
    ),
    "a-capability-in-the-bounding-set": (
        "bounding = caps.limit_bounding\ncaps.limit_bounding = lambda mask, last: bounding(mask | 1 << 21, last)",
        {"bounding": (["SYS_ADMIN"], [])},
    ),
    "root": ("os.setresuid = os.setresgid = lambda *ids: None", {"Uid": None, "Gid": None}),
    "a-group": ("os.setgroups = lambda groups: None", {"Groups": None}),
    "no-filter": ("apply.filter_of = lambda row, folder: None", {"Seccomp_filters": None}),
    "files-without-end": ("apply._limits = lambda row: None", {"Max core file size": None, "Max open files": None}),
}


@pytest.mark.parametrize("act", ACTS)
@isolated
def test_a_process_with_more_than_its_row_is_named_with_the_cell(act: str) -> None:
    folder = Path("/tmp/greedy")
    folder.mkdir()
    body, wanted = ACTS[act]
    worker = GREEDY.replace("{act}", body).replace("{filters!r}", repr(stage.FILTERS))
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"inventory": worker})
    stage.script(str(folder), "privsep-ga", BLIND.replace("{libexec!r}", repr(str(folder / "libexec"))))
    if act == "a-group":
        os.setgroups([4242])
    with Agent("--policy", staying(folder)) as agent:
        agent.call("guest-get-osinfo")
        status, text = gactl(agent, "selfcheck", "--json")
        assert status == 1
        found = {d["cell"]: (d["is"], d["should-be"]) for d in json.loads(text)["differences"]}
        assert {d["process"] for d in json.loads(text)["differences"]} == {"inventory"}
        assert set(found) == set(wanted), found
        for cell, values in wanted.items():
            assert values is None or found[cell] == values or list(found[cell]) == list(values)
        assert gactl(agent, "selfcheck")[1].startswith("inventory: ")


@isolated
def test_a_supervisor_that_is_not_blind_ends_such_a_process_first() -> None:
    folder = Path("/tmp/greedy")
    folder.mkdir()
    worker = GREEDY.replace("{act}", ACTS["a-capability-more"][0]).replace("{filters!r}", repr(stage.FILTERS))
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"inventory": worker})
    with Agent("--policy", "default") as agent:
        with pytest.raises(AgentError):
            agent.call("guest-get-osinfo")
        assert "inventory is not what its row says and is ended: CapPrm is 0000000002000000" in agent.log()
        assert gactl(agent, "selfcheck")[0] == 0


STRAY = """
import os, time, _prctl
if os.fork() == 0:
    _prctl.prctl(_prctl.PR_SET_PDEATHSIG, 9)
    time.sleep(30)
    os._exit(0)
from privsep.cli import main
sys.exit(main(libexec={libexec!r}))
"""


@isolated
def test_a_process_that_the_status_does_not_name_is_found() -> None:
    folder = Path("/tmp/stray")
    folder.mkdir()
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {})
    stage.script(str(folder), "privsep-ga", STRAY.replace("{libexec!r}", repr(str(folder / "libexec"))))
    with Agent("--policy", "minimal") as agent:
        status, text = gactl(agent, "selfcheck")
        assert status == 1
        assert "name is not in the agent's status" in text


@isolated
def test_a_worker_that_has_only_the_supervisors_filter_is_ended() -> None:
    """The filter that it inherits is not its own."""
    folder = Path("/tmp/greedy")
    folder.mkdir()
    worker = GREEDY.replace("{act}", ACTS["no-filter"][0]).replace("{filters!r}", repr(stage.FILTERS))
    os.environ["PRIVSEP_GA"] = hostile_program(folder, {"inventory": worker})
    with Agent("--policy", "default") as agent:
        with pytest.raises(AgentError):
            agent.call("guest-get-osinfo")
        assert "inventory is not what its row says and is ended: Seccomp_filters is 1" in agent.log()
