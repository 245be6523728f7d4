"""A node pack for tests: lets ComfyUI load tiny models, and makes the browser export workflows. It has no nodes.

The models lie apart from real ones, which this pack would break. Width and layers of most are read from their files;
those below have one size in ComfyUI, which is made small.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.ldm.wan.vae2_2
import comfy.sd
import folder_paths

from . import sizes

WEB_DIRECTORY = "web"
NODE_CLASS_MAPPINGS: dict[str, Any] = {}

for _kind in (
    "clip_vision",
    "diffusion_models",
    "loras",
    "text_encoders",
    "upscale_models",
    "frame_interpolation",
    "vae",
):
    _folder = Path(folder_paths.get_user_directory()).parent / "tiny-models" / _kind
    folder_paths.add_model_folder_path(_kind, str(_folder))

_load_clip = comfy.sd.load_clip


def load_clip(ckpt_paths: list[str], **given: Any) -> Any:
    """Load a text encoder; that of Wan is a tiny one."""
    options = {**given.pop("model_options", {}), "umt5xxl_model_config": sizes.TEXT_ENCODER}
    return _load_clip(ckpt_paths, **given, model_options=options)


class ClipVisionModel(comfy.clip_vision.ClipVisionModel):  # type: ignore[misc]
    """An image encoder with few layers."""

    def __init__(self, json_config: str) -> None:
        config = json.loads(Path(json_config).read_text(encoding="utf-8")) | sizes.IMAGE_ENCODER
        with tempfile.NamedTemporaryFile("w", suffix=".json") as small:
            small.write(json.dumps(config))
            small.flush()
            super().__init__(small.name)


class WanVAE(comfy.ldm.wan.vae2_2.WanVAE):  # type: ignore[misc]
    """The VAE of Wan 2.2, narrow."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config | sizes.VAE_22)


comfy.sd.load_clip = load_clip
comfy.clip_vision.ClipVisionModel = ClipVisionModel
comfy.ldm.wan.vae2_2.WanVAE = WanVAE
