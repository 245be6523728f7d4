"""Releases and environments: built once, whole or not at all, and by nobody's code but ours."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import FileError, exclusive
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import build as release_build
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import bytecode, environments
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.build import Link, Release, build
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.bytecode import compile_folder
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import Checkouts
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.environments import Builder, BuildError, unused

from tests.unit.test_git_checkouts import Repository

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYC = f"cpython-{VERSION.replace('.', '')}.pyc"
UV = f"""#!/bin/sh
set -e
echo "$*" >> "$0.log"
[ ! -e "$0.fail" ] || {{ echo "$(cat "$0.fail")"; exit 3; }}
case "$1 $2" in
  venv*) for last; do :; done; mkdir -p "$last/bin" "$last/lib/site"; ln -s {sys.executable} "$last/bin/python" ;;
  "pip sync") for last; do :; done; folder=$(dirname "$last"); echo 'a = 1' > "$folder/venv/lib/site/a.py" ;;
  "pip install")
    for word; do case $word in --target=*) target=${{word#--target=}} ;; esac; done
    mkdir -p "$target/inner/models/loras"; echo 'b = 2' > "$target/inner/main.py"; touch "$target/inner/added" ;;
esac
"""


def plain(command: Sequence[str]) -> list[str]:
    return list(command)


class House:
    """A host without systemd, with a program that acts as uv does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.models = folder, folder / "opt", folder / "data/models"
        for path in (self.root / "releases", self.root / "environments", self.models, folder / "src"):
            path.mkdir(parents=True)
        self.compile: Callable[..., str] = partial(compile_folder, sandbox=plain)
        self.uv = folder / "uv"
        self.uv.write_text(UV)
        self.uv.chmod(0o755)
        self.source = Repository(folder / "src/core")
        self.commit = self.source.commit(
            {
                "main.py": "x = 1\n",
                "models/loras/put_here": "",
                "models/configs/a.yaml": "a: 1\n",
                "custom_nodes/e.py": "",
            }
        )
        self.pack = Repository(folder / "src/pack")
        self.pack_commit = self.pack.commit({"__init__.py": "y = 2\n", "broken.py": "def\n", "ckpts/f": ""})

    def builder(self, **given: Any) -> Builder:
        return Builder(self.uv, VERSION, pause_s=0, compile=self.compile, **given)

    def release(self, **given: Any) -> Release:
        checkouts = [
            {"name": name, "repository": source.url, "commit": commit, "dest": dest, "submodules": True}
            for name, source, commit, dest in (
                ("ComfyUI", self.source, self.commit, "ComfyUI"),
                ("pack", self.pack, self.pack_commit, "ComfyUI/custom_nodes/pack"),
            )
        ]
        fields: dict[str, Any] = {
            "record": {"id": "r1"},
            "environment": "comfyui-0123456789ab",
            "requirements": "a==1\n",
            "checkouts": checkouts,
            "models": self.models,
            "links": [Link("ComfyUI/custom_nodes/pack/ckpts", self.models / "node_ckpts/pack")],
        }
        return Release(self.root, "r1", **{**fields, **given})

    def build(self, **given: Any) -> bool:
        return build(self.release(**given), self.builder(), Checkouts(self.folder / "cache", retry_pause_s=0.01))

    def files(self) -> dict[str, str]:
        """Everything that was built, with what links name."""
        found = {}
        for path in sorted([*self.root.rglob("*"), *self.models.rglob("*")]):
            name = str(path.relative_to(self.folder))
            if path.is_symlink():
                found[name] = f"-> {os.readlink(path)}"  # noqa: PTH115
            elif path.is_file() and path.name not in (".lock", "uv.log"):
                found[name] = path.read_text(errors="replace") if path.suffix != ".pyc" else "bytecode"
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_release_is_built_once(house: House) -> None:
    assert house.build()
    folder = house.root / "releases/r1"
    assert json.loads((folder / "release.json").read_text()) == {"id": "r1"}
    assert (folder / "venv/bin/python").resolve() == Path(sys.executable).resolve()
    assert (folder / "ComfyUI/models").readlink() == house.models
    assert (house.models / "configs/a.yaml").read_text() == "a: 1\n"
    assert (folder / "ComfyUI/custom_nodes/pack/ckpts").readlink() == house.models / "node_ckpts/pack"
    assert (house.models / "node_ckpts/pack").is_dir()
    assert [path.name for path in (house.root / "releases").iterdir() if path.name != ".lock"] == ["r1"]
    before, log = house.files(), house.uv.with_name("uv.log").read_text()
    assert not house.build()
    assert house.files() == before
    assert house.uv.with_name("uv.log").read_text() == log
    assert all("--no-build" in line for line in log.splitlines() if line.startswith("pip"))


def test_bytecode_is_what_python_would_make_and_names_the_release(house: House) -> None:
    house.build()
    main = house.root / "releases/r1/ComfyUI/main.py"
    ran = subprocess.run(
        [sys.executable, "-v", "-c", "import main; print(main.__cached__)"],
        cwd=main.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"matches {main}" in ran.stderr
    assert str(main).encode() in (main.parent / f"__pycache__/main.{PYC}").read_bytes()
    pack = main.parent / "custom_nodes/pack/__pycache__"
    assert [path.name for path in pack.iterdir()] == [f"__init__.{PYC}"]  # what is no Python has none


def test_comfyui_out_of_its_package(house: House) -> None:
    package = {"name": "x", "version": "1", "sha256": "0" * 64, "folder": "inner", "leave_out": "added"}
    house.build(package=package, checkouts=house.release().checkouts[1:])
    folder = house.root / "releases/r1"
    assert (folder / "source.txt").read_text() == f"x==1 --hash=sha256:{'0' * 64}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["ComfyUI", "release.json", "source.txt", "venv"]
    assert (folder / "ComfyUI/custom_nodes/pack/__init__.py").exists()
    assert not (folder / "ComfyUI/added").exists()


class Killed(BaseException):
    """The deploy was cut off."""


ACTIONS = [
    (Builder, "run"),
    (Builder, "bytecode"),
    (Checkouts, "make"),
    (Path, "rename"),
    (Path, "symlink_to"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
    (release_build, "_remove"),
    (release_build, "write_whole"),
    (release_build, "sync_folder"),
    (release_build, "make_folders"),
    (environments, "write_whole"),
]


def test_the_next_build_finishes_one_that_was_cut_off_before_any_action(house: House) -> None:
    house.build()
    wanted = {name: text for name, text in house.files().items() if not name.endswith(".pyc")}
    house.compile = lambda *_, **__: ""
    cut, before = 0, ""
    while before != "end":
        for folder in ("opt/releases", "opt/environments", "data/models"):
            shutil.rmtree(house.folder / folder)
            (house.folder / folder).mkdir()
        before = cut_off(house, cut)
        marked = (house.root / "releases/r1/release.json").exists()
        assert not marked or before in ("sync_folder", "remove r1", "end")
        assert house.build() is not marked
        assert house.files() == wanted, f"cut off before {before}, action {cut}"
        cut += 1
    assert cut > 30


def cut_off(house: House, cut: int) -> str:
    """Build until before an action; says which."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ACTIONS:
            real = getattr(owner, name)

            def act(*given: Any, name: str = name, real: Callable[..., Any] = real, **more: Any) -> Any:
                done.append(f"remove {given[0].name.strip('.').removesuffix('.old')}" if name == "_remove" else name)
                if len(done) == cut + 1:
                    raise Killed
                return real(*given, **more)

            patch.setattr(owner, name, act)
        try:
            house.build()
        except Killed:
            return done[-1]
    return "end"


def test_a_release_that_lost_its_mark_is_built_beside_what_runs_in_it(house: House) -> None:
    house.build()
    folder = house.root / "releases/r1"
    (folder / "release.json").unlink()
    (folder / "ComfyUI/main.py").write_text("damaged")
    running = os.open(folder, os.O_RDONLY)
    there: list[bool] = []

    def look(*_: object, **__: object) -> str:
        there.append((folder / "ComfyUI").exists())
        return ""

    house.compile = look
    assert house.build()
    assert there == [True]
    os.close(running)
    assert (folder / "ComfyUI/main.py").read_text() == "x = 1\n"
    assert sorted(path.name for path in (house.root / "releases").iterdir()) == [".lock", "r1"]


def build_in(house: House, ready: Any, results: Any) -> None:
    def slow(*given: Any, **more: Any) -> str:
        ready.set()
        time.sleep(0.5)
        return compile_folder(*given, sandbox=plain, **more)

    house.compile = slow
    results.put(house.build())


def test_two_deploys_at_once_build_once(house: House) -> None:
    context = multiprocessing.get_context("fork")
    ready, results = context.Event(), context.Queue()
    both = [context.Process(target=build_in, args=(house, ready, results)) for _ in range(2)]
    both[0].start()
    ready.wait()
    both[1].start()
    for one in both:
        one.join()
    assert sorted(results.get() for _ in both) == [False, True]
    assert (house.root / "releases/r1/release.json").exists()


def test_programs_of_a_deploy_that_was_killed_hold_the_lock(house: House) -> None:
    builder = house.builder()
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with builder.holding(house.root / "releases"):
        left = subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE, pass_fds=builder.locks)
    with pytest.raises(
        BuildError, match=r"another deploy \(process \d+, since .*\) has been building in .*/releases for"
    ):
        build(house.release(), house.builder(wait_s=0), Checkouts(house.folder / "cache"))
    left.communicate(b"\n")
    os.close(reading)
    os.close(writing)
    assert house.build()


def test_data_is_on_disk_before_the_mark(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def sync(_: Builder, folder: Path) -> None:
        done.append(f"sync {folder.name}")

    monkeypatch.setattr(Builder, "sync", sync)
    for module in (release_build, environments):
        write = module.write_whole

        def written(path: Path, text: str, write: Callable[..., None] = write) -> None:
            done.append(path.name)
            write(path, text)

        monkeypatch.setattr(module, "write_whole", written)
    house.build()
    assert done == ["requirements.txt", "sync comfyui-0123456789ab", "complete", "sync .r1.new", "release.json"]


def test_a_build_that_fails_says_what_the_program_said(house: House) -> None:
    house.uv.with_name("uv.fail").write_text("no such package")
    with pytest.raises(BuildError, match=r"uv venv --clear ended with status 3: no such package"):
        house.build()
    assert house.uv.with_name("uv.log").read_text().count("venv --clear") == 4  # the network may have been the reason
    house.uv.with_name("uv.fail").unlink()
    assert house.build()


@pytest.mark.parametrize("path", ["../out", "ComfyUI/../../out", "/out", "", "ComfyUI/custom_nodes/pack/way/x"])
def test_a_folder_of_a_pack_does_not_lead_out(house: House, path: str) -> None:
    (house.pack.folder / "way").symlink_to("ckpts")
    commit = house.pack.commit()
    checkouts = [house.release().checkouts[0], {**house.release().checkouts[1], "commit": commit}]
    with pytest.raises(BuildError, match=r"leads out of the release|way is a link or a file"):
        house.build(checkouts=checkouts, links=[Link(path, house.models / "x")])
    assert not (house.root / "releases/r1").exists()


def test_models_are_led_through_no_link_of_others(house: House) -> None:
    """ComfyUI's own tree is not copied to where somebody else's link leads."""
    elsewhere = house.folder / "elsewhere"
    elsewhere.mkdir()
    (house.models / "loras").symlink_to(elsewhere)
    house.models.chmod(0o777)
    with pytest.raises(FileError, match="leads through the link 'loras', which others can change"):
        house.build()
    assert list(elsewhere.iterdir()) == []


def test_what_is_in_the_models_stays(house: House) -> None:
    (house.models / "configs").mkdir()
    (house.models / "configs/a.yaml").write_text("mine")
    house.build()
    assert (house.models / "configs/a.yaml").read_text() == "mine"


# ---------------------------------------------------------------------------------------------- bytecode


def test_bytecode_is_written_through_no_link(tmp_path: Path) -> None:
    """Whatever made it: checkouts refuse such a link, and packages have none."""
    etc, pack = tmp_path / "etc", tmp_path / "pack"
    etc.mkdir()
    pack.mkdir()
    (pack / "a.py").write_text("")
    (pack / "__pycache__").symlink_to(etc)
    no_place = f"there is no place for bytecode beside {pack}/a.py, and 1 such files have none"
    assert compile_folder(pack, Path(sys.executable), VERSION, sandbox=plain) == no_place
    assert list(etc.iterdir()) == []
    (pack / "__pycache__").unlink()
    (pack / "__pycache__").write_text("a file")
    assert compile_folder(pack, Path(sys.executable), VERSION, sandbox=plain) == no_place
    (pack / "__pycache__").unlink()
    (pack / f"__pycache__/a.{PYC}").mkdir(parents=True)
    assert compile_folder(pack, Path(sys.executable), VERSION, sandbox=plain) == no_place
    (pack / f"__pycache__/a.{PYC}").rmdir()
    (etc / "f").write_text("untouched")
    (pack / f"__pycache__/a.{PYC}").symlink_to(etc / "f")
    assert compile_folder(pack, Path(sys.executable), VERSION, sandbox=plain) == ""
    assert (etc / "f").read_text() == "untouched"
    assert not (pack / f"__pycache__/a.{PYC}").is_symlink()


def test_sources_are_no_links_and_not_what_is_left_out(tmp_path: Path) -> None:
    for name in ("a.py", "tests/b.py", "sub/c.py", "sub/d.txt"):
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text("")
    (tmp_path / "pack/e.py").symlink_to("a.py")
    (tmp_path / "pack/folder").symlink_to("sub")
    found = bytecode.sources(tmp_path / "pack", "/tests?/")
    assert [str(path.relative_to(tmp_path / "pack")) for path in found] == ["a.py", "sub/c.py"]


@pytest.mark.parametrize(
    "answer",
    ["b''", "(1).to_bytes(8,'little')", "(2**60).to_bytes(8,'little') + b'x'", "(0).to_bytes(8,'little') + b'xy'"],
)
def test_a_compiler_that_was_taken_over_writes_nothing_else(tmp_path: Path, answer: str) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    for name in ("a.py", "b.py"):
        (pack / name).write_text("")

    def taken_over(_: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({answer}); sys.exit('it broke')"]

    said = compile_folder(pack, Path(sys.executable), VERSION, sandbox=taken_over)
    assert said.startswith(("only 0 of 2", "only 1 of 2"))
    assert said.endswith("it broke")
    assert sorted(path.name for path in pack.iterdir()) == ["a.py", "b.py"]


def test_the_compiler_has_no_rights() -> None:
    command = bytecode.sandboxed(["python"])
    assert command[-1] == "python"
    for entry in ("DynamicUser=yes", "PrivateNetwork=yes", "CapabilityBoundingSet="):
        assert f"--property={entry}" in command


def test_what_packages_bring_for_each_start_of_python_is_not_run(house: House) -> None:
    """The interpreter of an environment runs *.pth files of its packages, unless it is told not to."""
    commands: list[Sequence[str]] = []

    def seen(command: Sequence[str]) -> list[str]:
        commands.append(command)
        return list(command)

    house.compile = partial(compile_folder, sandbox=seen)
    house.build()
    assert [command[1:3] for command in commands] == [["-I", "-S"]] * 2


# ---------------------------------------------------------------------------------------------- environments


def test_earlier_environments_of_a_kind_go_when_nothing_uses_them(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setattr(environments, "_UNITS", units)
    folder = house.root / "environments"
    for name in ("handler-aaa", "handler-bbb", "handler-ccc", "handler-extra-aaa", "compiler-aaa", "handler"):
        (folder / name).mkdir()
    (units / "handler.service").write_text(f"ExecStart={folder}/handler-bbb/venv/bin/python")
    (house.root / "releases/r0").mkdir()
    (house.root / "releases/r0/venv").symlink_to("../../environments/handler-ccc/venv")
    assert house.builder().environment(folder / "handler-ddd", "a==1\n")
    left = ["compiler-aaa", "handler", "handler-bbb", "handler-ccc", "handler-ddd", "handler-extra-aaa"]
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == left
    assert unused(folder, "handler", releases_without={"r0"}) == ["handler-ccc", "handler-ddd"]
    assert unused(folder, "") == []


def test_an_environment_waits_for_the_one_that_builds(house: House) -> None:
    folder = house.root / "environments"
    with exclusive(folder / ".lock"), pytest.raises(BuildError, match="has been building in"):
        house.builder(wait_s=0).environment(folder / "comfyui-aaa", "a==1\n")
