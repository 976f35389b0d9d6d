#!/usr/bin/python3
"""Runs in the guest: what a test must do or measure there without waiting for the host in between.

    inside.py writer LOG PATH...     write to each path all the time; a line in LOG for each wait longer than SLOW
    inside.py kill SIGNAL PID...     the signal to all of them; prints the time just before (CLOCK_MONOTONIC)
    inside.py agent                  the agent's processes, as JSON: name -> pid

LOG is on a tmpfs, so that it can be written while everything else is frozen.  Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time

SLOW = 0.1
PAUSE = 0.01


def writer(log: int, path: str) -> None:
    """One line a wait: when it began and when the write was done; and one when the writer starts."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.pwrite(fd, b"x", 0)
    os.write(log, f"{path} ready 0\n".encode())
    while True:
        begun = time.monotonic()
        os.pwrite(fd, b"x", 0)
        os.ftruncate(fd, 1)
        done = time.monotonic()
        if done - begun > SLOW:
            os.write(log, f"{path} {begun:.3f} {done:.3f}\n".encode())
        time.sleep(PAUSE)


def write_all(log: str, paths: list[str]) -> None:
    ctypes.CDLL(None).mlockall(3)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    for path in paths:
        threading.Thread(target=writer, args=(fd, path)).start()


def kill_all(number: int, pids: list[int]) -> None:
    print(f"{time.monotonic():.3f}", flush=True)
    for pid in pids:
        os.kill(pid, number)


def agent() -> dict[str, int]:
    """By the folder of their programs, not by what the agent says of itself."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            for word in words[1:4]:
                if word == b"/usr/sbin/privsep-ga":
                    found["supervisor"] = int(entry)
                elif word.startswith(b"/usr/libexec/privsep-ga/"):
                    found[os.path.basename(word).decode()] = int(entry)
    return found


def main(words: list[str]) -> None:
    if words[0] == "writer":
        write_all(words[1], words[2:])
    elif words[0] == "kill":
        kill_all(int(words[1]), [int(w) for w in words[2:]])
    elif words[0] == "agent":
        print(json.dumps(agent()))


if __name__ == "__main__":
    main(sys.argv[1:])
