"""Make tiny models of Wan's real architecture, with random weights: TASKS.json COMFYUI_FOLDER, with ComfyUI's Python.

Each task is {"path": file to write, "kind": one of KINDS}. All of one kind are the same but for their seed, which
comes from the file's name. Layers and widths that ComfyUI reads from a file are as small as it takes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

tasks, comfyui = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads it when it is imported
sys.path.insert(0, comfyui)

import comfy.options

comfy.options.enable_args_parsing()

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.text_encoders.t5
import safetensors.torch
import sentencepiece
import torch

Weights = dict[str, torch.Tensor]
DIM = int(os.environ.get("TINY_DIM", "128"))


def wan(**config: Any) -> Weights:
    """A diffusion model of one layer."""
    kind = config.pop("cls", comfy.ldm.wan.model.WanModel)
    model = kind(
        dim=DIM,
        ffn_dim=32,
        num_heads=DIM // 128,
        num_layers=1,
        device="meta",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
        **config,
    )
    return random(model.state_dict())


def vace() -> Weights:
    """A model with one VACE block."""
    return wan(cls=comfy.ldm.wan.model.VaceWanModel, vace_layers=1, vace_in_dim=96)


def lora() -> Weights:
    """A LoRA for the attention of the only layer."""
    found: Weights = {}
    for part in ("q", "k", "v", "o"):
        name = f"diffusion_model.blocks.0.self_attn.{part}"
        found[f"{name}.lora_down.weight"] = torch.randn(4, DIM) / 2
        found[f"{name}.lora_up.weight"] = torch.randn(DIM, 4) / math.sqrt(DIM)
        found[f"{name}.alpha"] = torch.tensor(4.0)
    return found


def vae() -> Weights:
    """A VAE of width 8."""
    model = comfy.ldm.wan.vae.WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    return random(model.state_dict())


def text_encoder() -> Weights:
    """A text encoder of one layer, with a tokenizer of its own, for the tests' loader."""
    model = comfy.text_encoders.t5.T5(
        {
            "num_layers": 1, "num_heads": 2, "d_ff": 64, "vocab_size": 256, "d_model": 4096, "d_kv": 64,
            "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5",
        },
        torch.float32, "cpu", comfy.ops.disable_weight_init,
    )  # fmt: skip
    words = "a red kite flies over green hills in the wind while the camera follows it slowly and clouds pass by"
    text = [f"{one} {other}" for one in words.split() for other in words.split()]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=trained, vocab_size=80, model_type="bpe",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False, byte_fallback=False,
    )  # fmt: skip
    found = random(model.state_dict())
    # by these ComfyUI knows what it is, and finds its tokenizer
    found["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(1, 4096)
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
    "vace": vace,
    "lora": lora,
    "vae": vae,
    "text_encoder": text_encoder,
    "upscaler": upscaler,
}


def main() -> None:
    for task in json.loads(Path(tasks).read_text(encoding="utf-8")):
        path = Path(task["path"])
        torch.manual_seed(int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "big"))
        weights = KINDS[task["kind"]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pth":
            torch.save(weights, path)
        else:
            safetensors.torch.save_file({name: one.contiguous() for name, one in weights.items()}, path)
        path.chmod(0o644)
        print(f"{path.name}: {task['kind']}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
