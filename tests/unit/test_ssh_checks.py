"""The SSH key commands before any file is touched: order of the checks, words, policy."""

from __future__ import annotations

import pwd
from typing import Any

import pytest

from protocol.errors import CommandError
from tests.support.handlers import BareContext
from workers import ssh
from workers.authorized_keys import KEY_LIMIT

GET, ADD, REMOVE = (
    ssh.guest_ssh_get_authorized_keys,
    ssh.guest_ssh_add_authorized_keys,
    ssh.guest_ssh_remove_authorized_keys,
)


def words(command: Any, ctx: Any, **arguments: Any) -> str:
    with pytest.raises(CommandError) as e:
        command(ctx, **arguments)
    e.value.desc.encode()  # it can go to the host
    return e.value.desc


def bare(**settings: str) -> Any:
    return BareContext("/nonexistent-root", **settings)


@pytest.fixture(autouse=True)
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_user(*_: object) -> bytes:
        raise AssertionError("a child was made")

    monkeypatch.setattr(ssh, "as_user", as_user)


@pytest.mark.parametrize(
    "name", ["qga-no-such-user", "", "root ", "a:b", "a\nb", "a\0b", "../root", "-x", "\u00fc" * 300]
)
@pytest.mark.parametrize("command", [GET, ADD, REMOVE])
def test_unknown_users(command: Any, name: str) -> None:
    arguments: dict[str, Any] = {"username": name}
    if command is not GET:
        arguments["keys"] = ["k"]
    assert words(command, bare(), **arguments) == f"failed to lookup user '{name}': Success"


def test_a_name_that_is_no_text() -> None:
    assert words(GET, bare(), username="\ud800") == "failed to lookup user '?': Success"


@pytest.mark.parametrize("key", ["# nope", "#x", "a\nb", "\n", "a\0b", "\x1b"])
@pytest.mark.parametrize("command", [ADD, REMOVE])
def test_keys_are_checked_before_the_user_is_looked_up(command: Any, key: str) -> None:
    got = words(command, bare(), username="qga-no-such-user", keys=["good", key])
    assert got == f"invalid OpenSSH public key: '{key}'"


def test_the_text_of_a_huge_key_is_cut() -> None:
    assert len(words(ADD, bare(), username="x", keys=["k" * (KEY_LIMIT + 1)])) < 200


def test_an_empty_list_of_keys_still_looks_the_user_up() -> None:
    assert "Success" in words(ADD, bare(), username="qga-no-such-user", keys=[])
    assert "Success" in words(REMOVE, bare(), username="qga-no-such-user", keys=[])


def test_strict_policy_takes_real_keys_only_and_removes_any() -> None:
    ctx = bare(ssh_strict="1")
    key = "ssh-ed25519 AAAAkey1 one"
    assert words(ADD, ctx, username="qga-no-such-user", keys=[key]) == f"invalid OpenSSH public key: '{key}'"
    assert "Success" in words(REMOVE, ctx, username="qga-no-such-user", keys=[key])


@pytest.mark.parametrize("value", ["", "0", "yes", "true"])
def test_uid_0_is_refused_without_the_setting(value: str) -> None:
    name = pwd.getpwuid(0).pw_name
    want = f"the authorized keys of user '{name}' (uid 0) are not allowed by policy"
    assert words(GET, bare(ssh_root=value), username=name) == want
    assert words(ADD, bare(ssh_root=value), username=name, keys=["k"]) == want
    assert words(REMOVE, bare(ssh_root=value), username=name, keys=["k"]) == want


def test_uid_0_goes_on_with_the_setting() -> None:
    with pytest.raises(AssertionError, match="a child was made"):
        GET(bare(ssh_root="1"), username=pwd.getpwuid(0).pw_name)


def test_numbers_for_rules_about_users() -> None:
    assert ssh.uid_of("root") == 0
    for name in ("", "no-such-user", "a\0b", "\ud800"):
        assert ssh.uid_of(name) is None
