from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryFile
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply
from wanmetal_handler.failure import JobError
from wanmetal_handler.limit import Limit
from wanmetal_handler.output import deliver as deliver_within
from wanmetal_handler.settings import Settings


def deliver(data: bytes, filename: str, job: str, settings: Settings) -> str:
    with closing(Limit(60)) as limit, TemporaryFile() as video:
        video.write(data)
        video.flush()
        name = f"{job}.{filename.rpartition('.')[2].lower()}"
        return deliver_within(video, name, settings, limit, {}, settings.inline_mb * 1e6)


REFUSAL = b"<Error><Code>%s</Code><Message>no, s3cret</Message></Error>"
BUCKET: dict[str, Any] = {
    "bucket_access_key_id": "key-id",
    "bucket_secret_access_key": "s3cret",
    "bucket_name": "videos",
    "bucket_region": "eu-west-1",
    "link_hours": 2,
}
PART = 5 * 1024 * 1024


@contextmanager
def storage(*refusals: tuple[int, bytes]) -> Iterator[tuple[Settings, dict[str, Any]]]:
    """An S3 service that refuses the first requests."""
    told: dict[str, Any] = {"requests": [], "parts": {}, "refusals": list(refusals)}

    def answer(request: Request) -> None:
        data = body(request)
        told["requests"].append((request.command, request.path.partition("&X-Amz")[0]))
        told["auth"], told["type"] = request.headers["Authorization"], request.headers.get("Content-Type")
        status, said = told["refusals"].pop(0) if told["refusals"] else (200, b"")
        if status == 200 and request.path.endswith("?uploads"):
            said = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
        elif status == 200 and request.command == "POST":
            said = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        elif status == 200:
            told["parts"][request.path] = data
        reply(request, said, status, "application/xml", headers={"ETag": '"x"'})

    with hosting(answer) as url:
        yield Settings(bucket_endpoint_url=url, **BUCKET), told


def test_a_video_goes_to_the_bucket_and_a_signed_link_comes_back() -> None:
    with storage() as (bucket, told):
        link = deliver(b"video", "x_00001_.MP4", "job-1", bucket)
        assert told["requests"] == [("PUT", "/videos/job-1.mp4")]
        assert told["type"] == "video/mp4"
        assert b"video" in told["parts"]["/videos/job-1.mp4"]
        assert "key-id" in told["auth"]
        assert "eu-west-1" in told["auth"]
        assert link.startswith(f"{bucket.bucket_endpoint_url}/videos/job-1.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256")
        assert "X-Amz-Expires=7200" in link
        assert "s3cret" not in link


def test_a_large_video_goes_in_parts() -> None:
    video = bytes(range(256)) * (2 * PART // 256 + 100)
    with storage() as (bucket, told):
        deliver(video, "x.mp4", "job-1", bucket)
        sent = sorted(told["parts"].items(), key=lambda item: item[0].partition("partNumber=")[2])
        assert b"".join(data for _, data in sent) == video
        assert len(sent) > 1


def test_a_refusal_that_passes_is_tried_again() -> None:
    with storage((503, REFUSAL % b"SlowDown"), (500, REFUSAL % b"InternalError")) as (bucket, told):
        deliver(b"video", "x.mp4", "job-1", bucket)
        assert len(told["requests"]) == 3


@pytest.mark.parametrize(
    ("refusal", "code"),
    [((403, REFUSAL % b"AccessDenied"), "AccessDenied"), ((404, REFUSAL % b"NoSuchBucket"), "NoSuchBucket")],
)
def test_a_refusal_is_told_by_its_code_alone(refusal: tuple[int, bytes], code: str) -> None:
    with storage(*[refusal] * 9) as (bucket, _), pytest.raises(JobError) as caught:
        deliver(b"video", "x.mp4", "job-1", bucket)
    assert str(caught.value) == f"the bucket did not take the file: {code}"
    assert caught.value.kind == "bucket"


def test_a_service_that_is_not_there() -> None:
    with storage() as (bucket, _):
        pass
    with pytest.raises(JobError, match="the bucket did not take the file: "):
        deliver(b"video", "x.mp4", "job-1", bucket)


def test_without_a_bucket_the_video_is_in_the_answer() -> None:
    text = deliver(b"video", "x.mp4", "job-1", Settings(inline_mb=0.000005))
    assert text == f"data:video/mp4;base64,{base64.b64encode(b'video').decode()}"
    assert deliver(b"", "x.webm", "job-1", Settings(inline_mb=0.000005)) == "data:video/webm;base64,"


def test_a_video_that_is_too_large_for_an_answer() -> None:
    with pytest.raises(JobError, match=r"the output has 2\.0 MB, and an answer holds at most 1 MB: set up a bucket"):
        deliver(bytes(2_000_000), "x.mp4", "job-1", Settings(inline_mb=1))
