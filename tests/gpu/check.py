#!/usr/bin/env python3
"""What a GPU does with attention: which ways are right on it, and how fast each is at Wan 2.1's real shapes.

It needs Python 3.11 and torch, and tests SageAttention and comfy-kitchen where they can be imported. On a worker:

    cd /opt/wanmetal
    PYTHONPATH=$(echo sageattention/2*/site) current/venv/bin/python .../tests/gpu/check.py --json /tmp/check.json

It ends with 1 where a self-test fails.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

PROGRAM = Path(__file__).resolve().parents[2] / "roles/sageattention/files/attention_check.py"


def _self_test() -> Any:
    """The module of the role, which is no package."""
    spec = importlib.util.spec_from_file_location("attention_check", PROGRAM)
    if spec is None or spec.loader is None:
        raise ImportError(f"{PROGRAM} is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_check"] = module
    spec.loader.exec_module(module)
    return module


attention_check = _self_test()

PACKAGES = {"sage": ("sageattention", "SageAttention"), "kitchen": ("comfy_kitchen", "comfy-kitchen")}
"""The attentions of the self-test: the package of each, and what people call it."""
VAE_STRIDE = (4, 8, 8)
PATCH = (1, 2, 2)
HEADS = 40
"""Of the 14B models."""
VIDEOS = {"480p": (832, 480, 81), "720p": (1280, 720, 81)}


def tokens(width: int, height: int, frames: int) -> int:
    """Tokens of a video: the VAE keeps the first frame and every fourth after it, and an eighth of each side."""
    latent = ((frames - 1) // VAE_STRIDE[0] + 1, height // VAE_STRIDE[1], width // VAE_STRIDE[2])
    return (latent[0] // PATCH[0]) * (latent[1] // PATCH[1]) * (latent[2] // PATCH[2])


def operations(count: int, heads: int, dimension: int = attention_check.HEAD_DIM) -> float:
    """Floating-point operations of a self-attention without a mask: two products, of two operations each."""
    return 4.0 * count * count * heads * dimension


@dataclass(frozen=True)
class Row:
    """One way of computing one attention. ``rate`` is in operations a second, ``error`` a part of the norm."""

    video: str
    tokens: int
    way: str
    seconds: float
    rate: float
    error: float = 0.0
    problem: str = ""


def matmul_rate(device: str, side: int) -> float:
    """Operations a second of a large bfloat16 product: what the card's arithmetic gives at best, in practice."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    b = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    took: float = attention_check.seconds(lambda: a @ b, device)
    return 2.0 * side**3 / took


def ways(names: Sequence[str]) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """The ways there are, by name; each takes q, k and v as batch, tokens, heads, dimension."""

    def torch_with(backend: Any) -> Callable[[Any, Any, Any], Any]:
        def attention(q: Any, k: Any, v: Any) -> Any:
            with sdpa_kernel(backend):
                return attention_check.torch_attention(q, k, v, "NHD")

        return attention

    def torch_as_comfyui(q: Any, k: Any, v: Any) -> Any:
        with attention_check.priority(q.device.type):
            return attention_check.torch_attention(q, k, v, "NHD")

    found: dict[str, Callable[[Any, Any, Any], Any]] = {
        "torch, its own choice": lambda q, k, v: attention_check.torch_attention(q, k, v, "NHD"),
        "torch, as ComfyUI": torch_as_comfyui,
        "torch, flash": torch_with(SDPBackend.FLASH_ATTENTION),
        "torch, cuDNN": torch_with(SDPBackend.CUDNN_ATTENTION),
    }
    for name in names:
        attention = attention_check.ATTENTIONS[name]()
        found[PACKAGES[name][1]] = functools.partial(_nhd, attention)
    return found


def _nhd(attention: Any, q: Any, k: Any, v: Any) -> Any:
    return attention(q, k, v, "NHD")


def measure(device: str, videos: dict[str, int], heads: int, names: Sequence[str]) -> list[Row]:
    """Time each way at each length, in bfloat16."""
    rows = []
    for video, count in videos.items():
        case = attention_check.Case(count, count, heads, "bfloat16", "NHD")
        q, k, v = attention_check.inputs(case, device)
        expected = attention_check.torch_attention(q.float(), k.float(), v.float(), "NHD")
        for name, way in ways(names).items():
            try:
                took = attention_check.seconds(lambda way=way, q=q, k=k, v=v: way(q, k, v), device)
                error = float((way(q, k, v).float() - expected).norm() / expected.norm())
            except (RuntimeError, ValueError) as raised:
                rows.append(Row(video, count, name, 0.0, 0.0, problem=str(raised).splitlines()[0][:120]))
            else:
                rows.append(Row(video, count, name, took, operations(count, heads) / took, error))
    return rows


def table(rows: Sequence[Row], limit: float) -> list[str]:
    """Rows for Markdown. The limit is the rate of a plain product."""
    lines = [
        "| video | tokens | attention | ms | TFLOP/s | of a bf16 product's rate | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.problem:
            cells = [row.video, str(row.tokens), row.way, f"not run: {row.problem}", "", "", ""]
        else:
            share = f"{row.rate / limit:.0%}" if limit else ""
            figures = [f"{row.seconds * 1e3:.1f}", f"{row.rate / 1e12:.1f}", share, f"{row.error:.4f}"]
            cells = [row.video, str(row.tokens), row.way, *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def present(name: str) -> bool:
    """Whether an attention is installed, and made for cards such as this one."""
    if importlib.util.find_spec(PACKAGES[name][0]) is None:
        return False
    return name != "kitchen" or bool(importlib.import_module("comfy_kitchen").int8_attention_is_available())


def driver() -> str:
    """Version of the driver, or an empty string."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.split("\n", 1)[0].strip() if done.returncode == 0 else ""


def card(device: str) -> dict[str, Any]:
    """The card and the versions."""
    told = {
        "device": attention_check.device_name(device),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        told |= {
            "compute_capability": f"{found.major}.{found.minor}",
            "memory_gb": round(found.total_memory / 1e9, 1),
            "multiprocessors": found.multi_processor_count,
        }
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", type=int, default=HEADS, help=f"default: {HEADS}, those of the 14B models")
    parser.add_argument("--tiny", action="store_true", help="lengths that a CPU manages: to test this program")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to this file, too")
    options = parser.parse_args(arguments)
    names = [name for name in PACKAGES if present(name)]
    videos = {"tiny": 300} if options.tiny else {name: tokens(*size) for name, size in VIDEOS.items()}

    told: dict[str, Any] = {"card": card(options.device), "self_tests": {}}
    print("\n".join(f"{name:<20}{value}" for name, value in told["card"].items()))
    for name, (_, label) in PACKAGES.items():
        if name not in names:
            print(f"{label:<20}not there, so not tested")
            continue
        test = told["self_tests"][name] = attention_check.self_test(
            options.device, (256, 300) if options.tiny else attention_check.LENGTHS, 2 if options.tiny else 8,
            64 if options.tiny else attention_check.TEXT, attention_check.MAX_ERROR, 0.0, name,
        )  # fmt: skip
        verdict = "passed" if test["passed"] else f"FAILED: {'; '.join(test['reasons'])}"
        error = "unknown" if test["worst_error"] is None else f"{test['worst_error']:.4f}"
        print(f"{label:<20}self-test {verdict}; worst error {error}, {test['speedup']} times torch's speed")

    limit = matmul_rate(options.device, 256 if options.tiny else 8192)
    usable = [name for name in names if told["self_tests"][name]["passed"]]
    rows = measure(options.device, videos, options.heads, usable)
    told |= {"heads": options.heads, "matmul_rate": limit, "rows": [asdict(row) for row in rows]}
    print(f"bf16 product        {limit / 1e12:.1f} TFLOP/s\n")
    print("\n".join(table(rows, limit)))
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if usable == names else 1


if __name__ == "__main__":
    sys.exit(main())
