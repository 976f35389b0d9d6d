"""Who could have written a policy, or put another in its place: only root, or nothing is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy import load
from policy.errors import PolicyError
from policy.trust import NotTrusted, walk

pytestmark = [pytest.mark.root]
OTHER = 12345


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of root's with a policy in it."""
    found = tmp_path / "a" / "b"
    found.mkdir(parents=True)
    for place in (tmp_path, tmp_path / "a", found):
        place.chmod(0o755)
    (found / "policy.toml").write_text('profile = "minimal"\n')
    (found / "policy.toml").chmod(0o644)
    return found


def refused(path: Path) -> str:
    with pytest.raises(PolicyError) as e:
        load.from_files([str(path / "policy.toml")])
    return str(e.value)


def test_each_folder_on_the_way_counts(folder: Path) -> None:
    load.from_files([str(folder / "policy.toml")])
    for place in (folder, folder.parent):
        place.chmod(0o775)
        assert f"{place}: others than its owner may write the folder (chmod go-w {place})" in refused(folder)
        place.chmod(0o757)
        assert "chmod go-w" in refused(folder)
        place.chmod(0o1777)  # as /tmp: nobody can take root's file away
        load.from_files([str(folder / "policy.toml")])
        place.chmod(0o755)
        os.chown(place, OTHER, 0)
        assert f"{place}: the folder belongs to uid {OTHER}, not to root" in refused(folder)
        os.chown(place, 0, 0)


def test_links_on_the_way_are_roots_own_or_not_followed(folder: Path) -> None:
    link = folder.parent / "link"
    for target in (str(folder), "b", "./b/../b"):
        link.symlink_to(target)
        assert load.from_files([str(link / "policy.toml")]).name == f"{link}/policy.toml"
        os.lchown(link, OTHER, OTHER)
        assert f"{link}: is a symbolic link of uid {OTHER}" in refused(link)
        link.unlink()
    link.symlink_to("link")
    assert "too many symbolic links" in refused(link)


def test_a_folder_that_others_may_write_is_not_believed_even_when_it_is_empty(folder: Path) -> None:
    assert load.choose(None, str(folder)).allowed
    drop_ins = folder / "policy.d"
    drop_ins.mkdir(mode=0o755)
    load.choose(None, str(folder))
    drop_ins.chmod(0o777)
    with pytest.raises(PolicyError, match=r"policy\.d is not believed: .*chmod go-w"):
        load.choose(None, str(folder))
    drop_ins.chmod(0o755)
    (folder / "policy.toml").unlink()
    assert load.choose(None, str(folder)).name == "profile default"
    folder.chmod(0o777)
    with pytest.raises(PolicyError, match="is not believed"):
        load.choose(None, str(folder))


def test_a_relative_name_is_looked_at_from_the_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    load.from_files(["./policy.toml"])
    folder.parent.chmod(0o777)
    with pytest.raises(PolicyError, match="is not believed"):
        load.from_files(["./policy.toml"])


def test_a_walk_for_a_rule_looks_at_links_only(folder: Path) -> None:
    folder.chmod(0o777)
    os.chown(folder, OTHER, OTHER)
    (folder / "ours").symlink_to("/etc/hostname")
    (folder / "theirs").symlink_to("/etc/hostname")
    os.lchown(folder / "theirs", OTHER, OTHER)
    fd = walk(str(folder / "ours"), folders=False)
    assert os.readlink(f"/proc/self/fd/{fd}") == "/etc/hostname"
    os.close(fd)
    with pytest.raises(NotTrusted):
        walk(str(folder / "theirs"), folders=False)
    with pytest.raises(FileNotFoundError):
        walk(str(folder / "none"), folders=False)
    with pytest.raises(NotADirectoryError):
        walk(str(folder / "policy.toml" / "x"), folders=False)
    before = len(os.listdir("/proc/self/fd"))
    for name in ("theirs", "none", "policy.toml/x"):
        with pytest.raises((NotTrusted, OSError)):
            walk(str(folder / name), folders=True)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_walk_below_another_root_stays_there(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "link").symlink_to("/in")
    (folder / "out").symlink_to("../../../etc")
    fd = walk("/link", folders=False, root=str(folder))
    assert os.readlink(f"/proc/self/fd/{fd}") == f"{folder}/in"
    os.close(fd)
    with pytest.raises(NotTrusted, match=r"'\.\.'"):
        walk("/out", folders=False, root=str(folder))
