"""Images, videos and audio of a request: fetched or decoded, checked, and made anew, in a process that can be killed.

What a stranger names is fetched from public addresses only. The name is resolved once, and the connection goes to the
address that was checked, so a name that answers differently the next time gains nothing. Redirects pass the same way.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import re
import socket
import ssl
import threading
import warnings
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

from PIL import Image, ImageOps, UnidentifiedImageError
from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationParseError
from urllib3.util import Timeout, parse_url

from . import isolated
from .addresses import Network, reachable
from .failure import JobError
from .inputs import MEDIA
from .limit import Limit
from .settings import Settings

_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w=+.-]+)*;base64,", re.IGNORECASE)
_MOST_REDIRECTS = 3
_CONNECT_S = 10.0
_HEADERS = {"User-Agent": "wanmetal", "Accept": "image/*, video/*, audio/*"}
_PIXEL_BYTES, _BASE_BYTES, _CODEC_BYTES = 24, 64_000_000, 600_000_000
_MOST_PACKETS = 500  # a second
_few = threading.BoundedSemaphore(2)  # more at a time could fill the memory
_CONTAINERS = {
    "mp4": rb"....ftyp",
    "matroska": rb"\x1aE\xdf\xa3",
    "gif": rb"GIF8[79]a",
    "wav": rb"RIFF....WAVE",
    "mp3": rb"ID3|\xff[\xe2-\xff]",
    "flac": rb"fLaC",
    "ogg": rb"OggS",
}
_SOUNDS = {"wav", "mp3", "flac", "ogg"}
_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "gif"}
_CODECS |= {"aac", "mp3", "mp3float", "opus", "vorbis", "flac"}


def load(kind: str, text: str, settings: Settings, limit: Limit) -> tuple[str, bytes]:
    """Return the medium that a request names or holds, and the ending of its name. An image becomes a PNG."""
    most_bytes = int(1e6 * (settings.video_mb if kind == "video" else settings.image_mb))
    most_pixels = int(settings.image_megapixels * 1e6)
    memory = _BASE_BYTES + 4 * most_bytes + _PIXEL_BYTES * most_pixels
    memory += _CODEC_BYTES if kind in {"video", "audio"} else 0
    given = (kind, text, most_bytes, most_pixels, settings.media_seconds, tuple(settings.image_allow))
    try:
        with _few:
            suffix, _unused, data = isolated.run(limit, settings.image_timeout, memory, "read", *given).partition(b"|")
    except TimeoutError as error:
        why = f"the {kind} was not fetched and decoded within {settings.image_timeout:g} s"
        raise JobError(kind, why) from error
    except ChildProcessError as error:
        raise JobError(kind, f"the {kind} needs more memory or time to be decoded than it may take") from error
    return suffix.decode(), data


def read(
    kind: str, text: str, most_bytes: int, most_pixels: int, most_seconds: float, allowed: Sequence[Network]
) -> bytes:
    """Do the work of ``load``, for as long as it takes."""
    try:
        fetched = re.match(r"https?://", text, re.IGNORECASE)
        data = _fetched(text, most_bytes, allowed) if fetched else _decoded(text, most_bytes)
        if kind in {"video", "audio"}:
            return b"|".join(remade(kind, data, most_pixels, most_seconds))
        return b"png|" + upright(data, most_pixels)
    except JobError as error:
        raise JobError(kind, str(error).replace("the image", f"the {kind}"), **error.details) from error


def remade(kind: str, data: bytes, most_pixels: int, most_seconds: float) -> tuple[bytes, bytes]:
    """Check a video or audio, and copy its streams into a file of the same kind, without anything else.

    The kind comes from the first bytes and not from a search, which would also find lists of other files to open.
    """
    import av  # not everybody has videos, and it takes 30 MB

    form = next((form for form, pattern in _CONTAINERS.items() if re.match(pattern, data[:64], re.DOTALL)), "")
    if not form or (kind == "audio") != (form in _SOUNDS or (form == "mp4" and data[8:11] == b"M4A")):
        raise JobError(kind, f"the {kind} is none: it has to be {MEDIA[kind]}")
    form = "mov" if data[4:12] == b"ftypqt  " else form
    result = io.BytesIO()
    try:
        with av.open(io.BytesIO(data), format=form) as source, av.open(result, "w", format=form) as target:
            wanted = {kind, "audio"}
            streams = [stream for stream in source.streams if stream.type in wanted][:2]
            if not any(stream.type == kind for stream in streams):
                raise JobError(kind, f"the {kind} has no stream of its kind")  # noqa: TRY301
            for stream in streams:
                codec = stream.codec_context.name
                if codec not in _CODECS and not codec.startswith("pcm_"):
                    raise JobError(kind, f"the {kind} is coded as {codec}; taken are {', '.join(sorted(_CODECS))}")  # noqa: TRY301
                if stream.type == "video" and stream.codec_context.width * stream.codec_context.height > most_pixels:
                    size = f"{stream.codec_context.width}x{stream.codec_context.height}"
                    most = f"at most {most_pixels / 1e6:g} million are taken"
                    raise JobError(kind, f"the {kind} has frames of {size} pixels; {most}")  # noqa: TRY301
            copies = {stream.index: target.add_stream_from_template(stream) for stream in streams}
            packets = dict.fromkeys(copies, 0)
            for packet in source.demux(streams):
                if packet.dts is None:
                    continue
                end, index = (packet.pts or packet.dts) + (packet.duration or 0), packet.stream.index
                packets[index] += 1
                lasts = float((end - (packet.stream.start_time or 0)) * packet.time_base)
                if lasts > most_seconds or packets[index] > most_seconds * _MOST_PACKETS:
                    raise JobError(kind, f"the {kind} lasts longer than {most_seconds:g} s")  # noqa: TRY301
                if packets[index] == 1 and not packet.decode():
                    packet.stream.codec_context.flush_buffers()
                packet.stream = copies[index]
                target.mux(packet)
            if not all(packets[stream.index] for stream in streams if stream.type == kind):
                raise JobError(kind, f"the {kind} is empty")  # noqa: TRY301
    except JobError:
        raise
    except MemoryError as error:
        raise JobError(kind, f"the {kind} needs more memory than it may take") from error
    except Exception as error:  # as with images
        raise _damaged(kind, error) from error
    if form == "mp4" and kind == "audio":
        form = "m4a"
    return ("mkv" if form == "matroska" else form).encode(), result.getvalue()


def prepare() -> None:
    """Load what Pillow loads with its first image of each kind."""
    for kind in _FORMATS:
        data = io.BytesIO()
        Image.new("RGB", (1, 1)).save(data, kind)
        upright(data.getvalue(), 1)


def upright(data: bytes, most_pixels: int) -> bytes:
    """Decode all of an image, turn it as its EXIF data says, and give it as PNG."""
    Image.MAX_IMAGE_PIXELS = None  # the limit is this one
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > most_pixels:
                most = f"at most {most_pixels / 1e6:g} million are taken"
                raise JobError("image", f"the image has {image.width}x{image.height} pixels; {most}")  # noqa: TRY301
            ImageOps.exif_transpose(image, in_place=True)
            picture: Image.Image = image
            if picture.mode.startswith("I"):  # grey of 16 bits, all of which is cut off to white otherwise
                picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            if picture.has_transparency_data:  # it becomes black otherwise, whatever lies under it
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            if picture.mode != "RGB":
                picture = picture.convert("RGB")
            picture.info = {}
            result = io.BytesIO()
            picture.save(result, "PNG", compress_level=1)
    except UnidentifiedImageError as error:
        raise JobError("image", f"the image is none: it has to be {', '.join(_FORMATS)}") from error
    except MemoryError as error:
        raise JobError("image", "the image needs more memory than it may take") from error
    except JobError:
        raise
    except Exception as error:  # a decoder given damaged data fails in many ways
        raise _damaged("image", error) from error
    return result.getvalue()


def _decoded(text: str, most_bytes: int) -> bytes:
    head = _DATA.match(text[:200])
    if not head and text[:5].lower() == "data:":
        raise JobError("image", "the data: URI of the image must hold base64: data:image/png;base64,…")
    body = re.sub(r"\s+", "", text[head.end() if head else 0 :])
    if len(body) * 3 // 4 > most_bytes + 2:
        raise _too_large(most_bytes)
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError as error:
        raise JobError("image", "the image is neither an http(s) address nor base64") from error


def _fetched(url: str, most_bytes: int, allowed: Sequence[Network]) -> bytes:
    guard(allowed)
    try:
        for _unused in range(_MOST_REDIRECTS + 1):
            parts = parse_url(url)
            if parts.scheme not in {"http", "https"} or not parts.host:
                raise _unfetched("only http and https addresses are")
            if parts.auth:
                raise _unfetched("its address holds a user name or a password")
            with _asked("GET", url, headers=_HEADERS, timeout=Timeout(connect=_CONNECT_S, read=None)) as answer:
                if moved := answer.get_redirect_location():
                    url = urljoin(url, moved)
                elif answer.status == 200:
                    return _whole(answer, most_bytes)
                else:
                    raise _unfetched(f"its host answered {answer.status}")
    except (HTTPError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise _unfetched(_WHY.get(type(cause), type(cause).__name__)) from error
    raise _unfetched(f"more than {_MOST_REDIRECTS} redirects")


def _asked(method: str, url: str, **given: Any) -> BaseHTTPResponse:
    return PoolManager().request(method, url, preload_content=False, redirect=False, retries=False, **given)


def _whole(answer: BaseHTTPResponse, most_bytes: int) -> bytes:
    data = bytearray()
    if int(answer.headers.get("Content-Length") or 0) > most_bytes:
        raise _too_large(most_bytes)
    for part in answer.stream(decode_content=False):
        data += part
        if len(data) > most_bytes:
            raise _too_large(most_bytes)
    return bytes(data)


def post(url: str, body: bytes, headers: dict[str, str], allowed: Sequence[Network]) -> bytes:
    """Send something to an address that a caller names, and return the status."""
    guard(allowed)
    with _asked("POST", url, body=body, headers=headers, timeout=_CONNECT_S) as answer:
        return str(answer.status).encode()


class NotPublicError(OSError):
    """A host that may not be connected to."""


def guard(allowed: Sequence[Network]) -> None:
    """Keep all of this process from addresses that are not allowed, whichever library asks."""
    resolve = socket.getaddrinfo

    def checked(*given: Any, **named: Any) -> Any:
        found = resolve(*given, **named)
        if not all(reachable(ipaddress.ip_address(str(at[4][0]).partition("%")[0]), allowed) for at in found):
            raise NotPublicError("this host is not on the public internet")
        return found

    socket.getaddrinfo = checked


_WHY: dict[type[BaseException], str] = {
    NotPublicError: "its host is not on the public internet",
    socket.gaierror: "the name of its host is not known",
    LocationParseError: "its address cannot be read",
    ConnectionRefusedError: "its host refuses connections",
    ConnectTimeoutError: "its host does not answer",
    ssl.SSLCertVerificationError: "the certificate of its host is not valid",
}


def _damaged(kind: str, error: Exception) -> JobError:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return JobError(kind, f"the {kind} is damaged: {why}")


def _unfetched(why: str) -> JobError:
    return JobError("image", f"the image cannot be fetched: {why}")


def _too_large(most_bytes: int) -> JobError:
    return JobError("image", f"the image is larger than {most_bytes / 1e6:g} MB")
