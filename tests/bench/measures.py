"""The measurements.  Each takes the rows, both agents in turn, round after round, so that whatever else the machine does hits
both; it runs in a process, a private root and, where it says so, a network of its own.

Nothing of the machine can be frozen: the private root shows no block device but the loop mounts made here, and a dead man
in another process thaws those.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

from tests.bench import processes
from tests.bench.rows import Row
from tests.support.agent import Agent, Client
from tests.support.deadman import DeadMan
from tests.support.peer import Peer

MIB = 1 << 20
STREAM = 20  # programs in an agent's turn, one after the other: turns are streams, as those of the other rows
Rows = dict[str, Row]
Pair = dict[str, Agent]


class Effort:
    """How much of everything: `quick` is for trying."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rounds = 3 if quick else 7
        self.requests = 300 if quick else 2000
        self.seconds = 0.4 if quick else 1.2


def ours() -> Agent:
    return Agent("--policy", "qemu-ga")


def theirs() -> Agent:
    return Peer()


@contextlib.contextmanager
def both() -> Iterator[Pair]:
    with theirs() as peer, ours() as agent:
        yield {"theirs": peer, "ours": agent}


def ask(client: Client, request: bytes, into: bytearray) -> int:
    """One request, one line back; how long it is."""
    client.socket.sendall(request)
    view, size = memoryview(into), 0
    while True:
        got = client.socket.recv_into(view[size:])
        if not got:
            raise EOFError
        size += got
        if into[size - 1] == 0x0A:
            return size


def line(execute: str, **arguments: object) -> bytes:
    message: dict[str, object] = {"execute": execute}
    if arguments:
        message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
    return json.dumps(message).encode() + b"\n"


def median_us(client: Client, request: bytes, count: int) -> float:
    into = bytearray(MIB)
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        ask(client, request, into)
        times.append(time.perf_counter() - begun)
    return sorted(times)[count // 2] * 1e6


def start(rows: Rows, effort: Effort) -> None:
    for number in range(effort.rounds * 3 + 1):
        for who, make in (("theirs", theirs), ("ours", ours)):
            agent = make()
            os.makedirs(agent.directory, exist_ok=True)
            begun = time.perf_counter()
            process = subprocess.Popen(agent.command(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
            connection = socket.socket(socket.AF_UNIX)
            while True:
                try:
                    connection.connect(agent.path)
                    break
                except OSError:
                    assert time.perf_counter() - begun < 10
                    time.sleep(0.0002)
            connection.sendall(line("guest-ping"))
            assert connection.recv(100) == b'{"return": {}}\n'
            first = time.perf_counter()
            connection.sendall(line("guest-get-timezone"))
            assert b"return" in connection.recv(1000)
            second = time.perf_counter()
            connection.close()
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:  # the peer's main loop sometimes misses the signal
                process.kill()
                process.wait()
            if number:  # the first one reads from the disk
                rows["start: exec to the first ping answered"].add(who, (first - begun) * 1e3)
                rows["first answer of a worker after that"].add(who, (second - first) * 1e3)


def small(rows: Rows, effort: Effort) -> None:
    with both() as pair:
        for agent in pair.values():
            for warm in ("guest-get-osinfo", "guest-get-vcpus"):
                agent.call(warm)
        for _ in range(effort.rounds):
            for who, agent in pair.items():
                client = agent.client
                for name, request in (
                    ("guest-info", line("guest-info")),
                    ("guest-get-host-name", line("guest-get-host-name")),
                    ("guest-get-osinfo, through a worker", line("guest-get-osinfo")),
                    ("guest-get-vcpus, through a worker", line("guest-get-vcpus")),
                ):
                    rows[name].add(who, median_us(client, request, effort.requests // 4))
                rows["sync, delimited"].add(who, syncs(client, effort.requests // 3))
                rows["pings, pipelined"].add(who, pipelined(client))
                with pinned(agent):
                    rows["ping, all on one processor"].add(who, median_us(client, line("guest-ping"), effort.requests))


def syncs(client: Client, count: int) -> float:
    times = []
    for number in range(count):
        begun = time.perf_counter()
        client.sync(number)
        times.append(time.perf_counter() - begun)
    return sorted(times)[count // 2] * 1e6


def pipelined(client: Client) -> float:
    begun = time.perf_counter()
    client.socket.sendall(line("guest-ping") * 1000)
    left = 1000
    while left:
        left -= client.socket.recv(1 << 16).count(b"\n")
    return 1000 / (time.perf_counter() - begun)


@contextlib.contextmanager
def pinned(agent: Agent) -> Iterator[None]:
    """Client and agent on one processor: what is left is work, not the placement of processes."""
    tasks = [int(task) for pid in agent.processes().values() for task in os.listdir(f"/proc/{pid}/task")] + [0]
    every = os.sched_getaffinity(0)
    try:
        for task in tasks:
            os.sched_setaffinity(task, {min(every)})
        yield
    finally:
        for task in tasks:
            os.sched_setaffinity(task, every)


def files(rows: Rows, effort: Effort) -> None:
    block = os.urandom(MIB)
    with open("/tmp/big", "wb") as f:
        for _ in range(96):
            f.write(block)
    into = bytearray(72 * MIB)
    with both() as pair:
        for size, name in (
            (4096, "4 KiB"),
            (65536, "64 KiB"),
            (MIB, "1 MiB"),
            (16 * MIB, "16 MiB"),
            (48 * MIB, "48 MiB"),
        ):
            for _ in range(effort.rounds // 2 + 1):
                for who, agent in pair.items():
                    for verb in ("read", "write"):
                        row = rows.get(f"file {verb}, {name}")
                        if row is not None:
                            used = processes.processor_time(agent.processes().values())
                            rate, count = transfer(agent, verb, size, into, effort.seconds)
                            row.add(who, rate if row.unit == "1/s" else rate * size / MIB)
                            if (verb, size) == ("read", MIB):
                                used = processes.processor_time(agent.processes().values()) - used
                                rows["processor time of a file read, 1 MiB"].add(who, used / count)
    with both() as pair:
        for who, agent in pair.items():
            handle = agent.call("guest-file-open", path="/tmp/big")
            ask(agent.client, line("guest-file-read", handle=handle, count=48 * MIB), into)
            found = agent.processes()
            taking_part = [found[name] for name in ("front", "file")] if who == "ours" else found.values()
            rows["peak of front and file worker, 48 MiB read"].add(who, processes.peak(taking_part))


def transfer(agent: Agent, verb: str, size: int, into: bytearray, seconds: float) -> tuple[float, int]:
    """Requests a second, and how many there were."""
    if verb == "read":
        handle = agent.call("guest-file-open", path="/tmp/big", mode="r")
        request = line("guest-file-read", handle=handle, count=size)
    else:
        handle = agent.call("guest-file-open", path="/tmp/out", mode="w")
        text = base64.b64encode(os.urandom(min(size, MIB)) * max(1, size // MIB)).decode()
        request = line("guest-file-write", handle=handle, buf_b64=text)
    count, begun = 0, time.perf_counter()
    while not count or (time.perf_counter() - begun < seconds and (count + 1) * size <= 96 * MIB):
        got = ask(agent.client, request, into)
        count += 1
    took = time.perf_counter() - begun
    assert got > size * 4 // 3 if verb == "read" else b'"count": %d' % size in into[:got]
    agent.call("guest-file-close", handle=handle)
    if verb == "write":
        assert os.path.getsize("/tmp/out") == count * size
    return count / took, count


def programs(rows: Rows, effort: Effort) -> None:
    with both() as pair:
        for number in range(effort.rounds + 1):
            for who, agent in pair.items():
                for _ in range(STREAM):
                    begun = time.perf_counter()
                    run(agent, "/bin/true")
                    if number:
                        rows["exec of true, until its status is known"].add(who, (time.perf_counter() - begun) * 1e3)
        for number in range(effort.rounds + 1):
            for who, agent in pair.items():
                took = at_once(agent, 100)
                if number:
                    rows["exec of true, 100 at once"].add(who, took * 1e3)
        for _ in range(effort.rounds):
            for who, agent in pair.items():
                begun = time.perf_counter()
                size = run(agent, "/usr/bin/head", "-c", str(16 * MIB), "/dev/zero")
                assert size > 16 * MIB * 4 // 3
                rows["exec, 16 MiB of output captured"].add(who, 16 / (time.perf_counter() - begun))


def at_once(agent: Agent, count: int) -> float:
    """Seconds until so many programs, asked for in one write, are all known to have ended."""
    begun = time.perf_counter()
    agent.client.socket.sendall(line("guest-exec", path="/bin/true") * count)
    left = [agent.client.reply()["return"]["pid"] for _ in range(count)]
    while left:
        left = [pid for pid in left if not agent.call("guest-exec-status", pid=pid)["exited"]]
        if left:
            time.sleep(0.001)
    return time.perf_counter() - begun


_into = bytearray(32 * MIB)


def run(agent: Agent, path: str, *arg: str) -> int:
    """Run a program to its end; how long the reply with its status is."""
    pid = agent.call("guest-exec", path=path, arg=list(arg), capture_output=bool(arg))["pid"]
    request = line("guest-exec-status", pid=pid)
    while True:
        size = ask(agent.client, request, _into)
        if b'"exited": false' not in _into[:100]:
            return size
        time.sleep(0.0002)


def interfaces(rows: Rows, effort: Effort) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    into = bytearray(16 * MIB)
    made = 0
    with both() as pair:
        for agent in pair.values():
            agent.call("guest-network-get-interfaces")
        for want in (2, 200) if effort.quick else (2, 200, 2000):
            commands = []
            for number in range(made, want, 2):
                commands.append(f"link add e{number} type veth peer name e{number + 1}")
                for each in (number, number + 1):
                    commands.append(f"addr add 10.{each >> 8}.{each & 255}.1/24 dev e{each}")
                    commands.append(f"addr add fd00:{each:x}::1/64 dev e{each} nodad")
            made = want
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True)
            for _ in range(3 if want == 2000 else effort.rounds):
                for who, agent in pair.items():
                    agent.client.socket.settimeout(60)
                    begun = time.perf_counter()
                    size = ask(agent.client, line("guest-network-get-interfaces"), into)
                    rows[f"{want} interfaces"].add(who, (time.perf_counter() - begun) * 1e3)
                    assert size > 200 * want


def loops(count: int, size: int) -> list[str]:
    """So many ext4 file systems on loop devices over tmpfs; their mount points."""
    model = f"/tmp/model-{size}"
    with open(model, "wb") as f:
        f.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", model], check=True)
    points = []
    for number in range(count):
        image, point = f"/tmp/image{number}", f"/tmp/mount{number}"
        subprocess.run(["cp", "--sparse=always", model, image], check=True)
        os.makedirs(point, exist_ok=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        points.append(point)
    return points


def unmount(points: list[str]) -> None:
    for point in reversed(points):
        subprocess.run(["umount", point], check=False)


def mounts(rows: Rows, effort: Effort) -> None:
    points = loops(10, 2 * MIB)
    bound: list[str] = []
    into = bytearray(MIB)
    try:
        with both() as pair:
            for agent in pair.values():
                agent.call("guest-get-fsinfo")
            for want in (100, 500):
                while len(points) + len(bound) < want:
                    point = f"/tmp/bind{len(bound)}"
                    os.mkdir(point)
                    subprocess.run(["mount", "--bind", points[len(bound) % len(points)], point], check=True)
                    bound.append(point)
                for _ in range(effort.rounds):
                    for who, agent in pair.items():
                        begun = time.perf_counter()
                        ask(agent.client, line("guest-get-fsinfo"), into)
                        rows[f"fsinfo, {want} mounts"].add(who, (time.perf_counter() - begun) * 1e3)
    finally:
        unmount(points + bound)


def freeze(rows: Rows, effort: Effort) -> None:
    most = 8 if effort.quick else 32
    points = loops(most, 32 * MIB)
    try:
        with both() as pair:
            for count in (1, 8, 32)[: 2 if effort.quick else 3]:
                some = points[:count]
                for number in range(effort.rounds + 1):
                    for who, agent in pair.items():
                        for point in some:
                            with open(f"{point}/touched", "w") as f:
                                f.write(str(number))
                        os.sync()
                        with DeadMan(60, *some):
                            begun = time.perf_counter()
                            froze = agent.call("guest-fsfreeze-freeze-list", limit=40, mountpoints=some)
                            between = time.perf_counter()
                            agent.call("guest-fsfreeze-thaw", limit=40)
                            ended = time.perf_counter()
                        assert froze == count
                        if number:  # the first one starts ours
                            rows[f"freeze {count} file system{'s' * (count > 1)}"].add(who, (between - begun) * 1e3)
                            if count == 32:
                                rows["thaw 32 file systems"].add(who, (ended - between) * 1e3)
    finally:
        unmount(points)


def stall(rows: Rows, effort: Effort) -> None:
    dirty = (64 if effort.quick else 512) * MIB
    points = loops(3, dirty * 3 // 2 + 128 * MIB)
    try:
        with both() as pair:
            for number in range(4 if not effort.quick else 2):
                for who, agent in pair.items():
                    for _ in range(2):  # the second time the blocks are there: only pages get dirty
                        os.sync()
                        block = os.urandom(MIB)
                        with open(f"{points[1]}/dirty", "wb") as f:
                            for _ in range(dirty // MIB):
                                f.write(block)
                    with DeadMan(60, *points):
                        stop = [appender(points[0]), appender(points[-1])]
                        time.sleep(0.02)
                        agent.call("guest-fsfreeze-freeze-list", limit=50, mountpoints=points)
                        agent.call("guest-fsfreeze-thaw", limit=50)
                        longest = max(ended() for ended in stop)
                    if number:
                        rows["worst stall of an application, 512 MiB dirty"].add(who, longest * 1e3)
    finally:
        unmount(points)


def appender(point: str) -> Callable[[], float]:
    """A process that appends a line every millisecond; call the result to end it and to know the longest gap in seconds."""
    told, tell = os.pipe()
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fd = os.open(f"{point}/lines", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            longest, last = 0.0, time.perf_counter()
            os.write(tell, b".")
            while not select.select([ended], [], [], 0.001)[0]:
                os.write(fd, b"x" * 63 + b"\n")
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
            os.write(tell, struct.pack("d", longest))
        finally:
            os._exit(0)
    os.close(ended)
    os.read(told, 1)

    def stop() -> float:
        os.write(end, b".")  # not its close: other children have a copy
        found: float = struct.unpack("d", os.read(told, 8))[0]
        os.waitpid(pid, 0)
        for each in (told, tell, end):
            os.close(each)
        return found

    return stop


WAKE_EACH_WORKER = (
    "guest-get-osinfo guest-network-get-interfaces guest-fsfreeze-status guest-file-flush guest-exec-status "
    "guest-ssh-get-authorized-keys guest-fstrim guest-set-user-password guest-set-vcpus guest-set-time guest-suspend-ram"
).split()
# Requests that reach the worker and change nothing.
HARMLESS: dict[str, dict[str, object]] = {
    "guest-file-flush": {"handle": 1},
    "guest-exec-status": {"pid": 1},
    "guest-ssh-get-authorized-keys": {"username": "nobody-of-that-name"},
    "guest-set-user-password": {"username": "nobody-of-that-name", "password": "eA==", "crypted": False},
    "guest-set-vcpus": {"vcpus": []},
    "guest-set-time": {"time": -1},
}


def rest(rows: Rows, effort: Effort) -> None:
    with both() as pair:
        time.sleep(1)
        for who, agent in pair.items():
            rows["memory at rest"].add(who, processes.footprint(agent.processes().values()))
        before = {who: processes.wakeups(agent.processes().values()) for who, agent in pair.items()}
        seconds = 5 if effort.quick else 20
        time.sleep(seconds)
        for who, agent in pair.items():
            woken = processes.wakeups(agent.processes().values()) - before[who]
            rows["wake-ups at rest"].add(who, woken / seconds)
        for who, agent in pair.items():
            for name in WAKE_EACH_WORKER:
                if name == "guest-suspend-ram":
                    continue  # nothing that reaches the power worker is harmless
                agent.client.request(name, HARMLESS.get(name))
                agent.client.reply()
            time.sleep(0.5)
            rows["memory with every worker up"].add(who, processes.footprint(agent.processes().values()))


def garbage(rows: Rows, effort: Effort) -> None:
    noise = random.Random(7).randbytes(MIB)
    limit = 30.0 if effort.quick else 130.0
    for who, make in (("ours", ours), ("theirs", theirs)):
        with make() as agent:
            client = agent.client
            client.socket.setblocking(False)
            todo = [memoryview(noise)] * (8 if effort.quick else 64)
            todo.append(memoryview(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":77077077}}\n'))
            tail, begun = b"", time.perf_counter()
            while b"77077077" not in tail and time.perf_counter() - begun < limit:
                readable, writable, _ = select.select([client.socket], [client.socket] if todo else [], [], 1)
                if readable:
                    tail = (tail[-100:] + client.socket.recv(MIB))[-MIB:]
                if writable:
                    sent = client.socket.send(todo[0])
                    todo[:1] = [todo[0][sent:]] if sent < len(todo[0]) else []
            rows["64 MiB of random bytes, then a sync"].add(who, time.perf_counter() - begun)
            if who == "theirs":
                agent.kill()


MEASURES: dict[str, tuple[Callable[[Rows, Effort], None], bool]] = {
    "start": (start, False),
    "small": (small, False),
    "files": (files, False),
    "exec": (programs, False),
    "interfaces": (interfaces, True),
    "mounts": (mounts, False),
    "freeze": (freeze, False),
    "stall": (stall, False),
    "rest": (rest, False),
    "garbage": (garbage, False),
}
