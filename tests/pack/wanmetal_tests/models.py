"""Make tiny models of Wan's real architecture, with random weights: PATH..., with ComfyUI's Python.

A path, its folder included, tells the kind. All of one kind are the same but for their seed, which comes from the
file's name. Files that are there stay, and some kinds cannot be made small: said is which files were made.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parent
RIFE = PACK.parents[1] / "comfy_extras/frame_interpolation_models"
PATTERNS = {
    "ti2v": "diffusion_models/[^/]*ti2v",
    "flf2v": "diffusion_models/[^/]*flf2v",
    "vace_module": "diffusion_models/[^/]*vace[-_]module",
    "vace": "diffusion_models/[^/]*vace",
    "fun_control": "diffusion_models/[^/]*fun[-_]control",
    "i2v22": "diffusion_models/wan2.2_i2v",
    "i2v": "diffusion_models/[^/]*(i2v|fun_inp)",
    "t2v": "diffusion_models/[^/]*t2v",
    "lora": "loras/",
    "vae22": "vae/[^/]*2.2",
    "vae": "vae/",
    "text_encoder": "text_encoders/",
    "image_encoder": "clip_vision/clip_vision_h",
    "upscaler": "upscale_models/",
    "rife": "frame_interpolation/rife",
}


def kind_of(file: str) -> str:
    """The kind of a file, or nothing where there is no recipe."""
    kind = next((kind for kind, pattern in PATTERNS.items() if re.search(f"/{pattern}", file, re.IGNORECASE)), "")
    return "" if kind == "rife" and not RIFE.is_dir() else kind  # ComfyUI of other times has no such nodes


missing = [file for file in sys.argv[1:] if kind_of(file) and not Path(file).exists()]
if not missing:
    sys.exit()

sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads it when it is imported
sys.path.insert(0, str(PACK.parents[1]))

import comfy.options

comfy.options.enable_args_parsing()

import comfy.clip_model
import comfy.clip_vision
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import safetensors.torch
import sentencepiece
import torch

Weights = dict[str, torch.Tensor]
SIZES = runpy.run_path(str(PACK / "sizes.py"))
VAE: dict[str, Any] = {
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
# ComfyUI reads width and layers from the file. WanVideoWrapper takes any width, which it divides among 12 heads, and
# then wants 30 layers, of which every second has a VACE block; the narrowest VAE that it takes has a width of 24.
WRAPPED = (PACK.parent / "ComfyUI-WanVideoWrapper").is_dir()
DIM, LAYERS, VAE_WIDTH = (144, 30, 24) if WRAPPED else (128, 2, 8)


def wan(**config: Any) -> Weights:
    """A diffusion model, narrow."""
    kind = config.pop("cls", comfy.ldm.wan.model.WanModel)
    model = kind(
        dim=DIM,
        ffn_dim=32,
        num_heads=1,
        num_layers=LAYERS,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
        **config,
    )
    return random(model.state_dict())


def vace() -> Weights:
    """A model with VACE blocks."""
    return wan(cls=comfy.ldm.wan.model.VaceWanModel, vace_layers=LAYERS // 2, vace_in_dim=96)


def vace_module() -> Weights:
    """VACE blocks without the model."""
    return {name: one for name, one in vace().items() if name.startswith("vace_")}


def lora() -> Weights:
    """A LoRA for the attention of the first layer."""
    found: Weights = {}
    for part in ("q", "k", "v", "o"):
        name = f"diffusion_model.blocks.0.self_attn.{part}"
        found[f"{name}.lora_down.weight"] = torch.randn(4, DIM) / 2
        found[f"{name}.lora_up.weight"] = torch.randn(DIM, 4) / math.sqrt(DIM)
        found[f"{name}.alpha"] = torch.tensor(4.0)
    return found


def vae() -> Weights:
    """A narrow VAE."""
    return random(comfy.ldm.wan.vae.WanVAE(dim=VAE_WIDTH, z_dim=16, **VAE).state_dict())


def vae22() -> Weights:
    """A VAE of Wan 2.2, for the tests' node pack."""
    return random(comfy.ldm.wan.vae2_2.WanVAE(z_dim=48, **SIZES["VAE_22"], **VAE).state_dict())


def image_encoder() -> Weights:
    """An image encoder of few layers, for the tests' node pack."""
    file = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_h.json")
    config = json.loads(file.read_text(encoding="utf-8")) | SIZES["IMAGE_ENCODER"]
    model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    # by this one ComfyUI knows what it is
    marker = {"vision_model.encoder.layers.30.layer_norm1.weight": torch.zeros(1)}
    return random(model.state_dict()) | marker


def rife() -> Weights:
    """The network that RIFE draws frames with, at its size."""
    from comfy_extras.frame_interpolation_models.ifnet import IFNet

    return random(IFNet().state_dict())


def text_encoder() -> Weights:
    """A text encoder of one layer, with a tokenizer of its own, for the tests' node pack."""
    config = {"d_model": 4096, "d_kv": 64, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True}
    config |= {"model_type": "umt5", **SIZES["TEXT_ENCODER"]}
    model = comfy.text_encoders.t5.T5(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    words = "a red kite flies over green hills in the wind while the camera follows it slowly and clouds pass by"
    text = [f"{one} {other}" for one in words.split() for other in words.split()]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=trained, vocab_size=80, model_type="bpe",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False, byte_fallback=False,
    )  # fmt: skip
    found = random(model.state_dict())
    # by these ComfyUI knows what it is, and finds its tokenizer; older ones look at the other side of the matrix
    marker = "encoder.block.23.layer.1.DenseReluDense.wi_1.weight"
    by_rows = comfy.sd.detect_te_model({marker: torch.zeros(10240, 1)}) == comfy.sd.TEModel.T5_XXL
    found[marker] = torch.zeros(10240, 1) if by_rows else torch.zeros(1, 4096)
    found["spiece_model"] = torch.frombuffer(bytearray(trained.getvalue()), dtype=torch.uint8)
    return found


def upscaler() -> Weights:
    """ESRGAN, four times, with one block."""
    shapes = {"conv_first": (8, 3), "body.0.rdb1.conv1": (4, 8)}
    for block in (1, 2, 3):
        for layer in range(1, 6):
            shapes[f"body.0.rdb{block}.conv{layer}"] = (32 if layer < 5 else 8, 8 + 32 * (layer - 1))
    shapes |= {"conv_body": (8, 8), "conv_up1": (8, 8), "conv_up2": (8, 8), "conv_hr": (8, 8), "conv_last": (3, 8)}
    found: Weights = {}
    for name, (out, given) in shapes.items():
        found[f"{name}.weight"] = torch.randn(out, given, 3, 3) / math.sqrt(given * 9)
        found[f"{name}.bias"] = torch.zeros(out)
    return found


def random(shapes: Weights) -> Weights:
    """Weights with which a picture comes out that is neither black nor noise without bounds."""
    found = {}
    for name, like in shapes.items():
        shape, last = like.shape, name.rpartition(".")[2]
        if "norm" in name or "gamma" in name or ("residual" in name and len(shape) == 1 and last == "weight"):
            found[name] = torch.zeros(shape) if last == "bias" else torch.ones(shape)
        elif last == "bias":
            found[name] = torch.zeros(shape)
        elif last == "modulation":
            found[name] = torch.randn(shape) / math.sqrt(shape[-1])
        elif "embed" in name and len(shape) == 2 and shape[0] == 256:
            found[name] = torch.randn(shape)
        else:
            found[name] = torch.randn(shape) / math.sqrt(max(1, math.prod(shape[1:])))
    return found


KINDS: dict[str, Callable[[], Weights]] = {
    "t2v": lambda: wan(),
    "i2v": lambda: wan(model_type="i2v", in_dim=36),
    "flf2v": lambda: wan(model_type="i2v", in_dim=36, flf_pos_embed_token_number=514),
    "i2v22": lambda: wan(in_dim=36),
    "fun_control": lambda: wan(model_type="i2v", in_dim=48),
    "ti2v": lambda: wan(in_dim=48, out_dim=48),
    "vace": vace,
    "vace_module": vace_module,
    "lora": lora,
    "vae": vae,
    "vae22": vae22,
    "text_encoder": text_encoder,
    "image_encoder": image_encoder,
    "rife": rife,
    "upscaler": upscaler,
}


def main() -> None:
    for file in missing:
        path = Path(file)
        torch.manual_seed(int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big"))
        weights = KINDS[kind_of(file)]()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}")
        if path.suffix == ".pth":
            torch.save(weights, draft)
        else:
            safetensors.torch.save_file({name: one.contiguous() for name, one in weights.items()}, draft)
        draft.chmod(0o644)
        draft.replace(path)
        print(f"{file}: {kind_of(file)}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
