"""The effective configuration: file, defaults, what is dumped and what the processes are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.model import builtin
from privsep.config import Config, ConfigError, _escape, config_file, split_list
from privsep.keyfile import KeyFile


def loaded(folder: Path, text: str) -> Config:
    path = folder / "conf"
    path.write_text(text)
    config = Config()
    config.load(str(path), required=True)
    return config


def test_all_keys(tmp_path: Path) -> None:
    text = (
        "[general]\ndaemon=true\nmethod=unix-listen\npath=/a b\nlogfile=/l\npidfile=/p\nfsfreeze-hook=/h\n"
        "statedir=/s\nverbose=true\nretry-path=true\nblock-rpcs=guest-ping\nallow-rpcs=\n"
    )
    config = loaded(tmp_path, text)
    config.complete()
    assert config.dump() == text


def test_unknown_keys_and_groups_are_ignored(tmp_path: Path) -> None:
    config = loaded(tmp_path, "[general]\nno-such=1\n[other]\nverbose=true\n")
    assert not config.verbose


def test_old_block_key_counts(tmp_path: Path) -> None:
    assert loaded(tmp_path, "[general]\nblacklist=a,b\nblock-rpcs=c\n").block == ["b", "a", "c"]


def test_missing_file_matters_only_when_it_was_asked_for(tmp_path: Path) -> None:
    Config().load(str(tmp_path / "none"), required=False)
    with pytest.raises(ConfigError, match="No such file"):
        Config().load(str(tmp_path / "none"), required=True)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ConfigError, match="Not a regular file"):
            Config().load(str(path), required=False)


def test_which_file() -> None:
    assert config_file(None, {}) == ("/etc/qemu/qemu-ga.conf", False)
    assert config_file(None, {"QGA_CONF": "/x"}) == ("/x", False)
    assert config_file("/y", {"QGA_CONF": "/x"}) == ("/y", True)


def test_path_defaults() -> None:
    for method, path in ((None, "/dev/virtio-ports/org.qemu.guest_agent.0"), ("isa-serial", "/dev/ttyS0")):
        config = Config()
        config.method = method
        config.complete()
        assert config.path == path
    for method in ("unix-listen", "vsock-listen", "foo"):
        config = Config()
        config.method = method
        with pytest.raises(ConfigError, match="must specify a path"):
            config.complete()


def test_lists_split_at_commas_only() -> None:
    assert split_list("a, b;c") == [" b;c", "a"]
    assert split_list("") == []
    assert split_list(",a,,b") == ["b", "", "a", ""]


def test_settings() -> None:
    config = Config()
    config.statedir, config.hook, config.verbose = "/s", "/h", True
    settings = config.settings(builtin("default"))
    assert settings["statedir"] == "/s"
    assert settings["fsfreeze-hook"] == "/h"
    assert settings["verbose"] == "1"
    assert settings["auto-thaw"] == "300"
    assert settings["hook-limit"] == "60"
    assert settings["version"].startswith("10.2.2+")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\v\f"), max_size=30))
def test_what_is_dumped_is_read_again(value: str) -> None:
    file = KeyFile(f"[general]\npath={_escape(value)}\n".encode())
    assert file.get("general", "path") == value
