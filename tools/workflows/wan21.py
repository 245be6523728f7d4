"""Workflows on Wan 2.1 and ComfyUI's own nodes."""

from __future__ import annotations

from tools.workflows import parts
from tools.workflows.builder import Model, Node, Output, Workflow
from tools.workflows.parts import Base, Size, workflow
from tools.workflows.wrapper import pose

_TEXT = "Prompt, size and frames (multiples of 16, 4n+1), steps, cfg, seed."
_IMAGE = "Picture and prompt, size and frames (multiples of 16, 4n+1), steps, cfg, seed."


def empty(w: Workflow, size: Size) -> Node:
    """Start from nothing."""
    parts.sizes(w)
    return w.add("EmptyHunyuanLatentVideo", "Size", width=size.width, height=size.height, length=size.length)


def from_image(w: Workflow, base: Base, plus: Node, minus: Node, size: Size) -> Node:
    """Start from a picture."""
    with w.group("Input"):
        image = parts.picture(w)
        parts.sizes(w)
        return w.add(
            "WanImageToVideo", "Size", positive=plus, negative=minus, vae=base.vae, width=size.width,
            height=size.height, length=size.length, clip_vision_output=parts.seen(w, image), start_image=image["IMAGE"],
        )  # fmt: skip


def frames_of(w: Workflow, base: Base, given: Node, *, steps: int, cfg: float, sampler: str = "uni_pc") -> Node:
    """Sample what a node prepared, and decode it."""
    with w.group("Sampling"):
        latent = parts.sample(
            w, base.model, given["positive"], given["negative"], given["latent"], steps=steps, cfg=cfg, sampler=sampler
        )
        return parts.decode(w, latent, base.vae)


def frames_of_text(
    w: Workflow, base: Base, size: Size, *, steps: int, cfg: float, sampler: str = "uni_pc", tiled: bool = False
) -> Node:
    """From a prompt to frames."""
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Sampling"):
        latent = parts.sample(w, base.model, plus, minus, empty(w, size), steps=steps, cfg=cfg, sampler=sampler)
        return parts.decode(w, latent, base.vae, tiled=tiled)


@workflow("Native-TextToVideo", "A prompt becomes a video.", _TEXT)
def t2v(w: Workflow) -> None:
    frames = frames_of_text(w, parts.models(w, parts.T2V, 8.0), Size(), steps=30, cfg=6.0)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Native-TextToVideo-1.3B",
    "A prompt becomes a video, with the small model: for cards with 8 GB of VRAM, and for quick tries.",
    _TEXT + " The frames are decoded in tiles, which saves VRAM and takes longer.",
)
def t2v_small(w: Workflow) -> None:
    base = parts.models(w, Model("wan21-t2v-1-3b-fp16", "wan21-t2v-1-3b-bf16"), 8.0)
    frames = frames_of_text(w, base, Size(), steps=30, cfg=6.0, tiled=True)
    with w.group("Result"):
        parts.save(w, frames)


@workflow("Native-ImageToVideo", "A picture becomes a video.", _IMAGE)
def i2v(w: Workflow) -> None:
    base = parts.models(w, parts.I2V_480P, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    frames = frames_of(w, base, from_image(w, base, plus, minus, Size()), steps=20, cfg=6.0)
    with w.group("Result"):
        parts.save(w, frames)


@workflow(
    "Native-SelfForcing-TextToVideo-60FPS",
    "A prompt becomes a video of 60 frames a second, in five steps: a LoRA takes the place of many steps and of cfg.",
    _TEXT + " Leave cfg at 1. RIFE makes four frames of one, 6 percent slower than the model's 16 a second.",
)
def self_forcing_t2v(w: Workflow) -> None:
    base = parts.models(w, parts.T2V_14B, 8.0, parts.LIGHTX2V_T2V)
    frames = frames_of_text(w, base, Size(), steps=5, cfg=1.0, sampler="lcm")
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, frames, 4, "Frames to 60 FPS"), 60.0)


@workflow(
    "Native-SelfForcing-ImageToVideo-60FPS",
    "A picture becomes a video of 60 frames a second, in five steps, with ComfyUI's own nodes.",
    _IMAGE + " Leave cfg at 1. RIFE makes four frames of one, 6 percent slower than the model's 16 a second.",
)
def self_forcing_i2v(w: Workflow) -> None:
    base = parts.models(w, parts.I2V_480P_14B, 5.0, parts.LIGHTX2V_I2V)
    plus, minus = parts.prompts(w, base.clip)
    frames = frames_of(w, base, from_image(w, base, plus, minus, Size()), steps=5, cfg=1.0, sampler="lcm")
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, frames, 4, "Frames to 60 FPS"), 60.0)


_LARGER = " Final scale says how large: 0.5 of four times is twice the size."


@workflow(
    "Native-TextToVideo-Upscale-32FPS",
    "A prompt becomes a video of twice the size, with 32 frames a second.",
    _TEXT + _LARGER,
)
def t2v_upscaled(w: Workflow) -> None:
    frames = frames_of_text(w, parts.models(w, parts.T2V, 8.0), Size(), steps=30, cfg=6.0)
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, parts.upscale(w, frames), 2, "Frames to 32 FPS"), 32.0)


@workflow(
    "Native-ImageToVideo-Upscale-32FPS",
    "A picture becomes a video of twice the size, with 32 frames a second.",
    _IMAGE + _LARGER,
)
def i2v_upscaled(w: Workflow) -> None:
    base = parts.models(w, parts.I2V_480P, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    frames = frames_of(w, base, from_image(w, base, plus, minus, Size()), steps=20, cfg=6.0)
    with w.group("Result"):
        parts.save(w, parts.interpolate(w, parts.upscale(w, frames), 2, "Frames to 32 FPS"), 32.0)


@workflow(
    "Native-StartEndFrames",
    "Two pictures become the first and the last frame of a video.",
    "Both pictures, of the same kind and size, and a prompt that says what happens between them.",
)
def start_end(w: Workflow) -> None:
    model = Model("kj-flf2v-14b-720p-fp8-e4m3fn", "wan21-flf2v-720p-14b-fp16", "wan21-fun-inp-1-3b-bf16")
    base = parts.models(w, model, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    size = Size(1280, 720)
    with w.group("Input"):
        start, end = parts.picture(w), parts.picture(w, "End image", parts.END_IMAGE)
        w.sets("end_image", "End image", "image")
        parts.sizes(w)
        given = w.add(
            "WanFirstLastFrameToVideo", "Size", positive=plus, negative=minus, vae=base.vae, width=size.width,
            height=size.height, length=size.length, start_image=start["IMAGE"], end_image=end["IMAGE"],
            clip_vision_start_image=parts.seen(w, start, "Look at the start"),
            clip_vision_end_image=parts.seen(w, end, "Look at the end"),
        )  # fmt: skip
    frames = frames_of(w, base, given, steps=20, cfg=6.0)
    with w.group("Result"):
        parts.save(w, frames)


def video_frames(w: Workflow, size: Size) -> tuple[Node, Output]:
    """Load a video, take its first frames and fit them to the size."""
    video = w.add("LoadVideo", "Video", file=parts.VIDEO)
    w.sets("video", "Video", "file")
    opened = w.add("GetVideoComponents", "Frames of the video", video=video)
    first = w.add("ImageFromBatch", "First frames", image=opened["images"], batch_index=0, length=size.length)
    fitted = w.add(
        "ImageScale", "Fit to size", image=first, upscale_method="lanczos", width=size.width, height=size.height,
        crop="center",
    )  # fmt: skip
    return fitted, opened["fps"]


@workflow(
    "Native-VideoToVideo",
    "A video is redrawn to fit a prompt, and keeps its movements and its frame rate.",
    "Video and prompt; denoise at Sampler says how much is new: 0.3 is a little, 0.8 nearly all. First frames says how "
    "much of the video is taken (4n+1).",
)
def v2v(w: Workflow) -> None:
    base = parts.models(w, parts.T2V, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Input"):
        frames, fps = video_frames(w, Size())
        latent = w.add("VAEEncode", "Video to latent", pixels=frames, vae=base.vae)
    with w.group("Sampling"):
        made = parts.sample(w, base.model, plus, minus, latent, denoise=0.6)
        decoded = parts.decode(w, made, base.vae)
    with w.group("Result"):
        video = w.add("CreateVideo", "Frame rate of the video", images=decoded, fps=fps)
        w.add(
            "SaveVideo", "Output video", video=video, filename_prefix=f"wanmetal-{w.name}", format="mp4", codec="h264"
        )
        w.sets("filename_prefix", "Output video", "filename_prefix")


@workflow(
    "Native-VideoExtension",
    "A prompt becomes a video, and a second prompt continues where it ends: the last frame begins the next part.",
    "Both prompts, the size (both nodes named Size), the seeds.",
)
def extension(w: Workflow) -> None:
    size = Size()
    base = parts.models(w, parts.T2V_14B, 8.0)
    plus, minus = parts.prompts(w, base.clip)
    with w.group("Sampling: first part"):
        latent = parts.sample(w, base.model, plus, minus, empty(w, size), steps=30)
        first = parts.decode(w, latent, base.vae)
        last = w.add("ImageFromBatch", "Last frame", image=first, batch_index=size.length - 1, length=1)
    with w.group("Models: second part"):
        unet = w.add("UNETLoader", "Diffusion model 2", unet_name=parts.I2V_480P_14B, weight_dtype="default")
        shifted = w.add("ModelSamplingSD3", "Shift 2", model=unet, shift=8.0)
        then = w.add(
            "CLIPTextEncode", "Positive prompt 2", clip=base.clip,
            text="The red kite rises higher and higher until it is a small dot in the sky, the camera stays behind.",
        )  # fmt: skip
        w.sets("positive_prompt_2", "Positive prompt 2", "text")
    with w.group("Sampling: second part"):
        given = w.add(
            "WanImageToVideo", "Size 2", positive=then, negative=minus, vae=base.vae, width=size.width,
            height=size.height, length=size.length, clip_vision_output=parts.seen(w, last), start_image=last,
        )  # fmt: skip
        more = parts.sample(
            w, Output(shifted, 0), given["positive"], given["negative"], given["latent"], title="Sampler 2"
        )
        second = w.add("VAEDecode", "Frames 2", samples=more, vae=base.vae)
        # the last frame of the first part is the first of the second, and is wanted once
        rest = w.add("ImageFromBatch", "Without its first", image=second, batch_index=1, length=4096)
    with w.group("Result"):
        parts.save(w, w.add("ImageBatch", "Both parts", image1=first, image2=rest))


_CONTROL = "The video that shows the movement, the start image, the prompt. First frames says how much is taken (4n+1)."


def fun_control(w: Workflow, guide: str) -> None:
    """Follow depth, pose or lines of a video."""
    base = parts.models(w, Model("alibaba-fun-14b-control", "wan21-fun-control-1-3b-bf16"), 8.0)
    plus, minus = parts.prompts(w, base.clip)
    size = Size()
    with w.group("Input"):
        image = parts.picture(w)
        frames, _ = video_frames(w, size)
        if guide == "depth":
            control = w.add(
                "DepthAnythingV2Preprocessor", "Depth", image=frames, ckpt_name=Model("depth-anything-v2-vitl"),
                resolution=512,
            )  # fmt: skip
        elif guide == "pose":
            control = pose(w, frames)
        else:
            control = w.add("LineartStandardPreprocessor", "Lines", image=frames, resolution=512)
        parts.sizes(w)
        given = w.add(
            "WanFunControlToVideo", "Size", positive=plus, negative=minus, vae=base.vae, width=size.width,
            height=size.height, length=size.length, clip_vision_output=parts.seen(w, image),
            start_image=image["IMAGE"], control_video=control,
        )  # fmt: skip
    made = frames_of(w, base, given, steps=20, cfg=6.0)
    with w.group("Result"):
        parts.save(w, made)


@workflow("Native-FunControl-Depth", "Fun Control: a video follows the depth of another one.", _CONTROL)
def fun_depth(w: Workflow) -> None:
    fun_control(w, "depth")


@workflow("Native-FunControl-Pose", "Fun Control: people move as those in another video do.", _CONTROL)
def fun_pose(w: Workflow) -> None:
    fun_control(w, "pose")


@workflow("Native-FunControl-LineArt", "Fun Control: a video follows the lines of another one.", _CONTROL)
def fun_lines(w: Workflow) -> None:
    fun_control(w, "lines")


@workflow(
    "Upscale-32FPS",
    "A finished video gets twice the size and twice the frames, here 32 a second. No prompt, no diffusion model.",
    "The video, and its frame rate times two at Frame rate. First frames says how much of it is taken." + _LARGER,
)
def upscale(w: Workflow) -> None:
    with w.group("Input"):
        video = w.add("LoadVideo", "Video", file=parts.VIDEO)
        w.sets("video", "Video", "file")
        opened = w.add("GetVideoComponents", "Frames of the video", video=video)
        first = w.add("ImageFromBatch", "First frames", image=opened["images"], batch_index=0, length=161)
        w.sets("num_frames", "First frames", "length")
    with w.group("Result"):
        large = parts.upscale(w, first)
        parts.save(w, parts.interpolate(w, large, 2, "Frames to 32 FPS"), 32.0, opened["audio"])


@workflow(
    "SDXL-Helper-FirstFrame",
    "SDXL draws a first frame that fits a video: it follows the lines of the video's first frame. Use the result as "
    "the start image of Fun Control. The checkpoint is yours to choose.",
    "Checkpoint, video, prompt; strength at Follow the lines. Eight steps and cfg 1 belong to the LoRA.",
)
def sdxl_helper(w: Workflow) -> None:
    with w.group("Models"):
        checkpoint = w.add("CheckpointLoaderSimple", "Checkpoint", ckpt_name=Model("sdxl-base-1-0"))
        lora = w.add(
            "LoraLoaderModelOnly", "LoRA for few steps", model=checkpoint["MODEL"],
            lora_name=Model("sdxl-lightning-8step-lora"), strength_model=1.0,
        )  # fmt: skip
        control = w.add("ControlNetLoader", "ControlNet", control_net_name=Model("xinsir-controlnet-union-sdxl-promax"))
        union = w.add(
            "SetUnionControlNetType", "Kind of control", control_net=control, type="canny/lineart/anime_lineart/mlsd"
        )
    plus, minus = parts.prompts(w, checkpoint["CLIP"], "A red kite above green hills, morning light, photograph")
    with w.group("Input"):
        frames, _ = video_frames(w, Size(1216, 704, 1))
        lines = w.add("Canny", "Lines", image=frames, low_threshold=0.2, high_threshold=0.5)
        given = w.add(
            "ControlNetApplyAdvanced", "Follow the lines", positive=plus, negative=minus, control_net=union,
            image=lines, strength=0.6, start_percent=0.0, end_percent=0.8, vae=checkpoint["VAE"],
        )  # fmt: skip
    with w.group("Sampling"):
        empty_image = w.add("EmptyLatentImage", "Size", width=1216, height=704, batch_size=1)
        latent = w.add(
            "KSampler", "Sampler", model=lora, positive=given["positive"], negative=given["negative"],
            latent_image=empty_image, seed=1, steps=8, cfg=1.0, sampler_name="euler", scheduler="sgm_uniform",
        )  # fmt: skip
        image = parts.decode(w, latent, checkpoint["VAE"])
    with w.group("Result"):
        w.add("SaveImage", "Output image", images=image, filename_prefix=f"wanmetal-{w.name}")
        w.sets("filename_prefix", "Output image", "filename_prefix")
