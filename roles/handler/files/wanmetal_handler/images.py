"""The image of a request: fetched or decoded, proven to be one, and made upright."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Sequence

from PIL import Image, ImageOps, UnidentifiedImageError

from .failure import JobError
from .fetch import Network, fetch

_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA = re.compile(r"data:(image/[\w.+-]+)?(;[\w=+.-]+)*;base64,", re.IGNORECASE)


def load(text: str, *, most_bytes: int, most_pixels: int, seconds: float, allowed: Sequence[Network] = ()) -> bytes:
    """Return the image that a request names or holds, as a PNG without metadata."""
    if re.match(r"https?://", text, re.IGNORECASE):
        data = fetch(text, most_bytes=most_bytes, seconds=seconds, allowed=allowed)
    else:
        data = _decoded(text, most_bytes)
    return upright(data, most_pixels)


def _decoded(text: str, most_bytes: int) -> bytes:
    head = _DATA.match(text[:200])
    if not head and text[:5].lower() == "data:":
        raise JobError("image", "the data: URI of the image must hold base64: data:image/png;base64,…")
    body = re.sub(r"\s+", "", text[head.end() if head else 0 :])
    if len(body) * 3 // 4 > most_bytes + 2:
        raise JobError("image", f"the image is larger than {most_bytes / 1e6:g} MB")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise JobError("image", "the image is neither an http(s) address nor base64") from error


def upright(data: bytes, most_pixels: int) -> bytes:
    """Decode all of an image, turn it as its EXIF data says, and give it as PNG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _assert_size(image, most_pixels)
                # Transparency becomes black otherwise, whatever lies under it.
                picture = ImageOps.exif_transpose(image).convert("RGBA")
                ground = Image.new("RGBA", picture.size, "white")
                ground.alpha_composite(picture)
                result = io.BytesIO()
                ground.convert("RGB").save(result, "PNG", compress_level=1)
    except UnidentifiedImageError as error:
        raise JobError("image", f"the image is none: it has to be {', '.join(_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise JobError("image", f"the image is too large; {_most(most_pixels)}") from error
    except JobError:
        raise
    except Exception as error:  # a decoder given damaged data fails in many ways
        raise JobError("image", f"the image is damaged: {type(error).__name__}") from error
    return result.getvalue()


def _assert_size(image: Image.Image, most: int) -> None:
    if not 0 < image.width * image.height <= most:
        raise JobError("image", f"the image has {image.width}x{image.height} pixels; {_most(most)}")


def _most(pixels: int) -> str:
    return f"at most {pixels / 1e6:g} million are taken"
