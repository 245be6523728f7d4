from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels import build as wheel_build
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels.build import Build, Builder
from ansible_collections.wanmetal.comfyui.tests.cores import index

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("cores", "memory_gb", "architectures", "extensions", "jobs", "threads"),
    [
        pytest.param(2, 24, 1, 1, 2, 1, id="a small machine"),
        pytest.param(1, 2, 1, 1, 1, 1, id="the smallest: less memory than a thread is given"),
        pytest.param(8, 16, 1, 1, 3, 1, id="less memory than the cores could use"),
        pytest.param(16, 128, 1, 2, 8, 1, id="a worker with one kind of GPU"),
        pytest.param(16, 128, 4, 2, 2, 4, id="each job compiles for four architectures"),
        pytest.param(2, 24, 4, 1, 1, 2, id="more architectures than cores"),
        pytest.param(64, 512, 2, 2, 16, 2, id="a large machine"),
        pytest.param(64, 16, 6, 1, 1, 3, id="many cores, little memory"),
    ],
)
def test_limits(cores: int, memory_gb: int, architectures: int, extensions: int, jobs: int, threads: int) -> None:
    found = wheel_build.build_limits(cores, memory_gb * 1024, architectures)
    assert found == {
        "EXT_PARALLEL": str(extensions),
        "MAX_JOBS": str(jobs),
        "NVCC_APPEND_FLAGS": f"--threads={threads}",
    }
    at_once = extensions * jobs * threads
    assert at_once <= max(cores, 1)
    assert at_once * wheel_build.MEMORY_PER_THREAD_MB <= max(memory_gb * 1024, wheel_build.MEMORY_PER_THREAD_MB)


def test_environment() -> None:
    found = wheel_build.environment({"MAX_JOBS": 7, "X": "y"}, ["8.9", "12.0"], 1)
    assert found["TORCH_CUDA_ARCH_LIST"] == "8.9;12.0"
    assert (found["MAX_JOBS"], found["EXT_PARALLEL"], found["NVCC_APPEND_FLAGS"], found["X"]) == (
        *("7", "1", "--threads=1", "y"),
    )


@pytest.mark.parametrize(
    ("result", "log", "reason"),
    [
        ("oom-kill", "x", "it took more memory than memory_max allows, and was ended"),
        ("timeout", "x", "it took longer than timeout, and was ended"),
        ("exit-code", "", "it wrote nothing"),
        ("exit-code", "one\nRuntimeError: Cannot find CUDA_HOME.\n", "RuntimeError: Cannot find CUDA_HOME."),
        ("exit-code", "x.cu(3): error: no\nninja: build stopped\nTraceback\nCalledProcessError", "x.cu(3): error: no"),
        ("exit-code", "x.cu(3): warning: an error may come\nlast\n", "last"),
        ("exit-code", "gcc: fatal error: Killed signal terminated\nx", "gcc: fatal error: Killed signal terminated"),
    ],
)
def test_why_a_build_failed(result: str, log: str, reason: str) -> None:
    assert wheel_build.why_failed(result, log) == reason


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"elapsed_s": 3.2}, "building x, since 0 min 03 s"),
        ({"elapsed_s": 130, "done": 2, "total": 12}, "building x, 2 of 12 objects compiled, since 2 min 10 s"),
    ],
)
def test_progress(told: dict[str, float], text: str) -> None:
    assert wheel_build.line("x", told) == text


def test_objects_are_counted(tmp_path: Path) -> None:
    place = tmp_path / "tree/build/temp/ext"
    place.mkdir(parents=True)
    (place / "a.o").touch()
    (place / "build.ninja").write_text(
        f"rule compile\nbuild {place}/a.o: compile /x/a.cpp\nbuild b.o: cuda_compile /x/b.cu\nbuild x: phony\n"
    )
    assert wheel_build.objects(tmp_path) == (1, 2)
    (tmp_path / "tree/build/other").mkdir()
    os.mkfifo(tmp_path / "tree/build/other/build.ninja")  # by a build that means harm
    assert wheel_build.objects(tmp_path) == (1, 2)


# -- a systemd of the test's own


class Systemd:
    """Answers as systemctl and systemd-run do."""

    def __init__(self, state: str = "inactive", result: str = "success", starts: int = 0) -> None:
        self.state, self.result, self.starts = state, result, starts
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        self.commands.append(list(command))
        if command[0] == "systemd-run":
            self.state = "active"
            return self.starts, "no such property" if self.starts else ""
        if command[1] == "show":
            started = "ExecMainStartTimestampMonotonic=1000000"
            return 0, f"LoadState=loaded\nActiveState={self.state}\nResult={self.result}\n{started}"
        return 0, ""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    (tmp_path / "dest").mkdir()
    return Build(
        "thing-1",
        tmp_path / "source",
        Path(sys.executable),
        (tmp_path / "tools",),
        tmp_path / "dest",
        tmp_path / "dest/build.log",
        {"CUDA_HOME": "/usr/local/cuda-12.8"},
        "80%",
        60,
    )


def work(tmp_path: Path, wheel: bool) -> Path:
    place = tmp_path / "cache/private/wanmetal-build/thing-1"
    (place / "dist").mkdir(parents=True)
    if wheel:
        (place / "dist/thing-1.whl").write_text("a wheel")
    return place


def test_a_build_is_started_once(build: Build, tmp_path: Path) -> None:
    systemd = Systemd()
    builder = Builder(build, systemd, tmp_path / "cache")
    assert builder.begin()
    assert not builder.begin()
    [started] = [command for command in systemd.commands if command[0] == "systemd-run"]
    assert "--unit=wanmetal-build-thing-1.service" in started
    assert "--property=MemoryMax=80%" in started
    assert "--property=RuntimeMaxSec=60" in started
    assert "--property=PrivateNetwork=yes" in started
    assert "--setenv=CUDA_HOME=/usr/local/cuda-12.8" in started
    assert builder.wait(0)["state"] == "running"


def test_a_wheel_that_is_there_is_not_built_again(build: Build, tmp_path: Path) -> None:
    (build.dest / "thing-1.whl").touch()
    systemd = Systemd()
    builder = Builder(build, systemd, tmp_path / "cache")
    assert not builder.begin()
    assert builder.wait(0) == {
        "state": "built",
        "wheel": str(build.dest / "thing-1.whl"),
        "sha256": hashlib.sha256().hexdigest(),
        "reason": "",
    }
    assert systemd.commands == []


def test_a_build_that_has_ended_is_taken_over(build: Build, tmp_path: Path) -> None:
    place = work(tmp_path, wheel=True)
    builder = Builder(build, Systemd(), tmp_path / "cache")
    assert not builder.begin()
    told = builder.wait(0)
    wheel = build.dest / "thing-1.whl"
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert told == {"state": "built", "wheel": str(wheel), "sha256": sha256, "reason": ""}
    assert (build.dest / "thing-1.whl").read_text() == "a wheel"
    assert not place.exists()


@pytest.mark.parametrize(("result", "wheel"), [("exit-code", False), ("exit-code", True), ("oom-kill", True)])
def test_a_build_that_failed_leaves_no_wheel(build: Build, tmp_path: Path, result: str, wheel: bool) -> None:
    place = work(tmp_path, wheel)
    assert Builder(build, Systemd("failed", result), tmp_path / "elsewhere").begin()
    build.log.write_text("x.cu(3): error: no\n")
    told = Builder(build, Systemd("failed", result), tmp_path / "cache").wait(0)
    assert told["state"] == "failed"
    assert told["reason"] == wheel_build.why_failed(result, "x.cu(3): error: no\n")
    assert list(build.dest.glob("*.whl")) == []
    assert not place.exists()
    assert build.log.exists()


def test_a_link_in_place_of_a_wheel_is_refused(build: Build, tmp_path: Path) -> None:
    place = work(tmp_path, wheel=False)
    (place / "dist/thing-1.whl").symlink_to("/etc/shadow")
    with pytest.raises(OSError, match="is a link"):
        Builder(build, Systemd(), tmp_path / "cache").wait(0)


def test_a_unit_that_does_not_start_is_an_error(build: Build, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"systemd does not start .*: no such property"):
        Builder(build, Systemd(starts=1), tmp_path / "cache").begin()


# -- a real build, with a compiler where there is one

SETUP = """
import os, subprocess, sysconfig
from pathlib import Path
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

class Build(build_ext):
    def build_extension(self, extension):
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = [one.replace(".", "") for one in os.environ["TORCH_CUDA_ARCH_LIST"].split(";")]
        codes = [f"--generate-code=arch=compute_{one},code=sm_{one}" for one in parts]
        nvcc = [os.environ["CUDA_HOME"] + "/bin/nvcc", "--threads=8", *codes, "-Xcompiler", "-fPIC", "--cudart=none"]
        subprocess.run([*nvcc, "-c", "kernel.cu", "-o", "kernel.o"], check=True)
        link = ["gcc", "-shared", *os.environ["LDFLAGS"].split(), "kernel.o", "-lcuda", "-o", str(target)]
        subprocess.run(link, check=True)

setup(name="tiny", version="1", ext_modules=[Extension("tiny", ["kernel.cu"])], cmdclass={"build_ext": Build})
"""
KERNEL = 'extern "C" __global__ void doubled(float *x) { x[threadIdx.x] *= 2.0f; }\n'


def toolkit() -> Path | None:
    """A CUDA toolkit with a compiler, where this machine has one."""
    named = [os.environ.get("WANMETAL_CUDA_HOME", ""), *map(str, sorted(Path("/usr/local").glob("cuda*")))]
    return next((Path(found) for found in named if found and (Path(found) / "bin/nvcc").exists()), None)


TOOLKIT = toolkit()
needs_compiler = pytest.mark.skipif(
    TOOLKIT is None,
    reason="no nvcc in /usr/local/cuda*: name a toolkit in WANMETAL_CUDA_HOME to build a real extension",
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What wheels are built with, as on a host."""
    folder = tmp_path_factory.mktemp("tools")
    uv = Path(sys.executable).parent / "uv"
    lock = ROOT / "files/locks/python/wheels.txt"
    subprocess.run(
        [
            *(uv, "--quiet", "pip", "install", "--no-config", "--no-deps", "--require-hashes"),
            *("--python", sys.executable, "--target", folder, "--requirement", lock),
        ],
        check=True,
        env={**os.environ, "UV_SYSTEM_CERTS": "true", **index()},
    )
    return folder


def run_program(source: Path, place: Path, tools: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", wheel_build.PROGRAM, str(source), str(place)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(place), "PYTHONPATH": str(tools), **environment},
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "setup.py").write_text(SETUP)
    (folder / "kernel.cu").write_text(KERNEL)
    (tmp_path / "place").mkdir()
    return folder


@needs_compiler
def test_a_real_extension_is_compiled_for_two_architectures_without_a_gpu(
    source: Path, tmp_path: Path, tools: Path
) -> None:
    given = wheel_build.environment({"CUDA_HOME": TOOLKIT}, ["8.9", "9.0"], 2)
    done = run_program(source, tmp_path / "place", tools, **given)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "place/dist").glob("tiny-1-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extract(name, tmp_path)
    content = (tmp_path / name).read_bytes()
    assert b"sm_89" in content
    assert b"sm_90" in content
    assert b"sm_80" not in content
    # The driver's library, which this machine need not have, is asked for by its own name.
    assert b"libcuda.so.1" in content
    assert sorted(path.name for path in source.iterdir()) == ["kernel.cu", "setup.py"]


@needs_compiler
def test_an_architecture_that_the_compiler_does_not_know_is_told(source: Path, tmp_path: Path, tools: Path) -> None:
    given = wheel_build.environment({"CUDA_HOME": TOOLKIT}, ["8.9", "99.0"], 2)
    done = run_program(source, tmp_path / "place", tools, **given)
    assert done.returncode != 0
    assert "990" in wheel_build.telling_line(done.stdout + done.stderr)
    assert list((tmp_path / "place/dist").glob("*.whl")) == []
