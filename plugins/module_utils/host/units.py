"""Amounts as people read them, the same in every message, and words of others that do nothing to a terminal."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: 999 B, 1.4 GB, 120 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """A time: 0.4 s, 45 s, 12 min, 3 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def plain(text: object) -> str:
    """Words of others in one line: what would move a terminal's cursor, name its window or the like becomes a space."""
    return "".join(c if c.isprintable() else " " for c in str(text))
