"""A node pack for tests: a text encoder of any size, and a script that makes the browser export workflows."""

from __future__ import annotations

from typing import Any, ClassVar

import comfy.sd
import folder_paths

WEB_DIRECTORY = "web"


class TinyTextEncoder:
    """CLIPLoader for Wan, which without this takes the full size of UMT5 only."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"clip_name": (folder_paths.get_filename_list("text_encoders"),)}}

    RETURN_TYPES: ClassVar = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, clip_name: str) -> tuple[Any]:
        sizes = {"num_layers": 1, "num_heads": 2, "d_ff": 64, "vocab_size": 256}
        path = folder_paths.get_full_path_or_raise("text_encoders", clip_name)
        kind = comfy.sd.CLIPType.WAN
        return (comfy.sd.load_clip([path], clip_type=kind, model_options={"umt5xxl_model_config": sizes}),)


NODE_CLASS_MAPPINGS = {"TinyTextEncoder": TinyTextEncoder}
