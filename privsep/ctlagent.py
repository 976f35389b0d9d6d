"""Which agent runs, and what it was told: for the commands of privsep-gactl that are about a running one."""

from __future__ import annotations

import os
from pathlib import Path

from policy.errors import PolicyError
from policy.model import Policy
from privsep import kernelview
from privsep.cli import Stop, command_line, effective_policy
from privsep.config import Config, ConfigError
from privsep.rundir import runtime_dir


class Unknown(Exception):
    """What the agent was told cannot be found out; the text says why."""


def report(directory: str | None) -> tuple[str, kernelview.Report]:
    """The runtime directory and what the supervisor says there.  Raises kernelview.NoAgent."""
    if directory is None:
        # The environment of this program is not the agent's: its RUNTIME_DIRECTORY, if any, is somebody else's.
        environ = {k: v for k, v in os.environ.items() if k != "RUNTIME_DIRECTORY"}
        directory = runtime_dir("/var/run", os.geteuid(), environ)
    return kernelview.find(directory)


def config_of(pid: int) -> tuple[Config, str]:
    """The configuration that the agent would read now, by its own command line and environment, and its current folder.

    Raises Unknown."""
    try:
        base = Path(f"/proc/{pid}")
        words = (base / "cmdline").read_bytes().split(b"\0")[:-1]
        pairs = os.fsdecode((base / "environ").read_bytes()).split("\0")
        environ = dict(p.split("=", 1) for p in pairs if "=" in p)
        place = os.readlink(f"/proc/{pid}/cwd")
        # The interpreter and its options come first; ours begin after the program's own name.
        first = next(n for n, w in enumerate(words) if n and not w.startswith(b"-"))
        before = os.getcwd()
        os.chdir(place)
        try:
            return command_line([os.fsdecode(w) for w in words[first + 1 :]], "", environ), place
        finally:
            os.chdir(before)
    except StopIteration:
        raise Unknown("its command line is none of privsep-ga's") from None
    except (OSError, Stop, ConfigError) as e:
        raise Unknown(str(e)) from None


def policy_of(pid: int) -> Policy:
    """The policy that the agent would read now.  Raises Unknown, PolicyError."""
    config, place = config_of(pid)
    before = os.getcwd()
    try:
        os.chdir(place)
        return effective_policy(config)
    except OSError as e:
        raise PolicyError(f"{place}: {e.strerror}") from None
    finally:
        os.chdir(before)
