"""privsep-ga's command line: qemu-ga's, option for option, and the start up to the point where the supervisor takes over.

`command_line` is pure but for reading the configuration file: words in, a Config or a `Stop` with an exit status out.
Exit statuses are those of the peer's 10.2: 0 for what was only to be told, 1 for everything that fails.
"""

from __future__ import annotations

import os
import sys

from policy.builtin import COMMANDS, PEER_LEVEL, PROFILES
from policy.errors import PolicyError
from privsep import getopt
from privsep.config import HOOK, Config, ConfigError, config_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from policy.model import Policy
    from privsep.early import Early

# Long name, code, argument; in the peer's order, which an ambiguous abbreviation's error shows, then our own two.
OPTIONS: Final = (
    ("help", "h", getopt.NONE),
    ("version", "V", getopt.NONE),
    ("dump-conf", "D", getopt.NONE),
    ("logfile", "l", getopt.REQUIRED),
    ("pidfile", "f", getopt.REQUIRED),
    ("fsfreeze-hook", "F", getopt.OPTIONAL),
    ("verbose", "v", getopt.NONE),
    ("method", "m", getopt.REQUIRED),
    ("path", "p", getopt.REQUIRED),
    ("daemonize", "d", getopt.NONE),
    ("config", "c", getopt.REQUIRED),
    ("block-rpcs", "b", getopt.REQUIRED),
    ("allow-rpcs", "a", getopt.REQUIRED),
    ("statedir", "t", getopt.REQUIRED),
    ("retry-path", "r", getopt.NONE),
    ("blacklist", "b:blacklist", getopt.REQUIRED),
    ("policy", "policy", getopt.REQUIRED),
)


class Stop(Exception):
    """The command line is dealt with: exit with `status` after printing `out` and `err`."""

    def __init__(self, status: int, out: str = "", err: str = "") -> None:
        super().__init__(err or out)
        self.status = status
        self.out = out
        self.err = err


def command_line(words: Sequence[str], program: str, environ: Mapping[str, str]) -> Config:
    """The configuration of a start.  Raises Stop for whatever is no start, ConfigError for a bad file or value."""
    permute = "POSIXLY_CORRECT" not in environ
    given = list(getopt.options(words, OPTIONS, program, permute=permute))
    config = Config()
    named = [value for code, value in given if code == "c"]
    path, required = config_file(named[-1] if named else None, environ)
    config.load(path, required=required)
    config.load_sysconfig()
    dump = False
    for code, value in given:
        match code:
            case "m":
                config.method = value
            case "p":
                config.path = value
            case "l":
                config.logfile = value
            case "f":
                config.pidfile = value
            case "F":
                config.hook = HOOK if value is None else value
            case "t":
                config.statedir = value
            case "v":
                config.verbose = True
            case "d":
                config.daemonize = True
            case "r":
                config.retry = True
            case "D":
                dump = True
            case "policy":
                config.policy = value
            case "b" | "a" | "b:blacklist":
                if value in ("help", "?"):
                    raise Stop(0, "".join(f"{name}\n" for name in COMMANDS))
                config.add_list("allow" if code == "a" else "block", value or "")
                config.dated = config.dated or code == "b:blacklist"
            case "V":
                raise Stop(0, f"QEMU Guest Agent {PEER_LEVEL}\n")
            case "h":
                from privsep.usage import usage

                raise Stop(0, usage(program))
            case getopt.ERROR:
                raise Stop(1, f"Unknown option, try '{program} --help' for more information.\n", f"{value}\n")
    config.complete()
    if dump:
        raise Stop(0, config.dump())
    return config


def main(words: Sequence[str] | None = None, *, libexec: str | None = None) -> int:
    """The program; the exit status.  `libexec` is where the entry scripts of the processes are."""
    program = sys.argv[0]
    early: Early | None = None
    given = sys.argv[1:] if words is None else words

    def again() -> tuple[Config, Policy]:
        found = command_line(given, program, os.environ)
        return found, effective_policy(found)

    try:
        config = command_line(given, program, os.environ)
        from privsep.early import start_front  # from here on there will be an agent, if nothing is wrong

        early = start_front(config, libexec or beside(program))
        policy = effective_policy(config)
    except Stop as stop:
        _print(1, stop.out)
        _print(2, stop.err)
        return stop.status
    except (ConfigError, PolicyError) as e:
        if early is not None:
            early.abandon()
        _print(2, "".join(f"{os.path.basename(program)}: critical: {line}\n" for line in str(e).split("\n")))
        return 1
    from privsep.startup import start

    return start(config, policy, libexec or beside(program), early, again=again)


def effective_policy(config: Config) -> Policy:
    """The policy with the lists of the configuration folded in.  Raises PolicyError."""
    from policy.model import builtin, with_lists  # while the front starts

    if config.policy in PROFILES:
        policy = builtin(config.policy)
    else:
        from policy.load import choose  # no file is needed for a profile that comes with the agent

        policy = choose(config.policy)
    return with_lists(policy, config.block, config.allow, config.origins)


def beside(program: str) -> str:
    """PREFIX/libexec/privsep-ga for PREFIX/bin/privsep-ga, whatever link it was called by."""
    return os.path.dirname(os.path.dirname(os.path.realpath(program))) + "/libexec/privsep-ga"


def _print(fd: int, text: str) -> None:
    """All of it, bytes of file names that are not text as they came; a reader that has gone is no error."""
    data = os.fsencode(text)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass
