"""Draw the pictures of the gallery: PYTHONPATH=collections python -m tools.workflows.pictures; it needs Chromium.

A picture says what goes in (prompt, pictures, a video and what of it guides), what comes out, and of which model.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows
from PIL import Image

WIDTH, HEIGHT, COLUMNS = 400, 225, 6
_BACK = {"Native": ("#0d4a52", "#10262e"), "Wan22": ("#1d3f7a", "#12203c"), "Wrapper": ("#4b2f73", "#21173a")}
_GUIDES = {"pose": ("pose", "dwpreprocessor"), "depth": ("depth",), "lineart": ("lineart",)}
_HILLS = "M0 50Q25 22 50 44T100 38V64H0Z"


def scene(style: str = "colour") -> str:
    """Hills and a kite, on 100 by 64."""
    kite = "M62 8l10 9-8 12-9-9z"
    if style == "depth":
        return (
            f'<rect width="100" height="64" fill="#222"/><path d="{_HILLS}" fill="#999"/><path d="{kite}" fill="#eee"/>'
        )
    if style == "lineart":
        drawn = 'fill="none" stroke="#eee" stroke-width="1.6"'
        return f'<rect width="100" height="64" fill="#111"/><path d="{_HILLS}{kite}" {drawn}/>'
    if style == "pose":
        limbs = "M50 22V40M50 26L36 34M50 26L66 20M50 40L40 58M50 40L62 58"
        return (
            f'<rect width="100" height="64" fill="#111"/><path d="{limbs}" stroke="#ff9f1c" stroke-width="3"/>'
            '<circle cx="50" cy="14" r="6" fill="#2ec4b6"/>'
        )
    return (
        '<rect width="100" height="64" fill="#8ecae6"/><circle cx="20" cy="15" r="7" fill="#ffe8a3"/>'
        f'<path d="{_HILLS}" fill="#4f9d54"/><path d="M0 56Q40 40 100 54V64H0Z" fill="#37794a"/>'
        f'<path d="M64 29Q60 38 68 42T66 52" fill="none" stroke="#fff"/><path d="{kite}" fill="#e63946"/>'
    )


def tile(x: float, y: float, scale: float, inner: str, *, film: bool = False) -> str:
    """A picture, or frames of a video."""
    holes = "".join(
        f'<rect x="{4 + 12 * n}" y="{y}" width="6" height="4" rx="1" fill="#ddd"/>' for n in range(8) for y in (-6, 66)
    )
    strip = f'<rect y="-8" width="100" height="80" rx="3" fill="#111"/>{holes}' if film else ""
    return f'<g transform="translate({x} {y}) scale({scale})">{strip}{inner}</g>'


PROMPT = (
    '<rect width="100" height="64" rx="6" fill="#f4f1e8"/>'
    '<text x="10" y="28" font-size="22" font-weight="bold" fill="#333">Aa</text>'
    '<path d="M46 20H90M10 38H90M10 50H70" stroke="#999" stroke-width="4"/>'
)


def inputs(api: Mapping[str, Any]) -> list[str]:
    """What goes in, drawn."""
    kinds = [node["class_type"].lower() for node in api.values()]
    drawn = [PROMPT] if any("textencode" in kind for kind in kinds) else []
    drawn += [scene()] * kinds.count("loadimage")
    if any("loadvideo" in kind for kind in kinds):
        guides = [name for name, marks in _GUIDES.items() if any(mark in kind for mark in marks for kind in kinds)]
        drawn += [scene(guide) for guide in guides] or ["film"]
    return drawn[:4]


def facts(name: str, api: Mapping[str, Any], models: list[list[str]]) -> str:
    """Model and frame rate, in a line."""
    values = {key: value for node in api.values() for key, value in node["inputs"].items()}
    ids = [first for first, *_others in models]
    size = next((part for one in ids for part in ("1-3b", "5b", "14b") if f"-{part}" in one), "")
    family = "SDXL" if name.startswith("SDXL") else "Wan 2.2" if any("wan22" in one for one in ids) else "Wan 2.1"
    rate = values.get("fps") or values.get("frame_rate")
    parts = [f"{family} {size.upper().replace('-', '.')}".strip()] if ids and (size or family == "SDXL") else []
    parts += [f"{rate:g} frames a second"] if isinstance(rate, int | float) else []
    return " · ".join(parts)


def card(name: str) -> str:
    """The picture of a workflow, as SVG."""
    api = workflows.load_api(name)
    light, dark = _BACK.get(name.split("-")[0], ("#5a4632", "#2a2018"))
    given = inputs(api)
    small = 0.95 if len(given) == 1 else 0.74 if len(given) == 2 else 0.6 if len(given) == 3 else 0.52
    each = (150 if len(given) < 3 else 165) / max(len(given), 1)
    top = 100 - each * len(given) / 2 + (each - 64 * small) / 2
    left = "".join(
        tile(78 - 50 * small, top + each * n, small, scene() if one == "film" else one, film=one == "film")
        for n, one in enumerate(given)
    )
    play = '<circle cx="50" cy="32" r="15" fill="#000" opacity=".55"/><path d="M45 23L60 32L45 41Z" fill="#fff"/>'
    still = name.startswith("SDXL")
    right = tile(220, 48, 1.6, scene() + ("" if still else play), film=not still)
    mark = (
        '<rect x="338" y="26" width="44" height="28" rx="14" fill="#e9c46a"/>'
        '<text x="360" y="46" font-size="18" text-anchor="middle" fill="#222" font-weight="bold">2×</text>'
        if "Upscale" in name
        else ""
    )
    words = facts(name, api, workflows.index()[name]["models"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">'
        f'<defs><linearGradient id="{name}" x2="0" y2="1">'
        f'<stop stop-color="{light}"/><stop offset="1" stop-color="{dark}"/></linearGradient></defs>'
        f'<rect width="400" height="225" fill="url(#{name})"/>{left}'
        '<path d="M158 100H194M184 90L196 100L184 110" fill="none" stroke="#fff" stroke-width="5"/>'
        f'{right}{mark}<text x="200" y="210" font-size="16" text-anchor="middle" fill="#e8eef0">{words}</text></svg>'
    )


def main() -> None:
    names = list(workflows.index())
    rows = -(-len(names) // COLUMNS)
    style = f"body{{margin:0;font-size:0;line-height:0;width:{WIDTH * COLUMNS}px}}"
    page = f"<meta charset=utf-8><style>{style}</style>" + "".join(map(card, names))
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "page.html").write_text(page, encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--screenshot={folder}/all.png"]
        command += [f"--window-size={WIDTH * COLUMNS},{HEIGHT * rows}", f"{folder}/page.html"]
        subprocess.run(command, check=True, capture_output=True)
        whole = Image.open(io.BytesIO((Path(folder) / "all.png").read_bytes())).convert("RGB")
    workflows.PICTURES.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        x, y = number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT
        cut = whole.crop((x, y, x + WIDTH, y + HEIGHT))
        cut.save(workflows.PICTURES / f"{name}.jpg", quality=82, optimize=True)


if __name__ == "__main__":
    main()
