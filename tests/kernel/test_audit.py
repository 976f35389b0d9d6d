"""The audit trail and the counters of a running agent."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.commands import BY_NAME
from tests.support.agent import PROJECT, Agent, AgentError, children, wait_for
from tests.support.loopfs import LoopFs
from tests.support.namespace import isolated

pytestmark = pytest.mark.root

GACTL = str(PROJECT / ".venv" / "bin" / "privsep-gactl")
Records = list[dict[str, Any]]


class Audited(Agent):
    """An agent with a policy file of its own, whose records go to a file."""

    def __init__(self, policy: str, to: str | None = None, *args: str) -> None:
        super().__init__()
        self.rundir = os.path.join(self.directory, "run")
        self._env["RUNTIME_DIRECTORY"] = self.rundir
        self.trail = Path(self.directory) / "audit.jsonl"
        self.policy_path = Path(self.directory) / "policy.toml"
        sink = f"file:{self.trail}" if to is None else to
        self.policy_path.write_text(f'{policy}\n[audit]\nto = "{sink}"\n')
        self._args = ("--policy", str(self.policy_path), *args)

    def records(self, **wanted: object) -> Records:
        with contextlib.suppress(FileNotFoundError):
            found: Records = [json.loads(line) for line in self.trail.read_text().splitlines()]
            return [r for r in found if all(r.get(k.replace("_", "-")) == v for k, v in wanted.items())]
        return []

    def record(self, **wanted: object) -> dict[str, Any]:
        """The one record that fits, as soon as it is there."""
        (found,) = wait_for(lambda: self.records(**wanted), what=str(wanted))
        assert isinstance(found, dict)
        return found

    def gactl(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [GACTL, *words, "--rundir", self.rundir], capture_output=True, text=True, timeout=30, cwd="/"
        )
        assert done.returncode == status, (done.returncode, done.stderr, done.stdout)
        return done.stdout if status == 0 or done.stdout else done.stderr

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """What a parser of Prometheus' makes of it: (name, labels) -> value; each family with help and type."""
        found = {}
        for family in text_string_to_metric_families(self.gactl("metrics")):
            assert family.documentation and family.type in ("counter", "gauge")
            for sample in family.samples:
                assert family.type != "counter" or sample.name.endswith("_total")
                key = sample.name.removeprefix("privsep_ga_"), frozenset(sample.labels.items())
                assert key not in found
                found[key] = sample.value
        return found

    def count(self, name: str, **labels: str) -> float:
        return sum(v for (n, have), v in self.metrics().items() if n == name and have >= set(labels.items()))


@pytest.fixture
def agent() -> Iterator[Audited]:
    with Audited(
        'profile = "qemu-ga"\nlenient = false\n[commands]\nblock = ["guest-get-users", "guest-fstrim"]'
    ) as agent:
        yield agent


def ended(agent: Audited, command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """begin and end of the one execution of a command."""
    end = agent.record(command=command, phase="end")
    begin = agent.record(command=command, phase="begin")
    assert begin["id"] == end["id"] and begin["time"] <= end["time"]
    names = [(r["id"], r["phase"]) for r in agent.records()]
    assert names.index((begin["id"], "begin")) < names.index((end["id"], "end"))
    return begin, end


def test_an_action_leaves_begin_and_end(agent: Audited) -> None:
    target = Path(agent.directory) / "file"
    handle = agent.call("guest-file-open", path=str(target), mode="w")
    begin, end = ended(agent, "guest-file-open")
    assert begin["arguments"] == {"path": str(target), "mode": "w"}
    assert (begin["process"], begin["pid"], begin["domain"]) == ("file", agent.process("file"), "file")
    assert begin["decision"] == "allow" and begin["rule"] and begin["origin"]
    assert end["result"] == "ok" and 0 <= end["duration-us"] < 10_000_000
    agent.call("guest-file-close", handle=handle)
    with pytest.raises(AgentError) as caught:
        agent.call("guest-file-open", path="/no/such/file")
    failed = agent.record(command="guest-file-open", result="error")
    assert failed["error"] == caught.value.desc


def test_what_a_worker_began_is_on_record_though_it_died_of_it(agent: Audited) -> None:
    """The program that it starts kills it."""
    with contextlib.suppress(AgentError):
        agent.call("guest-exec", path="/bin/sh", arg=["-c", "kill -9 $PPID"])
    begin, end = ended(agent, "guest-exec")
    assert begin["arguments"] == {"path": "/bin/sh", "arg": '["-c","kill -9 $PPID"]'}
    assert (end["result"], end["process"]) in (("lost", "front"), ("ok", "exec"))
    assert begin["pid"] == end["pid"] or end["process"] == "front"


def test_a_refusal_names_the_rule_and_its_place_in_trail_and_log(agent: Audited) -> None:
    with pytest.raises(AgentError, match="has been disabled"):
        agent.call("guest-fstrim", minimum=5)
    record = agent.record(phase="refused")
    line = next(n for n, text in enumerate(agent.policy_path.read_text().splitlines(), 1) if "guest-fstrim" in text)
    assert record["origin"] == f"{agent.policy_path}:{line}"
    assert record["decision"] == "deny" and record["process"] == "front" and record["domain"] == "trim"
    assert record["arguments"] == {"minimum": "5"}
    (told,) = [text for text in agent.log().splitlines() if "refused" in text]
    assert told.endswith(f"guest-fstrim minimum=5: not allowed by {record['rule']} at {record['origin']}")


RULES = """
profile = "qemu-ga"
lenient = false
[[exec]]
id = "greet"
program = "/bin/echo"
args = ["*"]
user = "root"
mask = true
[[file]]
id = "etc"
path = "/etc"
access = ["read"]
[sizes]
file-read = 10
"""


def test_rules_about_arguments_are_named_and_what_they_mask_is_not_shown() -> None:
    marker = "hUsH-hUsH"
    with Audited(RULES) as agent:
        agent.call("guest-exec", path="/bin/echo", arg=[marker])
        begin, end = ended(agent, "guest-exec")
        line = 1 + agent.policy_path.read_text().splitlines().index("[[exec]]")
        assert begin["rule"] == end["rule"] == "greet" and begin["origin"].startswith(f"{agent.policy_path}:{line}")
        assert begin["arguments"] == {"path": "/bin/echo", "arg": "(masked)"}
        for path, arg in (("/bin/echo", [marker, marker]), ("/bin/cat", [marker])):
            with pytest.raises(AgentError):
                agent.call("guest-exec", path=path, arg=arg)
        with pytest.raises(AgentError):
            agent.call("guest-file-open", path="/var/x")
        handle = agent.call("guest-file-open", path="/etc/hostname")
        for _ in range(4):  # what hosts ask all the time: told once, counted each time
            with pytest.raises(AgentError):
                agent.call("guest-file-read", handle=handle, count=11)
        agent.call("guest-file-close", handle=handle)
        ended(agent, "guest-file-close")
        refused = agent.records(phase="refused")
        assert [(r["process"], r["command"]) for r in refused] == [
            ("exec", "guest-exec"),
            ("exec", "guest-exec"),
            ("file", "guest-file-open"),
            ("file", "guest-file-read"),
        ]
        assert refused[0]["rule"] == "greet" and refused[0]["error"]
        assert refused[3]["rule"] == "sizes.file-read" and refused[3]["arguments"] == {
            "handle": str(handle),
            "count": "11",
        }
        assert agent.count("refusals_total", command="guest-exec", rule="greet") == 1
        assert agent.count("refusals_total", command="guest-file-read", rule="sizes.file-read") == 4
        assert agent.count("refusals_total", command="guest-exec") == 2
        assert agent.count("commands_total", command="guest-exec", result="refused") == 2
        assert marker not in agent.trail.read_text() and marker not in agent.log()


def test_polling_is_counted_and_not_recorded(agent: Audited) -> None:
    for _ in range(5):
        agent.call("guest-ping")
        agent.call("guest-get-osinfo")
        agent.client.sync(7)
        with pytest.raises(AgentError):
            agent.call("guest-get-users")
    assert [r["command"] for r in agent.records()] in ([], ["guest-get-users"])
    agent.record(command="guest-get-users", phase="refused")  # the first of them
    assert agent.count("commands_total", command="guest-ping", result="ok") == 5
    assert agent.count("commands_total", command="guest-sync-delimited", result="ok") == 5
    assert agent.count("commands_total", command="guest-get-osinfo", result="ok") == 5
    assert agent.count("commands_total", command="guest-get-users", result="refused") == 5
    assert agent.count("refusals_total", command="guest-get-users") == 5
    assert len(agent.records()) == 1


def test_counts_outlive_the_worker_and_the_front(agent: Audited) -> None:
    agent.call("guest-get-osinfo")
    agent.call("guest-ping")
    pid = agent.process("inventory")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in children(agent.pid))
    agent.call("guest-get-osinfo")
    os.kill(agent.process("front"), signal.SIGKILL)
    client = wait_for(lambda: _connected(agent))
    assert client.call("guest-ping") == {}
    assert agent.count("commands_total", command="guest-get-osinfo", result="ok") == 2
    assert agent.count("commands_total", command="guest-ping", result="ok") == 2
    assert agent.count("worker_restarts_total", process="inventory") >= 1
    assert agent.count("worker_restarts_total", process="front") == 1
    assert agent.count("up") == 1
    assert abs(agent.count("start_time_seconds") - time.time()) < 60


def _connected(agent: Audited) -> Any:
    try:
        client = agent.connect()
        client.sync(3)
        return client
    except (OSError, EOFError):
        return None


def test_a_worker_that_dies_leaves_an_end_said_by_the_front(agent: Audited) -> None:
    agent.call("guest-exec", path="/bin/true")
    worker = agent.process("exec")
    os.kill(worker, signal.SIGSTOP)
    agent.client.request("guest-exec", {"path": "/bin/true"})
    time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    reply = agent.client.reply()
    if "error" in reply:  # it had been read; a request that was not goes to the next worker
        record = agent.record(result="lost")
        assert (record["process"], record["command"], record["phase"]) == ("front", "guest-exec", "end")
        assert agent.count("commands_total", command="guest-exec", result="lost") == 1
    else:
        assert agent.count("commands_total", command="guest-exec", result="ok") == 2


def test_bytes_are_told_and_counted(agent: Audited) -> None:
    data = base64.b64encode(b"x" * 100_000).decode()
    agent.call("guest-exec", path="/bin/cat", input_data=data, capture_output=True)
    begin, end = ended(agent, "guest-exec")
    assert "input-data" not in begin["arguments"]
    assert abs(end["bytes-in"] - 100_000) <= 2
    assert abs(agent.count("bulk_bytes_total", command="guest-exec", direction="in") - 100_000) <= 2


def test_gactl_shows_and_filters(agent: Audited) -> None:
    agent.call("guest-file-close", handle=agent.call("guest-file-open", path="/etc/hostname"))
    with contextlib.suppress(AgentError):
        agent.call("guest-fstrim")
    wait_for(lambda: len(agent.records()) == 5)
    assert len(agent.gactl("audit").splitlines()) == 5
    whole = [json.loads(line) for line in agent.gactl("audit", "--json").splitlines()]
    assert whole == agent.records()
    assert len(agent.gactl("audit", "--command", "guest-file-*").splitlines()) == 4
    assert len(agent.gactl("audit", "--domain", "trim", "--result", "refused", "--since", "1h").splitlines()) == 1
    assert "guest-fstrim: not allowed by" in agent.gactl("audit", "--result", "refused")
    assert agent.gactl("audit", "--result", "lost") == ""
    assert agent.gactl("audit", "--since", "2999-01-01") == ""
    assert "neither a time ago" in agent.gactl("audit", "--since", "yesterday", status=1)
    assert len(agent.gactl("audit", "--file", str(agent.trail)).splitlines()) == 5


def test_metrics_are_written_atomically_for_a_collector(agent: Audited, tmp_path: Path) -> None:
    path = tmp_path / "privsep-ga.prom"
    agent.call("guest-ping")
    assert agent.gactl("metrics", "--output", str(path)) == ""
    assert "privsep_ga_up 1\n" in path.read_text() and os.listdir(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_without_an_agent_metrics_say_so(tmp_path: Path) -> None:
    done = subprocess.run([GACTL, "metrics", "--rundir", str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "privsep_ga_up 0\n" in done.stdout


def test_another_policy_is_an_event_and_may_move_the_trail(agent: Audited) -> None:
    with pytest.raises(AgentError):
        agent.call("guest-fstrim")
    agent.record(phase="refused")
    moved = Path(agent.directory) / "moved.jsonl"
    policy = f'profile = "qemu-ga"\nlenient = false\n[commands]\nblock = ["@trim"]\n[audit]\nto = "file:{moved}"\n'
    agent.policy_path.write_text(policy)
    os.kill(agent.pid, signal.SIGHUP)
    wait_for(moved.exists)
    agent.trail = moved
    assert agent.record(phase="event")["detail"] == str(agent.policy_path)
    with pytest.raises(AgentError):
        agent.call("guest-fstrim")
    assert agent.record(phase="refused")["origin"] == f"{agent.policy_path}:4"
    found = {
        (labels["rule"], labels["origin"]): value
        for (name, pairs), value in agent.metrics().items()
        if name == "refusals_total" and (labels := dict(pairs))["command"] == "guest-fstrim"
    }
    assert list(found.values()) == [1, 1]  # one by each rule


def test_a_host_that_is_refused_all_the_time_fills_no_disk_and_is_answered(agent: Audited) -> None:
    request = b'{"execute":"guest-fstrim","arguments":{"minimum":1}}\n'
    begun = time.monotonic()
    count = 0
    while time.monotonic() - begun < 2.0:
        agent.client.raw(request * 100)
        for _ in range(100):
            assert b"has been disabled" in agent.client.recv_line()
        count += 100
    assert agent.call("guest-ping", limit=1.0) == {}
    took = time.monotonic() - begun
    agent.call("guest-file-close", handle=agent.call("guest-file-open", path="/etc/hostname"))
    ended(agent, "guest-file-open")  # what workers say does not wait behind it
    told = len(agent.records(phase="refused"))
    assert told < count
    # A record of one refusal is some 150 bytes on its way and 400 in the file.
    assert agent.trail.stat().st_size < (took + 3) * 64 * 1024 * 4
    assert len(agent.log()) < 10_000
    assert agent.count("refusals_total", command="guest-fstrim") == count
    assert agent.count("audit_records_dropped_total", process="front") > 0


@pytest.mark.parametrize("to", ["none", "log"])
def test_other_sinks(to: str) -> None:
    with Audited('profile = "qemu-ga"', to) as agent:
        agent.call("guest-file-open", path="/etc/hostname")
        if to == "log":
            wait_for(lambda: "end " in agent.log())
            assert "guest-file-open path=/etc/hostname" in agent.log()
        assert "log" in agent.gactl("audit", status=1) or to == "none"
        assert agent.count("audit_records_total", process="file") == 2


def test_a_sink_that_cannot_be_had_stops_the_start() -> None:
    agent = Audited('profile = "default"', "file:/no/such/folder/audit")
    with pytest.raises(RuntimeError, match="the audit file /no/such/folder/audit cannot be opened"):
        agent.start()


def test_where_a_key_is_wrong_the_file_and_line_are_told() -> None:
    agent = Audited('profile = "default"', "journald")
    with pytest.raises(RuntimeError, match=r"policy.toml:3:\d+: .*journal.*file:/PATH"):
        agent.start()


MASKED = 'profile = "qemu-ga"\n[[exec]]\nprogram = "/bin/echo"\nuser = "root"\nmask = true'


@isolated
def test_while_frozen_nothing_is_written_and_after_the_thaw_all_of_it() -> None:
    with LoopFs("ext4") as fs:
        trail = Path(fs.points[0]) / "audit.jsonl"  # on what is frozen: a write would never end
        with Audited(MASKED, f"file:{trail}") as agent:
            agent.trail = trail
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[fs.points[0]]) == 1
            frozen = trail.read_text()
            for _ in range(3):
                with pytest.raises(AgentError, match="frozen state"):
                    agent.call("guest-file-open", path="/etc/hostname")
            with pytest.raises(AgentError, match="frozen state"):
                agent.call("guest-exec", path="/bin/echo", arg=["hush"])
            assert agent.count("frozen") == 1 and agent.count("freeze_seconds_total") > 0
            assert trail.read_text() == frozen
            assert agent.call("guest-fsfreeze-thaw") == 1
            _, end = ended(agent, "guest-fsfreeze-freeze-list")
            ended(agent, "guest-fsfreeze-thaw")
            assert end["result"] == "ok"
            refused = agent.records(phase="refused")
            assert [r["rule"] for r in refused] == ["frozen"] * 4
            assert refused[3]["arguments"] == {"path": "/bin/echo", "arg": "(masked)"}  # the front knows no rule
            times = [r["time"] for r in agent.records(process="fs")]
            assert times == sorted(times)
            assert agent.count("freezes_total") == 1 and agent.count("frozen") == 0
            assert agent.count("refusals_total", command="guest-file-open", rule="frozen") == 3
            assert agent.count("freeze_lapses_total") == 0


@isolated
def test_a_lapse_is_an_event_and_counted() -> None:
    with LoopFs("ext4") as fs:
        with Audited('profile = "qemu-ga"\n[fsfreeze]\nauto-thaw = 1') as agent:
            agent.call("guest-fsfreeze-freeze-list", mountpoints=[fs.points[0]])
            event = agent.record(phase="event")
            assert (event["event"], event["process"]) == ("lapse", "thawer")
            assert agent.count("freeze_lapses_total") == 1
            with pytest.raises(AgentError):
                agent.call("guest-fsfreeze-thaw")
            assert 1.0 <= agent.count("freeze_seconds_total") < 10


# -- secrets

MARKER = "MaRkEr5ecret"


def everything(agent: Audited) -> Iterator[tuple[str, bytes]]:
    """What anybody could read of secrets afterwards: sinks, log, state, and each process's command line and environment."""
    for root in (agent.directory, agent.rundir):
        for path in Path(root).rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()
    for name, pid in agent.processes().items():
        for part in ("cmdline", "environ", "status", "comm"):
            with contextlib.suppress(OSError):
                yield f"{name} {part}", Path(f"/proc/{pid}/{part}").read_bytes()
    for name in os.listdir(f"/proc/{agent.pid}/fd"):
        with contextlib.suppress(OSError):
            if "memfd:privsep-ga-counters" in os.readlink(f"/proc/{agent.pid}/fd/{name}"):
                yield f"counters {name}", Path(f"/proc/{agent.pid}/fd/{name}").read_bytes()
    yield "gactl audit", agent.gactl("audit", "--json").encode()
    yield "gactl metrics", agent.gactl("metrics").encode()


@isolated
def test_secrets_are_nowhere() -> None:
    """In a private root, whose shadow file is nobody's.  Requests that succeed, that fail, and that are refused."""
    for path, line in (("passwd", "mark:x:4711:4711::/home/mark:/bin/sh"), ("shadow", "mark:!:19000:0:99999:7:::")):
        with open(f"/etc/{path}", "a") as file:
            file.write(line + "\n")
    os.makedirs("/home/mark", exist_ok=True)
    os.chown("/home/mark", 4711, 4711)
    key = (
        "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + MARKER.encode().ljust(32, b"k")).decode()
    )
    secret = base64.b64encode(MARKER.encode()).decode()
    markers = (MARKER, secret, base64.b64encode(secret.encode()).decode(), key.split()[1])
    seen = set()

    def ask(agent: Audited, command: str, **arguments: object) -> None:
        seen.add(command)
        with contextlib.suppress(AgentError):
            agent.call(command, **arguments)

    ways = (
        "",
        "[ssh]\nstrict = true",
        '[commands]\nblock = ["guest-set-user-password", "@ssh", "guest-exec", "guest-file-write"]',
    )
    for way in ways:
        with Audited(f'profile = "qemu-ga"\n{way}', None, "-v") as agent:
            for user in ("mark", "no-such-user"):
                for crypted in (False, True):
                    ask(agent, "guest-set-user-password", username=user, password=secret, crypted=crypted)
                ask(agent, "guest-set-user-password", username=user, password=f"!{MARKER}", crypted=False)
                ask(agent, "guest-set-user-password", username=user, password=MARKER)
                for reset in (False, True):
                    ask(agent, "guest-ssh-add-authorized-keys", username=user, keys=[key], reset=reset)
                ask(agent, "guest-ssh-add-authorized-keys", username=user, keys=[MARKER])
                ask(agent, "guest-ssh-remove-authorized-keys", username=user, keys=[key, MARKER])
            ask(agent, "guest-exec", path="/bin/cat", input_data=secret, env=[f"PASSWORD={MARKER}"])
            ask(agent, "guest-exec", path="/no/such", input_data=secret, env=[f"PASSWORD={MARKER}"])
            with contextlib.suppress(AgentError):
                handle = agent.call("guest-file-open", path="/home/mark/written", mode="a")
                ask(agent, "guest-file-write", handle=handle, buf_b64=secret)
                agent.call("guest-file-close", handle=handle)
            wait_for(lambda: agent.records(command="guest-exec"))
            time.sleep(0.2)
            looked = 0
            for place, data in everything(agent):
                looked += 1
                for marker in markers:
                    assert marker.encode() not in data, f"{marker} in {place}: {data!r}"
            assert looked > 10
            assert "(secret)" in agent.gactl("audit")
    # Whatever the table calls secret was asked for.
    assert {name for name, row in BY_NAME.items() if row.secret} <= seen
    assert MARKER in Path("/home/mark/written").read_text() and "mark:!:" not in Path("/etc/shadow").read_text()
