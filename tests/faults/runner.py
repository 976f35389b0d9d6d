"""One run of the fault matrix on the real kernel, and what it showed.  Inside a private root."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import cells
from tests.faults.cells import FREE, FREEZES, ON, RESTART, Run
from tests.support.agent import Agent, AgentError, Client, state, wait_for
from tests.support.deadman import DeadMan
from tests.support.faultkit import FaultAgent, Points, Writers, signal_all, tree
from tests.support.loopfs import LoopFs

LIMITED = "fsfreeze is limited up to"
QUICK = 0.4  # seconds for which a freeze that goes on is looked at
STOPPED = (
    2.4  # seconds for which processes stay stopped at least: longer than every deadline, so that they wake up late
)
HANG = 60.0  # seconds after which the dead man ends a run that failed
LAPSED = "lapsed"
CLOSED = "connection closed"
SILENT = "no answer"


@dataclass(slots=True)
class Outcome:
    """What one run showed; `red` is empty when all is as it has to be.

    writable  file system -> seconds from the signal until it took writes for good; None: only the later thaw ended it
    answer    what the host got for the command that was under way
    then      what the host's next thaw said
    """

    run: str
    writable: dict[str, float | None] = field(default_factory=dict)
    answer: str = "-"
    then: str = "-"
    red: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_policy(seconds: int, path: str = "") -> str:
    """A policy file that allows what the default profile does, with that deadline."""
    file = Path(path or f"/tmp/policy-{seconds}.toml")
    file.write_text(f'profile = "default"\n\n[fsfreeze]\nauto-thaw = {seconds}\n')
    file.chmod(0o644)
    return str(file)


def reply_of(client: Client, limit: float) -> str:
    """The next reply in short."""
    try:
        reply = client.reply(limit)
    except (EOFError, OSError) as e:
        return SILENT if isinstance(e, TimeoutError) else CLOSED
    return str(reply["return"]) if "error" not in reply else short(AgentError(reply))


def short(error: AgentError) -> str:
    return LAPSED if LIMITED in error.desc else f"error: {error.desc}"


def ask_thaw(client: Client) -> str:
    client.request("guest-fsfreeze-thaw")
    return reply_of(client, 12.0)


class Bench:
    """Three file systems and their writers, for many runs."""

    def __init__(self, variant: str = "") -> None:
        self.variant = variant
        self.fs = LoopFs(*cells.FILE_SYSTEMS)
        self.points = self.fs.points

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.fs.thaw()
        self.fs.unmount()

    def run(self, run: Run) -> Outcome:
        """Never raises for what the agent does: that is a red outcome."""
        begun = time.monotonic()
        out = Outcome(str(run))
        with DeadMan(HANG, *self.points), Points(self.variant) as points, Writers(self.points) as writers:
            agents: list[FaultAgent] = []
            try:
                _Runner(run, out, points, writers, self.points, agents).go()
            except (AgentError, EOFError, OSError, RuntimeError, AssertionError, KeyError, ValueError) as e:
                out.red.append(f"{type(e).__name__}: {e}"[:600])
            finally:
                for agent in agents:
                    _end(agent)
                left = self.fs.thaw()
                if left:
                    out.red.append(f"left frozen: {', '.join(os.path.basename(p) for p in left)}")
                with contextlib.suppress(ValueError):
                    writers.settle()
                if out.red and agents:
                    out.red.append(
                        "log: " + " | ".join(line.partition(" ")[2] for line in agents[0].log().splitlines()[-12:])
                    )
        if out.red:  # whatever became of them
            self.fs.unmount()
            self.fs = LoopFs(*cells.FILE_SYSTEMS)
            self.points = self.fs.points
        out.seconds = time.monotonic() - begun
        return out


def _end(agent: Agent) -> None:
    with contextlib.suppress(Exception):
        for pid in tree(agent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        agent.kill()
    with contextlib.suppress(Exception):
        if isinstance(agent, FaultAgent):
            agent.forget()
        agent._clean()


class _Runner:
    def __init__(
        self, run: Run, out: Outcome, points: Points, writers: Writers, paths: list[str], agents: list[FaultAgent]
    ) -> None:
        self.case = run
        self.out = out
        self.points = points
        self.writers = writers
        self.paths = paths
        self.agents = agents
        self.count = str(len(paths))
        self.told = False  # the host had success for the freeze ...
        self.broken = False  # ... and a write went through before it asked for the thaw

    def check(self, fine: bool, text: str) -> None:
        if not fine:
            self.out.red.append(text)

    def start(self, directory: str | None = None) -> FaultAgent:
        agent = FaultAgent(
            self.points,
            "--policy",
            write_policy(self.case.deadline),
            directory=directory,
            watchdog=cells.WATCHDOG if self.case.manager and directory is None else 0.0,
        )
        agent.start()
        self.agents.append(agent)
        return agent

    def go(self) -> None:
        run, out, points = self.case, self.out, self.points
        agent = self.start()
        client = agent.client
        client.sync()
        assert client.call("guest-fsfreeze-status") == "thawed"
        pids = [agent.process(name) for name in cells.PROCESSES]
        victims = (
            pids if run.victims == cells.GROUP else [pids[cells.PROCESSES.index(n)] for n in run.victims.split("+")]
        )
        everybody = tree(agent)

        freeze = {"mountpoints": self.paths}
        if run.phase in FREEZES:
            points.arm(cells.POINTS[run.phase])
            client.request("guest-fsfreeze-freeze-list", freeze)
            points.wait()
        else:
            assert client.call("guest-fsfreeze-freeze-list", **freeze) == len(self.paths)
            assert client.call("guest-fsfreeze-status") == "frozen"
            self.told = True
        if run.phase == "thawing":
            points.arm(cells.POINTS[run.phase])
            client.request("guest-fsfreeze-thaw")
            points.wait()
        elif run.phase == "after":
            assert client.call("guest-fsfreeze-thaw") == len(self.paths)
            assert client.call("guest-fsfreeze-status") == "thawed"
            self.told = False
        if run.phase in ("unsaid", "frozen"):
            self.writers.poke(sure=True)

        struck = time.monotonic()
        if run.victims == cells.GROUP:
            os.killpg(agent.pid, run.signal)
        signal_all(victims, run.signal)
        points.release()

        what, bound = run.expected()
        if what == RESTART:
            agent, struck = self.restart(agent, everybody)
        steady = self.observe(what, bound, struck)
        if run.signal == signal.SIGSTOP:
            for pid in everybody:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.writers.watch(0.5, steady=0.25)  # nobody freezes again who wakes up late
            self.check(not any(w.held() for w in self.writers.all), "frozen again by one that woke up late")
        if run.phase in (*FREEZES, "thawing"):
            out.answer = reply_of(client, 3.0 if steady or what == ON else 0.5)
            if run.phase in FREEZES and out.answer.isdigit():
                self.check(out.answer == self.count, f"the freeze answered {out.answer}")
                self.told = True
                self.broken = self.broken or steady
            if run.phase == "thawing" and out.answer.isdigit():
                self.check(out.answer == self.count, f"the thaw answered {out.answer}")
                self.told = False
        if run.ends_agent and what != RESTART:
            if run.signal == signal.SIGTERM:
                self.check(agent.status() == 0, f"exit status {agent.status()}")
            agent = self.next_agent(agent, everybody)
        elif run.manager and agent.ended():
            agent = self.next_agent(agent, everybody)
        self.afterwards(agent, what)

    # -- the parts

    def observe(self, what: str, bound: float, struck: float) -> bool:
        """Write until all file systems have taken writes steadily, or the bound is over; whether they did."""
        run, out = self.case, self.out
        before = self.writers.through()
        least = STOPPED if run.signal == signal.SIGSTOP else 0.0
        steady = self.writers.watch(QUICK if what == ON else bound + 0.3, at_least=least)
        now = time.monotonic()
        for path, writer in zip(self.paths, self.writers.all, strict=True):
            name = path.rpartition("-")[2]
            stopped = writer.blocked(now) if what == ON else writer.held()
            took = None if stopped else max(0.0, writer.late - struck)
            out.writable[name] = None if took is None else round(took, 3)
            if what == ON:
                self.check(took is None, f"{name}: the freeze was to go on")
            else:
                self.check(took is not None and took <= bound, f"{name}: not writable within {bound:g} s ({took})")
            if what == FREE:
                self.check(took is not None and took < cells.AT_ONCE, f"{name}: blocked")
        if self.told and run.phase != "thawing":
            self.broken = self.broken or steady or self.writers.through() > before
        return steady

    def restart(self, agent: FaultAgent, everybody: list[int]) -> tuple[FaultAgent, float]:
        """Nobody is left: the service manager's ExecStopPost (for the group) or the next start thaws."""
        agent.status()
        self.gone(everybody)
        begun = time.monotonic()
        if self.case.victims == cells.GROUP:
            self.check(agent.recover() == 0, "recover failed")
            return agent, begun
        return self.follow(agent), begun

    def gone(self, everybody: list[int]) -> None:
        try:
            wait_for(lambda: all(state(p) in ("", "Z", "X") for p in everybody), 3.0, "the end of every process")
        except TimeoutError:
            self.check(False, "processes outlive the supervisor")

    def next_agent(self, agent: FaultAgent, everybody: list[int]) -> FaultAgent:
        agent.status()
        self.gone(everybody)
        return self.follow(agent)

    def follow(self, agent: FaultAgent) -> FaultAgent:
        """The next agent in the same folder."""
        client, agent._clients = agent._clients[0], []
        again = self.start(agent.directory)
        agent._clients = [client]  # its last reply is still to be read
        return again

    def afterwards(self, agent: FaultAgent, what: str) -> None:
        """What a host does next: connect again, sync, thaw; then everything works as before."""
        out = self.out
        if agent.ended():  # the group's case: thawed by recover, and now started
            agent = self.follow(agent)
        for client in agent._clients:
            client.close()
        client = agent.connect()
        client.sync()
        status = client.call("guest-fsfreeze-status")
        self.check(status == ("frozen" if what == ON else "thawed"), f"status {status}")
        out.then = ask_thaw(client)
        if out.then == LAPSED:
            self.check(what not in (ON, FREE), "a lapse is told and there was none")
            second = ask_thaw(client)
            self.check(second == "0", f"the lapse is told twice: {second}")
        else:
            self.check(not (self.told and self.broken), f"the freeze did not hold and thaw said {out.then}")
            self.check(out.then == (self.count if what == ON else "0"), f"the thaw said {out.then}")
        self.check(self.writers.watch(1.5, steady=0.05), "not writable after the thaw")
        self.writers.settle()
        # The next backup.
        assert client.call("guest-fsfreeze-freeze-list", mountpoints=self.paths) == len(self.paths)
        assert client.call("guest-fsfreeze-thaw") == len(self.paths)
        assert client.call("guest-ping") == {}
        self.check(agent.stop() == 0, "the agent does not end with status 0")
