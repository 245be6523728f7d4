from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.python import (
    LockError,
    Requirement,
    Target,
    changes,
    command,
    conflict,
    header,
    parse_lock,
    parse_source,
    plain,
    read_group,
    without,
    write_sources,
)
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

ROOT = Path(__file__).resolve().parents[2]

LOCK = """\
# Made by playbooks/lock.yml: change its sources, not this file.
av==16.1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r ComfyUI
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:cc
    # via tqdm
numpy==2.3.5 ; python_full_version < '3.12' \\
    --hash=sha256:dd
    # via
    #   -c constraints
    #   -r base.in
    #   scipy
numpy==2.4.0 ; python_full_version >= '3.12' \\
    --hash=sha256:ee
"""


def test_parse_lock() -> None:
    pins = parse_lock(LOCK)
    assert {key: pin.version for key, pin in pins.items()} == {
        ("av", ""): "16.1.0",
        ("colorama", "sys_platform == 'win32'"): "0.4.6",
        ("numpy", "python_full_version < '3.12'"): "2.3.5",
        ("numpy", "python_full_version >= '3.12'"): "2.4.0",
    }
    assert pins["av", ""].hashes == {"sha256:aa", "sha256:bb"}
    assert pins["av", ""].wanted_by == ("ComfyUI",)
    assert pins["numpy", "python_full_version < '3.12'"].wanted_by == ("base.in", "scipy")


@pytest.mark.parametrize("name", ["base-cu128", "practice", "uv", "deploy", "test"])
def test_each_shipped_lock_is_complete(name: str) -> None:
    text = (ROOT / f"files/locks/python/{name}.txt").read_text()
    pins = parse_lock(text)
    assert text.count("==") >= len(pins) > 0
    assert all(pin.hashes for pin in pins.values())
    assert sum(len(pin.hashes) for pin in pins.values()) == text.count("--hash=sha256:")
    assert "://" not in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (LOCK, LOCK, []),
        ("", "av==1 \\\n    --hash=sha256:a\n    # via -r x\n", ["added   av 1, wanted by x"]),
        ("av==1\n", "", ["removed av 1"]),
        ("av==1\n", "av==2\n    # via tqdm\n", ["moved   av 1 -> 2, wanted by tqdm"]),
        (LOCK, LOCK.replace("sha256:bb", "sha256:xx"), ["files   av 16.1.0: 1 new, 1 gone"]),
        (
            LOCK,
            LOCK.replace("0.4.6", "0.5"),
            ["moved   colorama (sys_platform == 'win32') 0.4.6 -> 0.5, wanted by tqdm"],
        ),
        (LOCK, LOCK.replace("via -r ComfyUI", "via -r other"), []),
    ],
)
def test_changes(old: str, new: str, expected: list[str]) -> None:
    assert changes(old, new) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch\n", [("torch", "torch", "any version")]),
        ("\ufeffAa_b.C>=1 # why\r\n\r\n#x\r\n", [("aa-b-c", "Aa_b.C>=1", ">=1")]),
        ("x[extra] >= 1; python_version < '3.12'", [("x", "x[extra] >= 1; python_version < '3.12'",
                                                     "[extra] >= 1; python_version < '3.12'")]),
        ("a>=1,\\\n<2", [("a", "a>=1, <2", ">=1, <2")]),
    ],
)  # fmt: skip
def test_parse_source(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(one.package, one.line, one.wants) for one in parse_source("s", text)] == expected


@pytest.mark.parametrize(
    "line",
    ["-r other.txt", "--extra-index-url https://x", "-e .", "./x.whl", "git+https://x/y", "a @ https://x/y.whl", "==1"],
)
def test_lines_that_cannot_be_locked(line: str) -> None:
    with pytest.raises(LockError) as caught:
        parse_source("KJNodes", f"numpy\n{line}\n")
    assert f"KJNodes: the line {line!r} cannot be locked" in str(caught.value)


def test_read_group() -> None:
    text = '[dependency-groups]\na = ["x>=1", "y"]\nb = [{include-group = "a"}]\n'
    assert read_group(text, "a") == ["x>=1", "y"]
    with pytest.raises(LockError, match="has no dependency group 'c'; it has: a, b"):
        read_group(text, "c")
    with pytest.raises(LockError, match="must hold requirements only"):
        read_group(text, "b")
    with pytest.raises(LockError, match="no valid TOML"):
        read_group("[", "a")


def test_a_conflict_names_who_wants_what() -> None:
    wishes = [
        Requirement("KJNodes", "numpy", "numpy<2"),
        Requirement("Old", "numpy", "numpy"),
        Requirement("RMBG", "transformers", "transformers==5.0.0"),
        Requirement("the constraints", "huggingface-hub", "huggingface_hub<1"),
    ]
    said = "error: No solution found\n  Because transformers==5.0.0 depends on huggingface-hub>=1.3.0 and numpy>=2"
    assert conflict(said, wishes).splitlines()[1:4] == [
        "huggingface-hub: the constraints wants <1",
        "numpy: KJNodes wants <2; Old wants any version",
        "transformers: RMBG wants ==5.0.0",
    ]


@pytest.mark.parametrize("said", ["error: Connection refused https://me:hunter2@host/simple/numpy/", "boom"])
def test_other_failures_are_told_as_they_are(said: str) -> None:
    told = conflict(said, [Requirement("a", "numpy", "numpy")])
    assert told.startswith("uv failed:")
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("target", "has", "lacks"),
    [
        (
            Target("3.12"),
            ["--universal", "--python-version=3.12"],
            ["--upgrade", "--constraints=constraints", "--overrides=overrides"],
        ),
        (Target("3.11", constraints=("a<1",)), ["--constraints=constraints"], []),
        (Target("3.11", only_binary=True), ["--only-binary=:all:"], []),
        (Target("3.11", overrides=("a",)), ["--overrides=overrides"], []),
        (Target("3.11", upgrade=True, upgrade_packages=("a",)), ["--upgrade"], ["--upgrade-package=a"]),
        (Target("3.11", upgrade_packages=("a", "b")), ["--upgrade-package=a", "--upgrade-package=b"], ["--upgrade"]),
    ],
)
def test_command(target: Target, has: list[str], lacks: list[str]) -> None:
    found = command("/bin/uv", "/bin/python", ["a", "b"], target)
    assert found[:5] == ["/bin/uv", "pip", "compile", "a", "b"]
    assert set(has) <= set(found)
    assert not set(lacks) & set(found)


def test_write_sources(tmp_path: Path) -> None:
    target = Target("3.12", constraints=("torch==2.10.0",))
    found = write_sources(tmp_path, [("ComfyUI", "torch # x\nav\n"), ("base.in", "")], target)
    assert [(one.source, one.line) for one in found] == [
        ("ComfyUI", "torch"),
        ("ComfyUI", "av"),
        ("the constraints", "torch==2.10.0"),
    ]
    assert (tmp_path / "ComfyUI").read_text() == "torch\nav\n"
    assert (tmp_path / "constraints").read_text() == "torch==2.10.0\n"


@pytest.mark.parametrize(
    "names", [["a/b"], ["a", "a"], ["constraints"], ["lock.txt"], ["pyproject.toml"], ["-r"], [""]]
)
def test_names_of_sources(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(LockError, match="a source needs a name of its own"):
        write_sources(tmp_path, [(name, "x") for name in names], Target("3.12"))


def test_what_goes_without_saying_on_linux_is_left_out() -> None:
    mark = "platform_machine == 'x86_64' and sys_platform == 'linux'"
    text = f"a==1 ; {mark} \\\nb==2 ; python_full_version < '3.12' and {mark} \\\n"
    assert plain(text) == "a==1 \\\nb==2 ; python_full_version < '3.12' \\\n"


def test_header() -> None:
    assert header(["a"], Target("3.11", linux=True)).endswith("# Python 3.11, Linux on x86_64, from: a\n")
    assert header(["a", "b"], Target("3.12")).endswith("# Python 3.12, every platform, from: a, b\n")
    assert header(["a"], Target("3.12"), "Node packs: x 1").endswith("from: a\n# Node packs: x 1\n")


@pytest.mark.parametrize(
    ("packages", "left"),
    [
        ([], ["torch", "fvcore>=0.1", "# fvcore", "trimesh[easy]"]),
        (["FVcore", "trimesh"], ["torch", "# fvcore"]),
        (["tri-mesh", "torch_x"], ["torch", "fvcore>=0.1", "# fvcore", "trimesh[easy]"]),
    ],
)
def test_what_is_left_out_of_a_file(packages: list[str], left: list[str]) -> None:
    assert without(["torch", "fvcore>=0.1", "# fvcore", "trimesh[easy]"], packages) == left


class Index:
    """A package index in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"file://{folder}"

    def add(self, name: str, version: str, *requires: str) -> None:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        files = {
            f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {one}\n" for one in requires),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        hashed = {
            path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()
        }
        record = "".join(f"{path},sha256={found.decode().rstrip('=')},\n" for path, found in hashed.items())
        with zipfile.ZipFile(wheel, "w") as packed:
            for path, text in [*files.items(), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n")]:
                packed.writestr(path, text)
        wheels = sorted(folder.glob("*.whl"))
        links = [
            f'<a href="{one.name}#sha256={hashlib.sha256(one.read_bytes()).hexdigest()}">{one.name}</a>'
            for one in wheels
        ]
        (folder / "index.html").write_text("<html><body>" + "".join(links) + "</body></html>")


def test_with_uv(tmp_path: Path) -> None:
    index, dest = Index(tmp_path / "simple"), tmp_path / "lock.txt"
    index.add("left", "1.0", "common>=1")
    index.add("right", "1.0", "common<3")
    for version in ("1.0", "2.0", "3.0"):
        index.add("common", version)
    (tmp_path / "requirements.txt").write_text("left\n")
    sources: list[dict[str, Any]] = [
        {"name": "L", "file": str(tmp_path / "requirements.txt")},
        {"name": "R", "requirements": ["right"]},
    ]

    def lock(check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {
            "dest": str(dest),
            "python_version": "3.11",
            "linux": True,
            "sources": sources,
        }
        arguments["uv"] = str(Path(sys.executable).with_name("uv"))
        environment = {"UV_DEFAULT_INDEX": index.url, "UV_CACHE_DIR": str(tmp_path / "uv")}
        return run_module("python_lock", arguments | more, check, **environment)

    first = lock(check=True)
    assert first["changes"] == [
        "added   common 2.0, wanted by left, right",
        "added   left 1.0, wanted by L",
        "added   right 1.0, wanted by R",
    ]
    assert first["diff"]["prepared"].startswith(f"{dest}\nadded   common 2.0")
    assert not dest.exists()
    assert lock()["changed"]
    text = dest.read_text()
    assert "://" not in text
    assert str(tmp_path) not in text
    assert not lock()["changed"]

    index.add("common", "2.5")
    assert not lock()["changed"]
    moved = ["moved   common 2.0 -> 2.5, wanted by left, right"]
    assert lock(check=True, upgrade_packages=["common"])["changes"] == moved
    assert lock(check=True, upgrade=True)["changes"] == moved
    assert lock(constraints=["common<2"])["changes"] == ["moved   common 2.0 -> 1.0, wanted by left, right"]
    assert lock(check=True, overrides=['common; sys_platform == "never"'])["changes"] == ["removed common 1.0"]

    own = tmp_path / "own.txt"
    index.add("more", "1.0")
    added = lock(dest=str(own), begin_with=str(dest), sources=[*sources, {"name": "own", "requirements": ["more"]}])
    assert added["changes"] == ["added   more 1.0, wanted by own"]
    assert added["diff"]["prepared"] == f"{own}, beside {dest}\nadded   more 1.0, wanted by own\n"
    assert "common==1.0" in own.read_text()
    assert lock(dest=str(own), begin_with=str(dest))["changes"] == ["removed more 1.0"]
    own.unlink()
    assert len(lock(dest=str(own), begin_with=str(tmp_path / "none"))["changes"]) == 3

    text = dest.read_text()
    failed = lock(sources=[*sources, {"name": "Third", "requirements": ["common==3.0"]}])
    assert "lock.txt: the requirements contradict each other" in failed["msg"]
    assert "common: Third wants ==3.0" in failed["msg"]
    assert "right: R wants any version" in failed["msg"]
    assert "uv failed" in lock(sources=[{"name": "L", "requirements": ["left"]}], python_version="nonsense")["msg"]
    assert "No such file" in lock(sources=[{"name": "L", "file": "/nowhere"}])["msg"]
    assert dest.read_text() == text
