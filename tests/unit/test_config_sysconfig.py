"""The lists of /etc/sysconfig/qemu-ga, in the words of each release of the RHEL family."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.errors import PolicyError
from policy.model import builtin, with_lists
from privsep.config import Config

RHEL_8 = """\
# This is a systemd environment file, not a shell script.
# It provides settings for "/lib/systemd/system/qemu-guest-agent.service".

BLACKLIST_RPC=guest-file-open,guest-file-close,guest-exec
FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook
"""
RHEL_9 = """\
; You can get the list of commands by "qemu-ga --block-rpcs='?'"
BLOCK_RPCS="guest-exec,guest-exec-status"
#BLOCK_RPCS=guest-ping
"""
RHEL_10 = """\
FILTER_RPC_ARGS="--allow-rpcs=guest-sync,guest-sync-delimited,\\
guest-ping,guest-info -b guest-info"
"""


def loaded(folder: Path, text: str) -> Config:
    path = folder / "qemu-ga"
    path.write_text(text)
    path.chmod(0o644)
    config = Config()
    config.load_sysconfig(str(path))
    return config


@pytest.mark.parametrize(
    ("text", "block", "allow", "line"),
    [
        (RHEL_8, ["guest-exec", "guest-file-close", "guest-file-open"], [], 4),
        (RHEL_9, ["guest-exec-status", "guest-exec"], [], 2),
        (RHEL_10, ["guest-info"], ["guest-info", "guest-ping", "guest-sync-delimited", "guest-sync"], 1),
        ("QEMU_GA_ARGS='-b guest-exec --verbose -p x'", ["guest-exec"], [], 1),
        ("FILTER_RPC_ARGS=--blacklist=guest-exec\nFILTER_RPC_ARGS=\n", [], [], 0),
        ('FILTER_RPC_ARGS=""\nBLACKLIST_RPC=\nOTHER\n', [], [], 0),
    ],
)
def test_each_release(tmp_path: Path, text: str, block: list[str], allow: list[str], line: int) -> None:
    config = loaded(tmp_path, text)
    assert (config.block, config.allow) == (block, allow)
    assert set(config.origins.values()) == ({f"{tmp_path}/qemu-ga:{line}"} if line else set())


def test_it_narrows_and_its_place_is_told(tmp_path: Path) -> None:
    config = loaded(tmp_path, RHEL_10)
    policy = with_lists(builtin("default"), config.block, config.allow, config.origins)
    assert policy.allowed == {"guest-sync", "guest-sync-delimited", "guest-ping"}
    place = f"{tmp_path}/qemu-ga:1"
    assert policy.about("guest-info") == ("block-rpcs", place)
    assert policy.about("guest-shutdown") == ("allow-rpcs", place)
    assert policy.why("guest-ping") == f"allowed by allow-rpcs at {place}"


def test_a_list_that_is_wrong_is_refused_with_its_place_and_all_of_it(tmp_path: Path) -> None:
    config = loaded(tmp_path, "\nBLOCK_RPCS=guest-exec;guest-ping,guest-pong, guest-info\n")
    with pytest.raises(PolicyError) as e:
        with_lists(builtin("default"), config.block, config.allow, config.origins)
    place = f"{tmp_path}/qemu-ga:2"
    assert str(e.value).splitlines() == [
        f"{place}: block-rpcs lists the unknown command ' guest-info' (did you mean guest-info?)",
        f"{place}: block-rpcs lists the unknown command 'guest-pong' (did you mean guest-ping?)",
        f"{place}: block-rpcs lists the unknown command 'guest-exec;guest-ping' (names are separated by commas, "
        "without blanks) (did you mean guest-exec?)",
    ]
    lenient = with_lists(builtin("qemu-ga"), config.block, config.allow, config.origins)
    assert lenient.allowed == builtin("qemu-ga").allowed and len(lenient.notes) == 3


def test_one_that_others_could_have_written_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "qemu-ga"
    path.write_text("BLOCK_RPCS=guest-exec\n")
    path.chmod(0o666)
    with pytest.raises(PolicyError, match="chmod go-w"):
        Config().load_sysconfig(str(path))


def test_an_option_without_its_list(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"qemu-ga:1: FILTER_RPC_ARGS: option '--allow-rpcs' requires an argument"):
        loaded(tmp_path, "FILTER_RPC_ARGS=--allow-rpcs\n")


def test_no_such_file_is_none(tmp_path: Path) -> None:
    Config().load_sysconfig(str(tmp_path / "none"))


def test_lists_of_the_configuration_file_have_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "qemu-ga.conf"
    path.write_text("[general]\n\nblock-rpcs=guest-exec,guest-ping\n")
    config = Config()
    config.load(str(path), required=True)
    policy = with_lists(builtin("qemu-ga"), [*config.block, "guest-info"], [], config.origins)
    assert policy.about("guest-ping") == ("block-rpcs", f"{path}:3")
    assert policy.about("guest-info") == ("block-rpcs", "--block-rpcs")
