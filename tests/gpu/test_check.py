"""The self-test of SageAttention and the program around it, with right and wrong kernels, on torch without a GPU.

Torch is gigabytes. WANMETAL_TORCH names a Python that has it, or WANMETAL_TORCH_HOST a worker of the lab: the tests of
./test e2e name theirs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker import PROJECT, STATE

SELF_TEST = "roles/sageattention/files/attention_check.py"
CHECK = "tests/gpu/check.py"
HOST = os.environ.get("WANMETAL_TORCH_HOST", "")
PYTHON = f"/srv/wanmetal/hosts/{HOST}/current/venv/bin/python" if HOST else os.environ.get("WANMETAL_TORCH", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="no Python with torch: WANMETAL_TORCH may name one")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with the programs, which that Python sees, too."""
    store = STATE / "store"
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-", dir=store if HOST else None))
    for name in (SELF_TEST, CHECK):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(PROJECT / name, folder / name)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def there(path: Path) -> str:
    """What that Python calls a path."""
    return f"/srv/wanmetal/{path.relative_to(STATE / 'store')}" if HOST else str(path)


def python(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run that Python."""
    settings = (f"PYTHONPATH={there(packages)}", "OMP_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1")
    command = ["env", *settings, PYTHON, *arguments]
    if HOST:
        command = ["ssh", "-F", str(STATE / "ssh_config"), HOST, f"sudo {shlex.join(command)}"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


RIGHT = """
import torch
def sageattn(q, k, v, tensor_layout="HND", is_causal=False, **_):
    if tensor_layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return out.transpose(1, 2) if tensor_layout == "NHD" else out
"""
# Each of these is right but for one thing.
STAND_INS = {
    "right": ("", ""),
    # 8 bits: what a good kernel loses
    "coarse": ("v = (v / v.abs().max() * 127).round() / 127 * v.abs().max()", ""),
    "nan": ("", "out[..., 0] = float('nan')"),
    "black": ("", "out = out * 0"),
    "noise": ("", "out = torch.randn_like(out)"),
    "doubled": ("", "out = out * 2"),
    "crash": ("raise RuntimeError('no kernel image is available')", ""),
    "wrong type": ("", "out = out.float()"),
    "tail": ("", "out[:, :, -100:] = 0"),  # the last, incomplete block of tokens
    "slow": ("import time; time.sleep(0.2)", ""),
}
REASONS = {
    "nan": "the result has NaN or infinite numbers",
    "black": "the relative error is 1.000",
    "noise": "the relative error is",
    "doubled": "the relative error is 1.0",
    "crash": "RuntimeError: no kernel image is available",
    "wrong type": "the result is (1, 256, 2, 128) torch.float32",
    "tail": "the relative error is",
    "slow": "times as fast as torch's own attention, and at least 0.5 is needed",
}


@pytest.fixture
def packages(place: Path) -> Path:
    """A folder of packages, still empty."""
    return Path(tempfile.mkdtemp(dir=place))


@pytest.fixture
def stand_in(packages: Path, request: pytest.FixtureRequest) -> Path:
    before, after = STAND_INS[request.param]
    text = RIGHT.replace("    out = torch", f"    {before or 'pass'}\n    out = torch").replace(
        "    return", f"    {after or 'pass'}\n    return"
    )
    (packages / "sageattention.py").write_text(text)
    packages.chmod(0o755)
    return packages


def run(program: str, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(packages, there(packages.parent / program), *arguments)


def self_test(path: Path, min_speedup: str = "0") -> tuple[int, dict[str, Any]]:
    done = run(
        SELF_TEST,
        path,
        *("--device=cpu", "--heads=2", "--text=64", f"--min-speedup={min_speedup}", "--lengths", "256", "1000"),
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("stand_in", ["right", "coarse"], indirect=True)
def test_good_kernels_pass(stand_in: Path) -> None:
    status, told = self_test(stand_in)
    assert (status, told["passed"], told["reasons"]) == (0, True, [])
    assert 0 < told["worst_error"] < 0.1
    assert {(case["dtype"], case["layout"]) for case in told["cases"]} == {
        ("bfloat16", "NHD"),
        ("float16", "NHD"),
        ("bfloat16", "HND"),
    }
    assert (1000, 64) in {(case["tokens"], case["context"]) for case in told["cases"]}


@pytest.mark.parametrize("stand_in", [name for name in REASONS if name != "slow"], indirect=True)
def test_wrong_kernels_do_not(stand_in: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["stand_in"]
    status, told = self_test(stand_in)
    assert (status, told["passed"]) == (1, False)
    assert any(REASONS[name] in reason for reason in told["reasons"]), told["reasons"]


@pytest.mark.parametrize("stand_in", ["slow"], indirect=True)
def test_slow_kernels_do_not(stand_in: Path) -> None:
    status, told = self_test(stand_in, "0.5")
    assert (status, told["passed"]) == (1, False)
    assert REASONS["slow"] in told["reasons"][0]


KITCHEN = RIGHT.replace("def sageattn", "def int8_attention_is_available():\n    return True\ndef int8_attention")


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (KITCHEN, "--use-ck-attention", ""),
        (
            KITCHEN.replace("    return out.", "    out = out * 2\n    return out."),
            "--use-ck-attention",
            "the relative error is",
        ),
        (KITCHEN.replace("True", "False"), "--use-ck-attention", "comfy-kitchen has no attention for this card"),
        (KITCHEN, "--use-sage-attention", "this ComfyUI has no --use-ck-attention"),
        ("", "--use-ck-attention", "this version of comfy-kitchen has no attention"),
    ],
    ids=["right", "doubled", "other card", "older ComfyUI", "older package"],
)
def test_attention_of_comfy_kitchen(packages: Path, text: str, options: str, reason: str) -> None:
    (packages / "comfy_kitchen.py").write_text(text)
    (packages / "comfy").mkdir()
    (packages / "comfy/cli_args.py").write_text(f'attn_group.add_argument("{options}", action="store_true")\n')
    packages.chmod(0o755)
    words = ("--attention=kitchen", f"--core={there(packages)}", "--min-speedup=0", "--heads=2", "--text=64")
    done = run(SELF_TEST, packages, "--device=cpu", *words, "--lengths", "256")
    told = json.loads(done.stdout)
    assert (done.returncode, told["passed"]) == ((1, False) if reason else (0, True)), told
    assert all(reason in one for one in told["reasons"]), told


@pytest.mark.parametrize("stand_in", ["nan"], indirect=True)
def test_each_kind_of_card_is_tested(stand_in: Path) -> None:
    done = run(SELF_TEST, stand_in, "--device", "cpu", "cpu", "--heads=2", "--text=64", "--lengths", "256")
    told = json.loads(done.stdout)
    assert (done.returncode, told["passed"], told["device"], len(told["cases"])) == (1, False, "cpu, cpu", 8)
    assert all(reason.startswith("cpu: ") for reason in told["reasons"])


def test_a_package_that_is_not_there_is_told(packages: Path) -> None:
    status, told = self_test(packages)
    assert (status, told["passed"]) == (1, False)
    assert told["reasons"] == ["it cannot be imported: ModuleNotFoundError: No module named 'sageattention'"]


@pytest.mark.parametrize(("stand_in", "status"), [("right", 0), ("nan", 1)], indirect=["stand_in"])
def test_check(stand_in: Path, status: int) -> None:
    written = stand_in / "check.json"
    done = run(CHECK, stand_in, "--device=cpu", "--tiny", "--heads=2", f"--json={there(written)}")
    assert done.returncode == status, done.stderr
    told = json.loads(written.read_text())
    assert told["self_tests"]["sage"]["passed"] is (status == 0)
    assert [row["way"] for row in told["rows"]] == [
        *(
            "torch, its own choice",
            "torch, as ComfyUI",
            "torch, flash",
            "torch, cuDNN",
            *(["SageAttention"] if status == 0 else []),
        ),
    ]
    assert all(row["seconds"] > 0 for row in told["rows"] if not row["problem"])
    assert ("| tiny | 300 | SageAttention |" in done.stdout) is (status == 0)


def test_check_without_sageattention(packages: Path) -> None:
    done = run(CHECK, packages, "--device=cpu", "--tiny", "--heads=2")
    assert done.returncode == 0, done.stderr
    assert "not there, so not tested" in done.stdout


def test_the_shapes_are_those_of_wan(packages: Path) -> None:
    code = (
        f"import runpy; found = runpy.run_path({there(packages.parent / CHECK)!r});"
        "print([found['tokens'](*size) for size in found['VIDEOS'].values()], found['operations'](32760, 40))"
    )
    done = python(packages, "-c", code)
    assert done.stdout == "[32760, 75600] 21979496448000.0\n", done.stderr


@pytest.mark.slow
def test_the_trial_runs_at_small_shapes(place: Path) -> None:
    """What is run on a machine with a GPU is rehearsed here, since such a machine is rarely at hand."""
    for name in ("plugins/module_utils", "tests/gpu", "tests/pack"):
        shutil.copytree(PROJECT / name, place / name, dirs_exist_ok=True)
    link = place / ".ansible/collections/ansible_collections/wanmetal/comfyui"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../..")
    parts, work = place / "parts", place / "work"
    parts.mkdir()
    (work / "site").mkdir(parents=True)
    comfyui = os.environ.get("WANMETAL_COMFYUI") or f"/srv/wanmetal/hosts/{HOST}/current/ComfyUI"
    (work / "comfy").symlink_to(comfyui)
    arguments = [f"--parts={there(parts)}", f"--work={there(work)}", f"--out={there(place / 'out')}"]
    done = python(place, there(place / "tests/gpu/trial.py"), *arguments, "--device=cpu", "--budget=900")
    told = {file.stem: json.loads(file.read_text()) for file in (place / "out").glob("*.json")}
    assert told["card"]["gpu_info"]["gpus"] == [], done.stdout
    assert told["attention"]["picked"].startswith("torch's own; SageAttention 1.0.6: sage1 is not there"), done.stdout
    assert told["wheel"]["skipped"] == "not unpacked: sage"
    assert {told["first"][name]["problem"] for name in ("canary, image", "canary, video", "tiny")} == {""}, done.stdout
    assert [row["attention"] for row in told["small"]["rows"]] == ["torch"], done.stdout
    assert told["small"]["rows"][0]["seconds_a_step"] > 0
    assert told["whole"]["warm"]["steps"] == 2
    assert "trial-tiny_00001_.mp4" in told["whole"]["files"]
