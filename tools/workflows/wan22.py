"""Workflows on Wan 2.2 and ComfyUI's own nodes."""

from __future__ import annotations

from tools.workflows import parts
from tools.workflows.builder import Model, Node, Output, Workflow
from tools.workflows.parts import Base, Size, workflow
from tools.workflows.wan21 import empty

_HIGH_LOW = (
    " Wan 2.2 has two models: the one for high noise draws the first steps, that for low noise the rest. 16 frames a "
    "second, in four steps."
)


def two_models(w: Workflow, task: str) -> tuple[Base, Output]:
    """Load the models for high and low noise, each with its LoRA."""
    version = "v1-1" if task == "t2v" else "v1"
    made: list[Node] = []
    with w.group("Models"):
        for noise in ("high", "low"):
            weights = Model(f"wan22-{task}-{noise}-noise-14b-fp8-scaled", f"wan22-{task}-{noise}-noise-14b-fp16")
            unet = w.add("UNETLoader", f"Model, {noise} noise", unet_name=weights, weight_dtype="default")
            lora = w.add(
                "LoraLoaderModelOnly", f"LoRA, {noise} noise", model=unet, strength_model=1.0,
                lora_name=Model(f"wan22-{task}-lightx2v-4steps-{version}-{noise}"),
            )  # fmt: skip
            made.append(w.add("ModelSamplingSD3", f"Shift, {noise} noise", model=lora, shift=5.0))
        clip = w.add("CLIPLoader", "Text encoder", clip_name=parts.UMT5, type="wan", device="default")
        vae = w.add("VAELoader", "VAE", vae_name=parts.VAE)
    high, low = made
    return Base(Output(high, 0), Output(clip, 0), Output(vae, 0)), Output(low, 0)


def two_steps(
    w: Workflow, base: Base, low: Output, plus: Node | Output, minus: Node | Output, latent: Node | Output
) -> Node:
    """Sample with one model after the other."""
    common = {"positive": plus, "negative": minus, "steps": 4, "cfg": 1.0, "sampler_name": "euler"}
    first = w.add(
        "KSamplerAdvanced", "Sampler", model=base.model, latent_image=latent, add_noise="enable", noise_seed=1,
        scheduler="simple", start_at_step=0, end_at_step=2, return_with_leftover_noise="enable", **common,
    )  # fmt: skip
    w.sets("seed", "Sampler", "noise_seed")
    second = w.add(
        "KSamplerAdvanced", "Sampler, low noise", model=low, latent_image=first, add_noise="disable", noise_seed=0,
        scheduler="simple", start_at_step=2, end_at_step=10000, return_with_leftover_noise="disable", **common,
    )  # fmt: skip
    return parts.decode(w, second, base.vae)


@workflow(
    "Wan22-TextToVideo",
    "A prompt becomes a video." + _HIGH_LOW,
    "Prompt, size and frames (multiples of 16, 4n+1), seed. For all steps and cfg: bypass both LoRAs, 20 steps and cfg "
    "3.5 in both samplers, which meet at step 10.",
)
def t2v(w: Workflow) -> None:
    base, low = two_models(w, "t2v")
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Sampling"):
        frames = two_steps(w, base, low, plus, minus, empty(w, Size()))
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Wan22-ImageToVideo",
    "A picture becomes a video." + _HIGH_LOW,
    "Picture and prompt, size and frames (multiples of 16, 4n+1), seed. For all steps and cfg: bypass both LoRAs, 20 "
    "steps and cfg 3.5 in both samplers, which meet at step 10.",
)
def i2v(w: Workflow) -> None:
    base, low = two_models(w, "i2v")
    plus, minus = parts.prompts(w, base.clip)
    size = Size()
    with w.group("Input"):
        image = parts.picture(w)
        parts.sizes(w)
        given = w.add(
            "WanImageToVideo", "Size", positive=plus, negative=minus, vae=base.vae, width=size.width,
            height=size.height, length=size.length, start_image=image["IMAGE"],
        )  # fmt: skip
    with w.group("Sampling"):
        frames = two_steps(w, base, low, given["positive"], given["negative"], given["latent"])
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Wan22-5B",
    "A prompt, and a picture where you give one, become a video of 24 frames a second, with the model for small cards.",
    "Prompt, size (multiples of 32) and frames (4n+1), seed. Mute (Ctrl+M) the start image to go by the prompt alone.",
)
def ti2v(w: Workflow) -> None:
    base = parts.models(w, Model("wan22-ti2v-5b-fp16"), 8.0, vae=Model("wan22-vae"))
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Input"):
        image = parts.picture(w)
        parts.sizes(w)
        latent = w.add(
            "Wan22ImageToVideoLatent", "Size", vae=base.vae, width=1280, height=704, length=121,
            start_image=image["IMAGE"],
        )  # fmt: skip
    with w.group("Sampling"):
        frames = parts.decode(w, parts.sample(w, base.model, plus, minus, latent, cfg=5.0), base.vae)
    with w.group("Result"):
        parts.save(w, frames, 24.0)
