"""What `decide` says of a request is what the worker does with it: on generated policies and requests, through the policy's text, its
slice and the worker's own loop.

The handlers are recorders, so that a shutdown can be asked for; all before them is the worker's own: the parsed slice, its dispatch
table, its check of the arguments, its decision.  tests/kernel/test_policy_agree.py does the same to real processes.
"""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import load
from policy.builtin import COMMANDS, FROZEN, PROFILES
from policy.decide import Ruling, limit_of
from policy.model import Policy
from policy.read import read
from policy.rules import scope_of
from policy.seal import parse_slice, slice_for
from privsep import frame, wiring
from privsep.counters import Page
from privsep.fingerprint import fingerprint
from privsep.runtime import Context, Worker
from protocol.commands import BY_NAME, verbs_of

UIDS = {"root": 0, "toor": 0, "ann": 1000, "bob": 2000, "svc-a": 150, "*": 7}
NAMES = st.sampled_from([*UIDS, "nobody-knows", "", "svc-zz"])
PATTERNS = st.sampled_from(["*", "svc-*", "ann", "root", "toor", "???", "a\\*", "\\*", "b?b", "...", "-*", ""])
PATHS = st.sampled_from(["/srv", "/srv/a", "/srv/a/b", "/etc", "/", "/srv/ab"])
ASKED = st.sampled_from(
    [
        "/srv",
        "/srv/a",
        "/srv/a/b/c",
        "/srv/a/../b",
        "/srv//a/./b",
        "/srvx",
        "/etc/shadow",
        "a",
        "",
        "/srv/ab/x",
        "/\0",
        "/..",
    ]
)
PROGRAMS = st.sampled_from(["/bin/ls", "/bin/sh", "/usr/bin/id"])
WORDS = st.sampled_from(["ann", "svc-a", "-l", "...", "*", "a*", "", "abc", "bib", "\u20ac"])
VARIABLES = st.sampled_from(["LANG=C", "LD_PRELOAD=x", "ann=1", "=", "LANG", "svc-a=", "-x=2", "ENV=1"])
MODES = ("powerdown", "halt", "reboot", "suspend-disk", "suspend-ram", "suspend-hybrid")
SIZES = st.sampled_from([1, 3, 4096, 5000])


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, max_size=3, unique=True)


def keys(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={k.replace("_", "-"): v for k, v in options.items()})


FILE = st.builds(
    dict, path=PATHS, access=st.sampled_from([["read"], ["write"], ["read", "write"], ["read", "write", "create"]])
)
EXEC = st.builds(
    lambda program, rest: {"program": program, "user": "nobody", **rest},
    PROGRAMS,
    keys(args=some(PATTERNS).filter(lambda v: "..." not in v[:-1]), env=some(PATTERNS), input=st.booleans()),
)
USER = st.builds(
    lambda names, uids, purposes: {"names": names, "uids": uids, "for": purposes},
    some(PATTERNS),
    some(st.sampled_from(["0", "0-999", "1000-1999", "2000"])),
    st.sampled_from([["password"], ["keys"], ["password", "keys"]]),
).filter(lambda rule: rule["names"] or rule["uids"])
TABLES = {
    "power": keys(modes=some(st.sampled_from(MODES))),
    "sizes": keys(file_read=SIZES, file_write=SIZES, exec_input=SIZES),
    "rates": st.dictionaries(st.sampled_from(["guest-exec", "guest-*", "@ssh", "guest-shutdown"]), st.integers(0, 4), max_size=2),
}  # fmt: skip
POLICIES = st.fixed_dictionaries(
    {
        "profile": st.sampled_from(list(PROFILES)),
        "lenient": st.booleans(),
        "block": some(st.sampled_from(["guest-exec", "guest-shutdown", "@ssh", "guest-file-*"])),
        "allow": some(st.sampled_from(["@file", "@exec", "@user", "@ssh", "@power"])),
        "file": st.lists(FILE, max_size=3),
        "exec": st.lists(EXEC, max_size=3),
        "user": st.lists(USER, max_size=3),
        **TABLES,
    }
)


def toml(policy: dict[str, Any]) -> str:
    """Strings, lists, numbers and truths are written in TOML as in JSON."""
    lines = [f"{k} = {json.dumps(policy[k])}" for k in ("profile", "lenient")]
    lines += ["[commands]", *(f"{k} = {json.dumps(policy[k])}" for k in ("block", "allow"))]
    for name in TABLES:
        lines += [f"[{name}]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in policy[name].items())]
    for name in ("file", "exec", "user"):
        for rule in policy[name]:
            lines += [f"[[{name}]]", *(f"{k} = {json.dumps(v)}" for k, v in rule.items())]
    return "\n".join(lines) + "\n"


def request(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    needed = {a.name: arguments[a.name.replace("-", "_")] for a in BY_NAME[name].args if not a.optional}
    others = {a.name: arguments[a.name.replace("-", "_")] for a in BY_NAME[name].args if a.optional}
    return st.tuples(st.just(name), st.fixed_dictionaries(needed, optional=others))


BASE64 = st.integers(0, 5100).map(lambda n: "QUJD" * (n // 3))
REQUESTS = st.one_of(
    request("guest-file-open", path=ASKED, mode=st.sampled_from(["r", "w", "a", "r+", "w+b", "x", "rw"])),
    request("guest-file-read", handle=st.integers(0, 3), count=st.sampled_from([0, 1, 2, 4, 4096, 4097, -1, 1 << 40])),
    request("guest-file-write", handle=st.integers(0, 3), buf_b64=BASE64, count=st.integers(0, 3)),
    request(
        "guest-exec", path=PROGRAMS | ASKED, arg=st.lists(WORDS, max_size=3), env=st.lists(VARIABLES, max_size=2),
        input_data=BASE64, capture_output=st.booleans(),
    ),
    request("guest-exec-status", pid=st.integers(0, 3)),
    request("guest-set-user-password", username=NAMES, password=st.just("QQ=="), crypted=st.booleans()),
    request("guest-ssh-get-authorized-keys", username=NAMES),
    request("guest-ssh-add-authorized-keys", username=NAMES, keys=st.just([]), reset=st.booleans()),
    request("guest-shutdown", mode=st.sampled_from(["powerdown", "halt", "reboot", "x", ""])),
    request("guest-suspend-disk"),
    request("guest-suspend-hybrid"),
)  # fmt: skip


class Recorded:
    """The real loop's parts around handlers that only say that they were reached; `ask` is what a front would send."""

    def __init__(self, domain: str, data: bytes) -> None:
        allowed, told = parse_slice(data)
        self.reached: list[tuple[str, object]] = []
        handlers = {c.name.replace("-", "_"): self._handler(c.name) for c in verbs_of(domain)}
        module: Any = SimpleNamespace(uid_of=UIDS.get, **handlers)
        log: Any = SimpleNamespace(**dict.fromkeys(("error", "warning", "info", "debug"), lambda text: None))
        self.context = Context(log=log, settings=told, counters=Page.create("test"))
        self.context.scope = scope_of(data)
        if self.context.scope is not None and self.context.scope.rules:
            self.context.ruling = Ruling(self.context.scope)
        self.worker = Worker(domain, module, self.context, allowed)
        theirs, ours = wiring.pair()
        self.worker._front = theirs
        self.front: socket.socket = ours
        self._assembler = frame.Assembler()
        self._last = 0
        assert self.ask(frame.HELLO, {"tables": fingerprint()}) == [1, True, True]

    def _handler(self, name: str) -> Any:
        def handler(ctx: Context, **_: object) -> dict[str, object]:
            self.reached.append((name, ctx.grant.id if ctx.grant is not None else None))
            return {}

        return handler

    def ask(self, verb: int, arguments: dict[str, object]) -> list[Any]:
        self._last += 1
        self.worker._request([self._last, verb, dict(arguments)])
        while True:
            found = self._assembler.feed(self.front.recv(frame.DATAGRAM + 1))
            if found is not None:
                assert isinstance(found, list)
                return found

    def close(self) -> None:
        self.front.close()
        self.worker._let_go()
        import os

        assert self.context.counters is not None
        os.close(self.context.counters.fd)


def policy_of(text: str) -> Policy:
    found = read([("p.toml", text)], base=load._profile, commands=COMMANDS, profiles=PROFILES, unlimited=FROZEN)
    return Policy(
        "p.toml", frozenset(found.allowed), base=found.base, why_of=found.why, rules=tuple(found.rules),
        lenient=found.lenient, more=found.settings,
    )  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(POLICIES, st.lists(REQUESTS, min_size=1, max_size=12))
def test_the_worker_does_what_decide_says(
    described: dict[str, Any], requests: list[tuple[str, dict[str, Any]]]
) -> None:
    policy = policy_of(toml(described))
    workers: dict[str, Recorded] = {}
    let_through: dict[str, int] = {}
    try:
        for name, arguments in requests:
            domain = COMMANDS[name]
            if domain not in workers:
                workers[domain] = Recorded(domain, slice_for(domain, policy, policy.settings()))
            worker = workers[domain]
            before = len(worker.reached)
            _, ok, value = worker.ask([c.name for c in verbs_of(domain)].index(name), arguments)
            decision = policy.decide(name, arguments, uid=UIDS.get)
            rate = limit_of(policy.scope(domain), name)
            if decision.allowed and rate is not None:
                let_through[name] = let_through.get(name, 0) + 1
                if let_through[name] > rate[0]:
                    assert not ok and value[1].endswith(f"(rule {rate[1].id}): more than {rate[0]} a minute")
                    assert len(worker.reached) == before
                    continue
            assert ok == decision.allowed, (decision, value)
            if ok:
                assert worker.reached[before:] == [(name, decision.grant.id if decision.grant else None)]
            else:
                assert len(worker.reached) == before
                if policy.allows(name):
                    assert value == ["GenericError", decision.error(name)]
                else:
                    assert value[0] == "CommandNotFound" and value[1].startswith(f"Command {name} has been disabled: ")
    finally:
        for worker in workers.values():
            worker.close()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_s_commands_are_what_its_workers_reach(profile: str) -> None:
    policy = policy_of(f'profile = "{profile}"\n')
    for domain in dict.fromkeys(COMMANDS.values()):
        if domain in ("front", "fs"):
            continue
        worker = Recorded(domain, slice_for(domain, policy, policy.settings()))
        for verb, command in enumerate(verbs_of(domain)):
            if command.args:
                continue
            _, ok, value = worker.ask(verb, {})
            assert ok == policy.allows(command.name) == policy.decide(command.name, {}).allowed, value
        worker.close()
