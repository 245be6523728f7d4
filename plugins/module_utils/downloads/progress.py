"""Progress: the arithmetic, the file that tells others of it, and the line for people."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import write_whole

NAME = "progress.json"
_WINDOW_S = 15.0


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


def human(count: float) -> str:
    """Write bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """Write a time for people: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(done: int, total: int) -> int:
    """Return whole percents that reach 100 only at the end."""
    return 100 if done >= total else max(0, done * 100 // total)


def line(told: Mapping[str, Any], width: int = 0) -> str:
    """Write one line about a download; ``width`` cuts the list of files in flight."""
    done, total, rate = told["done"], told["total"], told["rate"]
    head = f"{percent(done, total):3d} %  {human(done)} of {human(total)}"
    if rate > 0:
        head += f"  {human(rate)}/s"
        if done < total:
            head += f"  {duration((total - done) / rate)} left"
    head += f"  {told['files_done']}/{told['files']} files"
    tail = in_flight(told["moving"])
    if told["proving"]:
        tail = f"{tail}  proving {told['proving']}".strip()
    if told["resting"]:
        tail = f"{tail}  {told['resting']} to be tried again".strip()
    if told["failed"]:
        tail = f"{tail}  {told['failed']} failed".strip()
    text = f"{head}  {tail}".rstrip()
    return text if not width or len(text) <= width else text[: max(0, width - 1)] + "…"


def in_flight(moving: Sequence[Mapping[str, Any]]) -> str:
    """Name the files that bytes move for."""
    return ", ".join(f"{item['name']} {percent(item['done'], item['bytes'])} %" for item in moving)


def tell(folder: Path, told: Mapping[str, Any]) -> None:
    """Leave the progress where others can read it; a full disk must not stop a download for it."""
    try:
        write_whole(folder / NAME, json.dumps(told) + "\n", sync=False)
    except OSError:
        return


def told(folder: Path) -> dict[str, Any] | None:
    """Read the progress that a download has left."""
    try:
        data = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
