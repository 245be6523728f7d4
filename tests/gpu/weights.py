"""Models of Wan at their true size, with random weights: FOLDER SIZE..., with ComfyUI's Python, in ComfyUI's folder.

They take the time and the memory of the real ones, and make noise. The text encoder is a tiny one of the tests' pack.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

folder, sizes = Path(sys.argv[1]), sys.argv[2:]
import torch

# ComfyUI reads it when it is imported.
sys.argv = [sys.argv[0], *([] if torch.cuda.is_available() else ["--cpu"])]
sys.path.insert(0, str(Path.cwd()))

import comfy.options

comfy.options.enable_args_parsing()

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import safetensors.torch

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 128, "ffn_dim": 32, "num_heads": 1, "num_layers": 2},
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
VAE: dict[str, Any] = {
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(name: str, like: torch.Tensor, small: bool) -> torch.Tensor:
    """Weights that keep the size of what passes them. Matrices of the largest model take 8 bits, as people use it."""
    shape, last = like.shape, name.rpartition(".")[2]
    if "norm" in name or "gamma" in name:
        found = torch.zeros(shape) if last == "bias" else torch.ones(shape)
    elif last == "bias":
        found = torch.zeros(shape)
    else:
        fan_in = shape[-1] if last == "modulation" else max(1, math.prod(shape[1:]))
        found = torch.randn(shape, device=DEVICE) / math.sqrt(fan_in)
    eight_bits = small and len(shape) == 2 and name.startswith("blocks.")
    return found.to(torch.float8_e4m3fn if eight_bits else torch.bfloat16).cpu().contiguous()


def save(path: Path, model: torch.nn.Module, small: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: draw(name, one, small) for name, one in model.state_dict().items()}, path)
    print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


operations = comfy.ops.disable_weight_init
for size in sizes:
    torch.manual_seed(1)
    meta = {"device": "meta", "dtype": torch.bfloat16, "operations": operations}
    model = comfy.ldm.wan.model.WanModel(model_type="t2v", in_dim=16, out_dim=16, **SIZES[size], **meta)
    save(folder / f"diffusion_models/wan-{size}.safetensors", model, size == "14B")
    with torch.device("meta"):
        vae = comfy.ldm.wan.vae.WanVAE(dim=8 if size == "tiny" else 96, **VAE)
    save(folder / f"vae/wan-{size}.safetensors", vae)
