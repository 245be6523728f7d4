"""Files, locks and rights on a host, among users who would lead root elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import units
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    BusyError,
    FileError,
    as_user,
    exclusive,
    opened_folder,
    read_regular,
    write_whole,
)

ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "a named pipe"),
    "folder": (Path.mkdir, "a folder"),
    "link to a file": (lambda path: path.symlink_to("/etc/hostname"), "a link"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "a link"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "a link"),
    "socket": (a_socket, "a socket"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_only_regular_files_are_opened(name: str, tmp_path: Path) -> None:
    make, kind = STRANGE[name]
    path = tmp_path / "f"
    make(path)
    with pytest.raises(FileError, match=f"{path} is {kind}, not a regular file"):
        read_regular(path)


def test_a_device_is_not_opened() -> None:
    with pytest.raises(FileError, match="/dev/zero is a device"):
        read_regular(Path("/dev/zero"))


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(FileError, match="has more than 4 bytes"):
        read_regular(path, 4)
    os.truncate(path, 2**40)  # sparse
    with pytest.raises(FileError, match="has more than 100 bytes"):
        read_regular(path, 100)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def theirs(path: Path) -> Path:
    path.mkdir()
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return path


def test_links_that_root_made_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "disk/deep/f").write_bytes(b"1")
    (tmp_path / "data").symlink_to("disk/../disk")
    (tmp_path / "again").symlink_to(tmp_path / "data")
    assert read_regular(tmp_path / "again/deep/f") == b"1"
    write_whole(tmp_path / "again/deep/f", "2")
    assert (tmp_path / "disk/deep/f").read_text() == "2"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileError, match="too many links"):
        read_regular(tmp_path / "a/f")


@pytest.mark.skipif(not ROOT, reason="only root can give folders to others")
@pytest.mark.parametrize("target", ["/etc", "../closed", "here"])
def test_links_of_others_lead_root_nowhere(target: str, shared: Path) -> None:
    folder = theirs(shared / "theirs")
    theirs(folder / "here")
    (shared / "closed").mkdir()
    with as_user("nobody"):
        (folder / "way").symlink_to(target)
    for act in (
        lambda: read_regular(folder / "way/hostname"),
        lambda: write_whole(folder / "way/f", b""),
        lambda: exclusive(folder / "way/lock").__enter__(),
        lambda: opened_folder(folder / "way").__enter__(),
    ):
        with pytest.raises(FileError, match="leads through the link 'way', which others can change"):
            act()
    assert list((shared / "closed").iterdir()) == []
    with as_user("nobody"), opened_folder(folder / "way") as handle:  # theirs to follow
        assert handle > 0


@pytest.mark.skipif(not ROOT, reason="only root can give folders to others")
def test_a_link_in_a_folder_that_a_group_writes_is_not_followed(shared: Path) -> None:
    (shared / "there").mkdir()
    (shared / "open").mkdir()
    (shared / "open").chmod(0o775)
    (shared / "open/way").symlink_to(shared / "there")
    with pytest.raises(FileError, match="others can change"):
        read_regular(shared / "open/way/f")
    (shared / "open").chmod(0o1777)  # sticky, and the link is root's: nobody else can exchange it
    with pytest.raises(FileNotFoundError):
        read_regular(shared / "open/way/f")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    (tmp_path / "other").write_text("untouched")
    path.symlink_to("other")
    write_whole(path, "new", 0o640)
    assert path.read_text() == "new"
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (tmp_path / "other").read_text() == "untouched"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["f", "other"]


def test_a_file_is_written_in_a_sandbox_that_forbids_chown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the service which fetches models does, for whatever owner."""

    def forbidden(*_unused: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("chown", "fchown", "lchown"):
        monkeypatch.setattr(os, name, forbidden)
    write_whole(tmp_path / "state.json", "{}")
    assert (tmp_path / "state.json").read_text() == "{}"


@pytest.mark.parametrize("step", ["fchown", "fchmod", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new", owner=pwd.getpwuid(os.getuid()).pw_name)
    assert [found.read_text() for found in tmp_path.iterdir()] == ["old"]


def test_data_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)

        def noted(*given: object, name: str = name, real: Callable[..., object] = real, **more: object) -> object:
            done.append(name)
            return real(*given, **more)

        monkeypatch.setattr(os, name, noted)
    write_whole(tmp_path / "f", "x")
    assert done == ["fsync", "rename", "fsync"]


def hold(path: Path, ready: int) -> None:
    with exclusive(path):
        os.write(ready, b".")
        signal.pause()


def test_a_lock_lasts_as_long_as_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    reading, writing = os.pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(path, writing))
    holder.start()
    os.read(reading, 1)
    with pytest.raises(BusyError, match=f"process {holder.pid}, since "), exclusive(path):
        pass
    holder.kill()
    holder.join()
    with exclusive(path, 60):
        pass


def test_a_lock_is_no_pipe_and_no_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=r"pipe|symbolic links"), exclusive(tmp_path / name):
            pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not ROOT, reason="only root can become others")
def test_rights_are_given_up_and_come_back(shared: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.getgroups()
    with as_user("nobody"):
        assert os.geteuid() == NOBODY.pw_uid
        assert 0 not in os.getgroups()
    with pytest.raises(PermissionError), as_user("nobody"):
        (shared / "f").write_text("")
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
    with pytest.raises(LookupError, match="there is no user nobody-there on this host"), as_user("nobody-there"):
        pass


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_700, "1.0 MB"), (120e9, "120 GB"), (2.5e12, "2.50 TB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.42, "0.4 s"), (5, "5 s"), (9.96, "10 s"), (45.4, "45 s"), (720, "12 min"), (11100, "3 h 05 min")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text
