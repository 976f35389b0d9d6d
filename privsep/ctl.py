"""privsep-gactl: ask a running agent, look at it from outside, and read policies before they are in force.

It has no socket to the agent of its own: `status` and `selfcheck` read what the supervisor wrote and what the kernel says,
`call` speaks the host's protocol to a unix socket, and the rest reads files and tables.  Exit status 0: fine; 1: not (an error
reply, a difference, a policy that is wrong); 2: wrong usage; 130: ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from policy.errors import PolicyError
from privsep import agentview, caller, ctlagent, ctlaudit, ctlmetrics, ctlpolicy, ctlreload, kernelview
from privsep.log import printable
from privsep.version import VERSION
from protocol.commands import BY_NAME, COMMANDS, PEER_LEVEL


class Failure(Exception):
    """Exit status 1 with this text."""


def parser() -> argparse.ArgumentParser:
    """The whole tree; completions and the man page derive from it."""
    top = argparse.ArgumentParser(prog="privsep-gactl", description="Look at and ask privsep-ga, the guest agent.")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, to: Any = None) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = (to or sub).add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    call = add("call", run_call, "send one command to an agent on a unix socket and print its answer")
    call.add_argument("--socket", metavar="PATH", help="the agent's socket (default: that of the running agent)")
    call.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help="for each answer (default 60)")
    call.add_argument("name", metavar="NAME", help="the protocol's command, for example guest-info")
    call.add_argument(
        "arguments", metavar="ARGUMENT", nargs="*", help="key=value (JSON or a string), or one JSON object"
    )

    status = add("status", run_status, "show the agent's processes as the kernel sees them")
    check = add("selfcheck", run_selfcheck, "compare the agent's processes with the privilege table")
    reload = add(
        "reload", run_reload, "check the agent's policy files, have it read them again, and say how that ended"
    )
    reload.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=ctlreload.LIMIT, help="for the answer (default 30)"
    )
    for made in (status, check, reload):
        made.add_argument("--json", action="store_true", help="for programs")
    audit = add("audit", run_audit, "show the audit trail: what was done for the host, and what was refused")
    ctlaudit.options(audit)
    metrics = add("metrics", run_metrics, "print what the agent has counted, as a Prometheus text file")
    metrics.add_argument("--output", metavar="FILE", help="write it there, atomically, instead")
    for made in (call, status, check, reload, audit, metrics):
        made.add_argument("--rundir", metavar="DIR", help="the agent's runtime directory (default: the usual one)")

    profiles = add("profiles", ctlpolicy.run_profiles, "list the built-in policy profiles")
    profiles.add_argument("--json", action="store_true", help="for programs")
    ctlpolicy.options(add, sub)

    add("commands", run_commands, "list the protocol's commands")
    add("version", run_version, "print the version")
    return top


def main(words: list[str] | None = None) -> int:
    options = parser().parse_args(words)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (
        Failure,
        PolicyError,
        kernelview.NoAgent,
        caller.CallError,
        ctlaudit.AuditError,
        ctlpolicy.Wrong,
        ctlreload.ReloadError,
    ) as e:
        print("\n".join(f"privsep-gactl: {line}" for line in str(e).split("\n")), file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


# -- a running agent


def _report(options: argparse.Namespace) -> tuple[str, kernelview.Report]:
    return ctlagent.report(options.rundir)


def _socket_of(options: argparse.Namespace) -> str:
    """The unix socket that the running agent was told to listen on, by its own command line."""
    _, report = _report(options)
    try:
        config, place = ctlagent.config_of(report.processes["supervisor"])
    except ctlagent.Unknown as e:
        raise Failure(f"cannot tell the agent's socket ({e}): give --socket") from None
    if config.method != "unix-listen" or config.path is None:
        raise Failure(f"the running agent serves {config.method}, not a unix socket: give --socket")
    return os.path.join(place, config.path)


def run_call(options: argparse.Namespace) -> int:
    try:
        arguments = caller.arguments_of(options.arguments)
    except ValueError as e:
        raise Failure(str(e)) from None
    row = BY_NAME.get(options.name)
    agent = caller.Caller(options.socket or _socket_of(options), options.timeout)
    try:
        agent.sync()
        reply = agent.call(options.name, arguments, replies=row is None or row.replies)
    finally:
        agent.close()
    if reply is None:
        return 0
    if "error" in reply:
        error = reply["error"]
        print(printable(f"privsep-gactl: {error.get('class')}: {error.get('desc')}"), file=sys.stderr)
        return 1
    print(_ascii(json.dumps(reply.get("return"), indent=2)))
    return 0


def run_status(options: argparse.Namespace) -> int:
    return agentview.status(*_report(options), as_json=options.json)


def run_selfcheck(options: argparse.Namespace) -> int:
    return agentview.selfcheck(*_report(options), as_json=options.json)


def run_reload(options: argparse.Namespace) -> int:
    _, report = ctlreload.reload(options.rundir, options.timeout)
    if options.json:
        print(json.dumps(ctlreload.as_plain(report), indent=2))
    else:
        print("\n".join(ctlreload.lines(report)))
    return 0 if report.result in ("applied", "deferred") else 1


def _ascii(text: str) -> str:
    """Nothing of what hosts and users have chosen reaches the terminal as more than a letter."""
    return text.replace("\x7f", "\\u007f")


def run_audit(options: argparse.Namespace) -> int:
    sink = ""
    if not options.file and not options.journal:
        try:
            sink = _report(options)[1].audit
        except kernelview.NoAgent as e:
            raise Failure(f"{e}; --journal and --file PATH read what it has left") from None
    with contextlib.closing(ctlaudit.records(options, sink)) as records:
        try:
            for record in records:
                text = _ascii(json.dumps(record)) if options.json else ctlaudit.line(record)
                print(text, flush=options.follow)
        except KeyboardInterrupt:
            return 130
    return 0


def run_metrics(options: argparse.Namespace) -> int:
    status = 0
    try:
        _, report = _report(options)
        found = ctlmetrics.samples(report, ctlmetrics.read_pages(report.processes["supervisor"]))
    except (kernelview.NoAgent, FileNotFoundError):
        found, status = {"up": [({}, 0)]}, 1
    except PermissionError:
        raise Failure("only the agent's own user may read its counters: use root") from None
    text = ctlmetrics.render(found)
    if options.output is None:
        sys.stdout.write(text)
        return status
    try:
        ctlmetrics.write(options.output, text)
    except OSError as e:
        raise Failure(f"{options.output}: {e.strerror}") from None
    return status


# -- tables


def run_commands(_: argparse.Namespace) -> int:
    table = [["COMMAND", "DOMAIN", "SINCE", "FROZEN", "ARGUMENTS"]]
    for command in COMMANDS:
        arguments = " ".join(f"[{a.name}]" if a.optional else a.name for a in command.args)
        table.append([command.name, command.domain, command.since, "yes" if command.frozen else "-", arguments])
    agentview.print_table(table)
    return 0


def run_version(_: argparse.Namespace) -> int:
    print(f"privsep-ga {VERSION} (QEMU Guest Agent {PEER_LEVEL})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
