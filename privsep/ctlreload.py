"""`privsep-gactl reload`: have the running agent read its policy again, and say how that ended.

There is no socket to the agent.  The files are checked here first, by the code that the agent uses: what is wrong is said at once,
and the agent is left alone.  Then the supervisor gets SIGHUP, by a pidfd of the very process that wrote the status file
(number, start time and user are compared after the pidfd was had), and says in that file how it went.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from policy.model import Policy
from privsep import ctlagent, kernelview
from privsep.kernelview import Report

LIMIT: Final = 30.0  # seconds for the agent's answer
_LEAVE: Final = 0.5  # seconds for workers that are idle to make room before they are spoken of
_LOOK_AGAIN: Final = 0.01


class ReloadError(Exception):
    """It could not be asked, or did not answer; the text says why."""


def reload(directory: str | None, limit: float = LIMIT) -> tuple[Policy, Report]:
    """The policy as it was read here, and the agent's report once the reload has ended.

    Raises PolicyError (nothing was asked of the agent), NoAgent, ReloadError."""
    place, before = ctlagent.report(directory)
    pid = before.processes["supervisor"]
    try:
        policy = ctlagent.policy_of(pid)
    except ctlagent.Unknown as e:
        raise ReloadError(f"cannot tell which policy the agent reads: {e}") from None
    pidfd = _supervisor(place, pid, before.started)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGHUP)
    except ProcessLookupError:
        raise ReloadError("the agent has just ended") from None
    except PermissionError:
        raise ReloadError("only root may have the agent reload its policy") from None
    finally:
        os.close(pidfd)
    # Whatever began after that report was read has read the files as they are now.
    end = time.monotonic() + limit
    after = _wait(directory, lambda r: r.reloaded > before.reloads, end)
    if after is None:
        raise ReloadError(f"the agent has not said within {limit:g} seconds how the reload ended; see its log")
    settled = (
        _wait(directory, lambda r: not r.outdated, time.monotonic() + _LEAVE) if after.result == "applied" else None
    )
    return policy, settled or ctlagent.report(directory)[1]


def _wait(directory: str | None, done: object, end: float) -> Report | None:
    assert callable(done)
    while True:
        report = ctlagent.report(directory)[1]
        if done(report):
            return report
        if time.monotonic() > end:
            return None
        time.sleep(_LOOK_AGAIN)


def _supervisor(place: str, pid: int, started: int) -> int:
    """A pidfd of the process that wrote the status file there.  Raises ReloadError when that is another by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as e:
        raise ReloadError(f"the agent's process {pid}: {e.strerror}") from None
    try:
        process = kernelview.look("supervisor", pid)
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        owner = os.stat(f"{place}/status").st_uid
        if owner not in (0, os.geteuid()):
            raise ReloadError(f"{place}/status is uid {owner}'s and is not believed")
        if ticks != started or process.status["Uid"][0] != str(owner):
            raise ReloadError(f"process {pid} is not the agent that wrote {place}/status")
    except (OSError, ValueError) as e:
        os.close(pidfd)
        raise ReloadError(f"the agent's process {pid}: {e}") from None
    except ReloadError:
        os.close(pidfd)
        raise
    return pidfd


def lines(report: Report) -> list[str]:
    """The result for people."""
    found = {
        "applied": "the policy is in force",
        "deferred": "deferred: frozen",
        "refused": "the agent refused the policy; the old one stays in force",
        "restart-needed": "the old policy stays in force",
    }
    said = [found.get(report.result, report.result), *report.says]
    if report.result == "applied":
        said += [
            f"{name}: its worker holds something, or has a request in hand, and goes by the old policy until that is over"
            for name in report.outdated
        ]
    return said


def as_plain(report: Report) -> dict[str, object]:
    """The same for programs."""
    return {
        "result": report.result,
        "says": report.says,
        "outdated": report.outdated,
        "policy": report.policy,
        "number": report.reloaded,
    }
