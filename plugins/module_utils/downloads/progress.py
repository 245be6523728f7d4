"""Progress: the arithmetic, the file that others read it from, and the line for people."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import read_regular, write_whole
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration, plain, size

NAME = "progress.json"
_WINDOW_S = 15.0
_COUNTS = ("at", "done", "total", "rate", "files", "files_done", "failed", "resting", "verifying")
_MOST = 1 << 60


class Meter:
    """The speed over the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, moved: int) -> None:
        """Note how much was moved in all until now."""
        self._points.append((now, moved))
        while len(self._points) > 2 and now - self._points[0][0] > _WINDOW_S:
            self._points.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second."""
        if len(self._points) < 2:
            return 0.0
        (start, before), (end, after) = self._points[0], self._points[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0


def percent(done: int, total: int) -> int:
    """Return whole percents that reach 100 only at the end."""
    return 100 if done >= total else max(0, done * 100 // total)


def line(state: Mapping[str, Any], width: int = 0) -> str:
    """Write one line about a download; ``width`` cuts the list of files in flight."""
    done, total, rate = state["done"], state["total"], state["rate"]
    head = f"{percent(done, total):3d} %  {size(done)} of {size(total)}" if total else f"{size(done)} of unknown size"
    if rate > 0:
        head += f"  {size(rate)}/s"
        if done < total:
            head += f"  {duration((total - done) / rate)} left"
    head += f"  {state['files_done']}/{state['files']} files"
    tail = in_flight(state["moving"])
    if state["verifying"]:
        tail = f"{tail}  verifying {state['verifying']}".strip()
    if state["resting"]:
        tail = f"{tail}  {state['resting']} to be tried again".strip()
    if state["failed"]:
        tail = f"{tail}  {state['failed']} failed".strip()
    text = f"{head}  {tail}".rstrip()
    return text if not width or len(text) <= width else text[: max(0, width - 1)] + "…"


def in_flight(moving: Sequence[Mapping[str, Any]]) -> str:
    """Name the files that bytes move for."""
    return ", ".join(f"{item['name']} {percent(item['done'], item['bytes'])} %" for item in moving)


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Leave the progress where others can read it; a full disk must not stop a download for it."""
    try:
        write_whole(folder / NAME, json.dumps(state) + "\n", sync=False)
    except OSError:
        return


def load(folder: Path) -> dict[str, Any] | None:
    """Read the progress that a download has left."""
    try:
        return parse(read_regular(folder / NAME))
    except OSError:
        return None


def parse(text: str | bytes) -> dict[str, Any] | None:
    """Read progress that anybody may have written: the file belongs to the user that fetches."""
    try:
        data = json.loads(text)
        state: dict[str, Any] = {key: _count(data[key]) for key in _COUNTS}
        state["phase"] = str(data["phase"])
        state["moving"] = [
            {"name": plain(str(item["name"])[:255]), "done": _count(item["done"]), "bytes": _count(item["bytes"])}
            for item in data["moving"]
        ]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return state


def _count(value: object) -> int:
    return min(max(0, int(value)), _MOST)  # type: ignore[call-overload, no-any-return]
