"""A policy goes as lines from the process that reads it to the supervisor, and nothing of it is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.builtin import COMMANDS, PROFILES
from policy.errors import PolicyError
from policy.lines import decode, encode
from policy.model import Policy, builtin
from policy.rules import KINDS, Rule

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
WORD = st.text("abcXYZ-_.%", min_size=1, max_size=8)
# In a slice a name alone stands for a list without elements, and a name has no sign in it.
RULES = st.builds(
    Rule, st.sampled_from(sorted(KINDS)), WORD, TEXT, st.dictionaries(WORD, st.lists(TEXT).map(tuple), max_size=3)
)
POLICIES = st.builds(
    Policy,
    TEXT,
    st.frozensets(st.sampled_from(sorted(COMMANDS))),
    base=st.tuples(WORD, TEXT),
    why_of=st.dictionaries(st.sampled_from(sorted(COMMANDS)), st.tuples(WORD, TEXT)),
    rules=st.lists(RULES, max_size=4).map(tuple),
    lenient=st.booleans(),
    auto_thaw=st.integers(0, 86400),
    disconnect=st.integers(0, 86400),
    hook_limit=st.integers(1, 3600),
    expedite=st.booleans(),
    more=st.dictionaries(WORD, TEXT),
    notes=st.lists(TEXT).map(tuple),
)


def values(policy: Policy) -> dict[str, object]:
    return {name: getattr(policy, name) for name in Policy.__slots__}


@given(POLICIES)
def test_what_was_read_is_what_arrives(policy: Policy) -> None:
    assert values(decode(encode(policy))) == values(policy)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles(name: str) -> None:
    assert values(decode(encode(builtin(name)))) == values(builtin(name))


@pytest.mark.parametrize(
    "data", [b"", b"is x", b"nonsense\n", b"allow guest-ping\n", b"base x\n", b"set auto_thaw x\n"]
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, KeyError, IndexError, PolicyError)):
        decode(data)
