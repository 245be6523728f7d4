#!/usr/bin/env python3
"""Everything that wants a GPU, in one run: what tests/gpu/pack.py has packed, unpacked, built, tested and measured.

    python3 tests/gpu/trial.py --parts FOLDER --out FOLDER

It needs a Python with torch, and for the step ``wheel`` CUDA's compiler. Each step is a process of its own with a time
limit, and writes OUT/STEP.json at once; the most valuable steps come first. A step whose parts are missing, or for
which the budget has no time left, says so. ``--device cpu`` runs the same at small shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / ".ansible/collections"))
CHECK = PROJECT / "roles/sageattention/files/attention_check.py"
SIZES = {"480p": (832, 480), "720p": (1280, 720), "tiny": (64, 64)}


@dataclass(frozen=True)
class Place:
    """Where a trial works: the unpacked parts, the results, and the device."""

    work: Path
    out: Path
    device: str

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    def keep(self, step: str, told: dict[str, Any]) -> None:
        """Write the results of a step."""
        (self.out / f"{step}.json").write_text(json.dumps(told, indent=1) + "\n")

    def environment(self, *packages: str) -> dict[str, str]:
        """Of a program that uses what was unpacked, and one of the packages that exclude each other."""
        paths = [str(self.work / name) for name in (*packages, "site") if (self.work / name).is_dir()]
        paths.append(os.environ.get("PYTHONPATH", ""))
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    def python(self, arguments: list[Any], *packages: str, seconds: float, cwd: Path | None = None) -> Any:
        """Run a program with this Python."""
        command = [sys.executable, *map(str, arguments)]
        environment = self.environment(*packages)
        return subprocess.run(
            command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=seconds
        )


# ------------------------------------------------------------------------------------------ steps


def card(place: Place) -> dict[str, Any]:
    """The card and the versions, and whether the module gpu_info sees what nvidia-smi says."""
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.gpu import gpu_info

    code = "import json, torch, triton as t; print(json.dumps([torch.__version__, torch.version.cuda, t.__version__]))"
    versions = place.python(["-c", code], seconds=120)
    query = "name,compute_cap,memory.total,driver_version,pci.bus_id,uuid,ecc.mode.current,mig.mode.current"
    smi = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"], capture_output=True,
                         text=True, check=False) if shutil.which("nvidia-smi") else None  # fmt: skip
    compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=False).stdout if (
        shutil.which("nvcc")) else ""  # fmt: skip
    return {
        "versions": versions.stdout.strip() or versions.stderr[-500:],
        "nvidia_smi": smi.stdout.strip() if smi else None,
        "nvcc": compiler.strip().splitlines()[-1:],
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "gpu_info": gpu_info(),
    }


def attention(place: Place) -> dict[str, Any]:
    """The self-test of every attention there is. One after the other: they time themselves."""
    shapes = ["--device=cpu", "--heads=2", "--text=64", "--lengths", "256", "300"] if place.cpu else ["--device=cuda"]
    found = {}
    for label, name, package in (
        ("SageAttention 1.0.6", "sage", "sage1"),
        ("comfy-kitchen", "kitchen", ""),
        ("SageAttention 2.2.0", "sage", "sage2"),
    ):
        if package and not (place.work / package).is_dir():
            found[label] = {"skipped": f"{package} is not there"}
            continue
        packages = [package] if package else []
        done = place.python([CHECK, f"--attention={name}", "--min-speedup=0", *shapes], *packages, seconds=240)
        try:
            found[label] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            found[label] = {"status": done.returncode, "problem": done.stderr[-800:]}
    return {**found, "picked": _picked(found)}


def _picked(found: dict[str, Any]) -> str:
    """Which of them the role would choose here, and what it would say of the others."""
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels import sageattention

    told = [
        {
            "method": label,
            "version": label.split(" ")[-1],
            "attention": "kitchen" if label == "comfy-kitchen" else "sage",
            "state": "passed" if result.get("passed") and result["speedup"] >= 1 else "failed",
            "speedup": result.get("speedup", 0.0),
            "reason": "; ".join(result.get("reasons") or [result.get("skipped") or result.get("problem") or "slower"]),
            "log": "",
        }
        for label, result in found.items()
    ]
    return sageattention.sentence(told, sageattention.choose(told)["active"], "")


def wheel(place: Place) -> dict[str, Any]:
    """SageAttention 2.2 for this card alone, by the role's own program: seconds, memory, and the wheel's hash."""
    import hashlib
    import resource

    import torch
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels import build

    major, minor = torch.cuda.get_device_capability()
    work = place.work / "wheel"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    compiler = shutil.which("nvcc")
    home = Path(compiler).resolve().parents[1] if compiler else Path("/usr/local/cuda")
    environment = place.environment() | build.environment({"CUDA_HOME": home}, [f"{major}.{minor}"], 0)
    log = (place.out / "wheel.log").open("w")
    command = [sys.executable, "-c", build.PROGRAM, str(place.work / "sage"), str(work)]
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    told: dict[str, Any] = {
        "seconds": round(time.monotonic() - begun, 1),
        "largest_process_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "limits": {name: environment[name] for name in ("MAX_JOBS", "EXT_PARALLEL", "NVCC_APPEND_FLAGS")},
        "architecture": f"{major}.{minor}",
        "status": done.returncode,
    }
    for made in work.glob("dist/*.whl"):
        told |= {"wheel": made.name, "bytes": made.stat().st_size}
        told["sha256"] = hashlib.sha256(made.read_bytes()).hexdigest()
        shutil.rmtree(place.work / "sage2", ignore_errors=True)
        shutil.unpack_archive(made, place.work / "sage2", "zip")
    if done.returncode:
        told["reason"] = build.telling_line((place.out / "wheel.log").read_text(errors="replace"))
    return told


def table(place: Place) -> dict[str, Any]:
    """Speed and error of each way at the shapes of Wan, for the heads of both models."""
    check = PROJECT / "tests/gpu/check.py"
    found: dict[str, Any] = {}
    for package in ("sage1", "sage2"):
        for heads in (2,) if place.cpu else (12, 40):
            if not (place.work / package).is_dir():
                continue
            file = place.out / f"table-{package}-{heads}.json"
            size = ["--device=cpu", "--tiny"] if place.cpu else ["--device=cuda"]
            done = place.python([check, *size, f"--heads={heads}", f"--json={file}"], package, seconds=200)
            found[f"{package}, {heads} heads"] = done.stdout.splitlines() or done.stderr[-800:]
    return found


# ------------------------------------------------------------------------------------------- ComfyUI


def graph(size: str, video: str, frames: int, steps: int, keep_video: bool) -> dict[str, Any]:
    """Text to video as in Native-TextToVideo, without the second pass for the negative prompt."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    width, height = SIZES[video]
    found = {
        "2": node("UNETLoader", unet_name=f"wan-{size}.safetensors", weight_dtype="default"),
        "3": node("ModelSamplingSD3", shift=8.0, model=["2", 0]),
        "4": node("CLIPLoader", clip_name="umt5.safetensors", type="wan", device="default"),
        "6": node("CLIPTextEncode", text="a red kite flies over green hills", clip=["4", 0]),
        "8": node("EmptyHunyuanLatentVideo", width=width, height=height, length=frames, batch_size=1),
        "9": node(
            "KSampler", seed=time.time_ns() % 2**32, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple",
            denoise=1.0, model=["3", 0], positive=["6", 0], negative=["6", 0], latent_image=["8", 0],
        ),
    }  # fmt: skip
    if not keep_video:
        return found | {"12": node("SaveLatent", samples=["9", 0], filename_prefix="trial")}
    return found | {
        "5": node("VAELoader", vae_name=f"wan-{size}.safetensors"),
        "10": node("VAEDecode", samples=["9", 0], vae=["5", 0]),
        "11": node("CreateVideo", fps=16.0, images=["10", 0]),
        "12": node("SaveVideo", filename_prefix=f"trial-{size}", format="mp4", codec="h264", video=["11", 0]),
    }


class Server:
    """A ComfyUI that runs."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self._process, self._log = url, process, log

    def alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {self._process.returncode}: {self._log.read_text()[-1500:]}")

    def render(self, prompt: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Run a graph; the times of its steps and the most memory that the card had in use."""
        return asyncio.run(self._render(prompt, seconds))

    async def _render(self, prompt: dict[str, Any], seconds: float) -> dict[str, Any]:
        import aiohttp  # type: ignore[import-not-found]  # ComfyUI brings it

        times: list[float] = []
        client = uuid.uuid4().hex  # a late message about an earlier graph is not for this one
        problem, begun = "", time.monotonic()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as messages,
            asyncio.timeout(seconds),  # type: ignore[attr-defined]  # Python 3.11
        ):
            answer = await session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client})
            told = await answer.json()
            if "prompt_id" not in told:
                return {"problem": json.dumps(told)[:800]}
            async for message in messages:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress" and event["data"].get("node") == "9":
                    times.append(time.monotonic())
                elif event["type"] == "execution_error":
                    problem = f"{event['data']['exception_type']}: {event['data']['exception_message']}"[:800]
                    break
                elif event["type"] == "execution_success" or (
                    event["type"] == "executing" and event["data"].get("node") is None
                ):
                    break
        self.alive()
        between = [after - before for before, after in itertools.pairwise(times)]
        return {
            "seconds": round(time.monotonic() - begun, 2),
            "steps": len(times),
            "seconds_a_step": round(statistics.median(between), 4) if between else None,
            "slowest_step": round(max(between), 4) if between else None,
            "problem": problem,
        }


@contextlib.contextmanager
def comfyui(place: Place, base: Path, log: Path, packages: tuple[str, ...], *options: str) -> Iterator[Server]:
    """Start ComfyUI, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = base / "page"
    page.mkdir(parents=True, exist_ok=True)
    (page / "index.html").write_text("no front end")
    command = [
        *(sys.executable, "main.py", "--port", str(port), "--base-directory", str(base), "--disable-api-nodes"),
        *("--front-end-root", str(page), "--database-url", f"sqlite:///{base}/comfyui.db", *options),
        *(["--cpu"] if place.cpu else []),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=place.work / "comfy", env=place.environment(*packages), stdout=file, stderr=subprocess.STDOUT
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient, ComfyUIError

        while True:
            server.alive()
            try:
                ComfyUIClient(server.url).system_stats()
                break
            except ComfyUIError:
                time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


class Memory:
    """The most memory that was in use on the card while a block ran, in MB."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while shutil.which("nvidia-smi") and not self._over.wait(0.3):
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                self.most = max(self.most, *map(int, done.stdout.split()))

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)


def _equip(place: Place, base: Path, sizes: list[str]) -> list[str]:
    """Models and the tests' pack, which lets ComfyUI load a tiny text encoder."""
    pack = base / "custom_nodes/wanmetal_tests"
    if not pack.exists():
        shutil.copytree(PROJECT / "tests/pack/wanmetal_tests", pack)
    models = base / "tiny-models"  # the pack's folder
    made: list[str] = []

    def make(program: Path, *arguments: Any) -> None:
        done = place.python([program, *arguments], "comfy", seconds=300, cwd=place.work / "comfy")
        if done.returncode:
            raise RuntimeError(f"{program.name}: {done.stderr[-1500:]}")
        made.extend(done.stdout.split("\n")[:-1])

    encoder = models / "text_encoders/umt5.safetensors"
    if not encoder.exists():
        make(pack / "models.py", encoder)
    if missing := [size for size in sizes if not (models / f"vae/wan-{size}.safetensors").exists()]:
        make(PROJECT / "tests/gpu/weights.py", models, *missing)
    return made


WAYS = {
    "torch": ((), ()),
    "SageAttention 2.2.0": (("sage2",), ("--use-sage-attention",)),
    "comfy-kitchen": ((), ("--use-ck-attention",)),
    "SageAttention 1.0.6": (("sage1",), ("--use-sage-attention",)),
}


def first(place: Place) -> dict[str, Any]:
    """ComfyUI starts, passes the canary and renders a tiny Wan."""
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.canary import KINDS, run_canary
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient

    base = place.work / "base"
    told: dict[str, Any] = {"made": _equip(place, base, ["tiny"])}
    begun = time.monotonic()
    with comfyui(place, base, place.out / "comfyui-first.log", ()) as server:
        told["start_s"] = round(time.monotonic() - begun, 1)
        for kind in KINDS:
            result = run_canary(ComfyUIClient(server.url), kind, 120.0)
            told[f"canary, {kind}"] = {"seconds": result.seconds, "problem": result.reason}
        told["tiny"] = server.render(graph("tiny", "tiny", 5, 4, True), 120)
    return told


def renders(
    place: Place, step: str, size: str, runs: list[tuple[str, int, int, bool]], seconds: float
) -> dict[str, Any]:
    """Seconds a step and the most memory, with each attention. A run: video, frames, steps, whether with the VAE."""
    base = place.work / "base"
    told: dict[str, Any] = {"made": _equip(place, base, [size]), "rows": []}
    end = time.monotonic() + seconds
    for way, (packages, options) in WAYS.items():
        if place.cpu and way != "torch":
            continue
        if packages and not (place.work / packages[0]).is_dir():
            continue
        log = place.out / f"comfyui-{size}-{way.replace(' ', '-')}.log"
        try:
            with comfyui(place, base, log, packages, *options) as server:
                for video, frames, steps, keep in runs:
                    if time.monotonic() > end:
                        break
                    server.render(graph(size, video, min(frames, 5), 1, False), 240)  # loads the model, compiles
                    with Memory() as memory:
                        row = server.render(graph(size, video, frames, steps, keep), 400)
                    row = {"attention": way, "video": video, "frames": frames, "vae": keep, **row, "mb": memory.most}
                    told["rows"].append(row)
                    place.keep(step, told)  # the time limit of the step may end it here
        except (RuntimeError, OSError, asyncio.TimeoutError) as error:
            told["rows"].append({"attention": way, "problem": f"{type(error).__name__}: {error}"[:1500]})
    return told


def small(place: Place) -> dict[str, Any]:
    """Wan 2.1 1.3B at true size."""
    if place.cpu:
        return renders(place, "small", "tiny", [("tiny", 5, 3, True)], 100)
    return renders(place, "small", "1.3B", [("480p", 81, 8, False), ("720p", 81, 4, False)], 200)


def large(place: Place) -> dict[str, Any]:
    """Wan 2.1 14B at true size."""
    if place.cpu:
        return {"skipped": "no CPU renders it"}
    return renders(place, "large", "14B", [("480p", 81, 4, False), ("720p", 81, 3, False)], 420)


def whole(place: Place) -> dict[str, Any]:
    """One video from prompt to file, with the VAE."""
    base = place.work / "base"
    size, video, frames = ("tiny", "tiny", 5) if place.cpu else ("1.3B", "480p", 81)
    told: dict[str, Any] = {"made": _equip(place, base, [size])}
    with comfyui(place, base, place.out / "comfyui-whole.log", ()) as server, Memory() as memory:
        told["cold"] = server.render(graph(size, video, frames, 20 if not place.cpu else 2, True), 200)
        told["warm"] = server.render(graph(size, video, frames, 20 if not place.cpu else 2, True), 200)
    return told | {"mb": memory.most, "files": sorted(file.name for file in (base / "output").rglob("*.mp4"))}


@dataclass(frozen=True)
class Step:
    """What is run, its limit in seconds, and the folders without which it cannot be."""

    run: Callable[[Place], dict[str, Any]]
    seconds: float
    needs: tuple[str, ...] = ()


STEPS = {
    "card": Step(card, 150),
    "attention": Step(attention, 420, ("site",)),
    "wheel": Step(wheel, 560, ("sage", "site")),
    "table": Step(table, 500, ("site",)),
    "first": Step(first, 300, ("comfy", "site")),
    "small": Step(small, 320, ("comfy", "site")),
    "large": Step(large, 560, ("comfy", "site")),
    "whole": Step(whole, 300, ("comfy", "site")),
}


# --------------------------------------------------------------------------------------------- main


def unpack(parts: Path, work: Path) -> list[str]:
    """Unpack what is packed, and not again."""
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for part in sorted(parts.rglob("*.tar.xz")):
        mark = work / f".{part.name}"
        if not mark.exists():
            with tarfile.open(part) as archive:
                archive.extractall(work, filter="data")
            mark.touch()
            found.append(part.name)
    return found


def run(name: str, place: Place, arguments: list[str], left: float) -> dict[str, Any]:
    """Run a step as a process of its own; what it wrote, or why it wrote nothing."""
    step, file = STEPS[name], place.out / f"{name}.json"
    lacking = [need for need in step.needs if not (place.work / need).is_dir()]
    if lacking:
        return {"skipped": f"not unpacked: {', '.join(lacking)}"}
    if left < 20:
        return {"skipped": "the budget is used up"}
    begun = time.monotonic()
    with (place.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--step", name], stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(min(step.seconds, left))
            problem = f"it ended with {process.returncode}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"it took more than {min(step.seconds, left):.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # and whatever it has left
            process.wait()
    told = json.loads(file.read_text()) if file.exists() else {}
    if problem:
        told |= {"problem": problem, "log": (place.out / f"{name}.log").read_text(errors="replace")[-1500:]}
    return told | {"took_s": round(time.monotonic() - begun, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=Path, required=True, help="a folder that tests/gpu/pack.py has filled")
    parser.add_argument("--work", type=Path, default=Path("/tmp/wanmetal-trial"), help="where they are unpacked")  # noqa: S108
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--budget", type=float, default=1500, metavar="SECONDS", help="for all steps; default: 1500")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"default: {','.join(STEPS)}")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    place = Place(options.work.resolve(), options.out.resolve(), options.device)
    if options.step:
        told = STEPS[options.step].run(place)
        place.keep(options.step, told)
        return 0
    end = time.monotonic() + options.budget
    place.out.mkdir(parents=True, exist_ok=True)
    print(f"unpacked: {unpack(options.parts, place.work) or 'nothing new'}", flush=True)
    arguments = [
        "--parts",
        str(options.parts),
        "--work",
        str(place.work),
        "--out",
        str(place.out),
        "--device",
        place.device,
    ]
    failed = 0
    for name in options.steps.split(","):
        told = run(name, place, arguments, end - time.monotonic())
        place.keep(name, told)
        failed += '"problem": "' in json.dumps(told).replace('"problem": ""', "")
        print(
            f"== {name}: {told.get('problem') or told.get('skipped') or 'done'}, {told.get('took_s', 0)} s", flush=True
        )
        print(json.dumps(told, indent=None)[:2500], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
