"""Acting for another user, so that a download has no more rights than it needs."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import PurePosixPath

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.order import Order

_MODE = 0o750


def make_folders(job: Order) -> None:
    """Make the folders that the user may not make, and give them to it."""
    root, state_dir = job.settings.root, job.settings.state_dir
    root.mkdir(parents=True, exist_ok=True)
    tops = {PurePosixPath(item.folder).parts[0] for item in job.wanted if item.folder}
    for folder in [state_dir, *(root / top for top in sorted(tops))]:
        if not folder.exists():
            folder.mkdir(mode=_MODE, parents=True)
        if job.user and folder.stat().st_uid != _account(job.user).pw_uid:
            owner = _account(job.user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            # What an earlier run as another user has left.
            for entry in folder.iterdir() if folder == state_dir else []:
                os.chown(entry, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


@contextlib.contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Be that user until the end; without a name, stay who we are."""
    if not user or os.geteuid() != 0 or _account(user).pw_uid == 0:
        yield
        return
    account = _account(user)
    groups, group, mask = os.getgroups(), os.getegid(), os.umask(0o027)
    os.setgroups([account.pw_gid])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
        os.umask(mask)


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise LookupError(f"user names {user}, and there is no such user on this host") from None
