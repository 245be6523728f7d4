"""What a run would do, for check mode."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import survey
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.asking import ask
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.job import Settings
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.order import Order
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.progress import human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import Record


def look(job: Order) -> dict[str, Any]:
    """Look at the host, and ask for sizes that nobody has estimated."""
    settings = job.settings
    record = Record(settings.state_dir)
    found = [survey.look(item, settings.root, record, settings.owner_list) for item in job.wanted]
    unknown = [index for index, item in enumerate(found) if item.bytes is None and item.status == "missing"]
    if unknown:
        quick = replace(settings, timeout_s=min(10.0, settings.timeout_s), allow_unproven=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            sizes = pool.map(lambda index: _size(job.wanted[index], quick), unknown)
            for index, (name, size) in zip(unknown, sizes, strict=True):
                found[index].bytes = size
                found[index].path = name or found[index].path
    gone = survey.unwanted(job.wanted, settings.root, record, settings.owner_list)
    removed = [item["path"] for item in gone] if settings.prune else []
    coming = [item for item in survey.summary(found, 0, None)["files"] if item["status"] in {"missing", "partial"}]
    return {
        **survey.summary(found, settings.reserve, record.rate),
        "changed": bool(coming or removed),
        "unwanted": [] if settings.prune else gone,
        "removed": removed,
        "aria2c": shutil.which("aria2c") is not None,
        "diff": diff(coming, removed),
    }


def _size(wanted: Wanted, settings: Settings) -> tuple[str, int | None]:
    try:
        answer = ask(wanted, settings, peers=False)
    except Exception:
        # A plan is made without it; the run itself says what is wrong.
        return "", None
    return str(settings.root / answer.wanted.path), answer.size


def diff(coming: Sequence[Mapping[str, Any]], removed: Sequence[str]) -> dict[str, str]:
    """Show the files that come and go as a diff."""
    after = [f"{item['path']} {human(item['bytes'] or 0) if item['bytes'] else 'of unknown size'}" for item in coming]
    return {
        "before": "".join(f"{path}\n" for path in removed),
        "after": "".join(f"{line}\n" for line in after),
    }
