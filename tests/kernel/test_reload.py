"""Another policy while the agent runs: who is replaced when, what a host sees of it, and what stays as it was."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privsep import ctlreload, kernelview
from privsep.crew import FIFREEZE
from privsep.dispatch import FIRST_STAY
from privsep.domains import CAPABILITIES
from privsep.log import printable
from privsep.rundir import runtime_dir
from tests.support.agent import LIMIT, PROJECT, Agent, AgentError, state, wait_for
from tests.support.deadman import DeadMan, thaw
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated
from tests.unit.test_policy_wrong import WRONG

ALWAYS = ["guest-ping", "guest-info", "guest-sync", "guest-sync-delimited"]


def write(path: Path, *commands: str, more: str = "") -> None:
    """A policy that allows these commands, in place of what was there at once."""
    draft = path.with_suffix(".new")
    draft.write_text(f"[commands]\nallow = {json.dumps([*ALWAYS, *commands])}\n{more}")
    draft.chmod(0o644)
    draft.rename(path)


class Reloading(Agent):
    """An agent with a policy file of its own."""

    def __init__(self, path: Path, *args: str, **more: Any) -> None:
        super().__init__("--policy", str(path), *args, **more)

    def start(self, limit: float = LIMIT) -> None:
        super().start(limit)

        def told() -> kernelview.Report | None:
            with contextlib.suppress(kernelview.NoAgent):
                return self.report()
            return None

        wait_for(told, what="the first status")

    def report(self) -> kernelview.Report:
        return kernelview.find(runtime_dir(self.directory, os.geteuid(), {}))[1]

    def hang_up(self) -> int:
        """SIGHUP; the number of the reload that reads whatever was there before."""
        number = self.report().reloads + 1
        os.kill(self.pid, signal.SIGHUP)
        return number

    def reload(self) -> kernelview.Report:
        """SIGHUP, and how it ended."""
        number = self.hang_up()

        def ended() -> kernelview.Report | None:
            report = self.report()
            return report if report.reloaded >= number else None

        report: kernelview.Report = wait_for(ended, what=f"reload {number}")
        return report


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "policy.toml"
    write(place, "guest-get-osinfo")
    yield place


def supported(agent: Agent) -> set[str]:
    return {c["name"] for c in agent.call("guest-info")["supported_commands"] if c["enabled"]}


def refused(agent: Agent, command: str, **arguments: object) -> str:
    with pytest.raises(AgentError) as caught:
        agent.call(command, **arguments)
    return caught.value.desc


def test_a_good_policy_takes_over(path: Path) -> None:
    with Reloading(path) as agent:
        assert agent.call("guest-get-osinfo")["kernel-release"] == os.uname().release
        assert "has been disabled" in refused(agent, "guest-get-load")
        before = agent.processes()
        write(path, "guest-get-load")
        report = agent.reload()
        assert (report.reloaded, report.result, report.says) == (1, "applied", [])
        assert supported(agent) == {*ALWAYS, "guest-get-load"}
        assert "has been disabled" in refused(agent, "guest-get-osinfo")
        assert agent.call("guest-get-load")["load1m"] >= 0
        after = agent.processes()
        assert after["front"] == before["front"], "the front is told, not replaced"
        assert after["inventory"] != before["inventory"], "what a worker was told cannot be changed"
        # The answers that the front remembers by the bytes of the request are those of the new policy too.
        write(path, "guest-get-osinfo")
        agent.call("guest-ping")
        agent.call("guest-ping")
        draft = path.read_text().replace('"guest-ping", ', "")
        path.write_text(draft)
        assert agent.reload().result == "applied"
        assert "has been disabled" in refused(agent, "guest-ping")


def test_workers_whose_orders_are_the_same_stay(path: Path) -> None:
    stay = '[workers]\npreload = ["inventory", "network"]\n'
    write(path, "guest-get-osinfo", "guest-network-get-interfaces", more=stay)
    with Reloading(path) as agent:
        agent.call("guest-get-osinfo")
        agent.call("guest-network-get-interfaces")
        before = agent.processes()
        write(path, "guest-get-osinfo", "guest-get-load", "guest-network-get-interfaces", more=stay)
        agent.reload()
        agent.call("guest-get-load")
        after = agent.processes()
        assert after["network"] == before["network"]
        assert after["inventory"] != before["inventory"]
        write(path, "guest-get-osinfo", "guest-get-load")
        agent.reload()
        wait_for(lambda: "network" not in agent.processes(), what="a worker without a command ends")
        assert "has been disabled" in refused(agent, "guest-network-get-interfaces")


@pytest.mark.root
def test_a_worker_that_need_not_stay_any_more_leaves_unasked(path: Path) -> None:
    write(path, "guest-get-osinfo", more='[workers]\npreload = ["inventory"]\n')
    with Reloading(path) as agent:
        wait_for(lambda: "inventory" in agent.processes(), what="the worker comes unasked")
        time.sleep(FIRST_STAY + 1)
        first = agent.process("inventory")
        write(path, "guest-get-osinfo")
        assert agent.reload().result == "applied"
        wait_for(lambda: agent.processes().get("inventory") != first, FIRST_STAY + 5, what="the worker leaves")
        assert "inventory" not in agent.processes()


BAD = [
    ("[commands]\nallow = ['guest-pong']\n", 2, "guest-pong"),
    ("[commands\n", 1, "not TOML"),
    ("[comands]\n", 1, "comands"),
    ("[commands]\nallow = ['@fs']\nblock = ['guest-fsfreeze-thaw']\n", 3, "guest-fsfreeze-thaw"),
]


@pytest.mark.parametrize(("text", "line", "word"), BAD)
def test_a_bad_policy_changes_nothing_and_is_told(path: Path, text: str, line: int, word: str) -> None:
    write(path, "guest-get-osinfo", more='[workers]\npreload = ["inventory"]\n')
    with Reloading(path) as agent:
        agent.call("guest-get-osinfo")
        before, allowed = agent.processes(), supported(agent)
        path.write_text(text)
        report = agent.reload()
        assert report.result == "refused"
        assert any(f"{path}:{line}" in said and word in said for said in report.says), report.says
        assert f"{path}:{line}" in agent.log()
        assert "the old one stays in force" in agent.log()
        assert (agent.processes(), supported(agent)) == (before, allowed)
        # And mended it is taken.
        write(path, "guest-get-osinfo", "guest-get-load")
        assert agent.reload().result == "applied"
        assert "guest-get-load" in supported(agent)


def test_a_running_agent_keeps_its_policy_with_each_fault_that_a_file_can_have(path: Path) -> None:
    with Reloading(path) as agent:
        allowed, front = supported(agent), agent.process("front")
        for text, problems in WRONG:
            path.write_text(text)
            report = agent.reload()
            assert report.result == "refused", text
            assert len(report.says) == len(problems), (text, report.says)
            for said, problem in zip(report.says, problems, strict=True):
                assert said.startswith(printable(f"{path}:" + problem.replace("{path}", str(path)))), (text, said)
        assert agent.report().reloaded == len(WRONG) >= 60
        assert (supported(agent), agent.process("front")) == (allowed, front)


@pytest.mark.parametrize("what", ["gone", "writable", "link", "fifo", "other"])
@pytest.mark.root
def test_a_file_that_cannot_be_trusted_changes_nothing(path: Path, what: str) -> None:
    with Reloading(path) as agent:
        match what:
            case "gone":
                path.unlink()
            case "writable":
                path.chmod(0o666)
            case "link":
                path.rename(path.with_suffix(".real"))
                path.symlink_to(path.with_suffix(".real"))
            case "fifo":
                path.unlink()
                os.mkfifo(path)
            case "other":
                os.chown(path, 65534, 65534)
        assert agent.reload().result == "refused"
        assert supported(agent) == {*ALWAYS, "guest-get-osinfo"}


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_a_request_in_flight_finishes_under_the_policy_it_began_under() -> None:
    path = Path("/tmp/policy.toml")
    handles = ("guest-file-open", "guest-file-write", "guest-file-flush", "guest-file-close")
    write(path, *handles)
    with LoopFs("ext4") as fs, DeadMan(30, *fs.points), Reloading(path) as agent:
        handle = agent.call("guest-file-open", path=f"{fs.points[0]}/file", mode="w")
        agent.call("guest-file-write", handle=handle, buf_b64="YWJj")
        agent.call("guest-file-flush", handle=handle)
        worker = agent.process("file")
        point = os.open(fs.points[0], os.O_RDONLY)
        fcntl.ioctl(point, FIFREEZE, 0)  # not by the agent: it knows of no freeze
        try:
            agent.client.request("guest-file-write", {"handle": handle, "buf-b64": "ZGVm"})
            wait_for(lambda: state(worker) == "D", what="the worker waits inside the handler")
            write(path, "guest-get-load")
            assert agent.reload().result == "applied"
            agent.client.request("guest-file-flush", {"handle": handle})
            agent.client.request("guest-get-load")
            assert agent.client.silent(0.3)
            assert agent.report().outdated == ["file"]
        finally:
            thaw(point)
        # What was in hand goes on; what came after it is judged by the new policy.
        assert agent.client.reply()["return"]["count"] == 3
        assert "has been disabled" in agent.client.reply()["error"]["desc"]
        assert agent.client.reply()["return"]["load1m"] >= 0
        wait_for(lambda: "file" not in agent.processes(), what="the worker ends")
        assert agent.report().outdated == []
        assert Path(f"{fs.points[0]}/file").read_text() == "abcdef"


@pytest.mark.root
def test_a_request_that_its_worker_never_began_is_judged_by_the_new_policy(path: Path) -> None:
    write(path, "guest-get-osinfo", "guest-get-load")
    with Reloading(path) as agent:
        agent.call("guest-get-osinfo")
        inventory = agent.process("inventory")
        os.kill(inventory, signal.SIGSTOP)
        wait_for(lambda: state(inventory) == "T")  # until then a request may still wake its poll
        agent.client.request("guest-get-load")
        agent.client.request("guest-get-osinfo")
        time.sleep(0.2)
        write(path, "guest-get-osinfo")
        assert agent.reload().result == "applied"
        os.kill(inventory, signal.SIGCONT)
        assert "has been disabled" in agent.client.reply()["error"]["desc"]
        assert agent.client.reply()["return"]["kernel-release"] == os.uname().release


@pytest.mark.root
def test_open_files_stay_where_more_is_allowed_and_are_closed_where_less_is(path: Path, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"abc")
    handles = ("guest-file-open", "guest-file-read", "guest-file-close")
    write(path, *handles)
    with Reloading(path) as agent:
        handle = agent.call("guest-file-open", path=str(content))
        first = agent.process("file")
        write(path, *handles, "guest-file-seek")
        assert agent.reload().result == "applied"
        assert agent.report().outdated == ["file"]
        # The worker that holds the file goes on under what it was told, which is the less.
        assert agent.call("guest-file-read", handle=handle)["count"] == 3
        assert "has been disabled" in refused(agent, "guest-file-seek", handle=handle, offset=0, whence=0)
        agent.call("guest-file-close", handle=handle)
        wait_for(lambda: agent.processes().get("file") != first, what="the worker makes room")
        handle = agent.call("guest-file-open", path=str(content))
        assert agent.call("guest-file-seek", handle=handle, offset=1, whence=0)["position"] == 1
        second = agent.process("file")
        write(path, "guest-file-open", "guest-file-close", "guest-file-seek")
        assert agent.reload().result == "applied"
        wait_for(lambda: agent.processes().get("file") != second, what="the worker ends with what it holds")
        assert "has been disabled" in refused(agent, "guest-file-read", handle=handle)
        assert "has not been found" in refused(agent, "guest-file-close", handle=handle)
        assert "what was open or running is given up" in agent.log()


@pytest.mark.root
def test_programs_that_run_go_on_and_are_forgotten_where_less_is_allowed(path: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    write(path, "guest-exec", "guest-exec-status", "guest-get-osinfo")
    with Reloading(path) as agent:
        arguments = ["-c", f"while [ ! -e {note}.go ]; do sleep 0.02; done; echo done > {note}"]
        pid = agent.call("guest-exec", path="/bin/sh", arg=arguments, capture_output=True)["pid"]
        # What does not concern the worker leaves it alone.
        write(path, "guest-exec", "guest-exec-status")
        assert agent.reload().result == "applied"
        assert agent.call("guest-exec-status", pid=pid) == {"exited": False}
        write(path, "guest-exec-status")
        assert agent.reload().result == "applied"
        assert "Invalid parameter" in refused(agent, "guest-exec-status", pid=pid)
        assert os.path.isdir(f"/proc/{pid}")
        Path(f"{note}.go").touch()
        wait_for(note.exists, what="the program ends by itself")


@pytest.mark.root
def test_what_was_given_up_needs_a_restart(path: Path) -> None:
    write(path, "guest-get-osinfo", "guest-set-time")
    with Reloading(path) as agent:

        def bounding() -> int:
            text = Path(f"/proc/{agent.pid}/status").read_text()
            return int(text.partition("CapBnd:")[2].split()[0], 16)

        assert bounding() >> CAPABILITIES["SYS_TIME"] & 1
        write(path, "guest-get-osinfo", "guest-set-time", "guest-fstrim", "guest-ssh-get-authorized-keys")
        assert agent.reload().result == "applied", "what these need the supervisor has for itself"
        write(path, "guest-get-osinfo", "guest-set-user-password", "guest-exec")
        report = agent.reload()
        assert report.result == "restart-needed"
        assert any("restart needed: user needs CAP_CHOWN" in line for line in report.says), report.says
        assert any("restart needed: exec needs" in line for line in report.says), report.says
        assert supported(agent) >= {"guest-set-time", "guest-fstrim"}
        assert "guest-exec" not in supported(agent)
        # A policy that needs less gives up what the others would need again.
        write(path, "guest-get-osinfo")
        assert agent.reload().result == "applied"
        assert not bounding() >> CAPABILITIES["SYS_TIME"] & 1
        write(path, "guest-get-osinfo", "guest-set-time")
        report = agent.reload()
        assert report.result == "restart-needed" and "time needs CAP_SYS_TIME" in report.says[0]
        # Rows without a capability come and go.
        write(path, "guest-get-osinfo", "guest-network-get-interfaces", "guest-set-vcpus")
        assert agent.reload().result == "applied"
        assert agent.call("guest-network-get-interfaces")


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_a_reload_waits_for_the_thaw() -> None:
    path = Path("/tmp/policy.toml")
    freeze = ("guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
    write(path, *freeze, "guest-get-osinfo", more="[fsfreeze]\nauto-thaw = 30\n")
    with LoopFs("ext4") as fs, DeadMan(40, *fs.points), Reloading(path) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        before = agent.processes()
        write(path, "guest-get-load", *freeze, more="[fsfreeze]\nauto-thaw = 20\n")
        report = agent.reload()
        assert report.result == "deferred" and "after the thaw" in report.says[0]
        assert frozen(fs.points[0])
        assert agent.reload().result == "deferred"
        assert agent.call("guest-fsfreeze-status") == "frozen"
        after = agent.processes()
        assert {n: after[n] for n in ("fs", "thawer", "front")} == {n: before[n] for n in ("fs", "thawer", "front")}
        assert agent.call("guest-fsfreeze-thaw") == 1
        wait_for(lambda: agent.report().result == "applied", what="the deferred reload")
        assert supported(agent) == {*ALWAYS, *freeze, "guest-get-load"}
        wait_for(lambda: not {"fs", "thawer"} & set(agent.processes()), what="fs and its watchdog make room")
        assert agent.call("guest-fsfreeze-status") == "thawed"
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        left = agent.report().deadline
        assert left is not None and left - time.monotonic() <= 20
        assert agent.call("guest-fsfreeze-thaw") == 1
        assert takes_writes(fs.points[0])


@pytest.mark.root
@pytest.mark.loop
@pytest.mark.parametrize("victims", [["fs"], ["front"], ["fs", "front"]], ids="+".join)
@isolated
def test_deaths_while_a_reload_waits_for_the_thaw(victims: list[str]) -> None:
    """The next policy knows no freeze: whoever is started again meanwhile goes by the one that the freeze began under."""
    path = Path("/tmp/policy.toml")
    freeze = ("guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
    write(path, *freeze, more="[fsfreeze]\nauto-thaw = 30\n")
    with LoopFs("ext4") as fs, DeadMan(40, *fs.points), Reloading(path) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        agent.call("guest-ping")
        write(path, "guest-get-load")
        assert agent.reload().result == "deferred"
        for name in victims:
            pid = agent.process(name)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda n=name, p=pid: agent.processes().get(n) not in (None, p), what=f"another {name}")
        client = agent.connect() if "front" in victims else agent.client
        client.sync()
        assert client.call("guest-fsfreeze-status") == "frozen"
        assert frozen(fs.points[0])
        assert client.call("guest-fsfreeze-thaw") == 1
        wait_for(lambda: agent.report().result == "applied", what="the deferred reload")
        wait_for(lambda: not {"fs", "thawer"} & set(agent.processes()), what="those of the freeze make room")
        with pytest.raises(AgentError, match="disabled"):
            client.call("guest-fsfreeze-status")
        assert client.call("guest-get-load")["load1m"] >= 0
        assert takes_writes(fs.points[0])


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_a_bad_policy_that_was_deferred_is_refused_after_the_thaw() -> None:
    path = Path("/tmp/policy.toml")
    freeze = ("guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
    write(path, *freeze)
    with LoopFs("ext4") as fs, DeadMan(40, *fs.points), Reloading(path) as agent:
        assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
        path.write_text("nonsense\n")
        assert agent.reload().result == "deferred"
        assert agent.call("guest-fsfreeze-thaw") == 1
        wait_for(lambda: agent.report().result == "refused", what="the deferred reload")
        assert agent.call("guest-fsfreeze-status") == "thawed"


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_reloads_and_freezes_do_not_disturb_each_other() -> None:
    """A freeze may be on its way when a policy takes over: it is then that of the old one, to its end."""
    path = Path("/tmp/policy.toml")
    freeze = ("guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
    texts = ("[fsfreeze]\nauto-thaw = 30\n", "[fsfreeze]\nauto-thaw = 25\n")
    write(path, *freeze, more=texts[0])
    with LoopFs("ext4") as fs, DeadMan(60, *fs.points), Reloading(path) as agent:
        stop = threading.Event()

        def reloads() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                write(path, *freeze, *(["guest-get-load"] if number % 3 else []), more=texts[number % 2])
                os.kill(agent.pid, signal.SIGHUP)
                stop.wait(0.003 * (number % 7))

        thread = threading.Thread(target=reloads)
        thread.start()
        try:
            end = time.monotonic() + 8
            rounds = 0
            while time.monotonic() < end:
                assert agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points) == 1
                assert agent.call("guest-fsfreeze-status") == "frozen"
                assert agent.call("guest-fsfreeze-thaw") == 1
                rounds += 1
        finally:
            stop.set()
            thread.join()
        assert rounds > 5
        agent.reload()
        assert agent.call("guest-fsfreeze-status") == "thawed"
        assert agent.report().reloaded > 20
        assert takes_writes(fs.points[0])


# -- each answer is one policy's

BOTH = ("guest-get-osinfo", "guest-network-get-interfaces", "guest-get-timezone")
POLICIES = (
    {*ALWAYS, *BOTH, "guest-get-load", "guest-get-vcpus"},
    {*ALWAYS, "guest-get-osinfo", "guest-get-timezone", "guest-get-cpustats", "guest-get-host-name"},
)
ASKED = sorted(set.union(*POLICIES) - {"guest-sync", "guest-sync-delimited"})


@pytest.mark.root
def test_under_load_each_answer_is_that_of_exactly_one_policy(path: Path) -> None:
    """Pipelined requests for several workers, a reload every few milliseconds: nothing is lost, nobody dies, and what was asked
    after a reload was told to have ended is answered by that policy."""
    write(path, *POLICIES[0])
    with Reloading(path) as agent:
        in_force: list[tuple[float, float, int]] = [(0.0, 0.0, 0)]  # signalled, known to be in force, which
        stop = threading.Event()
        failure: list[BaseException] = []

        def reloads() -> None:
            number = 0
            try:
                while not stop.is_set():
                    number += 1
                    write(path, *POLICIES[number % 2])
                    at = time.monotonic()
                    report = agent.reload()
                    assert report.result == "applied"
                    in_force.append((at, time.monotonic(), number % 2))
                    stop.wait(0.01 * (number % 4))
            except BaseException as e:
                failure.append(e)

        asked: list[tuple[float, str]] = []
        answers: list[tuple[float, dict[str, Any]]] = []
        thread = threading.Thread(target=reloads)
        thread.start()
        end = time.monotonic() + 8
        number = 0
        while time.monotonic() < end:
            for _ in range(number % 5 + 1):
                name = ASKED[number % len(ASKED)]
                number += 1
                asked.append((time.monotonic(), name))
                agent.client.request(name)
            while len(answers) < len(asked):
                reply = agent.client.reply(5)
                answers.append((time.monotonic(), reply))
        stop.set()
        thread.join()
        assert not failure, failure
        assert agent.client.silent(0.1)
        log = agent.log()
    changes = len(in_force)
    assert changes > 15 and len(asked) > 200, (changes, len(asked))
    mixed = 0
    in_force.append((float("inf"), float("inf"), -1))
    for (at, name), (answered, reply) in zip(asked, answers, strict=True):
        # The policies that may have been in force at some time between the question and the answer.
        possible = {
            which
            for (signalled, _, which), (_, following, _) in itertools.pairwise(in_force)
            if signalled <= answered and following >= at
        }
        if "error" in reply:
            text = reply["error"]["desc"]
            assert text.startswith(f"Command {name} has been disabled: "), text
            explained = {n for n, allowed in enumerate(POLICIES) if name not in allowed}
        elif name == "guest-info":
            told = {c["name"] for c in reply["return"]["supported_commands"] if c["enabled"]}
            explained = {n for n, allowed in enumerate(POLICIES) if told == allowed}
        else:
            explained = {n for n, allowed in enumerate(POLICIES) if name in allowed}
        around = [(s - at, f - at, w) for s, f, w in in_force if abs(s - at) < 0.5]
        if not explained & possible:
            print(name, reply, possible, answered - at, around)
            raise AssertionError
        mixed += len(possible) > 1
    print(f"{changes} reloads, {len(asked)} requests, {mixed} of them while a reload went on")
    assert mixed
    assert " ended by " not in log and "broke the protocol" not in log, log


@pytest.mark.root
def test_a_front_that_dies_in_a_reload_comes_back_with_the_policy_in_force(path: Path) -> None:
    with Reloading(path) as agent:
        agent.call("guest-get-osinfo")
        for number in range(6):
            write(path, "guest-get-load" if number % 2 else "guest-get-osinfo")
            front = agent.process("front")
            wanted = agent.hang_up()
            time.sleep(0.01 * number)
            os.kill(front, signal.SIGKILL)
            wait_for(lambda n=wanted: agent.report().reloaded >= n, what="the reload")
            agent.client.close()
            agent._clients[:] = []
            agent.connect()
            agent.client.sync()
            assert ("guest-get-load" in supported(agent)) == bool(number % 2)
            wait_for(lambda f=front: agent.processes().get("front") not in (None, f), what="a new front")
            time.sleep(2.1)  # so long must it live not to be thought broken


# -- the log file


def test_a_log_file_that_was_renamed_is_opened_anew(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    with Reloading(path, "-v", "-l", str(log)) as agent:
        agent.call("guest-get-osinfo")
        first = agent.process("inventory")
        os.kill(agent.pid, signal.SIGHUP)
        time.sleep(0.3)
        assert agent.process("inventory") == first, "the same file is no reason to replace anybody"
        log.rename(tmp_path / "agent.log.1")
        os.kill(agent.pid, signal.SIGHUP)
        wait_for(log.exists, what="a new log file")
        path.write_text("nonsense\n")
        agent.reload()
        assert "the old one stays in force" in log.read_text()
        agent.call("guest-get-osinfo")
        assert agent.process("inventory") != first
        assert os.readlink(f"/proc/{agent.process('inventory')}/fd/2") == str(log)
        os.kill(agent.process("front"), signal.SIGKILL)
        wait_for(lambda: "front ended by signal 9" in log.read_text(), what="the supervisor's own line")


# -- privsep-gactl reload


def gactl(agent: Reloading, *words: str) -> tuple[int, str]:
    program = Path(sys.executable).parent / "privsep-gactl"
    place = runtime_dir(agent.directory, os.geteuid(), {})
    run = subprocess.run([program, *words, "--rundir", place], capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout + run.stderr


def test_the_tool_checks_asks_and_tells(path: Path) -> None:
    with Reloading(path) as agent:
        write(path, "guest-get-load")
        assert gactl(agent, "reload") == (0, "the policy is in force\n")
        assert "guest-get-load" in supported(agent)
        status, text = gactl(agent, "reload", "--json")
        assert (status, json.loads(text)["result"], json.loads(text)["number"]) == (0, "applied", 2)
        path.write_text("[commands]\nallow = ['guest-pong']\nblock = ['guest-pang']\n")
        status, text = gactl(agent, "reload")
        assert status == 1 and f"{path}:2" in text and f"{path}:3" in text, "all errors at once"
        assert agent.report().reloaded == 2, "the agent was left alone"
        assert "guest-get-load" in supported(agent)


@pytest.mark.root
def test_the_tool_says_what_needs_a_restart_and_who_goes_on(path: Path, tmp_path: Path) -> None:
    handles = ("guest-file-open", "guest-file-close")
    write(path, *handles)
    with Reloading(path) as agent:
        agent.call("guest-file-open", path="/dev/null")
        write(path, *handles, "guest-file-read")
        status, text = gactl(agent, "reload")
        assert status == 0 and "file: its worker holds something" in text, text
        write(path, *handles, "guest-set-time")
        status, text = gactl(agent, "reload")
        assert status == 1 and "restart needed: time needs CAP_SYS_TIME" in text, text


def test_the_tool_signals_the_process_that_wrote_the_status_and_no_other(path: Path, tmp_path: Path) -> None:
    with Reloading(path) as agent:
        place = Path(runtime_dir(agent.directory, os.geteuid(), {}))
        other = subprocess.Popen(["sleep", "60"])
        try:
            text = (place / "status").read_text()
            forged = tmp_path / "status"
            forged.write_text(text.replace(f"process supervisor {agent.pid}", f"process supervisor {other.pid}"))
            with pytest.raises(ctlreload.ReloadError, match=r"is not the agent|cannot tell"):
                ctlreload.reload(str(tmp_path))
            with pytest.raises(ctlreload.ReloadError, match="is not the agent"):
                os.close(ctlreload._supervisor(str(place), other.pid, agent.report().started))
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()


@pytest.mark.root
@pytest.mark.loop
@isolated
def test_the_tool_says_that_a_freeze_defers_it() -> None:
    path = Path("/tmp/policy.toml")
    freeze = ("guest-fsfreeze-freeze-list", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
    write(path, *freeze)
    with LoopFs("ext4") as fs, DeadMan(40, *fs.points), Reloading(path) as agent:
        agent.call("guest-fsfreeze-freeze-list", mountpoints=fs.points)
        status, text = gactl(agent, "reload")
        assert status == 0 and text.startswith("deferred: frozen\n"), text
        assert agent.call("guest-fsfreeze-thaw") == 1


# -- a front that does not listen


@pytest.mark.root
def test_a_front_that_does_not_listen_keeps_nothing_alive(path: Path) -> None:
    """Stopped, as a front that was taken over would feign it: the workers obey the supervisor, and what is asked of the next
    ones is decided by the new policy."""
    write(path, "guest-file-open", "guest-file-read", "guest-file-close")
    with Reloading(path) as agent:
        handle = agent.call("guest-file-open", path="/dev/null")
        worker, front = agent.process("file"), agent.process("front")
        os.kill(front, signal.SIGSTOP)
        try:
            wait_for(lambda: state(front) == "T")
            agent.client.request("guest-file-read", {"handle": handle})
            write(path, "guest-file-close")
            assert agent.reload().result == "applied"
            wait_for(lambda: agent.processes().get("file") != worker, what="the worker ends, whatever the front does")
            assert agent.report().outdated == []
        finally:
            os.kill(front, signal.SIGCONT)
        assert "has been disabled" in agent.client.reply()["error"]["desc"]
        assert "has not been found" in refused(agent, "guest-file-close", handle=handle)
        assert agent.process("front") == front


def test_the_supervisor_gets_no_parser_by_a_reload() -> None:
    program = "import sys; import privsep.supervisor, privsep.reload, policy.rules; print(*sys.modules)"
    libraries = [p for p in sys.path if "site-packages" in p or "dist-packages" in p]
    line = f"import sys; sys.path[:0] = {[str(PROJECT)]!r}; sys.path += {libraries!r}; {program}"
    run = subprocess.run([sys.executable, "-IS", "-c", line], capture_output=True, text=True, check=True)
    assert "privsep.reread" in run.stdout.split()
    assert not {"tomllib", "json", "msgpack", "re", "policy.read", "policy.load", "protocol.wire"} & set(
        run.stdout.split()
    )
