"""The two tables agree with each other and with the workers."""

from __future__ import annotations

import importlib
import inspect

import pytest

from privsep import accounts, spawn, wiring
from privsep.domains import BY_NAME as DOMAIN
from privsep.domains import CAPABILITIES, DOMAINS
from protocol.commands import COMMANDS, verbs_of

WORKERS = sorted({c.domain for c in COMMANDS} - {"front"})


def test_there_are_the_43_commands_that_exist_on_linux() -> None:
    assert len({c.name for c in COMMANDS}) == len(COMMANDS) == 43


def test_exactly_six_commands_run_while_frozen() -> None:
    assert {c.name for c in COMMANDS if c.frozen} == {
        "guest-ping",
        "guest-info",
        "guest-sync",
        "guest-sync-delimited",
        "guest-fsfreeze-status",
        "guest-fsfreeze-thaw",
    }


def test_every_command_has_a_domain_that_the_front_may_ask() -> None:
    for command in COMMANDS:
        assert command.domain == "front" or DOMAIN[command.domain].channel == "front"


def test_every_capability_exists_and_has_a_reason() -> None:
    for row in DOMAINS:
        assert row.why
        for name, why in row.caps.items():
            assert (name in CAPABILITIES or name == "ALL") and why


def test_domain_numbers_fit_into_the_byte_that_carries_them() -> None:
    assert len(DOMAINS) <= wiring.NUMBER_MASK
    assert wiring.REOPEN[0] < wiring.START < wiring.END


@pytest.mark.parametrize("domain", WORKERS)
def test_each_command_is_one_function_of_its_worker_with_its_arguments(domain: str) -> None:
    module = importlib.import_module(f"workers.{domain}")
    for command in verbs_of(domain):
        function = getattr(module, command.name.replace("-", "_"))
        parameters = list(inspect.signature(function).parameters.values())[1:]
        assert [p.name.replace("_", "-") for p in parameters] == [a.name for a in command.args]
        for parameter, arg in zip(parameters, command.args, strict=True):
            assert (parameter.default is not inspect.Parameter.empty) == arg.optional


def test_ids_are_the_accounts_when_they_exist_and_fixed_and_distinct_when_not() -> None:
    ids, missing = accounts.resolve(b"root:x:0:0:::\nprivsep-ga:x:998:997::/:/bin/false\n")
    assert ids["front"] == (998, 997) and "privsep-ga" not in missing
    others = [uid for name, (uid, _) in ids.items() if DOMAIN[name].user != "root"]
    assert len(set(others)) == len(others) and 0 not in others
    assert ids["hook"] == (0, 0)


@pytest.mark.parametrize(
    "passwd",
    [b"privsep-ga:x:0:5:::\n", b"privsep-ga:x:5:0:::\n", b"privsep-ga:x:7:7:::\nprivsep-ga-fs:x:7:8:::\n"],
)
def test_an_account_that_is_root_or_shared_is_refused(passwd: bytes) -> None:
    with pytest.raises(ValueError):
        accounts.resolve(passwd)


def test_who_has_large_buffers_is_known_where_processes_are_started() -> None:
    with_bulk = {c.domain for c in COMMANDS if c.takes or c.gives}
    assert set(spawn.BULKY) == {"front"} | {name for name in with_bulk if not DOMAIN[name].programs}
    seen = {"PATH": "/bin", "HOME": "/root", "GLIBC_TUNABLES": "x"}
    for name in DOMAIN:
        got = spawn.environment(seen, name, programs=DOMAIN[name].programs)
        if DOMAIN[name].programs:
            assert got == seen
        else:
            assert ("GLIBC_TUNABLES" in got) == (name in spawn.BULKY) and "HOME" not in got and got["PATH"] == "/bin"
