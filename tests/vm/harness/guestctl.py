#!/usr/bin/python3
"""Runs in the guest: does what the tests ask, as root, over a virtio port that is not the agent's.

One JSON object a line each way, answers in the order in which things end.  No network, no login, and nothing is opened for
writing, so it goes on while every file system is frozen.  What a command prints goes to pipes: SELinux lets programs that change their
type go on with those, not with memory files.  A process that a command left behind does not hold back the answer.  Standard library only: it is copied into the image as it stands.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import select
import signal
import subprocess
import threading
import time
from typing import Any

PORT = "privsep-ga.test.control"
ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}
MCL_CURRENT_AND_FUTURE = 3
PIPE = 1 << 16  # bytes that a pipe takes before somebody reads
LEFT = 2.0  # seconds

_writing = threading.Lock()


def find_port() -> str:
    """The device node of our port, once the kernel has it; udev's link may be later."""
    ports = "/sys/class/virtio-ports"
    while True:
        for name in os.listdir(ports) if os.path.isdir(ports) else ():
            with open(f"{ports}/{name}/name") as file:
                if file.read().strip() == PORT:
                    return f"/dev/{name}"
        time.sleep(0.1)


def reply(port: int, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    with _writing:
        while data:
            try:
                data = data[os.write(port, data[:32768]) :]
            except BlockingIOError:
                select.select([], [port], [], 1)
            except OSError:
                time.sleep(0.2)  # the host has closed its end


class Output:
    """What comes out of a pipe, read while it comes."""

    def __init__(self) -> None:
        self._end, self.fd = os.pipe()
        self._data = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._end, 1 << 16):
            self._data += data
        os.close(self._end)

    def text(self) -> str:
        """When the program has ended: what it left in the pipe comes within a moment, a process that it left behind is not waited for."""
        os.close(self.fd)
        self._thread.join(LEFT)
        return base64.b64encode(self._data).decode()


def given(data: bytes) -> int:
    """A descriptor from which a program reads these."""
    if len(data) > PIPE:
        fd = os.memfd_create("in")
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd
    fd, end = os.pipe()
    os.write(end, data)
    os.close(end)
    return fd


def run(request: dict[str, Any]) -> dict[str, Any]:
    """A program: its status and output.  One that is over its limit is killed; one that cannot be killed is left."""
    out, err, stdin = Output(), Output(), given(base64.b64decode(request.get("stdin") or ""))
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            request["argv"], stdin=stdin, stdout=out.fd, stderr=err.fd, env=ENVIRON, cwd="/", start_new_session=True
        )
    finally:
        os.close(stdin)
    status, late = None, False
    try:
        status = process.wait(request["limit"])
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        try:
            status = process.wait(2)
        except subprocess.TimeoutExpired:  # in the kernel, as a writer on a frozen file system is
            threading.Thread(target=process.wait, daemon=True).start()
    seconds = time.monotonic() - started
    return {"status": status, "late": late, "seconds": seconds, "out": out.text(), "err": err.text()}


def put(request: dict[str, Any]) -> dict[str, Any]:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request["append"] else os.O_TRUNC)
    fd = os.open(request["path"], flags, request["mode"])
    try:
        os.write(fd, base64.b64decode(request["data"]))
        os.fchmod(fd, request["mode"])
    finally:
        os.close(fd)
    return {}


def get(request: dict[str, Any]) -> dict[str, Any]:
    with open(request["path"], "rb") as file:
        file.seek(request["offset"])
        return {"data": base64.b64encode(file.read(request["size"])).decode()}


def ping(request: dict[str, Any]) -> dict[str, Any]:
    return {"monotonic": time.monotonic(), "boottime": time.clock_gettime(time.CLOCK_BOOTTIME), "time": time.time()}


WORK = {"run": run, "put": put, "get": get, "ping": ping}


def serve(port: int, line: bytes) -> None:
    try:
        request = json.loads(line)
    except ValueError:
        return  # half a line of a host that went away
    try:
        answer = WORK[request["do"]](request)
    except Exception as e:
        answer = {"failed": f"{type(e).__name__}: {e}"}
    reply(port, {**answer, "id": request.get("id")})


def main() -> None:
    ctypes.CDLL(None).mlockall(MCL_CURRENT_AND_FUTURE)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    pending = b""
    while True:
        try:
            data = os.read(port, 65536)
        except OSError:
            data = b""
        if not data:  # no host is there
            pending = b""
            time.sleep(0.05)
            continue
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            threading.Thread(target=serve, args=(port, line), daemon=True).start()


if __name__ == "__main__":
    main()
