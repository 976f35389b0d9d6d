"""What the tools say of a policy, and what the supervisor makes of two, on generated policies and requests.

tests/unit/test_policy_agree.py shows that the decision compared with here is the worker's.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policy import diff
from policy.builtin import COMMANDS
from policy.decide import limit_of
from policy.explain import NoRequest, explain
from policy.lines import decode, encode
from policy.model import Policy
from policy.seal import slice_for
from privsep.domains import DOMAINS
from privsep.orders import narrower
from protocol.commands import BY_NAME
from protocol.errors import CommandError
from protocol.schema import check_arguments
from tests.unit.test_policy_agree import POLICIES, REQUESTS, UIDS, policy_of, toml

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
MANY = st.lists(REQUESTS, min_size=1, max_size=12)
Described = dict[str, Any]
Asked = list[tuple[str, dict[str, Any]]]


def allowed(policy: Policy, name: str, arguments: dict[str, Any]) -> bool:
    return policy.decide(name, arguments, uid=UIDS.get).allowed


def changed(described: Described, other: Described, choice: list[str]) -> Described:
    """The first policy with these tables of the other one."""
    return {**described, **{key: other[key] for key in choice if key in other}}


KEYS = ["profile", "lenient", "allow", "block", "exec", "file", "user", "power", "rates", "sizes"]
PAIRS = st.tuples(POLICIES, POLICIES, st.lists(st.sampled_from(KEYS)))


@QUICK
@given(POLICIES, MANY)
def test_explain_says_what_the_worker_decides(described: Described, requests: Asked) -> None:
    policy = policy_of(toml(described))
    for name, arguments in requests:
        try:
            check_arguments(BY_NAME[name].args, arguments)
        except CommandError:
            assume(False)
        decision = policy.decide(name, arguments, uid=UIDS.get)
        found = explain(policy, name, arguments, uid=UIDS.get)
        assert (found.decision.allowed, found.decision.rule, found.decision.origin, found.decision.reason) == (
            decision.allowed, decision.rule, decision.origin, decision.reason,
        )  # fmt: skip
        assert found.changes, "there is always something that would change it"
        limit = limit_of(policy.scope(COMMANDS[name]), name)
        never = limit is not None and limit[0] == 0
        assert explain(policy, name, None).decision.allowed == (policy.allows(name) and not never)


@QUICK
@given(POLICIES)
def test_what_a_reload_brings_is_the_policy_that_was_read(described: Described) -> None:
    policy = policy_of(toml(described))
    other = decode(encode(policy))
    for row in DOMAINS:
        assert slice_for(row.name, other, other.settings()) == slice_for(row.name, policy, policy.settings())


@QUICK
@given(PAIRS, MANY)
def test_whatever_the_host_gains_or_loses_stands_in_the_difference(
    pair: tuple[Described, Described, list[str]], requests: Asked
) -> None:
    old, new = policy_of(toml(pair[0])), policy_of(toml(changed(*pair)))
    found = {change.what for change in diff.compare(old, new)}
    for name, arguments in requests:
        before, after = allowed(old, name, arguments), allowed(new, name, arguments)
        if after and not before:
            assert found & {diff.GAINS, diff.CHANGES}, (name, arguments)
        elif before and not after:
            assert found & {diff.LOSES, diff.CHANGES}, (name, arguments)
    if not found:
        assert old.allowed == new.allowed


@QUICK
@given(PAIRS, MANY)
def test_a_worker_that_may_go_on_under_the_old_policy_refuses_nothing_less(
    pair: tuple[Described, Described, list[str]], requests: Asked
) -> None:
    """A worker is kept while it holds something only if its new slice is not narrower: then the old one allows no more."""
    old, new = policy_of(toml(pair[0])), policy_of(toml(changed(*pair)))
    for name, arguments in requests:
        row = COMMANDS[name]
        before, after = (slice_for(row, p, p.settings()) for p in (old, new))
        if not narrower(before, after) and allowed(old, name, arguments):
            assert allowed(new, name, arguments), (name, arguments)
        assert not narrower(before, before)


def test_commands_that_do_not_exist_are_no_requests() -> None:
    try:
        explain(policy_of(""), "guest-pong", {})
    except NoRequest as e:
        assert "did you mean guest-ping" in str(e)
    else:
        raise AssertionError
