"""Where the video goes: to a bucket, or into the answer."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .failure import JobError

_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif", "webp": "image/webp"}


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 service. Without an endpoint there is none."""

    endpoint: str
    key_id: str
    secret: str
    name: str
    region: str
    link_hours: int

    @property
    def secrets(self) -> list[str]:
        """What must not be shown."""
        return [text for text in (self.secret, self.key_id) if text]

    @cached_property
    def _client(self) -> Any:
        import boto3  # it takes a third of a second, and not everybody has a bucket
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            region_name=self.region,
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

    def put(self, key: str, data: bytes, kind: str) -> str:
        """Upload, in parts where it is large, and return a link for it."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        place = {"Bucket": self.name, "Key": key}
        try:
            self._client.upload_fileobj(io.BytesIO(data), self.name, key, ExtraArgs={"ContentType": kind})
            link = self._client.generate_presigned_url("get_object", place, ExpiresIn=self.link_hours * 3600)
        except (Boto3Error, BotoCoreError, ClientError, ValueError) as error:
            cause = error.__cause__ or error.__context__ or error
            code = getattr(cause, "response", {}).get("Error", {}).get("Code") or type(cause).__name__
            raise JobError("bucket", f"the bucket did not take the video: {code}") from error
        return str(link)


def deliver(data: bytes, filename: str, job: str, bucket: Bucket | None, most_inline: int) -> str:
    """Return where the video is: a link, or a data: URI with all of it."""
    suffix = filename.rpartition(".")[2].lower()
    kind = _TYPES.get(suffix, "application/octet-stream")
    if bucket:
        return bucket.put(f"{job}.{suffix}", data, kind)
    if len(data) > most_inline:
        raise JobError(
            "output",
            f"the video has {len(data) / 1e6:.1f} MB, and an answer holds at most {most_inline / 1e6:g} MB: "
            "set up a bucket, or render fewer or smaller frames",
        )
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
