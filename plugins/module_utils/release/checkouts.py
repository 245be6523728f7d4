"""Checkouts of git commits: fetched into a cache, exported without history, and verified file by file.

This does without git: the exported files are hashed as git hashes them, up to the tree that the commit names, and the
commit is hashed, too. So neither a damaged cache nor a conversion of line ends goes unseen.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import posixpath
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import BusyError, exclusive, write_whole
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite

MARKER = ".wanmetal-checkout.json"
SCHEMES = ("https", "http", "file", "ssh", "git")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCK_WAIT_S = 1800.0


NETWORK, SINGLE, DAMAGE, UNKNOWN = "network", "single", "damage", "unknown"


class CheckoutError(Exception):
    """What is wrong, with what to do. ``kind`` says what may help."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Wanted:
    """A commit of a repository, and where it shall be."""

    name: str
    repository: str
    commit: str
    dest: Path
    submodules: bool = False


@dataclass
class Made:
    """What became of a checkout."""

    name: str
    dest: str
    before: str
    commit: str
    changed: bool
    tree: str = ""
    fetched: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def check(entries: Sequence[Mapping[str, Any]]) -> list[Wanted]:
    """Return the checkouts that are asked for; a CheckoutError names the entry that is wrong."""
    wanted = [
        Wanted(one["name"], one["repository"], one["commit"], Path(one["dest"]), bool(one.get("submodules")))
        for one in entries
    ]
    for one in wanted:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", one.name):
            raise CheckoutError(f"a name must be made of letters, digits, '.', '_' and '-', found {one.name!r}")
        if not _COMMIT.fullmatch(one.commit):
            raise CheckoutError(
                f"{one.name}: commit must be the 40 hexadecimal digits of a commit, found {one.commit!r}"
            )
        if not one.dest.is_absolute():
            raise CheckoutError(f"{one.name}: dest must be an absolute path, found {str(one.dest)!r}")
        _assert_url(one.name, one.repository)
    for what in ("name", "dest"):
        values = [getattr(one, what) for one in wanted]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise CheckoutError(f"two checkouts have the same {what}: {', '.join(twice)}")
    return wanted


_MOST_LISTED = 20_000_000
"""Bytes of the list of a commit's files. Git makes a list without an end of few folders that hold each other."""
_DEEPEST, _MOST_SUBMODULES = 100, 100


class Checkouts:
    """All checkouts of one call, around one cache."""

    def __init__(
        self,
        cache_dir: Path,
        mirrors: object = (),
        parallel: int = 4,
        retries: int = 3,
        timeout_s: float = 1800.0,
        retry_pause_s: float = 2.0,
    ) -> None:
        self._cache_dir = cache_dir
        self._mirrors = mirrors
        self._parallel, self._retries, self._timeout_s = parallel, retries, timeout_s
        self._retry_pause_s = retry_pause_s
        self._lock_fd = -1
        self._guards: dict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._guards_guard = threading.Lock()
        self._submodules: dict[Path, int] = defaultdict(int)

    def plan(self, wanted: Sequence[Wanted], verify: bool = False) -> list[Made]:
        """Tell what would change. Needs neither git nor a network."""
        made = [_compare(one, wanted, verify) for one in wanted]
        changing = [Path(one.dest) for one in made if one.changed and one.before]
        for one in made:
            # a checkout inside of one that is replaced goes with it
            one.changed = one.changed or any(outer in Path(one.dest).parents for outer in changing)
        return made

    def make(self, wanted: Sequence[Wanted], verify: bool = False) -> list[Made]:
        """Make them all, or change none of them."""
        made = self.plan(wanted, verify)
        if not any(one.changed for one in made):
            return made
        with self._exclusive():
            made = self.plan(wanted, verify)  # another run may have made them meanwhile
            todo = [(one, found) for one, found in zip(wanted, made, strict=True) if found.changed]
            drafts = [_draft(one, wanted) for one, _unused in todo]
            try:
                with ThreadPoolExecutor(self._parallel) as pool:
                    jobs = [pool.submit(self._prepare, *pair, draft) for pair, draft in zip(todo, drafts, strict=True)]
                errors = [(one, job.exception()) for (one, _unused), job in zip(todo, jobs, strict=True)]
                _raise_all([(one, error) for one, error in errors if error is not None], len(wanted))
                for (one, _unused), draft in sorted(zip(todo, drafts, strict=True), key=lambda pair: pair[0][0].dest):
                    _place(draft, one.dest)
            finally:
                for draft in drafts:
                    _remove(draft)
        return made

    def _prepare(self, one: Wanted, made: Made, draft: Path) -> None:
        tree = draft / "tree"
        tree.mkdir(mode=0o755)
        made.tree = self._export(one.repository, one.commit, tree, draft, one.submodules, made.fetched)
        origin = {"repository": one.repository, "commit": one.commit, "tree": made.tree, "submodules": one.submodules}
        record(tree, origin)

    def _export(self, url: str, commit: str, folder: Path, draft: Path, submodules: bool, fetched: list[str]) -> str:
        """Export a commit into an empty folder, verify it, and go on with its submodules."""
        repository = self._cache_dir / f"{_slug(url)}.git"
        with self._guards_guard:
            guard = self._guards[repository]
        with guard:
            tree, links = self._export_from_cache(repository, url, commit, folder, draft, fetched)
            addresses = self._submodule_addresses(repository, commit) if links and submodules else {}
        for path, linked in sorted(links.items()) if submodules else ():
            if not addresses.get(path):
                raise CheckoutError(f"its submodule {path} has no address in .gitmodules")
            target = folder / path
            if draft.resolve() / "tree" not in target.resolve().parents:
                raise CheckoutError(f"its submodule {path} leads out of the checkout")
            self._submodules[draft] += 1
            if self._submodules[draft] > _MOST_SUBMODULES:
                raise CheckoutError(f"it has more than {_MOST_SUBMODULES} submodules, those of submodules counted")
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
            address = self._submodule_url(url, path, addresses[path])
            self._export(address, linked, target, draft, submodules, fetched)
        return tree

    def _export_from_cache(
        self, repository: Path, url: str, commit: str, folder: Path, draft: Path, fetched: list[str]
    ) -> tuple[str, dict[str, str]]:
        was_there = (repository / "HEAD").exists()
        try:
            return self._fetch_and_export(repository, url, commit, folder, draft, fetched)
        except CheckoutError as error:
            if error.kind not in {DAMAGE, UNKNOWN} or not was_there:
                raise
        # whatever is wrong with the cache is cured by making it anew
        _remove(repository)
        for path in folder.iterdir():
            _remove(path)
        return self._fetch_and_export(repository, url, commit, folder, draft, fetched)

    def _fetch_and_export(
        self, repository: Path, url: str, commit: str, folder: Path, draft: Path, fetched: list[str]
    ) -> tuple[str, dict[str, str]]:
        if self._fetch(repository, url, commit):
            fetched.append(url)
        kind = self._git(repository, "cat-file", "-t", commit).decode("ascii").strip()
        if kind != "commit":
            raise CheckoutError(
                f"{commit} is a {kind} and no commit; git rev-parse 'TAG^{{commit}}' names that of a tag"
            )
        tree = _tree_of(self._git(repository, "cat-file", "commit", commit), commit)
        listed = self._git(repository, "ls-tree", "-r", "-z", "--full-tree", commit, most=_MOST_LISTED)
        links = {}
        for entry in filter(None, os.fsdecode(listed).split("\0")):
            head, path = entry.split("\t", 1)
            if path.count("/") > _DEEPEST:
                raise CheckoutError(
                    f"its file {path[:40]}… lies more than {_DEEPEST} folders deep, which no pack needs"
                )
            if head.startswith("160000 "):
                links[path] = head.split()[2]
        # the files as they are in git, on any host: no conversion of line ends, no filters
        attributes = repository / "info" / "attributes"
        attributes.parent.mkdir(exist_ok=True)
        attributes.write_text("* -text -filter -ident -working-tree-encoding\n", encoding="utf-8")
        index = {"GIT_INDEX_FILE": str(draft / "index")}
        self._git(repository, f"--work-tree={folder}", "read-tree", commit, env=index)
        self._git(repository, f"--work-tree={folder}", "checkout-index", "--all", "--force", env=index, cwd=folder)
        for path in links:
            _remove(folder / path)
        exported = walk(folder)
        refuse_escapes(draft / "tree", folder, {*exported, *links})
        found = tree_id(exported, links)
        if found != tree:
            raise CheckoutError(f"the exported files are not those of the commit: tree {found}, not {tree}", DAMAGE)
        return tree, links

    def _submodule_addresses(self, repository: Path, commit: str) -> dict[str, str]:
        try:
            text = self._git(repository, "config", "-z", f"--blob={commit}:.gitmodules", "--list")
        except CheckoutError:
            return {}
        values = dict(line.split("\n", 1) for line in os.fsdecode(text).split("\0") if "\n" in line)
        paths = {
            value: key.removesuffix(".path") for key, value in values.items() if re.match(r"submodule\..*\.path$", key)
        }
        return {path: values.get(f"{section}.url", "") for path, section in paths.items()}

    def _submodule_url(self, parent: str, path: str, url: str) -> str:
        if url.startswith(("./", "../")):
            scheme, rest = parent.split("://", 1)
            return f"{scheme}://{posixpath.normpath(posixpath.join(rest, url))}"
        if url.startswith("file:") and not parent.startswith("file:"):
            # Root would hand out whatever repository of this host the commit names.
            raise CheckoutError(f"its submodule {path} is a folder of this host, {url}, and it is none itself")
        rewritten = rewrite(url, self._mirrors)
        _assert_url(f"its submodule {path}", rewritten)
        return rewritten

    def _fetch(self, repository: Path, url: str, commit: str) -> bool:
        """Bring a commit into the cache; False when it was there already."""
        _remove_stale(repository)
        if self._succeeds(repository, "rev-parse", "--quiet", "--verify", f"{commit}^{{tree}}"):
            return False
        if not self._succeeds(repository, "rev-parse", "--git-dir"):
            _remove(repository)
            self._git(None, "init", "--quiet", "--bare", "--template=", str(repository))
        try:
            self._fetch_refs(repository, url, "--depth=1", f"+{commit}:refs/wanmetal/{commit}")
        except CheckoutError as error:
            if error.kind not in {SINGLE, UNKNOWN}:
                raise
            whole = "--unshallow" if (repository / "shallow").exists() else "--tags"
            self._fetch_refs(repository, url, whole, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            if not self._succeeds(repository, "rev-parse", "--quiet", "--verify", f"{commit}^{{tree}}"):
                raise CheckoutError(_NO_COMMIT) from error
        return True

    def _fetch_refs(self, repository: Path, url: str, option: str, *refs: str) -> None:
        options = ["--quiet", "--no-tags", "--no-write-fetch-head", option]
        if url.startswith("file://"):
            # a mirror on this host may belong to another user
            options.append("--upload-pack=git -c safe.directory='*' upload-pack")
        for attempt in range(self._retries + 1):
            try:
                self._git(repository, "fetch", *options, "--", url, *refs)
            except CheckoutError as error:
                if error.kind != NETWORK or attempt == self._retries:
                    raise
                time.sleep(self._retry_pause_s * 2**attempt)
                _remove_stale(repository)
            else:
                return

    def _succeeds(self, repository: Path, *arguments: str) -> bool:
        if not (repository / "HEAD").exists():
            return False
        try:
            self._git(repository, *arguments)
        except CheckoutError:
            return False
        return True

    def _git(
        self,
        repository: Path | None,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        most: int = 0,
    ) -> bytes:
        try:
            # pylint: disable-next=ansible-bad-function
            process = subprocess.Popen(
                ["git", *_CONFIG, *([f"--git-dir={repository}"] if repository else []), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd or self._cache_dir,
                env=git_environment(env or {}),
                start_new_session=True,
                # git holds the lock, too, so that it stays until git has ended, even when this process is killed
                pass_fds=[self._lock_fd],
            )
        except FileNotFoundError as error:
            raise CheckoutError("git is not installed on this host: install the package git") from error
        try:
            begin = process.stdout.read(most + 1) if most and process.stdout else b""
            if len(begin) > most:
                why = "it has more files than a pack ever needs: a few folders may be named very often"
                raise CheckoutError(why)  # noqa: TRY301 (git is ended below)
            out, err = process.communicate(timeout=self._timeout_s)
            out = begin + out
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CheckoutError(f"git took longer than {self._timeout_s:g} s. Is the network slow?") from error
            raise
        if process.returncode:
            raise explain(err.decode("utf-8", "replace"))
        return out

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            with exclusive(self._cache_dir / ".lock", _LOCK_WAIT_S) as self._lock_fd:
                yield
        except BusyError as holder:
            raise CheckoutError(
                f"another run ({holder}) has been using {self._cache_dir} for {duration(_LOCK_WAIT_S)}. "
                "Wait for it, or end it"
            ) from holder
        finally:
            self._lock_fd = -1


_CONFIG = [
    part
    for setting in (
        "core.autocrlf=false",
        "core.fileMode=true",
        "core.hooksPath=/dev/null",
        "core.symlinks=true",
        "credential.interactive=false",
        "gc.auto=0",
        "http.lowSpeedLimit=1000",
        "http.lowSpeedTime=60",
        "protocol.allow=never",
        *(f"protocol.{scheme}.allow=always" for scheme in SCHEMES),
        "transfer.fsckObjects=true",
    )
    for part in ("-c", setting)
]
_INHERITED = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE"}


def git_environment(more: Mapping[str, str]) -> dict[str, str]:
    """What git is run with: nobody is there to be asked for a password, and no repository of the caller's is meant."""
    kept = {name: value for name, value in os.environ.items() if name not in _INHERITED}
    return {
        **kept,
        "GIT_SSH_COMMAND": kept.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
        **more,
    }


_NO_COMMIT = "the commit is not in the repository. Check repository and commit; a mirror may have to be filled again"
# what git says (in part), what it means with what to do, and the kind of the error
_MEANINGS = [
    (r"No space left on device|Disk quota exceeded", "the disk is full. Make room, or name another cache_dir", ""),
    (
        r"SSL certificate problem|certificate verif|SSL routines|gnutls_handshake|TLS connect error|self.signed",
        "the certificate of the server is not trusted. Where a proxy opens TLS, install its certificate on the host "
        "or name it in the environment (GIT_SSL_CAINFO)",
        "",
    ),
    (
        r"could not read (Username|Password)|Authentication failed|Permission denied|error: 40[13]",
        "the server wants a user name, or the repository does not exist. Check the address; give access through a "
        "netrc file or a git credential helper",
        "",
    ),
    (r"not our ref|couldn't find remote ref|remote ref does not exist", _NO_COMMIT, ""),
    (
        r"unadvertised object|does not support shallow|error: Server does not allow",
        "the server does not give single commits",
        SINGLE,
    ),
    (
        r"[Cc]ould not resolve host|Failed to connect|Couldn't connect|Connection (refused|reset|timed out)"
        r"|No route to host|Network is unreachable|[Oo]peration (timed out|too slow)|Empty reply|RPC failed|early EOF"
        r"|unexpected disconnect|hung up unexpectedly|recv error|transfer closed|error: (429|5\d\d)",
        "the host cannot be reached, or breaks off. Check network, proxy and mirrors",
        NETWORK,
    ),
    (
        r"[Rr]epository (\S+ )?not found|error: 404|does not appear to be a git repository|not a git repository",
        "there is no such repository. Check the address, and the mirrors that rewrite it",
        "",
    ),
]


def explain(stderr: str) -> CheckoutError:
    """Put what git says into an error that says what to do, without credentials."""
    said = re.sub(r"//[^/@\s]+@", "//", " ".join(stderr.split()))
    for pattern, meaning, kind in _MEANINGS:
        if re.search(pattern, said):
            return CheckoutError(f"{meaning} (git: {said})", kind)
    return CheckoutError(f"git failed: {said or 'it said nothing'}", UNKNOWN)


def _compare(one: Wanted, wanted: Sequence[Wanted], verify: bool) -> Made:
    marker = _read_marker(one.dest)
    before = str(marker.get("commit", "")) or ("unknown" if _exists(one.dest) else "")
    same = before == one.commit and marker.get("submodules") is one.submodules
    made = Made(one.name, str(one.dest), before, one.commit, not same, str(marker.get("tree", "")) if same else "")
    if same and verify:
        files: dict[str, str] = marker.get("files", {})
        found = walk(one.dest, [other.dest for other in wanted if one.dest in other.dest.parents])
        made.differing = sorted(path for path, entry in files.items() if found.get(path) != entry)
        made.extra = sorted(path for path in found if path not in files and "__pycache__/" not in path)
        made.changed = bool(made.differing)
    return made


def damaged(folder: Path) -> list[str]:
    """Files of a checkout that are not as its record has them, but for those whose folder leads elsewhere by now."""
    files: dict[str, str] = _read_marker(folder).get("files", {})
    return [
        path for path, entry in sorted(files.items()) if not _led_away(folder, path) and not _is(folder / path, entry)
    ]


def _led_away(folder: Path, path: str) -> bool:
    parts = Path(path).parts
    return any(folder.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts)))


def _is(path: Path, entry: str) -> bool:
    try:
        return _entry(path) == entry
    except OSError:
        return False


def record(folder: Path, origin: Mapping[str, Any]) -> None:
    """Note in a checkout what it is made from and what its files are."""
    marker = {**origin, "files": walk(folder)}
    write_whole(folder / MARKER, json.dumps(marker, indent=0, sort_keys=True) + "\n")


def walk(folder: Path, leave_out: Sequence[Path] = ()) -> dict[str, str]:
    """Return mode and id, as git has them, of each file below a folder, the marker excepted."""
    found: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links and here / name not in leave_out]
        for name in [*files, *links]:
            path = here / name
            relative = path.relative_to(folder).as_posix()
            if relative != MARKER and path not in leave_out:
                found[relative] = _entry(path)
    return found


def refuse_escapes(top: Path, folder: Path, paths: Collection[str]) -> None:
    """Refuse files through which a write inside of a checkout could end outside of it, or be taken for ours."""
    for relative in sorted({*paths, *([MARKER] if _exists(folder / MARKER) else [])}):
        path = folder / relative
        if MARKER in Path(relative).parts:
            raise CheckoutError(f"it has a file or folder {relative}, a name that checkouts keep for themselves")
        if not path.is_symlink():
            continue
        target = path.readlink()
        if path.name == "__pycache__":
            raise CheckoutError(
                f"its file {relative} is a link to {target}: bytecode would be written there. {_ANOTHER}"
            )
        # Upwards first and then down, it cannot pass through another link and leave from there.
        ups = next((count for count, part in enumerate(target.parts) if part != ".."), len(target.parts))
        depth = len(path.parent.relative_to(top).parts)
        if target.is_absolute() or ups > depth or ".." in target.parts[ups:]:
            raise CheckoutError(
                f"its file {relative} is a link that leads out of the checkout, to {target}. {_ANOTHER}"
            )


_ANOTHER = "Name a commit without that link"


def _entry(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"120000 {_object_id('blob', os.fsencode(os.readlink(path)))}"  # noqa: PTH115 (Path changes "./x")
    if not stat.S_ISREG(status.st_mode):
        return "special file"
    mode = "100755" if status.st_mode & stat.S_IXUSR else "100644"
    return f"{mode} {_object_id('blob', path.read_bytes())}"


def tree_id(files: Mapping[str, str], links: Mapping[str, str]) -> str:
    """Return git's id of the tree of these files (path to mode and id) and submodules (path to commit)."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    blobs: dict[str, str] = {}
    for path, entry in [*files.items(), *((path, f"160000 {commit}") for path, commit in links.items())]:
        head, _unused, rest = path.partition("/")
        if rest:
            folders[head][rest] = entry
        else:
            blobs[head] = entry
    for name, inside in folders.items():
        inner_links = {path: entry[7:] for path, entry in inside.items() if entry.startswith("160000 ")}
        blobs[name] = f"40000 {tree_id({p: e for p, e in inside.items() if p not in inner_links}, inner_links)}"
    rows = []
    for name, entry in blobs.items():
        mode, identity = entry.split(" ")
        encoded = os.fsencode(name)
        rows.append((encoded + b"/" if mode == "40000" else encoded, mode.encode(), encoded, bytes.fromhex(identity)))
    return _object_id("tree", b"".join(b"%s %s\0%s" % row[1:] for row in sorted(rows)))


def _tree_of(commit: bytes, expected: str) -> str:
    if _object_id("commit", commit) != expected:
        raise CheckoutError("the commit in the cache is damaged", DAMAGE)
    return commit.split(b"\n", 1)[0].removeprefix(b"tree ").decode("ascii")


def _object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _assert_url(name: str, url: str) -> None:
    scheme, _unused, rest = url.partition("://")
    if scheme not in SCHEMES or not rest or re.search(r"\s|^-", url):
        raise CheckoutError(f"{name}: the address must begin with one of {', '.join(SCHEMES)} and ://, found {url!r}")
    user = rest.split("/", 1)[0].rpartition("@")[0]
    if ":" in user or (user and scheme in {"http", "https"}):
        raise CheckoutError(
            f"{name}: the address holds a user name or a password (not shown). Put it into a netrc file or a git "
            "credential helper"
        )


def _slug(url: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")).lstrip("-.")
    return f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _read_marker(dest: Path) -> dict[str, Any]:
    try:
        marker = json.loads((dest / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _draft(one: Wanted, wanted: Sequence[Wanted]) -> Path:
    """Make the folder to prepare a checkout in, on its filesystem and outside of all checkouts."""
    outermost = min([one.dest, *(other.dest for other in wanted if other.dest in one.dest.parents)])
    outermost.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{outermost.name}.{one.name}.wanmetal-"
    for left in outermost.parent.glob(f"{glob.escape(prefix)}*"):
        _remove(left)  # by a run that was killed
    return Path(tempfile.mkdtemp(prefix=prefix, dir=outermost.parent))


def _place(draft: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    if _exists(dest):
        dest.rename(draft / "old")
    (draft / "tree").rename(dest)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _remove_stale(repository: Path) -> None:
    """Remove what a git that was killed has left; the lock on the cache is held, so no other is at work."""
    if repository.is_dir():
        for pattern in ("*.lock", "refs/**/*.lock", "objects/**/tmp_*"):
            for path in repository.glob(pattern):
                _remove(path)


def _raise_all(errors: Sequence[tuple[Wanted, BaseException]], count: int) -> None:
    if not errors:
        return
    lines = []
    for one, error in errors:
        if isinstance(error, OSError):
            error = CheckoutError(f"{error.strerror}: {error.filename}")
        elif not isinstance(error, CheckoutError):
            raise error
        lines.append(f"{one.name} ({one.repository} at {one.commit}): {error}")
    raise CheckoutError(f"{len(lines)} of {count} checkouts failed, and none was changed.\n" + "\n".join(lines))
