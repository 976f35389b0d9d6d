"""Rules about programs, users, power, mount points and rates, in the real workers."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.agent import Agent, AgentError, wait_for
from tests.support.loopfs import LoopFs, frozen, takes_writes
from tests.support.namespace import isolated

pytestmark = [pytest.mark.root]


def policy(text: str, profile: str = "default") -> list[str]:
    path = Path("/tmp/policy.toml")
    path.write_text(f'profile = "{profile}"\n{text}')
    path.chmod(0o644)
    return ["--policy", str(path)]


def refusal(agent: Agent, command: str, **arguments: object) -> str:
    with pytest.raises(AgentError) as e:
        agent.call(command, **arguments)
    assert e.value.kind == "GenericError"
    return e.value.desc


def run(agent: Agent, path: str, *arg: str, **more: object) -> tuple[dict[str, object], bytes]:
    pid = agent.call("guest-exec", path=path, arg=list(arg), capture_output=True, **more)["pid"]
    status = wait_for(lambda: (s := agent.call("guest-exec-status", pid=pid))["exited"] and s)
    return status, base64.b64decode(status.get("out-data", ""))


EXEC = """
[commands]
allow = ["@exec"]
[[exec]]
id = "who"
program = "/usr/bin/id"
args = ["-?"]
user = "nobody"
[[exec]]
program = "/usr/bin/env"
env = ["LANG", "LC_*"]
user = "nobody"
group = "daemon"
[[exec]]
id = "shell"
program = "/bin/sh"
args = ["-c", "..."]
user = "root"
input = true
time-limit = 1
output-limit = 4
"""


@isolated
def test_programs() -> None:
    os.environ["SECRET_OF_THE_AGENT"] = "x"
    with Agent(*policy(EXEC)) as agent:
        assert run(agent, "/usr/bin/id", "-u")[1] == b"65534\n"
        assert refusal(agent, "guest-exec", path="/usr/bin/id") == (
            "guest-exec is not allowed by policy (rule who): its arguments do not match"
        )
        assert "(rule who): its arguments" in refusal(agent, "guest-exec", path="/usr/bin/id", arg=["-u", "root"])
        assert "(rule who): it may not be given input" in refusal(
            agent, "guest-exec", path="/usr/bin/id", arg=["-u"], input_data="QQ=="
        )
        for path in ("id", "/bin/id", "/usr/bin/../bin/id", "/usr/bin/python3"):
            assert "(rule exec): no exec rule has this program" in refusal(agent, "guest-exec", path=path)
        plain = run(agent, "/usr/bin/env")[1].decode().split()
        assert "USER=nobody" in plain and not any("SECRET" in v or "INVOCATION" in v for v in plain)
        assert run(agent, "/usr/bin/env", env=["LANG=C", "LC_ALL=C"])[1] == b"LANG=C\nLC_ALL=C\n"
        for variable in ("LD_PRELOAD=x", "PATH=/tmp", "LANG", "=", "lang=C"):
            assert "its environment" in refusal(agent, "guest-exec", path="/usr/bin/env", env=[variable])
        status, out = run(agent, "/bin/sh", "-c", "cat", input_data=base64.b64encode(b"abcdef").decode())
        assert (out, status["out-truncated"]) == (b"abcd", True)
        begun = time.monotonic()
        assert run(agent, "/bin/sh", "-c", "sleep 30 & sleep 30")[0]["signal"] == 9
        assert time.monotonic() - begun < 5
        assert "guest-exec is refused by rule who (/tmp/policy.toml:5): its arguments do not match" in agent.log()


CONFINED = """
[commands]
allow = ["@exec"]
[[exec]]
id = "inside"
program = "/bin/sh"
args = ["-c", "*"]
user = "root"
network = false
writable = ["/srv/data"]
[[exec]]
program = "/bin/bash"
args = ["-c", "*"]
user = "nobody"
writable = []
"""


@isolated
def test_a_confined_program_writes_where_it_may_and_has_no_network() -> None:
    os.makedirs("/srv/data")
    os.makedirs("/srv/other", mode=0o777)
    os.chmod("/srv/other", 0o777)
    with Agent(*policy(CONFINED)) as agent:

        def shell(text: str, path: str = "/bin/sh") -> bytes:
            return run(agent, path, "-c", text)[1]

        assert shell("echo a > /srv/data/x; mkdir /srv/data/d; mv /srv/data/x /srv/data/d; cat /srv/data/d/x") == b"a\n"
        for path in ("/srv/other/x", "/etc/x", "/tmp/x", "/dev/shm/x", "/proc/sys/kernel/hostname"):
            assert shell(f"(echo a > {path}) 2> /dev/null || echo no") == b"no\n"
        assert shell("(sh -c 'rm /etc/passwd' || ln /etc/passwd /srv/data/p) 2> /dev/null || echo no") == b"no\n"
        assert os.path.exists("/etc/passwd")
        assert shell("grep -c : /proc/net/dev; id -u") == b"1\n0\n"
        assert (
            shell("echo $(id -u) $(id -G); (echo a > /srv/other/y) 2> /dev/null || echo no", "/bin/bash")
            == b"65534 65534\nno\n"
        )
        # A folder that its owner has replaced by a link leads nowhere.
        os.rename("/srv/data", "/srv/moved")
        os.symlink("/etc", "/srv/data")
        os.lchown("/srv/data", 65534, 65534)
        with pytest.raises(
            AgentError, match=r"guest-exec cannot follow policy \(rule inside\): /srv/data: is a symbolic link"
        ):
            agent.call("guest-exec", path="/bin/sh", arg=["-c", "true"])
        os.lchown("/srv/data", 0, 0)
        os.unlink("/srv/data")
        os.symlink("/srv/moved", "/srv/data")
        assert shell("cat /srv/data/d/x; echo b > /srv/data/y && cat /srv/moved/y") == b"a\nb\n"
        # And what ran before does not tie the next one.
        assert shell("readlink /proc/self/ns/net", "/bin/bash") == os.readlink("/proc/self/ns/net").encode() + b"\n"
    with Agent(*policy(CONFINED.replace('"/bin/bash"', '"/none"'))) as agent:
        with pytest.raises(AgentError, match=r"Failed to execute child process .*No such file"):
            agent.call("guest-exec", path="/none", arg=["-c", "x"])


@isolated
def test_masked_arguments_are_in_no_record() -> None:
    text = """
[commands]
allow = ["@exec"]
[audit]
to = "log"
[[exec]]
id = "hidden"
program = "/bin/echo"
args = ["*"]
env = ["*"]
user = "nobody"
mask = true
[[exec]]
id = "shown"
program = "/usr/bin/printf"
args = ["*"]
user = "nobody"
"""
    with Agent(*policy(text)) as agent:
        assert run(agent, "/bin/echo", "hush-hush", env=["X=hush-hush"])[1] == b"hush-hush\n"
        assert run(agent, "/usr/bin/printf", "aloud")[1] == b"aloud"
        refusal(agent, "guest-exec", path="/bin/echo", arg=["hush-hush", "more"])
        wait_for(lambda: "by hidden" in agent.log())
        log = agent.log()
        assert "hush-hush" not in log and "aloud" in log and "path=/bin/echo" in log


@isolated
def test_a_domain_with_nothing_allowed_has_no_process_and_no_capability() -> None:
    def bounding(agent: Agent) -> int:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("CapBnd")).split()[1], 16)

    sys_time, sys_admin = 1 << 25, 1 << 21
    with Agent(*policy("")) as agent:
        agent.call("guest-ping")
        assert bounding(agent) & sys_time
        with pytest.raises(AgentError, match=r"^CommandNotFound: Command guest-exec has been disabled: .* by policy"):
            agent.call("guest-exec", path="/bin/true")
        assert not {"exec", "file", "user", "ssh"} & set(agent.processes())
    with Agent(*policy('[commands]\nblock = ["@time"]\n')) as agent:
        agent.call("guest-ping")
        assert not bounding(agent) & sys_time and bounding(agent) & sys_admin
        with pytest.raises(AgentError, match="Command guest-set-time has been disabled: "):
            agent.call("guest-set-time")
        assert "time" not in agent.processes()


USERS = """
[commands]
allow = ["@user", "@ssh"]
[[user]]
id = "people"
names = ["svc-*"]
uids = ["2000-2999"]
[[user]]
names = ["carol"]
for = ["keys"]
"""


@isolated
def test_users() -> None:
    for name, uid in (("ann", 2000), ("bob", 3000), ("carol", 3001), ("svc-a", 3002), ("svc-root", 0)):
        with open("/etc/passwd", "a") as f:
            f.write(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n")
        with open("/etc/shadow", "a") as f:
            f.write(f"{name}:*:19000:0:99999:7:::\n")
        os.makedirs(f"/home/{name}", exist_ok=True)
        os.chown(f"/home/{name}", uid, uid)
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7fP2nFzHkz5oGRmbPPRrKTcX3o7dZzZ8mVxsHoqf2e me"

    def password(agent: Agent, name: str) -> str:
        try:
            agent.call("guest-set-user-password", username=name, password="c2VjcmV0", crypted=False)
        except AgentError as e:
            return e.desc
        return ""

    def keys(agent: Agent, name: str) -> str:
        try:
            agent.call("guest-ssh-add-authorized-keys", username=name, keys=[key])
        except AgentError as e:
            return e.desc
        return ""

    shadow = Path("/etc/shadow").read_text
    with Agent(*policy(USERS)) as agent:
        for name in ("ann", "svc-a"):
            assert password(agent, name) == keys(agent, name) == ""
            assert f"{name}:$" in shadow() and Path(f"/home/{name}/.ssh/authorized_keys").exists()
        no = "is not allowed by policy (rule user): no user rule has this account"
        assert password(agent, "carol") == f"guest-set-user-password {no}" and keys(agent, "carol") == ""
        assert password(agent, "bob") == f"guest-set-user-password {no}"
        assert keys(agent, "bob") == f"guest-ssh-add-authorized-keys {no}"
        for name in ("root", "svc-root"):
            for text in (password(agent, name), keys(agent, name)):
                assert text.endswith(" (rule root-account): its uid is 0, and no user rule says root, or the number 0")
        assert "c2VjcmV0" not in agent.log()
    # Without rules everybody but uid 0; and root where it is named.
    with Agent(*policy('[commands]\nallow = ["@user"]\n')) as agent:
        assert "root-account" in password(agent, "root") and password(agent, "bob") == ""
    with Agent(*policy('[commands]\nallow = ["@user"]\n[[user]]\nnames = ["root"]\n')) as agent:
        assert password(agent, "root") == "" and "rule user" in password(agent, "bob")
    assert "root:$" in shadow()


@isolated
def test_power_modes_that_are_not_named_are_refused() -> None:
    with Agent(*policy('[power]\nmodes = ["suspend-disk"]\n')) as agent:
        for mode in ({}, {"mode": "powerdown"}, {"mode": "reboot"}, {"mode": "halt"}):
            assert "(rule power.modes): the mode" in refusal(agent, "guest-shutdown", **mode)
        assert "(rule power.modes)" in refusal(agent, "guest-suspend-ram")
        assert "mode is invalid" in refusal(agent, "guest-shutdown", mode="x")


@isolated
def test_rates_outlive_the_worker() -> None:
    text = '[rates]\nguest-get-load = 3\n"guest-get-*" = 5\nguest-get-timezone = 0\n'
    with Agent(*policy(text)) as agent:
        for _ in range(2):
            agent.call("guest-get-load")
        os.kill(agent.process("inventory"), 9)
        agent.call("guest-get-load")
        assert refusal(agent, "guest-get-load") == (
            "guest-get-load is not allowed by policy (rule rates.guest-get-load): more than 3 a minute"
        )
        for _ in range(5):
            agent.call("guest-get-cpustats")
        assert "(rule rates.guest-get-*): more than 5 a minute" in refusal(agent, "guest-get-cpustats")
        assert "more than 0 a minute" in refusal(agent, "guest-get-timezone")
        os.kill(agent.process("inventory"), 9)
        wait_for(lambda: "inventory" not in agent.processes())
        assert "more than 3" in refusal(agent, "guest-get-load")
        for _ in range(10):
            agent.call("guest-get-time")


def hook(path: str) -> list[str]:
    """A freeze hook that notes its calls beside itself, as options of the agent."""
    Path(path).write_text(f"#!/bin/sh\necho $1 >> {path}.log\n")
    os.chmod(path, 0o755)
    return [f"-F{path}"]


@isolated
@pytest.mark.loop
def test_a_freeze_is_decided_for_each_superblock_and_never_narrowed() -> None:
    with LoopFs("ext4", "ext4", "ext4") as fs:
        one, two, three = fs.points
        os.mkdir("/tmp/again")
        subprocess.run(["mount", "--bind", three, "/tmp/again"], check=True)
        never = policy('[fsfreeze]\nnever-mounts = ["/tmp/again"]\n')
        with Agent(*never, *hook("/tmp/hook")) as agent:
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[one, two]) == 2
            assert frozen(one) and agent.call("guest-fsfreeze-thaw") == 2
            told = Path("/tmp/hook.log").read_text()
            # One of its mount points is enough, whichever was asked for; and nothing was quiesced for it.
            for points in ([three], ["/tmp/again"], [one, three]):
                assert refusal(agent, "guest-fsfreeze-freeze-list", mountpoints=points) == (
                    "guest-fsfreeze-freeze-list is not allowed by policy (rule fsfreeze.never-mounts): "
                    f"the file system at {three} may not be frozen, and it was asked for"
                )
            assert "a freeze of everything would include it" in refusal(agent, "guest-fsfreeze-freeze")
            assert agent.call("guest-fsfreeze-status") == "thawed"
            assert all(takes_writes(p) for p in fs.points)
            assert Path("/tmp/hook.log").read_text() == told
            assert "rule fsfreeze.never-mounts (/tmp/policy.toml:3)" in agent.log()
        only = policy(f'[fsfreeze]\nonly-mounts = ["{one}", "/tmp/ag*"]\n')
        with Agent(*only) as agent:
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=[one, three]) == 2
            assert agent.call("guest-fsfreeze-thaw") == 2
            assert "(rule fsfreeze.only-mounts)" in refusal(agent, "guest-fsfreeze-freeze-list", mountpoints=[two])
            assert "(rule fsfreeze.only-mounts)" in refusal(agent, "guest-fsfreeze-freeze")
            # What means nothing freezes nothing, as ever.
            assert agent.call("guest-fsfreeze-freeze-list", mountpoints=["/none"]) == 0
        with Agent(*policy('[fsfreeze]\nonly-mounts = ["*"]\n')) as agent:
            assert agent.call("guest-fsfreeze-freeze") == 3
            assert agent.call("guest-fsfreeze-thaw") == 3
        subprocess.run(["umount", "/tmp/again"], check=True)


@isolated
@pytest.mark.loop
def test_a_trim_leaves_out_what_the_policy_does_and_says_so() -> None:
    with LoopFs("ext4", "ext4") as fs:
        one, two = fs.points
        with Agent(*policy(f'[fstrim]\nnever-mounts = ["{one}"]\n')) as agent:
            rows = {r["path"]: r for r in agent.call("guest-fstrim")["paths"]}
            assert rows[one] == {"path": one, "error": "not allowed by policy (rule fstrim.never-mounts)"}
            assert rows[two]["trimmed"] > 0


@isolated
def test_the_installed_policy_and_its_drop_ins() -> None:
    folder = Path("/etc/privsep-ga")
    (folder / "policy.d").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "policy.d").chmod(0o755)

    def write(name: str, text: str) -> None:
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)

    write("policy.toml", 'profile = "default"\n[commands]\nallow = ["@exec"]\n')
    write("policy.d/10-id.toml", '[[exec]]\nprogram = "/usr/bin/id"\nuser = "nobody"\n')
    write("policy.d/20-block.toml", '[commands]\nblock = ["guest-get-users"]\n')
    Path("/etc/sysconfig").mkdir()
    Path("/etc/sysconfig").chmod(0o755)
    Path("/etc/sysconfig/qemu-ga").write_text('FILTER_RPC_ARGS="--block-rpcs=guest-get-load"\n')
    Path("/etc/sysconfig/qemu-ga").chmod(0o644)
    with Agent() as agent:
        assert b"uid=65534(nobody)" in run(agent, "/usr/bin/id")[1]
        assert "(rule exec)" in refusal(agent, "guest-exec", path="/bin/sh")
        for name in ("guest-get-users", "guest-get-load"):
            with pytest.raises(AgentError, match=rf"Command {name} has been disabled: .* by policy"):
                agent.call(name)
        assert agent.call("guest-get-osinfo")
    write("policy.d/30-wrong.toml", "[comands]\n")
    for break_it in (lambda: None, lambda: (folder / "policy.d" / "30-wrong.toml").unlink() or folder.chmod(0o777)):
        break_it()
        with pytest.raises(RuntimeError, match="critical: /etc/privsep-ga"):
            Agent().start()
