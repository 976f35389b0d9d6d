"""What the host may ask: profiles, files, lists, and what makes a policy wrong."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from policy import build, load, model, schema
from policy.builtin import COMMANDS, FROZEN, PROFILES
from policy.errors import PolicyError
from policy.model import Policy, builtin, with_lists
from protocol import commands as table

# KubeVirt takes an agent that lacks one of these for unsupported.
KUBEVIRT = (
    "guest-ping guest-get-time guest-info guest-shutdown guest-network-get-interfaces guest-get-fsinfo "
    "guest-get-host-name guest-get-users guest-get-timezone guest-get-osinfo"
).split()


def from_text(folder: Path, text: str, name: str = "p.toml") -> Policy:
    path = folder / name
    path.write_text(text)
    path.chmod(0o644)
    return load.from_files([str(path)])


def test_the_generated_table_is_current() -> None:
    assert build.TARGET.read_text() == build.render()
    assert build.SCHEMA.read_text() == schema.render()
    assert {c.name: c.domain for c in table.COMMANDS} == COMMANDS
    assert {c.name for c in table.COMMANDS if c.frozen} == FROZEN


def test_profiles_allow_more_and_more() -> None:
    allowed = [builtin(name).allowed for name in PROFILES]
    assert all(one < other for one, other in itertools.pairwise(allowed))
    assert allowed[-1] == set(COMMANDS)


def test_default_keeps_kubevirt_and_keeps_out_of_files_programs_passwords_and_keys() -> None:
    policy = builtin("default")
    assert set(KUBEVIRT) <= policy.allowed
    assert not {"file", "exec", "user", "ssh"} & set(policy.domains())


def test_only_qemu_ga_is_lenient_and_words_refusals_as_the_peer() -> None:
    assert [n for n in PROFILES if builtin(n).lenient] == ["qemu-ga"]
    assert builtin("qemu-ga").refusal() == "the command is not allowed"
    assert builtin("default").refusal() == "the command is not allowed by policy (profile default)"


def test_a_policy_is_not_changed() -> None:
    with pytest.raises(AttributeError):
        builtin("default").allowed = frozenset()  # type: ignore[misc]


def test_a_profile_as_a_file_means_the_same(tmp_path: Path) -> None:
    for name in PROFILES:
        made = from_text(tmp_path, (build.PROFILES / f"{name}.toml").read_text(), f"{name}.toml")
        same = builtin(name)
        assert (made.allowed, made.lenient, made.auto_thaw, made.hook_limit, made.expedite) == (
            same.allowed,
            same.lenient,
            same.auto_thaw,
            same.hook_limit,
            same.expedite,
        )


def test_rules_of_a_file(tmp_path: Path) -> None:
    policy = from_text(
        tmp_path,
        'profile = "minimal"\n[commands]\nallow = ["@ssh", "guest-fsfreeze-*", "guest-get-users"]\n'
        'block = [\n  "guest-ssh-add-*",\n]\n[fsfreeze]\nauto-thaw = 30\nhook-limit = 5\n'
        "auto-thaw-on-disconnect = 7\nexpedite-rcu = false\n",
    )
    assert policy.allows("guest-ping") and policy.allows("guest-ssh-get-authorized-keys")
    assert not policy.allows("guest-ssh-add-authorized-keys") and not policy.allows("guest-exec")
    assert (policy.auto_thaw, policy.hook_limit, policy.expedite) == (30, 5, False)
    assert policy.disconnect == 7
    assert policy.settings()["auto-thaw-on-disconnect"] == "7"
    assert policy.why("guest-ssh-add-authorized-keys") == f"not allowed by block:guest-ssh-add-* at {tmp_path}/p.toml:5"
    assert policy.about("guest-ssh-get-authorized-keys") == ("allow:@ssh", f"{tmp_path}/p.toml:3")
    assert policy.why("guest-get-users").endswith("p.toml:3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fsfreeze]\nhook-limit = 0\n", "p.toml:2:1: hook-limit must be a number of seconds from 1 to 3600"),
        ("[commands\n", "p.toml:1:10: not TOML"),
        ("x = ", "p.toml:1:5: not TOML"),
        ('\n[comands]\nallow = ["*"]\n', r"p.toml:2:1: unknown key or table comands \(did you mean commands\?\)"),
        ("[commands]\n\nalow = []\n", r"p.toml:3:1: unknown key alow in \[commands\] \(did you mean allow\?\)"),
        (
            '[commands]\nallow = [\n "guest-ping",\n "guest-pong",\n]\n',
            r"p.toml:4:2: unknown command guest-pong .*guest-ping",
        ),
        (
            '[commands]\nallow = ["@netwrok"]\n',
            r"p.toml:2:10: no command belongs to @netwrok \(did you mean @network\?\)",
        ),
        ('[commands]\nallow = ["guest-xx-*"]\n', "p.toml:2:10: the pattern guest-xx-\\* matches no command"),
        ('[commands]\nallow = "*"\n', "p.toml:2:1: allow must be a list"),
        ("commands = 3\n", "p.toml:1:1: commands must be a table"),
        ("[fsfreeze]\nauto-thaw = -1\n", "p.toml:2:1: auto-thaw must be a number of seconds from 0 to 86400"),
        ("[fsfreeze]\nauto-thaw = true\n", "p.toml:2:1: auto-thaw must be"),
        ('[fsfreeze]\nexpedite-rcu = "no"\n', "p.toml:2:1: expedite-rcu must be true or false"),
        ('profile = "defualt"\n', r"p.toml:1:1: unknown profile 'defualt' \(did you mean default\?\)"),
        (
            '[commands]\nallow = ["guest-fsfreeze-freeze"]\n',
            "guest-fsfreeze-freeze is allowed but guest-fsfreeze-thaw is not",
        ),
        (
            'profile = "default"\n[commands]\nblock = ["guest-fsfreeze-status"]\n',
            "guest-fsfreeze-status is not .*p.toml:3",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        from_text(tmp_path, text)


def test_without_rules_nothing_is_allowed(tmp_path: Path) -> None:
    assert not from_text(tmp_path, "").allowed


def test_who_may_write_the_file_decides(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('profile = "minimal"\n')
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(PolicyError, match="chmod go-w"):
            load.from_files([str(path)])
    path.chmod(0o644)
    load.from_files([str(path)])
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    with pytest.raises(PolicyError, match="symbolic link"):
        load.from_files([str(link)])
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(PolicyError, match="not a regular file"):
        load.from_files([str(tmp_path / "fifo.toml")])
    (tmp_path / "big.toml").write_text("#" * (load.FILE_LIMIT + 1))
    with pytest.raises(PolicyError, match="larger than"):
        load.from_files([str(tmp_path / "big.toml")])
    (tmp_path / "raw.toml").write_bytes(b"# a\n# \xff\n")
    with pytest.raises(PolicyError, match=r"raw\.toml:2:3: not UTF-8"):
        load.from_files([str(tmp_path / "raw.toml")])


@pytest.mark.root
def test_another_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('profile = "minimal"\n')
    path.chmod(0o644)
    os.chown(path, 12345, 0)
    with pytest.raises(PolicyError, match="belongs to uid 12345"):
        load.from_files([str(path)])


def test_the_installed_policy(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert load.choose(None, folder).name == "profile default"
    drop_ins = tmp_path / "policy.d"
    drop_ins.mkdir()
    (drop_ins / "20-more.toml").write_text('[commands]\nallow = ["@ssh"]\n')
    (drop_ins / "10-less.toml").write_text('[commands]\nblock = ["guest-get-users", "guest-ssh-add-authorized-keys"]\n')
    (drop_ins / ".hidden.toml").write_text("=")
    (drop_ins / "readme").write_text("=")
    for path in drop_ins.iterdir():
        path.chmod(0o644)
    policy = load.choose(None, folder)
    assert policy.allows("guest-ping") and policy.allows("guest-ssh-get-authorized-keys")
    # Blocked anywhere stays blocked.
    assert not policy.allows("guest-get-users") and not policy.allows("guest-ssh-add-authorized-keys")
    (tmp_path / "policy.toml").write_text('profile = "minimal"\n')
    (tmp_path / "policy.toml").chmod(0o644)
    assert not load.choose(None, folder).allows("guest-get-osinfo")
    (drop_ins / "30-profile.toml").write_text('profile = "qemu-ga"\n')
    (drop_ins / "30-profile.toml").chmod(0o644)
    with pytest.raises(PolicyError, match=r"30-profile\.toml:1:1: only the first file"):
        load.choose(None, folder)


def test_a_policy_that_cannot_be_read_is_not_the_default(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").mkdir()
    with pytest.raises(PolicyError):
        load.choose(None, str(tmp_path))


def test_names_and_paths() -> None:
    with pytest.raises(PolicyError, match="did you mean minimal"):
        load.choose("minimum")
    for option in ("./default", "default.toml"):
        with pytest.raises(PolicyError, match="No such file"):
            load.choose(option)


def test_lists_narrow() -> None:
    policy = builtin("qemu-ga")
    assert with_lists(policy, [], []) is policy
    assert with_lists(policy, ["guest-ping"], []).allowed == policy.allowed - {"guest-ping"}
    assert with_lists(policy, [], ["guest-ping"]).allowed == {"guest-ping"}
    assert with_lists(policy, ["guest-ping"], ["guest-ping", "guest-info"]).allowed == {"guest-info"}
    folded = with_lists(policy, ["guest-ping"], ["guest-ping"])
    assert "block-rpcs" in folded.why("guest-ping") and "allow-rpcs" in folded.why("guest-exec")


def test_an_allow_list_does_not_widen_a_profile() -> None:
    policy = with_lists(builtin("default"), [], ["guest-exec", "guest-ping"])
    assert policy.allowed == {"guest-ping"}
    assert any("guest-exec" in note for note in policy.notes)


def test_unknown_names_in_lists() -> None:
    with pytest.raises(
        PolicyError, match=r"block-rpcs lists the unknown command 'guest-pong' \(did you mean guest-ping\?\)"
    ):
        with_lists(builtin("default"), ["guest-pong"], [])
    lenient = with_lists(builtin("qemu-ga"), ["guest-ping;guest-info"], [])
    assert lenient.allowed == set(COMMANDS) and len(lenient.notes) == 1
    # An allow list of nothing known allows nothing, as with the peer.
    assert not with_lists(builtin("qemu-ga"), [], ["x"]).allowed
    # Distributions' lists name what only other systems have.
    assert len(with_lists(builtin("default"), ["guest-get-devices"], []).notes) == 1


def test_freeze_without_thaw_is_refused_but_by_the_lenient() -> None:
    with pytest.raises(PolicyError, match="guest-fsfreeze-thaw is not"):
        with_lists(builtin("default"), ["guest-fsfreeze-thaw"], [])
    policy = with_lists(builtin("qemu-ga"), ["guest-fsfreeze-thaw", "guest-fsfreeze-status"], [])
    # The worker has to answer both all the same: while frozen no list counts.
    assert set(policy.commands_for("fs")) == {c for c, d in COMMANDS.items() if d == "fs"}
    without = with_lists(policy, ["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list"], [])
    assert without.commands_for("fs") == ()


def test_worker_tables_keep_the_command_tables_order() -> None:
    for domain in set(COMMANDS.values()):
        assert list(builtin("qemu-ga").commands_for(domain)) == [c.name for c in table.verbs_of(domain)]


def test_notes_alone_change_nothing_else() -> None:
    policy = with_lists(builtin("qemu-ga"), ["nothing"], [])
    assert policy.allowed == set(COMMANDS)
    assert policy.domains() == builtin("qemu-ga").domains()
    assert model.check(policy) is policy
