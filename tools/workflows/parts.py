"""What many workflows have in common, and the list of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.workflows.builder import Model, Node, Output, Workflow

IMAGE, END_IMAGE, VIDEO = "wanmetal-example.png", "wanmetal-example-end.png", "wanmetal-example.mp4"
PROMPT = (
    "A red kite with a long tail flies above green hills in the wind. Soft morning light, slow clouds, "
    "the camera follows the kite calmly."
)
NEGATIVE = "blurry, overexposed, static, jpeg artefacts, distorted shapes, subtitles, watermark, still picture"

T2V = Model("wan21-t2v-14b-fp8-scaled", "wan21-t2v-14b-bf16", "wan21-t2v-1-3b-fp16")
T2V_14B = Model("wan21-t2v-14b-fp8-scaled", "wan21-t2v-14b-bf16")
I2V_480P = Model("wan21-i2v-480p-14b-fp8-scaled", "wan21-i2v-480p-14b-fp16", "wan21-fun-inp-1-3b-bf16")
I2V_480P_14B = Model("wan21-i2v-480p-14b-fp8-scaled", "wan21-i2v-480p-14b-fp16")
UMT5 = Model("umt5-xxl-fp8-e4m3fn-scaled", "umt5-xxl-fp16")
VAE = Model("wan-2-1-vae")
CLIP_VISION = Model("clip-vision-h")
LIGHTX2V_T2V, LIGHTX2V_I2V = Model("kj-lightx2v-t2v-14b-lora-rank32"), Model("kj-lightx2v-i2v-14b-480p-rank64")
RIFE = Model("rife426")
UPSCALER = Model("4x-lsdir")

Source = Callable[[Workflow], None]


@dataclass(frozen=True)
class Entry:
    """A workflow and what is said of it."""

    name: str
    about: str
    change: str
    build: Source


ALL: list[Entry] = []


def workflow(name: str, about: str, change: str) -> Callable[[Source], Source]:
    """Put a source on the list."""

    def listed(build: Source) -> Source:
        ALL.append(Entry(name, about, change, build))
        return build

    return listed


@dataclass(frozen=True)
class Base:
    """What every native workflow begins with."""

    model: Output
    clip: Output
    vae: Output


@dataclass(frozen=True)
class Size:
    """Width, height and frames of a video."""

    width: int = 832
    height: int = 480
    length: int = 81


def models(w: Workflow, diffusion: Model, shift: float, lora: Model | None = None, vae: Model = VAE) -> Base:
    """Load what a native workflow needs."""
    with w.group("Models"):
        model: Node = w.add("UNETLoader", "Diffusion model", unet_name=diffusion, weight_dtype="default")
        if lora:
            model = w.add("LoraLoaderModelOnly", "LoRA for few steps", model=model, lora_name=lora, strength_model=1.0)
            w.sets("lora_strength", "LoRA for few steps", "strength_model")
        model = w.add("ModelSamplingSD3", "Shift", model=model, shift=shift)
        clip = w.add("CLIPLoader", "Text encoder", clip_name=UMT5, type="wan", device="default")
        decoder = w.add("VAELoader", "VAE", vae_name=vae)
        w.sets("shift", "Shift", "shift")
    return Base(Output(model, 0), Output(clip, 0), Output(decoder, 0))


def prompts(w: Workflow, clip: Output | Node, positive: str = PROMPT, negative: str = NEGATIVE) -> tuple[Node, Node]:
    """Say what is to be seen, and what is not."""
    with w.group("Prompts"):
        plus = w.add("CLIPTextEncode", "Positive prompt", clip=clip, text=positive)
        minus = w.add("CLIPTextEncode", "Negative prompt", clip=clip, text=negative)
    w.sets("positive_prompt", "Positive prompt", "text")
    w.sets("negative_prompt", "Negative prompt", "text")
    return plus, minus


def picture(w: Workflow, title: str = "Start image", file: str = IMAGE) -> Node:
    """Load a picture."""
    if title == "Start image":
        w.sets("image", title, "image")
    return w.add("LoadImage", title, image=file)


def seen(w: Workflow, image: Node | Output, title: str = "Look at the image") -> Output:
    """Let the image encoder look at a picture; the image-to-video models of Wan 2.1 want it."""
    encoder = next((node for node in w.nodes if node.type == "CLIPVisionLoader"), None)
    encoder = encoder or w.add("CLIPVisionLoader", "Image encoder", clip_name=CLIP_VISION)
    return Output(w.add("CLIPVisionEncode", title, clip_vision=encoder, image=image, crop="none"), 0)


def sizes(w: Workflow, title: str = "Size") -> None:
    """Name the settings of a node that has width, height and length."""
    for name, entry in (("width", "width"), ("height", "height"), ("num_frames", "length")):
        w.sets(name, title, entry)


def sample(
    w: Workflow,
    model: Output,
    positive: Node | Output,
    negative: Node | Output,
    latent: Node | Output,
    *,
    steps: int = 20,
    cfg: float = 6.0,
    sampler: str = "uni_pc",
    denoise: float = 1.0,
    title: str = "Sampler",
) -> Node:
    """Make the latent video."""
    if title == "Sampler":
        for name, entry in (("steps", "steps"), ("cfg_scale", "cfg"), ("seed", "seed")):
            w.sets(name, title, entry)
    return w.add(
        "KSampler",
        title,
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=1,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler="simple",
        denoise=denoise,
    )


def decode(w: Workflow, latent: Node | Output, vae: Output, *, tiled: bool = False) -> Node:
    """Make frames of a latent video."""
    return w.add("VAEDecodeTiled" if tiled else "VAEDecode", "Frames", samples=latent, vae=vae)


def save(w: Workflow, frames: Node | Output, fps: float = 16.0, audio: Output | None = None) -> None:
    """Write the video."""
    sound = {"audio": audio} if audio else {}
    video = w.add("CreateVideo", "Frame rate", images=frames, fps=fps, **sound)
    prefix = f"wanmetal-{w.name}"
    w.add("SaveVideo", "Output video", video=video, filename_prefix=prefix, format="mp4", codec="h264")
    w.sets("final_frame_rate", "Frame rate", "fps")
    w.sets("filename_prefix", "Output video", "filename_prefix")


def interpolate(w: Workflow, frames: Node | Output, multiplier: int, title: str) -> Node:
    """Put new frames between those that there are."""
    w.sets("interpolation_multiplier", title, "multiplier")
    model = w.add("FrameInterpolationModelLoader", "Interpolation model", model_name=RIFE)
    return w.add("FrameInterpolate", title, interp_model=model, images=frames, multiplier=multiplier)


def upscale(w: Workflow, frames: Node | Output, scale: float = 0.5) -> Node:
    """Enlarge frames four times, and then by ``scale``."""
    model = w.add("UpscaleModelLoader", "Upscaler", model_name=UPSCALER)
    large = w.add("ImageUpscaleWithModel", "Enlarge 4 times", upscale_model=model, image=frames)
    return w.add("ImageScaleBy", "Final scale", image=large, upscale_method="lanczos", scale_by=scale)
