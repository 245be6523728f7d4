"""Workflows on VACE and ComfyUI's own nodes."""

from __future__ import annotations

from typing import Any

from tools.workflows import parts
from tools.workflows.builder import Model, Node, Output, Workflow
from tools.workflows.parts import Base, Size, workflow
from tools.workflows.wan21 import video_frames
from tools.workflows.wrapper import guides, load_video, pose

VACE = Model("wan21-vace-14b-fp16", "wan21-vace-1-3b-fp16")


def vace(w: Workflow, base: Base, plus: Node, minus: Node, size: Size, **given: Any) -> Node:
    """Prepare the latent video from references and control."""
    parts.sizes(w)
    return w.add(
        "WanVaceToVideo", "Size", positive=plus, negative=minus, vae=base.vae, width=size.width, height=size.height,
        length=size.length, strength=1.0, **given,
    )  # fmt: skip


def finish(w: Workflow, base: Base, given: Node) -> None:
    """Sample, cut off what the reference image took, decode and save."""
    with w.group("Sampling"):
        latent = parts.sample(w, base.model, given["positive"], given["negative"], given["latent"], steps=20, cfg=6.0)
        trimmed = w.add("TrimVideoLatent", "Without the reference", samples=latent, trim_amount=given["trim_latent"])
        frames = parts.decode(w, trimmed, base.vae)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Native-VACE-Reference",
    "VACE: a thing or a person from a picture appears in a new video.",
    "The picture, best on a plain background, and a prompt that says what it does.",
)
def reference(w: Workflow) -> None:
    base = parts.models(w, VACE, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Input"):
        image = w.add("LoadImage", "Reference image", image=parts.IMAGE)
        w.sets("image", "Reference image", "image")
        given = vace(w, base, plus, minus, Size(), reference_image=image["IMAGE"])
    finish(w, base, given)


@workflow(
    "Native-VACE-Outpainting",
    "VACE: a video gets a wider view; what was outside its frame is added.",
    "The video, how much is added on each side at New borders, a prompt that tells the whole scene. Video and borders "
    "together must have the size at Size: 480 and two times 176 are 832.",
)
def outpainting(w: Workflow) -> None:
    base = parts.models(w, VACE, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    size = Size()
    with w.group("Input"):
        frames, _ = video_frames(w, Size(480, 480, size.length))
        padded = w.add(
            "ImagePadForOutpaint", "New borders", image=frames, left=176, top=0, right=176, bottom=0, feathering=24
        )
        # one mask comes for all frames, and one for each is wanted
        mask = w.add("MaskToImage", "Mask as image", mask=padded["MASK"])
        many = w.add("RepeatImageBatch", "A mask for each frame", image=mask, amount=size.length)
        masks = w.add("ImageToMask", "Masks", image=many, channel="red")
        w.sets("num_masks", "A mask for each frame", "amount")
        given = vace(w, base, plus, minus, size, control_video=padded["IMAGE"], control_masks=masks)
    finish(w, base, given)


@workflow(
    "Native-VACE-VideoReference-DepthPose",
    "VACE: a new video moves as another one does, by its depth and its poses together, with a look from a picture.",
    "The video, the reference image, the prompt. Strength of pose says how much of the pose is laid over the depth.",
)
def depth_pose(w: Workflow) -> None:
    base = parts.models(w, VACE, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    size = Size()
    with w.group("Input"):
        frames = load_video(w, size.width, size.height, size.length)["IMAGE"]
        image = w.add("LoadImage", "Reference image", image=parts.IMAGE)
        w.sets("image", "Reference image", "image")
    with w.group("Guides"):
        depth = w.add(
            "DepthAnythingV2Preprocessor", "Depth", image=frames, ckpt_name=Model("depth-anything-v2-vitl"),
            resolution=512,
        )  # fmt: skip
        poses = pose(w, frames)
        both = w.add(
            "ImageBlend", "Strength of pose", image1=depth, image2=poses, blend_factor=0.5, blend_mode="screen"
        )
        given = vace(w, base, plus, minus, size, control_video=both, reference_image=image["IMAGE"])
    finish(w, base, given)


@workflow(
    "Native-VACE-FiveInOne",
    "VACE, five ways to guide a video: a reference image, and the movement of a video as its pose, its depth, its "
    "lines, or as it is. One of Pose, Depth and Lines is active as it comes: Pose.",
    "Bypass (Ctrl+B) the guide that you do not want and take the bypass off the one that you do want; with all three "
    "bypassed, the video itself guides. Mute (Ctrl+M) the reference image to go without.",
)
def five_in_one(w: Workflow) -> None:
    base = parts.models(w, VACE, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    size = Size()
    with w.group("Input"):
        frames, _ = video_frames(w, size)
        image = w.add("LoadImage", "Reference image", image=parts.IMAGE)
        w.sets("image", "Reference image", "image")
    with w.group("Guides, one of them active"):
        guide = guides(w, Output(frames, 0))
        given = vace(w, base, plus, minus, size, control_video=guide, reference_image=image["IMAGE"])
    finish(w, base, given)
