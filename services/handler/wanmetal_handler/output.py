"""What a job has made: what it is like, by the file itself, and where it goes."""

from __future__ import annotations

import base64
import mimetypes
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from . import isolated, media
from .addresses import Network
from .failure import JobError
from .limit import Limit
from .settings import Settings

_MEMORY = 400_000_000  # ten threads send the parts
_PART = 8 * 1024**2  # boto3's
# Far more boxes, and times of frames, than there are up to the end of the first video: packs write what they want.
_MOST_BOXES, _DEEPEST, _MOST_TIMES = 10_000, 8, 1_000_000


def measured(data: bytes | mmap.mmap, filename: str) -> dict[str, Any]:
    """Measure the first video track of an MP4 file; of others nothing is known."""
    names = ("width", "height", "num_frames", "frame_rate", "duration")
    if not filename.lower().endswith((".mp4", ".mov")):
        return dict.fromkeys(names)
    boxes: dict[bytes, memoryview] = {}
    try:
        for number, (name, body) in enumerate(_boxes(memoryview(data))):
            if number == _MOST_BOXES:
                break
            if name == b"trak":
                boxes = {}
            boxes[name] = body
            if name == b"stts" and bytes(boxes[b"hdlr"][8:12]) == b"vide":
                (entries,) = struct.unpack_from(">I", body, 4)
                if entries > _MOST_TIMES:
                    break
                pairs = list(struct.iter_unpack(">II", body[8 : 8 + 8 * entries]))
                if len(pairs) != entries:
                    break
                frames = sum(count for count, _unused in pairs)
                (scale,) = struct.unpack_from(">I", boxes[b"mdhd"], 20 if boxes[b"mdhd"][0] == 1 else 12)
                seconds = sum(count * delta for count, delta in pairs) / scale
                size = (side >> 16 for side in struct.unpack_from(">II", boxes[b"tkhd"], len(boxes[b"tkhd"]) - 8))
                return dict(zip(names, (*size, frames, round(frames / seconds, 3), round(seconds, 3)), strict=True))
    except (struct.error, LookupError, ZeroDivisionError) as error:
        raise JobError("output", "the video is damaged") from error
    raise JobError("output", "there is no MP4 video in it, or it is cut off")


def _boxes(data: memoryview, depth: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """All boxes of an MP4 file, those inside of others after them."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        end = at + size if size else len(data)
        if not at + head <= end <= len(data):
            raise struct.error("cut off")
        yield name, data[at + head : end]
        if name in {b"moov", b"trak", b"mdia", b"minf", b"stbl"} and depth < _DEEPEST:
            yield from _boxes(data[at + head : end], depth + 1)
        at = end


def content(video: BinaryIO) -> bytes | mmap.mmap:
    """What is in a file, without all of it in memory."""
    return mmap.mmap(video.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(video.fileno()).st_size else b""


def deliver(
    file: BinaryIO, filename: str, settings: Settings, limit: Limit, bucket: Mapping[str, str], room: float
) -> str:
    """Return where a file is: a link into the bucket, or without one a data: URI with all of it."""
    size = os.fstat(file.fileno()).st_size
    kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    place = {name: value for name, value in vars(settings).items() if name.startswith("bucket_")} | {**bucket}
    if place["bucket_endpoint_url"]:
        # An address that a caller names is checked as that of an image is.
        allowed = tuple(settings.image_allow) if bucket else None
        try:
            given = (f"/proc/{os.getpid()}/fd/{file.fileno()}", kind, filename, place, settings.link_hours, allowed)
            return isolated.run(limit, limit.left() + 1, _MEMORY, "put", *given).decode()
        except (TimeoutError, ChildProcessError) as error:
            raise JobError("bucket", "the bucket did not take the file: what sent it has died") from error
    if size > room:
        raise JobError(
            "output",
            f"the output has {size / 1e6:.1f} MB, and an answer holds at most {settings.inline_mb:g} MB: "
            "set up a bucket, or render fewer or smaller frames",
        )
    return f"data:{kind};base64,{base64.b64encode(content(file)).decode()}"


def put(
    path: str, kind: str, name: str, bucket: dict[str, Any], hours: float, allowed: Sequence[Network] | None
) -> bytes:
    """Put a file into the bucket, and return a link to it."""
    from boto3.exceptions import Boto3Error
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import BotoCoreError, ClientError

    place = {"Bucket": bucket["bucket_name"], "Key": name}
    if allowed is not None:
        media.guard(allowed)
    try:
        client, credentials = _made(bucket["bucket_endpoint_url"], bucket["bucket_region"])
        credentials.access_key = bucket["bucket_access_key_id"]
        credentials.secret_key = bucket["bucket_secret_access_key"]
        # In parts, where it is large, and those by several threads, which take longer to begin than a small file.
        how = TransferConfig(use_threads=Path(path).stat().st_size > _PART)
        client.upload_file(path, *place.values(), ExtraArgs={"ContentType": kind}, Config=how)
        seconds = int(hours * 3600)
        return str(client.generate_presigned_url("get_object", place, ExpiresIn=seconds)).encode()
    except (Boto3Error, BotoCoreError, ClientError, ValueError) as error:
        cause = error.__cause__ or error.__context__ or error
        code = getattr(cause, "response", {}).get("Error", {}).get("Code") or type(cause).__name__
        raise JobError("bucket", f"the bucket did not take the file: {code}") from error


def prepare(settings: Settings) -> None:
    """Load what ``put`` needs and make its client, which takes a third of a second. Not everybody has a bucket."""
    if settings.bucket_endpoint_url:
        with suppress(ValueError):  # the address is wrong, which the first file will say
            _made(settings.bucket_endpoint_url, settings.bucket_region)


@cache
def _made(endpoint: str, region: str) -> tuple[Any, Any]:
    """Return a client of a bucket, and its credentials, which have no secret yet."""
    import boto3
    from botocore.config import Config

    session = boto3.Session("-", "-", region_name=region)
    client = session.client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            signature_version="s3v4",
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 4},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",  # many services know no other
            response_checksum_validation="when_required",
        ),
    )
    return client, session.get_credentials()
