"""Draw the example pictures and the example video of files/workflows/input. Run it with ComfyUI's Python."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parents[2] / "files/workflows/input"
WIDTH, HEIGHT, FRAMES, FPS = 832, 480, 81, 16


def scene(progress: float) -> Image.Image:
    """A kite above hills; it rises while ``progress`` goes from 0 to 1."""
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(picture)
    for row in range(HEIGHT):
        share = row / HEIGHT
        draw.line([(0, row), (WIDTH, row)], (int(110 + 120 * share), int(165 + 60 * share), int(225 - 30 * share)))
    for shift, height, colour in ((0, 330, (92, 140, 96)), (2.4, 385, (64, 112, 70))):
        edge = [(x, height + 34 * np.sin(x / 150 + shift)) for x in range(0, WIDTH + 8, 8)]
        draw.polygon([(0, HEIGHT), *edge, (WIDTH, HEIGHT)], colour)
    x, y = 180 + 400 * progress, 250 - 160 * progress + 12 * np.sin(progress * 12)
    tail = [(x - 6 * n, y + 60 + 9 * n + 7 * np.sin(n * 0.9 + progress * 20)) for n in range(14)]
    draw.line([(x, y), (120, HEIGHT)], (235, 235, 225), 1)
    draw.line(tail, (250, 214, 90), 4)
    draw.polygon([(x, y - 62), (x + 44, y), (x, y + 62), (x - 44, y)], (204, 44, 40))
    draw.polygon([(x, y - 62), (x + 44, y), (x, y)], (228, 92, 72))
    return picture


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    scene(0).save(FOLDER / "wanmetal-example.png", optimize=True)
    scene(1).save(FOLDER / "wanmetal-example-end.png", optimize=True)
    with av.open(str(FOLDER / "wanmetal-example.mp4"), "w") as file:
        stream = file.add_stream("h264", rate=Fraction(FPS), options={"crf": "28", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_image(scene(number / (FRAMES - 1)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


if __name__ == "__main__":
    main()
