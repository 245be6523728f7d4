"""Whether an attention computes what torch's own does, without NaN, and how much faster than ComfyUI without it.

Run it with the Python that the worker has, and with the folder of SageAttention in PYTHONPATH. It prints one line of
JSON with ``passed``, ``reasons`` and ``cases``, and ends with 0 where all is well, with 1 where the attention did not
pass, and with 3 where the card had no memory left for the test, which says nothing about the attention.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEAD_DIM = 128
LENGTHS = (1024, 7800, 32760)
"""Tokens of Wan: one frame of 480p has 1,560, five have 7,800, and 81 frames (21 after the VAE) have 32,760."""
TEXT = 512
"""Tokens of a prompt, which the cross-attention looks at."""
MAX_ERROR = 0.1
"""Kernels of 8 bits differ from float32 by about 0.02 to 0.05 of the norm; wrong ones by about 1."""
NO_MEMORY = 3

Attention = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", str], "torch.Tensor"]
"""Takes q, k, v and their layout: HND (batch, heads, tokens, dimension), or NHD (batch, tokens, heads, dimension)."""


@dataclass(frozen=True)
class Case:
    """One attention that is computed both ways."""

    tokens: int
    context: int
    heads: int
    dtype: str
    layout: str


@dataclass(frozen=True)
class Measured:
    """What came of a case: the error as a part of the norm, and the seconds that each way took."""

    case: Case
    finite: bool
    error: float
    seconds: float
    torch_seconds: float
    problem: str = ""

    @property
    def speedup(self) -> float:
        """How many times as fast as torch's own attention."""
        return self.torch_seconds / self.seconds if self.seconds else 0.0


def cases(lengths: Sequence[int], heads: int, text: int) -> list[Case]:
    """Self-attention at each length, cross-attention at the longest, and the layout that ComfyUI uses less."""
    found = [Case(n, n, heads, dtype, "NHD") for n in lengths for dtype in ("bfloat16", "float16")]
    found.append(Case(max(lengths), text, heads, "bfloat16", "NHD"))
    found.append(Case(min(lengths), min(lengths), heads, "bfloat16", "HND"))
    return found


def reasons(measured: Sequence[Measured], max_error: float, min_speedup: float) -> list[str]:
    """Why the attention is not to be used; empty where it passed. The speed counts where the work is most."""
    found = []
    for one in measured:
        case = one.case
        where = f"{case.tokens} tokens on {case.context}, {case.dtype}, {case.layout}"
        if one.problem:
            found.append(f"{where}: {one.problem}")
        elif not one.finite:
            found.append(f"{where}: the result has NaN or infinite numbers")
        elif not one.error <= max_error:
            found.append(f"{where}: the relative error is {one.error:.3f}, and {max_error:g} is allowed")
    if found or not measured:
        return found or ["nothing was measured"]
    longest = max(measured, key=lambda one: one.case.tokens * one.case.context)
    if longest.speedup < min_speedup:
        found.append(
            f"at {longest.case.tokens} tokens it is {longest.speedup:.2f} times as fast as torch's own attention, "
            f"and at least {min_speedup:g} is needed"
        )
    return found


def priority(device: str) -> contextlib.AbstractContextManager[Any]:
    """In which order ComfyUI has torch try its kernels. Torch alone would begin with cuDNN's on some cards."""
    if not device.startswith("cuda"):
        return contextlib.nullcontext()
    order = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    return sdpa_kernel([getattr(SDPBackend, name) for name in order], set_priority=True)


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> torch.Tensor:
    """Torch's own attention."""
    if layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2) if layout == "NHD" else out


def sage_attention(_core: str = "") -> Attention:
    """SageAttention, called as ComfyUI calls it."""
    from sageattention import sageattn

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> torch.Tensor:
        out: torch.Tensor = sageattn(q, k, v, is_causal=False, tensor_layout=layout, sm_scale=None, smooth_k=False)
        return out

    return attention


def kitchen_attention(core: str = "") -> Attention:
    """The attention in 8-bit integers of comfy-kitchen, which the ComfyUI in ``core`` is to use."""
    import comfy_kitchen

    if core and "--use-ck-attention" not in Path(core, "comfy/cli_args.py").read_text(encoding="utf-8"):
        raise ImportError("this ComfyUI has no --use-ck-attention")

    if not hasattr(comfy_kitchen, "int8_attention"):
        raise ImportError("this version of comfy-kitchen has no attention")
    if not comfy_kitchen.int8_attention_is_available():
        raise ImportError("comfy-kitchen has no attention for this card")

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> torch.Tensor:
        if layout == "NHD":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out: torch.Tensor = comfy_kitchen.int8_attention(q, k, v)
        return out.transpose(1, 2) if layout == "NHD" else out

    return attention


ATTENTIONS: dict[str, Callable[..., Attention]] = {"sage": sage_attention, "kitchen": kitchen_attention}


def inputs(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random q, k and v. Each channel of k gets an offset, as Wan's have, which careless quantisation stumbles over."""
    generator = torch.Generator(device=device).manual_seed(case.tokens + case.context)
    dtype = getattr(torch, case.dtype)

    def draw(tokens: int) -> torch.Tensor:
        shape = (1, tokens, case.heads, HEAD_DIM) if case.layout == "NHD" else (1, case.heads, tokens, HEAD_DIM)
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)

    q, k, v = draw(case.tokens), draw(case.context), draw(case.context)
    k = k + torch.randn(HEAD_DIM, generator=generator, device=device)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def seconds(work: Callable[[], Any], device: str, at_least: int = 5) -> float:
    """Median time of a call, after a first one that compiles and warms up."""
    work()
    times = []
    for _unused in range(at_least):
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(case: Case, attention: Attention, device: str) -> Measured:
    """Compute a case both ways."""
    q, k, v = inputs(case, device)
    expected = torch_attention(q.float(), k.float(), v.float(), case.layout)
    try:
        found = attention(q, k, v, case.layout)
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:  # whatever a kernel says, it is the answer
        return Measured(case, False, math.inf, 0.0, 0.0, f"{type(raised).__name__}: {raised}".splitlines()[0][:300])
    if found.shape != expected.shape or found.dtype != q.dtype:
        told = f"the result is {tuple(found.shape)} {found.dtype}, not {tuple(expected.shape)} {q.dtype}"
        return Measured(case, False, math.inf, 0.0, 0.0, told)
    with priority(device):
        usual = seconds(lambda: torch_attention(q, k, v, case.layout), device)
    finite = bool(torch.isfinite(found).all())
    error = float((found.float() - expected).norm() / expected.norm()) if finite else math.inf
    return Measured(
        case,
        finite,
        error,
        seconds(lambda: attention(q, k, v, case.layout), device),
        usual,
    )


def result(measured: Sequence[Measured], max_error: float, min_speedup: float, name: str) -> dict[str, Any]:
    """What the program prints. Infinite errors are null, since JSON has no word for them."""
    why = reasons(measured, max_error, min_speedup)
    longest = max(measured, key=lambda one: one.case.tokens * one.case.context, default=None)
    return {
        "passed": not why,
        "reasons": why,
        "device": name,
        "torch": torch.__version__,
        "speedup": round(longest.speedup, 3) if longest else 0.0,
        "worst_error": max((one.error for one in measured if math.isfinite(one.error)), default=None),
        "cases": [
            {
                **asdict(one.case),
                "finite": one.finite,
                "error": one.error if math.isfinite(one.error) else None,
                "seconds": one.seconds,
                "torch_seconds": one.torch_seconds,
                "problem": one.problem,
            }
            for one in measured
        ],
    }


def device_name(device: str) -> str:
    """The card's name."""
    return str(torch.cuda.get_device_name(device)) if device.startswith("cuda") else device


def devices(wanted: Sequence[str]) -> list[str]:
    """The first card of each kind in place of ``cuda``, and what else is named."""
    names = [device_name(f"cuda:{index}") for index in range(torch.cuda.device_count())]
    kinds = [f"cuda:{names.index(name)}" for name in dict.fromkeys(names)] or ["cuda"]
    return [device for one in wanted for device in (kinds if one == "cuda" else [one])]


def together(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of several cards as one: the worst of each."""
    if len(told) == 1:
        return told[0]
    errors = [one["worst_error"] for one in told if one["worst_error"] is not None]
    return {
        **told[0],
        "passed": all(one["passed"] for one in told),
        "reasons": [f"{one['device']}: {reason}" for one in told for reason in one["reasons"]],
        "device": ", ".join(one["device"] for one in told),
        "speedup": min(one["speedup"] for one in told),
        "worst_error": max(errors, default=None),
        "cases": [case for one in told for case in one["cases"]],
    }


def self_test(
    device: str,
    lengths: Sequence[int],
    heads: int,
    text: int,
    max_error: float,
    min_speedup: float,
    name: str = "sage",
    core: str = "",
) -> dict[str, Any]:
    """Test one of ``ATTENTIONS``; the result of ``result``."""
    if ":" in device:
        torch.cuda.set_device(device)  # kernels start on the current card, whosever their numbers are
    try:
        attention = ATTENTIONS[name](core)
    except Exception as error:
        reason = f"it cannot be imported: {type(error).__name__}: {error}".splitlines()[0][:300]
        return {**result([], max_error, min_speedup, device_name(device)), "reasons": [reason]}
    measured = [measure(case, attention, device) for case in cases(lengths, heads, text)]
    return result(measured, max_error, min_speedup, device_name(device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the result as JSON. Exit status 0 where the kernels may be used."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", nargs="+", default=["cuda"], help="default: cuda, one card of each kind")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens, default: those of Wan")
    parser.add_argument("--heads", type=int, default=8, help="default: 8; Wan 14B has 40, which takes longer")
    parser.add_argument("--text", type=int, default=TEXT, help=f"tokens of the prompt, default: {TEXT}")
    parser.add_argument("--max-error", type=float, default=MAX_ERROR, help=f"default: {MAX_ERROR}")
    parser.add_argument("--attention", choices=ATTENTIONS, default="sage", help="default: sage")
    parser.add_argument("--core", default="", help="folder of the ComfyUI that is to use it")
    parser.add_argument("--min-speedup", type=float, default=1.0, help="times as fast as torch, default: 1")
    options = parser.parse_args(arguments)
    try:
        settings = (options.lengths, options.heads, options.text, options.max_error, options.min_speedup)
        told = together(
            [self_test(device, *settings, options.attention, options.core) for device in devices(options.device)]
        )
    except torch.OutOfMemoryError as error:
        print(f"the card has no memory left for the test: {error}", file=sys.stderr)
        return NO_MEMORY
    print(json.dumps(told))
    return 0 if told["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
