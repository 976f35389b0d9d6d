"""The hook worker: runs `HOOK freeze` and `HOOK thaw` for the fs worker, and for nobody else.

It has no command of its own and no socket to the front, so a host that took the front over cannot quiesce databases for ever.

As the peer (qemu-ga 10.2, wire facts in docs): one argument, the agent's own environment, a session of its own, standard
input from /dev/null, output captured for the error text.  Different from it: output is bounded and goes to the log too, and
a hook that is not done within `hook-limit` seconds is killed with its whole process group.

`subprocess` would cost 14 ms and 2 MiB for what os.posix_spawn does; exec failures come back from it as errors.
"""

from __future__ import annotations

import _signal
import os
import select
import struct
import time

from privsep import hookwire, wiring
from protocol.errors import strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as Socket
    from typing import Final

    from privsep.runtime import Context

_FAILURE: Final = "child process has failed to execute fsfreeze hook: "
_WORDS: Final = {hookwire.FREEZE: "freeze", hookwire.THAW: "thaw"}
_ENDS: Final = {hookwire.DONE: "ok", hookwire.FAILED: "failed", hookwire.CUT: "killed at its time limit"}
_LOGGED: Final = 50  # lines of output in the log
_ROUNDS: Final = 4
_RESET: Final = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE, _signal.SIGCHLD, _signal.SIGQUIT)


def watch(ctx: Context) -> dict[int, Callable[[Context], None]]:
    """The socket from fs; a new one after fs was restarted."""
    fd = ctx.fds.get("fs")
    return {} if fd is None else {fd: _asked}


def _asked(ctx: Context) -> None:
    fd = ctx.fds["fs"]
    sock = ctx.state.__dict__.get("sock")
    if sock is None or sock.fileno() != fd:
        if sock is not None:
            sock.close()
        sock = ctx.state.__dict__["sock"] = wiring.adopt(fd)
    if not _serve(ctx, sock):
        sock.close()
        ctx.state.__dict__["sock"] = None
        if ctx.fds.get("fs") == fd:
            del ctx.fds["fs"]


def _serve(ctx: Context, sock: Socket) -> bool:
    """One question; False when fs is gone or broken."""
    try:
        data = sock.recv(hookwire.QUESTION.size + 1)
        number, what = hookwire.QUESTION.unpack(data)
        word = _WORDS[what]
    except (OSError, struct.error, KeyError):
        return False
    begun = time.monotonic()
    output = bytearray()
    result, text = run(ctx.setting("fsfreeze-hook"), word, float(ctx.setting("hook-limit", "60")), output)
    took = time.monotonic() - begun
    ctx.log.info(f"hook {word}: {_ENDS[result]} after {took:.1f} s")
    lines = output.decode("utf-8", "replace").splitlines()
    for line in lines[:_LOGGED]:
        ctx.log.info(f"hook {word} says: {line}")
    if len(lines) > _LOGGED:
        ctx.log.info(f"hook {word}: {len(lines) - _LOGGED} more lines of its output are left out")
    try:
        sock.send(hookwire.ANSWER.pack(number, result) + text.encode("utf-8", "replace"))
    except OSError:
        return False
    return True


def run(hook: str, word: str, seconds: float, output: bytearray) -> tuple[int, str]:
    """Run the hook with one argument: DONE, FAILED or CUT, and for the last two the error's text.

    `output` gets the first bytes of what it writes."""
    if not hook:
        return hookwire.DONE, ""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(writer, True)
        try:
            pid = os.posix_spawn(
                hook,
                [hook, word],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=_RESET,
            )
        except OSError as e:
            return hookwire.FAILED, f"{_FAILURE}failed to exec '{hook}': {strerror(e.errno or 0)}\n"
        os.close(writer)
        writer = -1
        _forget_oom_score(pid)
        timely = _wait(pid, reader, output, time.monotonic() + seconds)
        if not timely:
            _kill_group(pid)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if not timely:
        return hookwire.CUT, f"{_FAILURE}not done within {seconds:g} seconds, killed"
    if os.WIFSIGNALED(status):
        return hookwire.FAILED, "child process has terminated abnormally"
    if status == 0:
        return hookwire.DONE, ""
    if output:
        return hookwire.FAILED, _FAILURE + output.decode("utf-8", "replace")
    return hookwire.FAILED, f"{_FAILURE}exit status {os.WEXITSTATUS(status)}"


def _wait(pid: int, reader: int, output: bytearray, end: float) -> bool:
    """Collect output until the hook itself ends (its children may live on with the pipe); False at the time limit."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reader, select.POLLIN)
    try:
        while (left := end - time.monotonic()) > 0:
            ready = [fd for fd, _ in poll.poll(left * 1000)]
            if reader in ready and not _collect(reader, output):
                poll.unregister(reader)
            if pidfd in ready:
                # A pipe holds no more than a few rounds; who still writes into it is not the hook.
                for _ in range(_ROUNDS):
                    if not _collect(reader, output):
                        break
                return True
    finally:
        os.close(pidfd)
    return False


def _collect(reader: int, output: bytearray) -> bool:
    """What is in the pipe now; False at its end."""
    try:
        data = os.read(reader, hookwire.OUTPUT)
    except BlockingIOError:
        return True
    output += data[: hookwire.OUTPUT - len(output)]
    return bool(data)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _forget_oom_score(pid: int) -> None:
    """The agent may be protected from the kernel's out-of-memory choice; what the hook starts must not be."""
    try:
        with open("/proc/self/oom_score_adj", "rb", 0) as file:
            if int(file.read(16)) >= 0:
                return
        with open(f"/proc/{pid}/oom_score_adj", "wb", 0) as file:
            file.write(b"0")
    except (OSError, ValueError):
        pass  # it has ended already, or /proc is not there
