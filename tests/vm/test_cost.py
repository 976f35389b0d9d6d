"""What an hour of a host's polling leaves behind, and what the agent does when nobody asks.

The rates are those of KubeVirt's virt-launcher (its defaults: the freeze's status every 5 s, users every 10 s, system and
interfaces every 2 minutes, file systems and version every 5) and of libvirt (a sync before each command).
"""

from __future__ import annotations

import time
from itertools import pairwise

from tests.vm.harness.hostagent import HostAgent
from tests.vm.harness.machine import Guest
from tests.vm.harness.seen import Seen
from tests.vm.harness.service import POLICY, UNIT, memory, processes, set_policy

HOUR = 3600
EVERY = {
    "guest-fsfreeze-status": 5,
    "guest-get-users": 10,
    "guest-get-osinfo": 120,
    "guest-network-get-interfaces": 120,
    "guest-get-host-name": 120,
    "guest-get-timezone": 120,
    "guest-get-fsinfo": 300,
    "guest-info": 300,
}
IDLE = 40.0  # seconds
HOURS = 5
MOST_GROWTH = 32  # kB in the median hour: what comes once (an arena of Python's allocator is 1 MiB) is not growth, a leak comes hourly
MOST_LOOKS = 4.0  # a second, at a port that the host has closed
AT_REST = {"supervisor", "front"}
POLLED = ("inventory", "network", "fs")
# An hour's polls come within seconds here, and looking takes some: the same workers are to be there from the first hour to the last.
STAY = f"[workers]\npreload = {list(POLLED)}\n"


def poll_for_an_hour(agent: HostAgent) -> int:
    """All polls of an hour, one after the other; how many requests that is."""
    asked = 0
    for second in range(5, HOUR + 1, 5):
        for name, every in EVERY.items():
            if second % every == 0:
                agent.sync()
                agent.call(name)
                asked += 2
    return asked


def test_hours_of_polling(guest: Guest, seen: Seen) -> None:
    """Hours of KubeVirt's polls in a row: the later ones leave no memory and no descriptors behind, the workers leave"""
    set_policy(guest, "default", STAY)
    with guest.agent() as agent:
        poll_for_an_hour(agent)  # interpreters fill what they keep for re-use
        sizes, files = [memory(guest, "Anonymous")], descriptors(guest)
        asked, took = 0, 0.0
        for _ in range(HOURS):
            begun = time.monotonic()
            asked += poll_for_an_hour(agent)
            took += time.monotonic() - begun
            sizes.append(memory(guest, "Anonymous"))
        lived = set.intersection(*(set(size) for size in sizes))
        assert lived >= AT_REST.union(POLLED)
        steps = {name: [after[name] - before[name] for before, after in pairwise(sizes)] for name in lived}
        assert all(sorted(each)[HOURS // 2] < MOST_GROWTH for each in steps.values()), steps
        assert descriptors(guest) == files
        guest.put('profile = "default"\n', POLICY)
        guest.check(f"systemctl reload {UNIT}")
        end = time.monotonic() + 180
        while set(processes(guest)) != AT_REST:
            assert time.monotonic() < end, processes(guest)
            time.sleep(2)
        rest = memory(guest)
    worst = max(steps, key=lambda name: sum(steps[name]))
    hourly = ", ".join(map(str, steps[worst]))
    seen(
        f"{asked} requests of {HOURS} hours in {took:.0f} s after one to warm up; largest growth: {worst}, hour by hour {hourly} kB; "
        f"PSS at rest {sum(rest.values())} kB (supervisor {rest['supervisor']}, front {rest['front']})"
    )


def test_wake_ups_at_rest(guest: Guest, seen: Seen) -> None:
    """Nobody asks: with the port open the service wakes up for systemd's watchdog and for nothing else"""
    period = int(guest.check(f"systemctl show {UNIT} -p WatchdogUSec --value").strip().removesuffix("s"))
    with guest.agent():
        woken, passed = woken_at_rest(guest)
        assert woken["supervisor"] <= passed / (period / 2) + 2, woken
        assert woken["front"] <= 2, woken
    # A port that the host has closed is always "ready", and has to be looked at now and then.
    closed, again = woken_at_rest(guest)
    assert closed["supervisor"] <= again / (period / 2) + 2, closed
    assert closed["front"] <= MOST_LOOKS * again, closed
    seen(
        f"port open: supervisor {woken['supervisor']}, front {woken['front']} in {passed:.0f} s; port closed: "
        f"supervisor {closed['supervisor']}, front {closed['front']} in {again:.0f} s; WatchdogSec={period}"
    )


def woken_at_rest(guest: Guest) -> tuple[dict[str, int], float]:
    """How often each process wakes up when all workers have left, and in how many seconds."""
    end = time.monotonic() + 180
    while set(processes(guest)) != AT_REST:
        assert time.monotonic() < end, processes(guest)
        time.sleep(2)
    before, begun = switches(guest), guest.control.ping()["monotonic"]
    time.sleep(IDLE)
    after, ended = switches(guest), guest.control.ping()["monotonic"]
    return {name: after[name] - before[name] for name in before}, ended - begun


def switches(guest: Guest) -> dict[str, int]:
    """How often each process has gone to sleep and come back."""
    found = {}
    for name, pid in processes(guest).items():
        text = guest.check(f"cat /proc/{pid}/task/*/status")
        found[name] = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("voluntary_ctxt"))
    return found


def descriptors(guest: Guest) -> dict[str, int]:
    return {n: len(guest.check(f"ls /proc/{pid}/fd").split()) for n, pid in processes(guest).items() if n in AT_REST}
