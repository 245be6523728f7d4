"""Files that are placed, changed by users, renewed and taken away."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import tempfile
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import user_files
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import (
    UserFilesError,
    decide,
    pack,
    place,
)

from tests.unit.run_module import run_module

ME = getpass.getuser()


@pytest.mark.parametrize(
    ("new", "old", "here", "deed"),
    [
        ("b", None, None, "add"),
        ("b", "a", None, "add"),
        ("b", "a", "a", "renew"),
        ("b", "a", "b", ""),
        ("b", "a", "x", "kept"),
        ("b", None, "x", "kept"),
        ("b", "b", "x", "kept"),
        (None, "a", "a", "remove"),
        (None, "a", "x", ""),
        (None, "a", None, ""),
    ],
)
def test_what_is_done_with_a_file(new: str | None, old: str | None, here: str | None, deed: str) -> None:
    changes = decide({"f": new} if new else {}, {"f": old} if old else {}, {"f": here})
    assert vars(changes) == {"add": [], "renew": [], "remove": [], "kept": []} | ({deed: ["f"]} if deed else {})


def run(root: Path, files: dict[str, bytes], check: bool = False) -> user_files.Changes:
    return place(root / "data", pack(files), root / "state.json", ME, check=check)


def test_a_file_through_its_life(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/user/a.json"
    assert run(tmp_path, {"user/a.json": b"1"}, check=True).add == ["user/a.json"]
    assert not file.exists()
    assert run(tmp_path, {"user/a.json": b"1"}).add == ["user/a.json"]
    assert not run(tmp_path, {"user/a.json": b"1"}).any
    assert run(tmp_path, {"user/a.json": b"2"}).renew == ["user/a.json"]
    file.write_bytes(b"mine")
    for data in (b"2", b"3", b"4"):
        assert run(tmp_path, {"user/a.json": data}).kept == ["user/a.json"]
    assert file.read_bytes() == b"mine"
    assert not run(tmp_path, {}).any
    assert file.read_bytes() == b"mine"
    assert not (tmp_path / "state.json").exists()


def test_what_is_no_longer_wanted_goes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run(tmp_path, {"a": b"1", "b": b"2"})
    assert run(tmp_path, {"a": b"1"}).remove == ["b"]
    assert run(tmp_path, {}).remove == ["a"]
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as another user")
def test_a_link_of_the_users_leads_root_nowhere() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        Path(folder).chmod(0o755)
        link_to_secret(Path(folder))


def link_to_secret(root: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    data, secret = root / "data", root / "secret"
    data.mkdir()
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    secret.mkdir(mode=0o700)
    (data / "user").symlink_to(secret)
    with pytest.raises(UserFilesError, match=r"a\.json cannot be"):
        place(data, pack({"user/a.json": b"1"}), root / "state.json", "nobody", check=False)
    assert list(secret.iterdir()) == []
    assert os.geteuid() == 0


@pytest.mark.parametrize("path", ["/etc/passwd", "user/../../x"])
def test_paths_stay_in_the_folder(path: str) -> None:
    with pytest.raises(UserFilesError, match="leads out"):
        user_files.unpack(pack({path: b""}))


@pytest.mark.parametrize("text", ["x", "eA=="])
def test_a_damaged_archive_is_named(text: str) -> None:
    with pytest.raises(UserFilesError, match="cannot be read"):
        user_files.unpack(text)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(UserFilesError, match="is damaged"):
        run(tmp_path, {"a": b"1"})


def test_the_module(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    state = tmp_path / "state.json"
    given = {"root": str(tmp_path / "data"), "archive": pack({"a": b"1"}), "state": str(state), "owner": ME}
    assert run_module("user_files", given, check=True)["diff"]["after"] == "a\n"
    assert run_module("user_files", given)["changed"]
    assert not run_module("user_files", given)["changed"]
    assert json.loads(state.read_text())["files"].keys() == {"a"}
    stranger = {**given, "owner": "nobody-of-that-name", "archive": pack({"b": b"1"})}
    assert run_module("user_files", stranger, check=True)["added"] == ["b"]
    assert "no user" in run_module("user_files", {**given, "owner": "nobody-of-that-name"})["msg"]
