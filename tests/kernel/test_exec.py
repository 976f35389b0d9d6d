"""guest-exec and guest-exec-status with real programs."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policy.rules import Rule
from privsep.runtime import Context
from protocol.errors import CommandError
from tests.support.handlers import bulk
from workers import children
from workers import exec as worker


class Lines:
    """A log that is a list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str) -> None:
        self.lines.append(text)

    warning = info = later = debug = error

    def flush(self) -> None:
        pass


Make = Callable[..., Context]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Context] = []
    kept = {n: signal.getsignal(n) for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)}

    def build(**settings: str) -> Context:
        ctx = Context(log=Lines(), settings=settings)  # type: ignore[arg-type]
        worker.prepare(ctx)
        made.append(ctx)
        return ctx

    yield build
    for number, action in kept.items():
        if action is not None and signal.getsignal(number) != action:
            signal.signal(number, action)
    for ctx in made:
        table = worker._table(ctx)
        for child in list(table.children._by_pid.values()):
            if child.pidfd is not None:
                os.killpg(child.pid, signal.SIGKILL)
        os.close(table.null)
        table.children._epoll.close()


@pytest.fixture
def ctx(make: Make) -> Context:
    return make()


def wait(ctx: Context, pid: int, limit: float = 20) -> dict[str, object]:
    """As the worker's loop does it: waits for what `watch` names, and asks in between."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status = worker.guest_exec_status(ctx, pid)
        if status["exited"]:
            return status
        watched = worker.watch(ctx)
        for fd in select.select(list(watched), [], [], 1)[0]:
            watched[fd](ctx)
    raise AssertionError("did not end")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def out(status: dict[str, object], name: str = "out-data") -> bytes:
    return bulk(status[name])


def run(ctx: Context, path: str, *arg: str, **more: object) -> dict[str, object]:
    pid = worker.guest_exec(ctx, path, arg=list(arg), **more)["pid"]  # type: ignore[arg-type]
    assert isinstance(pid, int)
    return wait(ctx, pid)


def shell(ctx: Context, text: str, **more: object) -> bytes:
    return out(run(ctx, "sh", "-c", text, capture_output="merged", **more))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


BOTH = "echo o1; echo e1 >&2; echo o2; echo e2 >&2"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", {}),
        (False, {}),
        ("stdout", {"out-data": b"o1\no2\n"}),
        ("stderr", {"err-data": b"e1\ne2\n"}),
        ("separated", {"out-data": b"o1\no2\n", "err-data": b"e1\ne2\n"}),
        (True, {"out-data": b"o1\no2\n", "err-data": b"e1\ne2\n"}),
        ("merged", {"out-data": b"o1\ne1\no2\ne2\n"}),
    ],
)
def test_each_capture_mode_keeps_what_it_says(ctx: Context, mode: bool | str, expected: dict[str, bytes]) -> None:
    status = run(ctx, "sh", "-c", BOTH, capture_output=mode)
    assert status.pop("exited") is True
    assert status.pop("exitcode") == 0
    for name, data in expected.items():
        assert out(status, name) == data
        assert status.pop(name.replace("data", "truncated")) is False
        del status[name]
    assert status == {}


def test_a_result_is_told_once_and_an_unknown_pid_is_an_error(ctx: Context) -> None:
    assert not worker.holds(ctx)
    pid = worker.guest_exec(ctx, "true")["pid"]
    assert worker.holds(ctx)
    assert isinstance(pid, int)
    assert wait(ctx, pid) == {"exited": True, "exitcode": 0}
    assert not worker.holds(ctx)
    for number in (pid, 0, -1, 1, os.getpid(), 1 << 62):
        with pytest.raises(CommandError, match=r"^Invalid parameter 'pid'$"):
            worker.guest_exec_status(ctx, number)


def test_exit_codes_and_signals_are_told_apart(ctx: Context) -> None:
    assert run(ctx, "sh", "-c", "exit 3") == {"exited": True, "exitcode": 3}
    assert run(ctx, "sh", "-c", "kill -9 $$") == {"exited": True, "signal": 9}
    assert run(ctx, "sh", "-c", "kill -TERM $$") == {"exited": True, "signal": 15}


def test_arguments_reach_the_program_as_they_are(ctx: Context) -> None:
    arguments = ["a b", "", "c'd", '"', "$HOME", "*", "€é", "\udce9", "--"]
    assert out(run(ctx, "printf", "[%s]", *arguments, capture_output=True)) == b"".join(
        b"[" + a.encode("utf-8", "surrogateescape") + b"]" for a in arguments
    )
    assert shell(ctx, "cat /proc/$$/cmdline") == b"sh\0-c\0cat /proc/$$/cmdline\0"


def test_the_environment_is_exactly_what_was_given(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "yes")
    assert out(run(ctx, "/usr/bin/env", env=["A=1", "B=two words"], capture_output=True)) == b"A=1\nB=two words\n"
    assert "exitcode" in run(ctx, "/usr/bin/env", env=[], capture_output=True)
    assert b"MINE=yes\n" in out(run(ctx, "env", capture_output=True))


def script(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_path_is_that_of_the_environment_given_else_the_agents(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "a" / "qgatool", "#!/bin/sh\necho a\n", 0o644)
    script(tmp_path / "b" / "qgatool", "#!/bin/sh\necho b\n")
    path = f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b"
    assert out(run(ctx, "qgatool", env=[f"PATH={path}"], capture_output=True)) == b"b\n"
    monkeypatch.setenv("PATH", f"{path}:/bin")
    assert out(run(ctx, "qgatool", capture_output=True)) == b"b\n"
    assert out(run(ctx, "qgatool", env=["X=1"], capture_output=True)) == b"b\n"
    with pytest.raises(CommandError, match=r"“qgatool” \(Permission denied\)$"):
        worker.guest_exec(ctx, "qgatool", env=[f"PATH={tmp_path}/a:{tmp_path}/none"])
    with pytest.raises(CommandError, match=r"“qgatool” \(No such file or directory\)$"):
        worker.guest_exec(ctx, "qgatool", env=[f"PATH={tmp_path}/none"])
    monkeypatch.chdir(tmp_path / "b")
    assert out(run(ctx, "qgatool", env=["PATH="], capture_output=True)) == b"b\n"


def test_a_script_without_an_interpreter_line_is_the_shells(ctx: Context, tmp_path: Path) -> None:
    script(tmp_path / "s", 'echo "$0:$1:$2"\n')
    assert out(run(ctx, f"{tmp_path}/s", "x y", "z", capture_output=True)) == f"{tmp_path}/s:x y:z\n".encode()
    script(tmp_path / "empty", "")
    assert run(ctx, f"{tmp_path}/empty") == {"exited": True, "exitcode": 0}


def test_what_cannot_be_started_says_why_and_leaves_nothing(ctx: Context, tmp_path: Path) -> None:
    script(tmp_path / "plain", "data", 0o644)
    script(tmp_path / "s", "#!/no/such/interp\n")
    (tmp_path / "loop").symlink_to("loop")
    before = descriptors()
    for path, why in (
        ("/bin/invalid-cmd42", "No such file or directory"),
        ("invalid-cmd42", "No such file or directory"),
        ("", "No such file or directory"),
        (f"{tmp_path}/plain", "Permission denied"),
        (f"{tmp_path}/plain/x", "Not a directory"),
        (f"{tmp_path}/s", "No such file or directory"),
        (f"{tmp_path}/loop", "Too many levels of symbolic links"),
        (f"{tmp_path}", "Permission denied"),
        ("/" + "n" * 300, "File name too long"),
    ):
        with pytest.raises(CommandError) as e:
            worker.guest_exec(ctx, path, input_data="YQ==", capture_output=True)
        assert e.value.desc == f"Failed to execute child process “{path}” ({why})"
    with pytest.raises(CommandError, match=r"^Failed to execute child process “true” \(Argument list too long\)$"):
        worker.guest_exec(ctx, "true", ["x" * 200_000])
    for arguments in (("tr\0ue", []), ("true", ["a\0"]), ("true", ["\ud800"])):
        with pytest.raises(CommandError, match=r"^Failed to execute child process "):
            worker.guest_exec(ctx, *arguments)
    with pytest.raises(CommandError, match=r"^Base64 data contains invalid characters$"):
        worker.guest_exec(ctx, "none", input_data="@@")
    assert descriptors() == before
    assert not worker.holds(ctx)


def test_standard_descriptors_are_dev_null_and_there_are_no_others(ctx: Context, tmp_path: Path) -> None:
    leak = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        look = f"import os; n = os.listdir('/proc/self/fd'); open('{tmp_path}/n', 'w').write(repr([*map(int, n)]));"
        look += f"open('{tmp_path}/fds', 'w').write(repr([os.readlink(f'/proc/self/fd/{{d}}') for d in range(3)]))"
        run(ctx, sys.executable, "-c", look)
        assert (tmp_path / "n").read_text() == "[0, 1, 2, 3]"  # 3 is the folder that it looks into
        assert (tmp_path / "fds").read_text() == "['/dev/null', '/dev/null', '/dev/null']"
    finally:
        os.close(leak)


def test_megabytes_of_input_and_output_flow_at_once(ctx: Context) -> None:
    data = os.urandom(1 << 20) * 8
    status = run(ctx, "cat", input_data=b64(data), capture_output=True)
    assert out(status) == data


@pytest.mark.parametrize("reader", ["true", "head -c 10 >/dev/null", "exec 0<&-; sleep 0.1"])
def test_a_program_that_does_not_read_its_input_hurts_nobody(ctx: Context, reader: str) -> None:
    before = descriptors()
    assert run(ctx, "sh", "-c", reader, input_data=b64(bytes(4 << 20)))["exitcode"] == 0
    assert descriptors() == before
    assert worker._table(ctx).children._waiting == 0


def test_empty_input_is_an_end_of_file_at_once(ctx: Context) -> None:
    assert shell(ctx, "cat; readlink /proc/self/fd/0 | cut -c-5", input_data="") == b"pipe:\n"


def test_a_stream_keeps_its_first_16_mebibytes_and_says_so(ctx: Context) -> None:
    status = run(ctx, "sh", "-c", "head -c 16777217 /dev/zero; echo short >&2", capture_output=True)
    assert out(status) == bytes(16 << 20)
    assert status["out-truncated"] is True
    assert (out(status, "err-data"), status["err-truncated"]) == (b"short\n", False)
    status = run(ctx, "head", "-c", "16777216", "/dev/zero", capture_output=True)
    assert len(out(status)) == 16 << 20
    assert status["out-truncated"] is False


def test_a_background_process_that_holds_the_pipe_keeps_it_running(ctx: Context) -> None:
    begun = time.monotonic()
    pid = worker.guest_exec(ctx, "sh", ["-c", "sleep 0.6 & echo x"], capture_output=True)["pid"]
    assert isinstance(pid, int)
    time.sleep(0.2)
    assert worker.guest_exec_status(ctx, pid) == {"exited": False}
    assert out(wait(ctx, pid)) == b"x\n"
    assert time.monotonic() - begun > 0.5
    begun = time.monotonic()
    assert run(ctx, "sh", "-c", "sleep 0.6 & echo x") == {"exited": True, "exitcode": 0}
    assert time.monotonic() - begun < 0.5


def test_a_program_gets_a_session_default_signals_and_a_usual_umask(make: Make) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    umask = os.umask(0o077)
    try:
        ctx = make()
        assert shell(ctx, "umask") == b"0022\n"
        # Not by a shell: it blocks signals itself while it starts a program.
        text = out(run(ctx, "cat", "/proc/self/status", capture_output=True)).decode()
        os.kill(os.getpid(), signal.SIGTERM)  # still as good as ignored here
    finally:
        os.umask(umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    fields = dict(line.split(":\t") for line in text.splitlines())
    # 32 and 33 are the C library's own: no program can set them, some starters leave them ignored.
    assert int(fields["SigIgn"], 16) & ~(3 << 31) == 0
    assert int(fields["SigBlk"], 16) == 0
    assert fields["Pid"] == fields["NSsid"] == fields["NSpgid"]


def test_the_folder_is_the_agents(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert out(run(ctx, "pwd", capture_output=True)) == f"{tmp_path}\n".encode()


@pytest.mark.root
def test_the_agents_shelter_from_the_oom_killer_is_not_inherited() -> None:
    text = (
        "import sys; sys.path[:0] = ['.', 'tests/kernel']; open('/proc/self/oom_score_adj', 'w').write('-500');"
        "import test_exec as t; c = t.Context(log=t.Lines()); t.worker.prepare(c);"
        "print(t.shell(c, 'cat /proc/$$/oom_score_adj').decode())"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def ruled(ctx: Context, **values: str) -> Context:
    """The context of a request that a rule admitted."""
    ctx.grant = Rule("exec", "mine", "p.toml:1", {k.replace("_", "-"): (v,) for k, v in values.items()})
    return ctx


@pytest.mark.root
def test_programs_run_as_the_user_of_the_rule_in_a_plain_environment(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "yes")
    nobody = pwd.getpwnam("nobody")
    ctx = ruled(make(), user="nobody")
    text = shell(ctx, "id -u; id -ru; id -g; id -G; env; grep Cap /proc/$$/status").decode().splitlines()
    groups = " ".join(str(g) for g in os.getgrouplist("nobody", nobody.pw_gid))
    assert text[:4] == [str(nobody.pw_uid)] * 2 + [str(nobody.pw_gid), groups]
    assert {f"HOME={nobody.pw_dir}", "USER=nobody", "LOGNAME=nobody"} <= set(text)
    assert "MINE=yes" not in text
    held = {line.split(":")[0]: int(line.split(":")[1], 16) for line in text if line.startswith("Cap")}
    assert held["CapEff"] == held["CapPrm"] == held["CapAmb"] == 0
    assert out(run(ctx, "/usr/bin/env", env=["A=1"], capture_output=True)) == b"A=1\n"


@pytest.mark.root
def test_a_group_of_the_rule_is_the_only_one(make: Make) -> None:
    assert shell(ruled(make(), user="65534", group="7"), "id -u; id -g; id -G").split() == [b"65534", b"7", b"7"]
    assert shell(ruled(make(), user="root", group="nogroup"), "id -u; id -Gn").split() == [b"0", b"nogroup"]


@pytest.mark.root
def test_a_file_that_only_the_worker_may_execute_is_refused_to_the_user(make: Make, tmp_path: Path) -> None:
    script(tmp_path / "s", "#!/bin/sh\n", 0o700)
    with pytest.raises(CommandError, match=r"\(Permission denied\)$"):
        worker.guest_exec(ruled(make(), user="nobody"), f"{tmp_path}/s")


@pytest.mark.parametrize(
    ("account", "what"),
    [({"user": "no-such-user"}, "user 'no-such-user'"), ({"user": "root", "group": "no-such"}, "group 'no-such'")],
)
def test_an_account_that_does_not_exist_means_that_nothing_runs(make: Make, account: dict[str, str], what: str) -> None:
    with pytest.raises(CommandError, match=rf"^guest-exec cannot follow policy \(rule mine\): there is no {what}$"):
        worker.guest_exec(ruled(make(), **account), "true")


@pytest.mark.root
def test_output_is_kept_as_far_as_the_rule_says_else_the_policy(make: Make) -> None:
    ctx = make(**{"exec-output": "10"})
    status = run(ctx, "printf", "%s", "x" * 100, capture_output=True)
    assert (out(status), status["out-truncated"]) == (b"x" * 10, True)
    status = run(ruled(ctx, user="root", output_limit="3"), "printf", "%s", "x" * 100, capture_output=True)
    assert (out(status), status["out-truncated"]) == (b"xxx", True)


@pytest.mark.root
def test_a_program_and_its_group_are_killed_at_the_time_limit_of_the_rule() -> None:
    # In a process of its own: the clock is the process's, and the test runner uses it.
    text = """
import sys, time
sys.path[:0] = [".", "tests/kernel"]
import test_exec as t
c = t.ruled(t.Context(log=t.Lines()), user="root", time_limit="1")
t.worker.prepare(c)
pids = [t.worker.guest_exec(c, "/bin/sh", ["-c", "sleep 30 & sleep 30"], capture_output=True)["pid"] for _ in range(2)]
c.grant = None
other = t.worker.guest_exec(c, "/bin/sleep", ["2"])["pid"]
begun = time.monotonic()
print([t.wait(c, pid) for pid in pids], round(time.monotonic() - begun, 1) < 1.9, t.wait(c, other))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=30)
    ended = {"exited": True, "signal": 9}
    assert done.stdout.strip() == str([[ended, ended], True, {"exited": True, "exitcode": 0}])[1:-1].replace(
        "], True, ", "] True "
    )


def test_only_its_own_children_are_reaped(ctx: Context) -> None:
    foreign = subprocess.Popen(["true"])
    assert run(ctx, "true")["exitcode"] == 0
    time.sleep(0.05)
    worker.service(ctx)
    assert os.waitpid(foreign.pid, 0) == (foreign.pid, 0)
    foreign.returncode = 0


def test_so_many_programs_run_at_once_and_no_more(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RUNNING", 2)
    pids = [worker.guest_exec(ctx, "sleep", ["0.3"])["pid"] for _ in range(2)]
    with pytest.raises(CommandError, match=r"^too many programs are running: 2"):
        worker.guest_exec(ctx, "true")
    for pid in pids:
        wait(ctx, pid)  # type: ignore[arg-type]
    assert run(ctx, "true")["exitcode"] == 0


def test_results_that_nobody_asks_for_are_dropped_oldest_first(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "REMEMBERED", 2)
    pids: list[int] = []
    for _ in range(4):
        pid = worker.guest_exec(ctx, "true")["pid"]
        assert isinstance(pid, int)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        worker.service(ctx)
        pids.append(pid)
    for pid in pids[:2]:
        with pytest.raises(CommandError, match=f"^the result of PID {pid} was dropped"):
            worker.guest_exec_status(ctx, pid)
    for pid in pids[2:]:
        assert wait(ctx, pid)["exitcode"] == 0


def test_when_memory_for_output_runs_out_old_results_shrink_and_tell(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "KEPT", 300_000)
    old = worker.guest_exec(ctx, "head", ["-c", "200000", "/dev/zero"], capture_output=True)["pid"]
    assert isinstance(old, int)
    while not worker._table(ctx).children._by_pid[old].ended:
        select.select(list(worker.watch(ctx)), [], [], 5)
        worker.service(ctx)
    new = run(ctx, "head", "-c", "400000", "/dev/zero", capture_output=True)
    assert (len(out(new)), new["out-truncated"]) == (300_000 - children.HEAD, True)
    status = wait(ctx, old)
    assert (status["exitcode"], len(out(status)), status["out-truncated"]) == (0, children.HEAD, True)
    assert worker._table(ctx).children._kept == 0
    with pytest.raises(CommandError, match=r"^too much input waits"):
        worker.guest_exec(ctx, "cat", input_data=b64(bytes(300_001)))


def test_a_full_descriptor_table_is_an_error_and_no_zombie(ctx: Context) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # tests before this one may have left some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    filler: list[int] = []
    seen: set[object] = set()
    try:
        for room in range(12):
            with contextlib.suppress(OSError):
                while True:
                    filler.append(os.dup(0))
            for fd in filler[:room]:
                os.close(fd)
            del filler[:room]
            try:
                pid = worker.guest_exec(ctx, "/bin/true", input_data="YQ==", capture_output=True)["pid"]
            except CommandError as e:
                seen.add(e.desc)
            else:
                seen.add(wait(ctx, pid)["exitcode"])  # type: ignore[arg-type]
    finally:
        for fd in filler:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 0 in seen and any("Too many open files" in str(s) for s in seen)
    assert zombies() == []


def zombies() -> list[int]:
    return [int(p) for p in Path("/proc/thread-self/children").read_text().split()]


def test_300_programs_leave_no_descriptor_and_no_zombie(ctx: Context) -> None:
    run(ctx, "true", capture_output=True, input_data="YQ==")
    before, mine = descriptors(), zombies()
    for _ in range(3):
        pids = [
            worker.guest_exec(ctx, "echo", ["x"], capture_output=("merged", True, False)[i % 3], input_data="YQ==")[
                "pid"
            ]
            for i in range(100)
        ]
        for pid in pids:
            assert wait(ctx, pid)["exitcode"] == 0  # type: ignore[arg-type]
    assert descriptors() == before
    assert zombies() == mine
    assert worker._table(ctx).children._running == worker._table(ctx).children._kept == 0


@pytest.mark.root
def test_a_program_that_cannot_be_confined_does_not_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = ruled(make(), user="root", network="false")
    made = tmp_path / "made"

    def refuse() -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr("privsep.sandbox.kernel.unshare_network", refuse)
    before = descriptors()
    with pytest.raises(CommandError, match=r"^the program cannot be confined as policy wants, so it does not run$"):
        worker.guest_exec(ctx, "/bin/touch", [str(made)])
    monkeypatch.setattr("privsep.sandbox.landlock.supported", lambda: 0)
    with pytest.raises(
        CommandError, match=r"^guest-exec cannot follow policy \(rule mine\): this kernel has no Landlock$"
    ):
        worker.guest_exec(ruled(ctx, user="root", writable="/tmp"), "/bin/touch", [str(made)])
    assert not made.exists() and not worker.holds(ctx) and descriptors() == before
