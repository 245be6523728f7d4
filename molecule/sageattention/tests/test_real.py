"""SageAttention itself, compiled for one generation of cards by the second host, which has none of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not os.environ.get("WANMETAL_MIRROR"),
    reason="WANMETAL_MIRROR names no mirror of SageAttention's repository, so it was not built",
)
CACHE = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "")) / "wheels"


@pytest.fixture
def root(host: Any) -> str:
    name = str(host.check_output("hostname"))
    if not name.endswith("2"):
        pytest.skip("the other host has built it")
    return f"/srv/wanmetal/hosts/{name}/real"


@pytest.fixture
def folder(host: Any, root: str) -> str:
    return str(host.check_output(f"ls -1d {root}/sageattention/2.2.0-*"))


def test_the_wheel_is_kept_by_its_key(host: Any, folder: str) -> None:
    record = json.loads(host.file(f"{folder}/wheel.json").content_string)
    key = folder.rpartition("/")[2]
    assert (record["key"], record["architectures"]) == (key, ["8.0"])
    assert record["made_with"].startswith("torch==2.11.0 CUDA 13.0 Python 3.11")
    [wheel] = (CACHE / key).glob("*.whl")
    assert wheel.name == "sageattention-2.2.0-cp311-cp311-linux_x86_64.whl"
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert host.file(f"{folder}/{wheel.name}").sha256sum == sha256
    assert json.loads((CACHE / key / "wheel.json").read_text()) == {**record, "sha256": sha256}


def test_the_compiler_came_with_the_build(host: Any, root: str, folder: str) -> None:
    nvcc = host.check_output(
        f"ls {root}/environments/compiler-*/venv/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc"
    )
    log = host.file(f"{folder}/build.log").content_string
    assert nvcc in log
    assert "Target compute capabilities: {'8.0'}" in log
    assert "arch=compute_80,code=sm_80" in log


def test_its_kernels_are_loaded_with_the_torch_of_the_lane(host: Any, root: str, folder: str) -> None:
    code = (
        "import torch, sageattention.core as core; from sageattention import _fused, _qattn_sm80;"
        "print(torch.version.cuda, core.SM80_ENABLED, core.SM89_ENABLED,"
        " callable(_fused.quant_per_block_int8_cuda), callable(_qattn_sm80.qk_int8_sv_f16_accum_f32_attn))"
    )
    python = host.check_output(f"ls {root}/releases/*/venv/bin/python")
    # In a folder that has no sageattention of its own.
    said = host.check_output(f'cd / && PYTHONPATH={folder}/site {python} -c "{code}"')
    assert said == "13.0 True False True True"


def test_without_a_gpu_it_does_not_pass(host: Any, folder: str) -> None:
    result = json.loads(host.file(f"{folder}/result.json").content_string)
    assert not result["passed"]
    assert result["reasons"]
