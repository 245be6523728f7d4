"""What root does with files, locks and other users' folders, in one way everywhere."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import json
import os
import pwd
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain

MOST_BYTES = 64 * 2**20
"""Of a file that is read whole: far above what is expected, far below what would hurt."""

_MOST_LINKS = 40


class FileError(OSError):
    """A file that is not touched, and why."""

    def __init__(self, path: Path, reason: str, number: int = errno.EPERM) -> None:
        super().__init__(number, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


class BusyError(Exception):
    """Another process holds the lock; the text says which, and since when."""


# -- folders and files of others


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Open a folder for use with ``dir_fd``.

    A link on the way is followed only where nobody but root (or this process's own user) can have made it. So whoever
    owns a folder on the way cannot lead root out of it, not even by exchanging a folder for a link meanwhile.
    """
    names = deque(path.absolute().parts[1:])
    links = 0
    handle = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while names:
            name = names.popleft()
            found = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise FileError(path, "leads through too many links", errno.ELOOP)
                if not _trusted_link(os.fstat(handle), found):
                    raise FileError(path, f"leads through the link '{name}', which others can change", errno.ELOOP)
                target = Path(os.readlink(name, dir_fd=handle))
                if target.is_absolute():
                    _exchange(handle, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                names.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
                continue
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=handle)
            _exchange(handle, inner)
        yield handle
    finally:
        os.close(handle)


def _exchange(handle: int, other: int) -> None:
    os.dup2(other, handle, inheritable=False)
    os.close(other)


def _trusted_link(folder: os.stat_result, link: os.stat_result) -> bool:
    own = {0, os.geteuid()}
    closed = not folder.st_mode & 0o022 or folder.st_mode & stat.S_ISVTX
    return folder.st_uid in own and link.st_uid in own and bool(closed)


@contextlib.contextmanager
def listed(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a folder. What is in it may be looked at while this is open, whatever has its name meanwhile."""
    with opened_folder(path) as folder:
        handle = _opened_to_read(folder)
    try:
        with os.scandir(handle) as entries:
            yield entries
    finally:
        os.close(handle)


def readable(path: Path) -> str:
    """A path for an answer in JSON and for a line of text: neither holds all that a name may have."""
    return plain(os.fsencode(path).decode("utf-8", "replace"))


def make_folders(path: Path, mode: int = 0o755) -> None:
    """Make a folder and those above it, where they are missing."""
    if path.parent != path:
        with contextlib.suppress(FileNotFoundError), opened_folder(path):
            return
        make_folders(path.parent, mode)
        with opened_folder(path.parent) as folder, contextlib.suppress(FileExistsError):
            os.mkdir(path.name, mode, dir_fd=folder)
    with opened_folder(path):  # or something else has its name
        pass


@contextlib.contextmanager
def opened_regular(path: Path) -> Iterator[int]:
    """Open a regular file to read it; links, pipes, devices and sockets are refused without being opened."""
    with opened_folder(path.parent) as folder:
        handle = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        _assert_regular(handle, path)
        reading = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(handle)
    try:
        yield reading
    finally:
        os.close(reading)


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most so many bytes."""
    with opened_regular(path) as handle, os.fdopen(handle, "rb", closefd=False) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise FileError(path, f"has more than {most} bytes", errno.EFBIG)
    return data


def _assert_regular(handle: int, path: Path) -> None:
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    found = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
    raise FileError(path, f"is {found}, not a regular file", errno.EINVAL)


def write_whole(
    path: Path,
    content: bytes | str,
    mode: int = 0o644,
    *,
    owner: str = "",
    group: str = "",
    sync: bool = True,
) -> None:
    """Replace a file by one that is complete, on disk, and has its owner and mode before it has its name."""
    data = content.encode() if isinstance(content, str) else content
    ids = (pwd.getpwnam(owner).pw_uid if owner else -1, grp.getgrnam(group).gr_gid if group else -1)
    with opened_folder(path.parent) as folder:
        name = f".{path.name}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                if owner or group:  # the sandbox of a service has no call that changes owners
                    os.fchown(handle, *ids)
                os.fchmod(handle, mode)
                if sync:
                    os.fsync(handle)
            os.rename(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise
        if sync:
            _sync_names(folder)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to disk: of a new file, a rename, a removal."""
    with opened_folder(path) as folder:
        _sync_names(folder)


def _opened_to_read(folder: int) -> int:
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


def _sync_names(folder: int) -> None:
    handle = _opened_to_read(folder)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- locks


@contextlib.contextmanager
def exclusive(path: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Hold a lock, a file; yield its handle.

    The lock lasts until this process and all that it passes the handle to have ended, however they end.
    """
    deadline = time.monotonic() + wait_s
    while (handle := _locked(path)) is None:
        if time.monotonic() >= deadline:
            raise BusyError(_holder(path))
        time.sleep(min(0.5, max(0.05, deadline - time.monotonic())))
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "since": int(time.time())}).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _locked(path: Path) -> int | None:
    with opened_folder(path.parent) as folder:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path.name, flags, 0o644, dir_fd=folder)
        try:
            _assert_regular(handle, path)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever waited may have got the lock of a file that was removed meanwhile.
            if os.path.samestat(os.fstat(handle), os.stat(path.name, dir_fd=folder, follow_symlinks=False)):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(handle)
            raise
    os.close(handle)
    return None


def _holder(path: Path) -> str:
    try:
        data = json.loads(read_regular(path, 4096))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(data["since"]))
        return f"process {data['pid']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"


# -- rights


def account(user: str) -> pwd.struct_passwd:
    """The user of this name."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise LookupError(f"there is no user {user} on this host") from None


@contextlib.contextmanager
def as_user(user: str, umask: int = 0o027) -> Iterator[None]:
    """Work with the rights of a user: in folders that are theirs, links could lead root anywhere.

    Whoever is not root, or is that user already, stays as they are.
    """
    wanted = account(user)
    if os.geteuid() != 0 or wanted.pw_uid == 0:
        yield
        return
    groups, group, mask = os.getgroups(), os.getegid(), os.umask(umask)
    try:
        os.setgroups(os.getgrouplist(user, wanted.pw_gid))
        os.setegid(wanted.pw_gid)
        os.seteuid(wanted.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        os.umask(mask)
