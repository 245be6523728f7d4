#!/usr/bin/env python3
"""Record what the node types of ComfyUI and of the variant's packs take and give, into files/locks/schemas.

It asks a running ComfyUI that has the pinned packs and no others. Its model and input folders are named, so that a
file can be put there for a moment: choices that show it are files, and are not recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks

MARKER = "wanmetal-marker"


@contextlib.contextmanager
def markers(comfyui: Path) -> Iterator[None]:
    """Put a file into each folder of models, and into input."""
    folders = [folder for folder in (comfyui / "models").iterdir() if folder.is_dir()]
    files = [folder / f"{MARKER}{suffix}" for folder in folders for suffix in (".safetensors", ".pt")]
    files += [comfyui / "input" / f"{MARKER}{suffix}" for suffix in (".png", ".mp4", ".wav", ".safetensors", ".obj")]
    for file in files:
        file.touch()
    try:
        time.sleep(1)  # ComfyUI sees a change of a folder by its time
        yield
    finally:
        for file in files:
            file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="for example http://127.0.0.1:8188")
    parser.add_argument("comfyui", type=Path, help="its folder")
    arguments = parser.parse_args()
    packs = locks.load("custom_nodes")["packs"]
    commits = {workflow_schemas.CORE: locks.load("upstream")["comfyui"]["commit"]}
    commits |= {name: pack["commit"] for name, pack in packs.items()}
    with markers(arguments.comfyui):
        info = ComfyUIClient(arguments.url, 60).object_info()
    by_pack = defaultdict(list)
    for one in workflow_schemas.from_object_info(info, MARKER).values():
        if not str(info[one.name]["python_module"]).startswith("comfy_api_nodes"):  # they call paid services
            by_pack[one.pack].append(one)
    workflow_schemas.FOLDER.mkdir(exist_ok=True)
    for pack, commit in commits.items():
        file = workflow_schemas.FOLDER / f"{pack}.json"
        file.write_text(workflow_schemas.write(by_pack[pack], commit), encoding="utf-8")
        print(f"{file.name}: {len(by_pack[pack])} types, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
