"""Workflows on WanVideoWrapper."""

from __future__ import annotations

from tools.workflows import parts
from tools.workflows.builder import Model, Node, Output, Workflow
from tools.workflows.parts import workflow

I2V_480P = Model("wan21-i2v-480p-14b-fp8-scaled", "wan21-i2v-480p-14b-fp16")
I2V_720P = Model("wan21-i2v-720p-14b-fp8-e4m3fn", "wan21-i2v-720p-14b-fp16")
UMT5 = Model("kj-umt5-xxl-enc-bf16", "kj-umt5-xxl-enc-fp8-e4m3fn")
VAE = Model("kj-wan2-1-vae-bf16", "wan-2-1-vae")
VACE = Model("kj-vace-module-14b-fp8-e4m3fn", "kj-vace-module-14b-bf16")

_SPEED = (
    "With SageAttention on the host, set attention_mode of the node Diffusion model to sageattn: it takes less "
    "time. More blocks to swap need less VRAM and more time."
)


def models(
    w: Workflow, diffusion: Model, lora: Model | None = None, strength: float = 1.0, vace: bool = False
) -> tuple[Node, Node]:
    """Load model and VAE, with up to five LoRAs."""
    more: dict[str, Node] = {}
    with w.group("Models"):
        if lora:
            more["lora"] = w.add(
                "WanVideoLoraSelectMulti",
                "LoRAs",
                lora_0=lora,
                strength_0=strength,
                lora_1="none",
                lora_2="none",
                lora_3="none",
                lora_4="none",
                # weights in scaled 8 bits cannot be merged with; this works with all
                merge_loras=False,
            )
            w.sets("lora_strength", "LoRAs", "strength_0")
            for number in range(4):
                w.sets(f"lora_{number + 1}", "LoRAs", f"lora_{number}")
                w.sets(f"lora_{number + 1}_strength", "LoRAs", f"strength_{number}")
        if vace:
            more["extra_model"] = w.add("WanVideoVACEModelSelect", "VACE module", vace_model=VACE)
        swap = w.add("WanVideoBlockSwap", "Blocks in main memory", blocks_to_swap=20)
        model = w.add(
            "WanVideoModelLoader",
            "Diffusion model",
            model=diffusion,
            base_precision="fp16",
            quantization="disabled",
            load_device="offload_device",
            attention_mode="sdpa",
            block_swap_args=swap,
            **more,
        )
        w.sets("attention_mode", "Diffusion model", "attention_mode")
        vae = w.add("WanVideoVAELoader", "VAE", model_name=VAE, precision="bf16")
        w.note(_SPEED)
    return model, vae


def prompts(w: Workflow) -> Node:
    """Say what is to be seen, and what is not."""
    with w.group("Prompts"):
        plus = w.add("PrimitiveStringMultiline", "Positive prompt", value=parts.PROMPT)
        minus = w.add("PrimitiveStringMultiline", "Negative prompt", value=parts.NEGATIVE)
        encoder = w.add(
            "LoadWanVideoT5TextEncoder",
            "Text encoder",
            model_name=UMT5,
            precision="bf16",
            load_device="offload_device",
            quantization="disabled",
        )
        w.sets("positive_prompt", "Positive prompt", "value")
        w.sets("negative_prompt", "Negative prompt", "value")
        return w.add("WanVideoTextEncode", "Prompts", positive_prompt=plus, negative_prompt=minus, t5=encoder)


def size_settings(w: Workflow) -> None:
    """Name the settings of the node that has them."""
    for name in ("width", "height", "num_frames"):
        w.sets(name, "Size", name)


def from_image(w: Workflow, vae: Node, width: int, height: int) -> Node:
    """Start from a picture, which is cut to the size."""
    with w.group("Input"):
        image = parts.picture(w)
        across = w.add("PrimitiveInt", "Width", value=width)
        down = w.add("PrimitiveInt", "Height", value=height)
        fitted = w.add(
            "ImageScale", "Fit to size", image=image["IMAGE"], upscale_method="lanczos", width=across, height=down,
            crop="center",
        )  # fmt: skip
        encoder = w.add("CLIPVisionLoader", "Image encoder", clip_name=parts.CLIP_VISION)
        seen = w.add(
            "WanVideoClipVisionEncode", "Look at the image", clip_vision=encoder, image_1=fitted,
            crop="center", combine_embeds="average",
        )  # fmt: skip
        w.sets("width", "Width", "value")
        w.sets("height", "Height", "value")
        w.sets("num_frames", "Size", "num_frames")
        return w.add(
            "WanVideoImageToVideoEncode", "Size", width=across, height=down, num_frames=81, vae=vae,
            clip_embeds=seen, start_image=fitted, fun_or_fl2v_model=False,
        )  # fmt: skip


def sample(
    w: Workflow,
    model: Node,
    embeds: Node,
    text: Node,
    vae: Node,
    *,
    steps: int,
    cfg: float,
    shift: float,
    **more: object,
) -> Output:
    """Make the frames."""
    with w.group("Sampling"):
        enhance = w.add("WanVideoEnhanceAVideo", "Enhance-A-Video", weight=2.0)
        latent = w.add(
            "WanVideoSampler", "Sampler", model=model, image_embeds=embeds, text_embeds=text, feta_args=enhance,
            steps=steps, cfg=cfg, shift=shift, seed=1, scheduler="unipc", **more,
        )  # fmt: skip
        for name, entry in (("steps", "steps"), ("cfg_scale", "cfg"), ("shift", "shift"), ("seed", "seed")):
            w.sets(name, "Sampler", entry)
        return Output(w.add("WanVideoDecode", "Frames", vae=vae, samples=latent["samples"]), 0)


@workflow(
    "Wrapper-SelfForcing-ImageToVideo-60FPS",
    "A picture becomes a video of 60 frames a second, in five steps: a LoRA of the Self Forcing kind takes the place "
    "of many steps and of cfg, and RIFE puts new frames between those of the model.",
    "Picture and prompt; Width and Height (multiples of 16), frames at Size (4n+1); the LoRA's strength; the seed. "
    "Of 81 frames five times as many become 6.7 seconds, a third slower than the model's own 16 frames a second; "
    "four times as many are nearly true to it.",
)
def flagship(w: Workflow) -> None:
    model, vae = models(w, I2V_720P, parts.LIGHTX2V_I2V, 0.7)
    text = prompts(w)
    embeds = from_image(w, vae, 720, 1280)
    frames = sample(w, model, embeds, text, vae, steps=5, cfg=1.0, shift=8.0)
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, frames, 5, "Frames to 60 FPS"), 60.0)


@workflow(
    "Wrapper-SelfForcing-TextToVideo-60FPS",
    "A prompt becomes a video of 60 frames a second, in five steps.",
    "Prompt, size and frames (multiples of 16, 4n+1), seed. RIFE makes four frames of one, which is 6 percent slower "
    "than the model's own 16 frames a second.",
)
def self_forcing_t2v(w: Workflow) -> None:
    model, vae = models(w, parts.T2V_14B, parts.LIGHTX2V_T2V)
    text = prompts(w)
    frames = sample(w, model, empty(w), text, vae, steps=5, cfg=1.0, shift=8.0)
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, frames, 4, "Frames to 60 FPS"), 60.0)


def empty(w: Workflow) -> Node:
    """Start from nothing."""
    with w.group("Input"):
        size_settings(w)
        return w.add("WanVideoEmptyEmbeds", "Size", width=832, height=480, num_frames=81)


@workflow(
    "Wrapper-TextToVideo",
    "A prompt becomes a video, with all steps and cfg: slower than Self Forcing, and closer to the prompt.",
    "Prompt, size and frames (multiples of 16, 4n+1), steps, cfg, seed.",
)
def t2v(w: Workflow) -> None:
    model, vae = models(w, Model("wan21-t2v-14b-fp8-scaled", "wan21-t2v-14b-bf16", "wan21-t2v-1-3b-fp16"))
    text = prompts(w)
    frames = sample(w, model, empty(w), text, vae, steps=30, cfg=6.0, shift=5.0)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Wrapper-ImageToVideo",
    "A picture becomes a video, with all steps and cfg.",
    "Picture and prompt; Width and Height (multiples of 16), frames at Size (4n+1); steps, cfg, seed.",
)
def i2v(w: Workflow) -> None:
    model, vae = models(w, I2V_480P)
    text = prompts(w)
    embeds = from_image(w, vae, 832, 480)
    frames = sample(w, model, embeds, text, vae, steps=20, cfg=6.0, shift=5.0)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Wrapper-VideoToVideo",
    "A video is redrawn to fit a prompt, and keeps its movements.",
    "Video and prompt; denoise_strength at Sampler says how much is new: 0.3 is a little, 0.8 nearly all.",
)
def v2v(w: Workflow) -> None:
    model, vae = models(w, Model("wan21-t2v-14b-fp8-scaled", "wan21-t2v-14b-bf16", "wan21-t2v-1-3b-fp16"))
    text = prompts(w)
    with w.group("Input"):
        video = load_video(w, 832, 480, 81)
        latent = w.add("WanVideoEncode", "Video to latent", vae=vae, image=video["IMAGE"])
        size_settings(w)
        embeds = w.add("WanVideoEmptyEmbeds", "Size", width=832, height=480, num_frames=81)
    frames = sample(w, model, embeds, text, vae, steps=20, cfg=6.0, shift=5.0, samples=latent, denoise_strength=0.6)
    with w.group("Result"):
        parts.save(w, frames)


def load_video(w: Workflow, width: int, height: int, length: int) -> Node:
    """Load a video at the model's frame rate and size."""
    w.sets("video", "Video", "video")
    return w.add(
        "VHS_LoadVideo", "Video", video=parts.VIDEO, force_rate=16, custom_width=width, custom_height=height,
        frame_load_cap=length, skip_first_frames=0, select_every_nth=1, format="Wan",
    )  # fmt: skip


@workflow(
    "Wrapper-VACE-Reference",
    "VACE: a thing or a person from a picture appears in a new video. Needs less VRAM than the native one, since the "
    "VACE module comes on top of the 8-bit model.",
    "The picture, best on a plain background, and a prompt that says what it does.",
)
def vace_reference(w: Workflow) -> None:
    model, vae = models(w, parts.T2V_14B, parts.LIGHTX2V_T2V, vace=True)
    text = prompts(w)
    with w.group("Input"):
        image = w.add("LoadImage", "Reference image", image=parts.IMAGE)
        w.sets("image", "Reference image", "image")
        size_settings(w)
        embeds = w.add(
            "WanVideoVACEEncode", "Size", vae=vae, width=832, height=480, num_frames=81, ref_images=image["IMAGE"]
        )
    frames = sample(w, model, embeds, text, vae, steps=6, cfg=1.0, shift=8.0)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Wrapper-VACE-FiveInOne",
    "VACE, five ways to guide a video: a reference image, and the movement of a video as its pose, its depth, its "
    "lines, or as it is. One of Pose, Depth and Lines is active as it comes: Pose.",
    "Bypass (Ctrl+B) the guide that you do not want and take the bypass off the one that you do want; with all three "
    "bypassed, the video itself guides. Mute (Ctrl+M) the reference image to go without.",
)
def vace_five(w: Workflow) -> None:
    model, vae = models(w, parts.T2V_14B, parts.LIGHTX2V_T2V, vace=True)
    text = prompts(w)
    with w.group("Input"):
        video = load_video(w, 832, 480, 81)
        reference = w.add("LoadImage", "Reference image", image=parts.IMAGE)
    with w.group("Guides, one of them active"):
        guide = guides(w, video["IMAGE"])
        size_settings(w)
        embeds = w.add(
            "WanVideoVACEEncode", "Size", vae=vae, width=832, height=480, num_frames=81,
            input_frames=guide, ref_images=reference["IMAGE"],
        )  # fmt: skip
    frames = sample(w, model, embeds, text, vae, steps=6, cfg=1.0, shift=8.0)
    with w.group("Result"):
        w.add(
            "VHS_VideoCombine", "Output video", images=frames, frame_rate=16, loop_count=0,
            filename_prefix=f"wanmetal-{w.name}", format="video/h264-mp4", pix_fmt="yuv420p", crf=19,
            save_metadata=True, trim_to_audio=False,
        )  # fmt: skip
        w.sets("final_frame_rate", "Output video", "frame_rate")
        w.sets("filename_prefix", "Output video", "filename_prefix")


def guides(w: Workflow, frames: Output) -> Node:
    """Pose, depth and lines in a row, of which those that are bypassed pass the frames on."""
    depth = w.add(
        "DepthAnythingV2Preprocessor", "Depth", bypassed=True, image=frames, ckpt_name=Model("depth-anything-v2-vitl"),
        resolution=512,
    )  # fmt: skip
    lines = w.add("LineartStandardPreprocessor", "Lines", bypassed=True, image=depth, resolution=512)
    return pose(w, lines)


def pose(w: Workflow, frames: Node | Output) -> Node:
    """Find people and draw how they stand."""
    return w.add(
        "DWPreprocessor", "Pose", image=frames, resolution=512, bbox_detector=Model("yolox-l-onnx"),
        pose_estimator=Model("dw-ll-ucoco-384-bs5-torchscript"),
    )  # fmt: skip
