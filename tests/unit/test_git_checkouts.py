from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import (
    DAMAGE,
    MARKER,
    NETWORK,
    SINGLE,
    UNKNOWN,
    CheckoutError,
    Checkouts,
    Made,
    Wanted,
    check,
    explain,
    tree_id,
    walk,
)
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module


def git(folder: Path, *arguments: str) -> str:
    identity = {"GIT_CONFIG_GLOBAL": "/dev/null"}
    for role in ("AUTHOR", "COMMITTER"):
        identity |= {f"GIT_{role}_NAME": "A", f"GIT_{role}_EMAIL": "a@b", f"GIT_{role}_DATE": "2025-01-01T00:00:00Z"}
    command = ["git", "-c", "protocol.file.allow=always", "-C", str(folder), *arguments]
    return subprocess.run(command, env=os.environ | identity, check=True, capture_output=True, text=True).stdout.strip()


class Repository:
    """A repository with some commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        git(folder, "init", "-q", "-b", "main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def commit(self, files: dict[str, str] | None = None) -> str:
        for name, content in (files or {}).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, newline="")
        git(self.folder, "add", "-A", "-f")
        git(self.folder, "commit", "-q", "-m", "x", "--allow-empty")
        return git(self.folder, "rev-parse", "HEAD")

    def tree(self, commit: str) -> str:
        return git(self.folder, "rev-parse", f"{commit}^{{tree}}")


class Place:
    """A host with a cache."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cache = folder / "opt", folder / "cache"

    def wanted(self, source: Repository | str, commit: str, name: str = "a", submodules: bool = False) -> Wanted:
        url = source if isinstance(source, str) else source.url
        return Wanted(name, url, commit, self.root / name, submodules)

    def make(self, *wanted: Wanted, verify: bool = False, **options: Any) -> list[Made]:
        return Checkouts(self.cache, retry_pause_s=0.01, **options).make(wanted, verify)

    def content(self, name: str = "a") -> dict[str, str]:
        files = sorted(path for path in (self.root / name).rglob("*") if path.is_file() and path.name != MARKER)
        return {str(path.relative_to(self.root / name)): path.read_bytes().decode() for path in files}

    def left(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "src" / "a")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    server = Web(tmp_path / "src")
    yield server
    server.close()


class Web:
    """Serves repositories as plain files; ``fail`` is how often it first answers with an error."""

    def __init__(self, folder: Path) -> None:
        web = self
        self.fail, self.requests, self.stall = 0, 0, threading.Event()
        self.stall.set()

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests += 1
                web.stall.wait(20)
                if web.requests <= web.fail:
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.stall.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_checkout_has_exactly_the_files_of_its_commit(place: Place, source: Repository) -> None:
    (source.folder / "run").write_text("#!/bin/sh\n")
    (source.folder / "run").chmod(0o755)
    (source.folder / "link").symlink_to("run")
    (source.folder / "folder-link").symlink_to("sub")
    source.commit({".gitattributes": "*.txt text eol=crlf\n*.id ident\nhidden export-ignore\n"})
    commit = source.commit({"a.txt": "one\ntwo\n", "b.id": "$Id$\n", "hidden": "s", "sub/x.py": "x", "sub/z": "z"})
    source.commit({"a.txt": "later\n"})
    (made,) = place.make(place.wanted(source, commit))
    assert (made.changed, made.before, made.commit, made.tree) == (True, "", commit, source.tree(commit))
    assert made.fetched == [source.url]
    assert place.content()["a.txt"] == "one\ntwo\n"
    assert place.content()["b.id"] == "$Id$\n"
    assert place.content()["hidden"] == "s"
    assert (place.root / "a/link").readlink() == Path("run")
    assert os.access(place.root / "a/run", os.X_OK)
    assert not (place.root / "a/.git").exists()
    assert place.left() == ["a"]
    marker = json.loads((place.root / "a" / MARKER).read_text())
    assert (marker["commit"], marker["tree"]) == (commit, made.tree)


def test_the_second_time_nothing_happens(place: Place, source: Repository) -> None:
    wanted = place.wanted(source, source.commit({"x": "1"}))
    place.make(wanted)
    shutil.rmtree(place.cache)
    shutil.rmtree(source.folder)
    (made,) = place.make(wanted)
    assert (made.changed, made.fetched) == (False, [])


def test_a_new_commit_replaces_all_files_and_the_old_one_comes_from_the_cache(place: Place, source: Repository) -> None:
    first = source.commit({"x": "1", "old": "o"})
    (source.folder / "old").unlink()
    second = source.commit({"x": "2"})
    place.make(place.wanted(source, first))
    place.make(place.wanted(source, second))
    assert place.content() == {"x": "2"}
    shutil.rmtree(source.folder)
    (made,) = place.make(place.wanted(source, first))
    assert (made.changed, made.before, made.fetched) == (True, second, [])
    assert place.content() == {"x": "1", "old": "o"}


def test_only_the_commit_is_fetched(place: Place, source: Repository) -> None:
    source.commit({"x": "1"})
    middle = source.commit({"x": "2"})
    source.commit({"x": "3"})
    place.make(place.wanted(source, middle))
    (cached,) = place.cache.glob("*.git")
    assert git(cached, "rev-list", "--all") == middle


def test_a_folder_of_other_origin_is_replaced(place: Place, source: Repository) -> None:
    (place.root / "a").mkdir(parents=True)
    (place.root / "a/mine").touch()
    (made,) = place.make(place.wanted(source, source.commit({"x": "1"})))
    assert (made.changed, made.before) == (True, "unknown")
    assert place.content() == {"x": "1"}


@pytest.mark.parametrize("spoil", ["change", "remove", "mode"])
def test_verify_mends(place: Place, source: Repository, spoil: str) -> None:
    wanted = place.wanted(source, source.commit({"x": "1", "__pycache__/y": "1"}))
    place.make(wanted)
    file = place.root / "a/x"
    if spoil == "change":
        file.write_text("2")
    elif spoil == "remove":
        file.unlink()
    else:
        file.chmod(0o755)
    (place.root / "a/mine").touch()
    (place.root / "a/__pycache__/z.pyc").touch()
    assert not place.make(wanted)[0].changed
    (made,) = Checkouts(place.cache).plan([wanted], verify=True)
    assert (made.changed, made.differing, made.extra) == (True, ["x"], ["mine"])
    assert place.make(wanted, verify=True)[0].changed
    assert not place.make(wanted, verify=True)[0].changed
    assert file.read_text() == "1"


def test_extra_files_are_named_and_left(place: Place, source: Repository) -> None:
    wanted = place.wanted(source, source.commit({"x": "1"}))
    place.make(wanted)
    (place.root / "a/mine").touch()
    (made,) = place.make(wanted, verify=True)
    assert (made.changed, made.extra) == (False, ["mine"])


def test_the_plan_needs_nothing(place: Place) -> None:
    (made,) = Checkouts(place.cache).plan([place.wanted("https://example.invalid/a", "0" * 40)])
    assert (made.changed, made.before) == (True, "")
    assert not place.cache.exists()
    assert not place.root.exists()


def test_a_checkout_inside_of_another(place: Place, source: Repository, tmp_path: Path) -> None:
    pack = Repository(tmp_path / "src" / "pack")
    outer = place.wanted(source, source.commit({"x": "1"}))
    inner = Wanted("pack", pack.url, pack.commit({"p": "p"}), outer.dest / "nodes/pack")
    made = place.make(inner, outer)
    assert [one.changed for one in made] == [True, True]
    assert place.content() == {"x": "1", "nodes/pack/p": "p"}
    assert not any(one.changed or one.extra for one in place.make(inner, outer, verify=True))
    newer = place.wanted(source, source.commit({"x": "2"}))
    assert [one.changed for one in place.make(inner, newer)] == [True, True]
    assert place.content() == {"x": "2", "nodes/pack/p": "p"}
    assert place.left() == ["a"]


@pytest.mark.parametrize("address", ["absolute", "relative", "mirrored"])
def test_submodules(place: Place, source: Repository, tmp_path: Path, address: str) -> None:
    leaf = Repository(tmp_path / "src" / "leaf")
    leaf.commit({"leaf": "l"})
    module = Repository(tmp_path / "src" / "module")
    module.commit({"m": "m"})
    git(module.folder, "submodule", "add", "-q", leaf.url, "deep/leaf")
    module.commit()
    shown = {"absolute": module.url, "relative": "../module", "mirrored": "https://example.invalid/module"}[address]
    git(source.folder, "submodule", "add", "-q", module.url, "sub/module")
    git(source.folder, "config", "--file", ".gitmodules", "submodule.sub/module.url", shown)
    commit = source.commit({"x": "1"})
    mirrors = [{"prefix": "https://example.invalid/", "replacement": f"file://{tmp_path}/src/"}]
    wanted = place.wanted(source, commit, submodules=True)
    (made,) = place.make(wanted, mirrors=mirrors)
    assert made.fetched == [source.url, module.url, leaf.url]
    found = place.content()
    assert (found["sub/module/m"], found["sub/module/deep/leaf/leaf"]) == ("m", "l")
    assert place.make(wanted, verify=True)[0].extra == []
    assert place.make(place.wanted(source, commit))[0].changed
    assert set(place.content()) == {".gitmodules", "x"}


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("way", "/etc", "leads out of the checkout, to /etc"),
        ("way", "..", "leads out of the checkout"),
        ("way", "../../etc", "leads out of the checkout"),
        ("deep/way", "../../x", "leads out of the checkout"),
        ("deep/way", "../up/..", "leads out of the checkout"),  # up leads to the top, and .. from there out of it
        ("way.py", "deep/../../x", "leads out of the checkout"),
        ("__pycache__", "/etc", "bytecode would be written there"),
        ("__pycache__", "deep", "bytecode would be written there"),
        ("deep/__pycache__", "nothing", "bytecode would be written there"),
        (MARKER, "/etc/hostname", "a name that checkouts keep"),
        (f"deep/{MARKER}", "/etc/hostname", "a name that checkouts keep"),
    ],
)
def test_links_that_lead_root_out_are_refused(
    place: Place, source: Repository, name: str, target: str, reason: str
) -> None:
    source.commit({"deep/a.py": "1", "b.py": "2"})
    (source.folder / "deep/up").symlink_to("..")
    (source.folder / name).symlink_to(target)
    commit = source.commit()
    outer = place.wanted(source, source.commit({"c.py": "3"}), "outer")
    with pytest.raises(CheckoutError, match=reason):
        place.make(Wanted("a", source.url, commit, place.root / "outer/a"), outer)
    assert place.left() == []


@pytest.mark.parametrize("name", ["up", "deep/same", "deep/far"])
def test_links_within_a_checkout_stay(place: Place, source: Repository, name: str) -> None:
    target = {"up": "deep", "deep/same": "./a.py", "deep/far": "../deep/nowhere"}[name]
    source.commit({"deep/a.py": "1"})
    (source.folder / name).symlink_to(target)
    place.make(place.wanted(source, source.commit()))
    assert os.readlink(place.root / "a" / name) == target  # noqa: PTH115 (as it is written)


@pytest.mark.parametrize(("target", "refused"), [("../../top", False), ("../../../top", True)])
def test_a_link_of_a_submodule_stays_in_the_whole_checkout(
    place: Place, source: Repository, tmp_path: Path, target: str, refused: bool
) -> None:
    module = Repository(tmp_path / "src" / "module")
    (module.folder / "link").symlink_to(target)
    module.commit()
    source.commit({"top": "1"})
    git(source.folder, "submodule", "add", "-q", module.url, "sub/module")
    wanted = place.wanted(source, source.commit(), submodules=True)
    if refused:
        with pytest.raises(CheckoutError, match="its file link is a link that leads out of the checkout"):
            place.make(wanted)
        assert place.left() == []
    else:
        place.make(wanted)
        assert (place.root / "a/sub/module/link").read_text() == "1"


def test_a_submodule_is_no_folder_of_this_host(place: Place, source: Repository, web: Web, tmp_path: Path) -> None:
    module = Repository(tmp_path / "src" / "module")
    module.commit({"secret": "1"})
    git(source.folder, "submodule", "add", "-q", module.url, "module")
    commit = source.commit()
    git(source.folder, "update-server-info")
    wanted = place.wanted(f"{web.url}/a/.git", commit, submodules=True)
    with pytest.raises(CheckoutError, match="its submodule module is a folder of this host"):
        place.make(wanted)


def test_attributes_of_a_commit_change_no_file(place: Place, source: Repository, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    config = tmp_path / "gitconfig"
    config.write_text(
        f'[filter "evil"]\n\tsmudge = "touch {ran}; cat"\n\trequired = true\n[core]\n\thooksPath = hooks\n'
    )
    files = {".gitattributes": "* filter=evil ident text eol=crlf\n", "a.py": "$Id$\n"}
    files["hooks/post-checkout"] = f"#!/bin/sh\ntouch {ran}\n"
    for name, text in files.items():
        path = source.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    commit = source.commit()
    before = os.environ.get("GIT_CONFIG_GLOBAL")
    os.environ["GIT_CONFIG_GLOBAL"] = str(config)
    try:
        place.make(place.wanted(source, commit))
    finally:
        os.environ.pop("GIT_CONFIG_GLOBAL") if before is None else os.environ.update(GIT_CONFIG_GLOBAL=before)
    assert not ran.exists()
    assert place.content()["a.py"] == git(source.folder, "cat-file", "blob", f"{commit}:a.py") + "\n"


def test_a_submodule_without_an_address(place: Place, source: Repository) -> None:
    git(source.folder, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},gone")
    git(source.folder, "commit", "-q", "-m", "x")
    commit = git(source.folder, "rev-parse", "HEAD")
    with pytest.raises(CheckoutError, match="its submodule gone has no address"):
        place.make(place.wanted(source, commit, submodules=True))
    assert place.make(place.wanted(source, commit))[0].tree == source.tree(commit)


def committed(source: Repository, *rows: tuple[str, str, str, str]) -> str:
    """A commit of a tree with these entries: mode, type, id and name."""
    listed = "".join(f"{mode} {kind} {id_}\t{name}\0" for mode, kind, id_, name in rows)
    given: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
    tree = subprocess.run(
        ["git", "-C", str(source.folder), "mktree", "--missing", "-z"], input=listed, **given
    ).stdout.strip()
    commit = git(source.folder, "commit-tree", tree, "-m", "x")
    git(source.folder, "branch", "-f", "made", commit)
    return commit


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("deep", "more than 100 folders deep"),
        ("wide", "more files than a pack ever needs"),
        ("submodules", "more than 100 submodules"),
        ("tag", "is a tag and no commit"),
    ],
)
def test_a_commit_of_a_shape_that_no_pack_has_is_refused(
    shape: str, said: str, place: Place, source: Repository
) -> None:
    commit = source.commit({"x": "1"})
    tree, blob = source.tree(commit), git(source.folder, "rev-parse", f"{commit}:x")
    if shape == "tag":
        git(source.folder, "tag", "-a", "v1", "-m", "x")
        commit = git(source.folder, "rev-parse", "v1")
    for _ in range({"deep": 120, "wide": 7}.get(shape, 0)):
        names = [f"d{number}" for number in range(1 if shape == "deep" else 10)]
        commit = committed(source, *(("040000", "tree", tree, name) for name in names))
        tree = source.tree(commit)
    for _ in range(4 if shape == "submodules" else 0):
        names = [f"s{number}" for number in range(5)]
        text = "".join(f'[submodule "{name}"]\n\tpath = {name}\n\turl = ../a\n' for name in names)
        (source.folder / "modules").write_text(text)
        blob = git(source.folder, "hash-object", "-w", "modules")
        modules = ("100644", "blob", blob, ".gitmodules")
        commit = committed(source, modules, *(("160000", "commit", commit, name) for name in names))
    git(source.folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    with pytest.raises(CheckoutError, match=said):
        place.make(place.wanted(source, commit, submodules=True))
    assert place.left() == []


def test_an_error_changes_nothing_and_all_are_named(place: Place, source: Repository) -> None:
    good = source.commit({"x": "1"})
    with pytest.raises(CheckoutError) as caught:
        place.make(
            place.wanted(source, good, "good"),
            place.wanted(source, "0" * 40, "commit"),
            place.wanted(f"{source.url}/nowhere", good, "repository"),
        )
    text = str(caught.value)
    assert "2 of 3 checkouts failed, and none was changed" in text
    assert f"commit ({source.url} at {'0' * 40}): the commit is not in the repository" in text
    assert f"repository ({source.url}/nowhere at {good}): there is no such repository" in text
    assert place.left() == []


@pytest.mark.parametrize("pattern", ["objects/pack/*.pack", "HEAD", "objects/pack/*.idx", "config"])
def test_a_damaged_cache_is_made_anew(place: Place, source: Repository, pattern: str) -> None:
    wanted = place.wanted(source, source.commit({"x": "1" * 5000, "y": "2"}))
    place.make(wanted)
    shutil.rmtree(place.root)
    (file,) = place.cache.glob(f"*.git/{pattern}")
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 3, len(data)):
        data[at] ^= 0x55
    file.write_bytes(data)
    (made,) = place.make(wanted)
    assert (made.changed, made.fetched) == (True, [source.url])
    assert place.content() == {"x": "1" * 5000, "y": "2"}


def test_a_cache_that_gives_other_files_is_made_anew(place: Place, source: Repository) -> None:
    """Git itself does not compare what it reads with the id that it reads it by."""
    commit = source.commit({"x": "1"})
    place.make(place.wanted(source, commit))
    shutil.rmtree(place.root)
    (pack,) = place.cache.glob("*.git/objects/pack/*.pack")
    objects, packed = pack.parents[1], pack.read_bytes()
    shutil.rmtree(pack.parent)
    subprocess.run(["git", f"--git-dir={objects.parent}", "unpack-objects", "-q"], input=packed, check=True)
    name = git(source.folder, "rev-parse", f"{commit}:x")
    loose = objects / name[:2] / name[2:]
    loose.chmod(0o644)
    loose.write_bytes(zlib.compress(b"blob 1\0z"))
    (made,) = place.make(place.wanted(source, commit))
    assert (made.changed, made.fetched) == (True, [source.url])
    assert place.content() == {"x": "1"}


def test_a_cache_that_is_lost_and_cannot_be_made_anew(place: Place, source: Repository) -> None:
    wanted = place.wanted(source, source.commit({"x": "1"}))
    place.make(wanted)
    shutil.rmtree(place.root)
    (file,) = place.cache.glob("*.git/objects/pack/*.pack")
    file.unlink()
    shutil.rmtree(source.folder)
    with pytest.raises(CheckoutError, match="there is no such repository"):
        place.make(wanted)


def test_a_commit_that_is_missing_leaves_the_cache(place: Place, source: Repository) -> None:
    good = place.wanted(source, source.commit({"x": "1"}))
    place.make(good)
    with pytest.raises(CheckoutError, match="the commit is not in the repository"):
        place.make(place.wanted(source, "0" * 40))
    shutil.rmtree(source.folder)
    shutil.rmtree(place.root)
    assert place.make(good)[0].fetched == []


def test_a_server_that_does_not_give_single_commits(
    place: Place, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the old protocol gives the tips of branches only
    for name, value in (("COUNT", "1"), ("KEY_0", "protocol.version"), ("VALUE_0", "0")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    first, tip = source.commit({"x": "1"}), source.commit({"x": "2"})
    place.make(place.wanted(source, tip))
    place.make(place.wanted(source, first))
    assert place.content() == {"x": "1"}
    with pytest.raises(CheckoutError, match="the commit is not in the repository"):
        place.make(place.wanted(source, "0" * 40))


def test_plain_http_without_single_commits(place: Place, source: Repository, web: Web) -> None:
    commit = source.commit({"x": "1"})
    source.commit({"x": "2"})
    git(source.folder, "update-server-info")
    url = f"{web.url}/a/.git"
    place.make(place.wanted(url, commit))
    assert place.content() == {"x": "1"}
    with pytest.raises(CheckoutError, match="the commit is not in the repository"):
        place.make(place.wanted(url, "0" * 40))


def test_errors_of_the_network_are_tried_again(place: Place, source: Repository, web: Web) -> None:
    commit = source.commit({"x": "1"})
    git(source.folder, "update-server-info")
    web.fail = 2
    place.make(place.wanted(f"{web.url}/a/.git", commit))
    assert place.content() == {"x": "1"}
    web.requests, web.fail = 0, 100
    with pytest.raises(CheckoutError, match="the host cannot be reached, or breaks off"):
        place.make(place.wanted(f"{web.url}/a/.git/", commit, "b"), retries=2)
    assert web.requests == 3


def test_unknown_repository_and_host(place: Place, web: Web) -> None:
    with pytest.raises(CheckoutError, match="there is no such repository"):
        place.make(place.wanted(f"{web.url}/nowhere.git", "0" * 40))
    with pytest.raises(CheckoutError, match="the host cannot be reached"):
        place.make(place.wanted("http://127.0.0.1:1/a.git", "0" * 40), retries=0)


def test_git_takes_too_long(place: Place, web: Web) -> None:
    web.stall.clear()
    with pytest.raises(CheckoutError, match=r"git took longer than 0\.5 s"):
        place.make(place.wanted(f"{web.url}/a.git", "0" * 40), timeout_s=0.5)


def test_without_git(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CheckoutError, match="git is not installed"):
        place.make(place.wanted("file:///a", "0" * 40))


def test_the_module(place: Place, source: Repository) -> None:
    wanted = place.wanted(source, source.commit({"x": "1"}))
    entry = {"name": "a", "repository": wanted.repository, "commit": wanted.commit, "dest": str(wanted.dest)}
    arguments = {"checkouts": [entry], "cache_dir": str(place.cache)}
    diff = {"before": f"{wanted.dest} absent\n", "after": f"{wanted.dest} {wanted.commit}\n"}
    planned = run_module("git_checkouts", arguments, check=True)
    assert (planned["changed"], planned["diff"]) == (True, diff)
    assert not place.root.exists()
    made = run_module("git_checkouts", arguments)
    assert (made["changed"], made["diff"], made["checkouts"][0]["tree"]) == (True, diff, source.tree(wanted.commit))
    again = run_module("git_checkouts", arguments)
    assert (again["changed"], again["diff"]) == (False, {"before": "", "after": ""})
    failed = run_module("git_checkouts", {"checkouts": [entry | {"commit": "main"}], "cache_dir": str(place.cache)})
    assert failed["msg"].startswith("a: commit must be the 40 hexadecimal digits")
    blocked = run_module("git_checkouts", arguments | {"checkouts": [entry | {"dest": f"{source.folder}/x/y"}]})
    assert blocked["msg"] == f"File exists: {source.folder}/x"


SCRIPT = """
import sys
from pathlib import Path
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import Checkouts, Wanted
url, commit, dest, cache = sys.argv[1:]
print(Checkouts(Path(cache)).make([Wanted("a", url, commit, Path(dest))])[0].changed)
"""


def start(place: Place, url: str, commit: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", SCRIPT, url, commit, str(place.root / "a"), str(place.cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_at_once(place: Place, source: Repository) -> None:
    commit = source.commit({"x": "1"})
    runs = [start(place, source.url, commit) for _ in range(3)]
    assert sorted(run.communicate(timeout=60)[0].strip() for run in runs) == ["False", "False", "True"]
    assert place.left() == ["a"]


def test_killed_in_the_middle(place: Place, source: Repository, web: Web) -> None:
    commit = source.commit({"x": "1"})
    git(source.folder, "update-server-info")
    url = f"{web.url}/a/.git"
    web.stall.clear()
    run = start(place, url, commit)
    deadline = time.monotonic() + 120
    while web.requests == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert len(place.left()) == 1
    assert place.left() != ["a"]
    second = threading.Timer(0.5, web.stall.set)
    second.start()
    (made,) = place.make(place.wanted(url, commit))  # waits until the git of the killed run has ended
    second.join()
    assert made.changed
    assert place.content() == {"x": "1"}
    assert place.left() == ["a"]


def test_what_a_killed_git_leaves_is_removed(place: Place, source: Repository) -> None:
    first = source.commit({"x": "1"})
    place.make(place.wanted(source, first))
    (cached,) = place.cache.glob("*.git")
    leftovers = [
        cached / name for name in ("shallow.lock", "config.lock", "refs/wanmetal/x.lock", "objects/pack/tmp_pack_1")
    ]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    place.make(place.wanted(source, source.commit({"x": "2"})))
    assert place.content() == {"x": "2"}
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"commit": "main"}, "a: commit must be the 40 hexadecimal digits"),
        ({"commit": "A" * 40}, "a: commit must be"),
        ({"dest": "relative"}, "a: dest must be an absolute path"),
        ({"name": "../x"}, "a name must be made of"),
        ({"repository": "/srv/x.git"}, "a: the address must begin with one of https, http, file, ssh, git"),
        ({"repository": "ext::sh -c id"}, "a: the address must begin with"),
        ({"repository": "--upload-pack=x://y"}, "a: the address must begin with"),
        ({"repository": "https://me:hunter2@host/x"}, "a: the address holds a user name or a password"),
        ({"repository": "https://hunter2@host/x"}, "a: the address holds a user name or a password"),
    ],
)
def test_bad_entries(entry: dict[str, str], message: str) -> None:
    good = {"name": "a", "repository": "https://host/x", "commit": "0" * 40, "dest": "/a"}
    assert check([good])[0].dest == Path("/a")
    with pytest.raises(CheckoutError, match=message) as caught:
        check([good | entry])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("what", ["name", "dest"])
def test_entries_that_clash(what: str) -> None:
    one = {"name": "a", "repository": "https://host/x", "commit": "0" * 40, "dest": "/a"}
    two = one | {"name": "b", "dest": "/b"} | {what: one[what]}
    with pytest.raises(CheckoutError, match=f"two checkouts have the same {what}"):
        check([one, two])


@pytest.mark.parametrize(
    ("said", "meaning", "kind"),
    [
        ("fatal: unable to access 'https://h/': Could not resolve host: h", "cannot be reached", NETWORK),
        ("fatal: unable to access 'https://h/': Failed to connect to h port 443", "cannot be reached", NETWORK),
        ("error: RPC failed; curl 56 GnuTLS recv error (-54)\nfatal: early EOF", "cannot be reached", NETWORK),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 503", "cannot be reached", NETWORK),
        ("fatal: unable to access 'https://h/': SSL certificate problem: self-signed", "certificate", ""),
        ("server certificate verification failed. CAfile: none CRLfile: none", "certificate", ""),
        ("fatal: write error: No space left on device", "the disk is full", ""),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", "wants a user name", ""),
        ("fatal: unable to access 'https://h/x/': The requested URL returned error: 403", "wants a user name", ""),
        ("remote: Repository not found.\nfatal: repository 'https://h/x/' not found", "no such repository", ""),
        ("fatal: '/x' does not appear to be a git repository", "no such repository", ""),
        ("fatal: remote error: upload-pack: not our ref 00", "not in the repository", ""),
        ("error: Server does not allow request for unadvertised object 00", "single commits", SINGLE),
        ("fatal: dumb http transport does not support shallow capabilities", "single commits", SINGLE),
        ("fatal: something new", "git failed: fatal: something new", UNKNOWN),
        ("", "it said nothing", UNKNOWN),
    ],
)
def test_what_git_says(said: str, meaning: str, kind: str) -> None:
    error = explain(said)
    assert meaning in str(error)
    assert error.kind == kind
    assert kind != DAMAGE


def test_credentials_are_not_shown() -> None:
    assert "hunter2" not in str(explain("fatal: unable to access 'https://me:hunter2@h/x': nope"))


def test_tree_id_is_git_s_own(source: Repository) -> None:
    # names that sort differently as a file and as a folder
    commit = source.commit(
        {"a": "1", "a.b": "2", "a0": "3", "ab/c": "4", "ab.c": "5", "ab/d/e": "6", "ab0": "7", "ä": "8"}
    )
    shutil.rmtree(source.folder / ".git/hooks", ignore_errors=True)
    found = {path: entry for path, entry in walk(source.folder).items() if not path.startswith(".git/")}
    assert tree_id(found, {}) == source.tree(commit)
