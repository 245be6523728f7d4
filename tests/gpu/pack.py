#!/usr/bin/env python3
"""Pack what tests/gpu/trial.py needs on a machine that reaches no network: TO/1, TO/2 and on, each at most --load-mb.

    tests/gpu/pack.py --to FOLDER --comfyui REPOSITORY --sageattention REPOSITORY

Packages are those of tests/gpu/wheels.txt, for Python 3.12 on x86-64 Linux. The repositories are git repositories on
this machine; paths of theirs whose content is missing are left out, and named. The most valuable things come first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMFYUI = "2f35f4a08176d993cded35dac3332be4f7287f41"
SAGEATTENTION = "d1a57a5"
UNUSED = {"assets", "blueprints", "example", "input", "output", "tests", "tests-unit", "web"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17)] + ["manylinux2014_x86_64", "any"]


def wheels(folder: Path) -> list[Path]:
    """Fetch the packages, without what they depend on."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--python-version=3.12", "--implementation=cp", "--abi=cp312", "--abi=abi3", "--abi=none"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    subprocess.run([*command, "--dest", str(folder), "--requirement", str(HERE / "wheels.txt")], check=True)
    return sorted(
        folder.glob("*.whl"), key=lambda file: (not file.name.startswith("comfy_kitchen"), file.stat().st_size)
    )


def unpack(wheel: Path, work: Path) -> Path:
    """A folder that holds ``site``, or a folder of its own for what not every step is to see."""
    name = "sage1" if wheel.name.startswith("sageattention") else "site"
    folder = work / wheel.stem
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / name)  # noqa: S202 - their hashes are known
    return folder


def check_out(repository: Path, commit: str, folder: Path) -> Path:
    """The files of a commit that are used and whose content is there."""
    git = ["git", "-C", str(repository)]
    listed = subprocess.run([*git, "ls-tree", "-rz", commit], capture_output=True, text=True, check=True).stdout
    for row in filter(None, listed.split("\0")):
        meta, path = row.split("\t", 1)
        if path.split("/", 1)[0] in UNUSED:
            continue
        content = subprocess.run([*git, "cat-file", "blob", meta.split()[2]], capture_output=True, check=False)
        if content.returncode:
            print(f"pack: {repository.name} lacks the content of {path}", file=sys.stderr)
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.stdout)
    return folder.parent


def packed(folder: Path) -> Path:
    """Compress a folder."""
    file = folder.with_name(f"{folder.name}.tar.xz")
    with tarfile.open(file, "w:xz", preset=6) as archive:
        archive.add(folder, arcname=".")
    return file


def loads(files: list[Path], limit: int) -> Iterator[list[Path]]:
    """Files in their order, as many as fit into each load; a smaller one fills what a larger one leaves."""
    left = list(files)
    while left:
        room = limit
        load: list[Path] = []
        for file in list(left):
            if (size := file.stat().st_size) <= room or not load:
                load.append(file)
                left.remove(file)
                room -= size
        yield load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, help="folder, made anew")
    parser.add_argument("--comfyui", type=Path, help="git repository of ComfyUI; without it no step renders")
    parser.add_argument("--sageattention", type=Path, help="git repository of SageAttention; without it none is built")
    parser.add_argument("--load-mb", type=float, default=56, help="most megabytes of a load; default: 56")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folders = [unpack(wheel, work) for wheel in wheels(work)]
        if options.sageattention:
            folders.insert(1, check_out(options.sageattention, SAGEATTENTION, work / "sageattention-source/sage"))
        if options.comfyui:
            folders.append(check_out(options.comfyui, COMFYUI, work / "comfyui-source/comfy"))
        with ThreadPoolExecutor() as pool:
            files = list(pool.map(packed, folders))
        for number, load in enumerate(loads(files, int(options.load_mb * 1e6)), 1):
            place = options.to / str(number)
            place.mkdir(parents=True, exist_ok=False)
            for file in load:
                file.rename(place / file.name)
            size = sum(file.stat().st_size for file in place.iterdir())
            print(f"{place}: {size / 1e6:.1f} MB, {', '.join(sorted(file.name for file in place.iterdir()))}")


if __name__ == "__main__":
    main()
