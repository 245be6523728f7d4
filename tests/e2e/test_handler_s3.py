"""Videos of the handler on an S3 server that is not the tests' own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile

import boto3
import pytest
import requests
from wanmetal_handler import output
from wanmetal_handler.failure import JobError
from wanmetal_handler.limit import Limit
from wanmetal_handler.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Settings]:
    subprocess.run([PROJECT / "tools/venv", "s3"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = [str(PROJECT / ".venv/s3/bin/moto_server"), "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert requests.put(f"{url}/videos", timeout=5).status_code == 200
                    break
                except requests.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            yield Settings(
                bucket_endpoint_url=url,
                bucket_access_key_id="key-id",
                bucket_secret_access_key="s3cret",  # noqa: S106 (nobody's)
                bucket_name="videos",
            )
        finally:
            process.kill()


def deliver(video: bytes, filename: str, job: str, settings: Settings) -> str:
    with closing(Limit(60)) as limit, TemporaryFile() as file:
        file.write(video)
        file.flush()
        return output.deliver(file, f"{job}.{filename.rpartition('.')[2]}", settings, limit, {}, 1e7)


@pytest.mark.parametrize(("size", "parts"), [(1000, 1), (20_000_000, 3)])
def test_a_link_gives_the_video_that_was_put(bucket: Settings, size: int, parts: int) -> None:
    video = os.urandom(size)
    link = deliver(video, "x_00001_.mp4", f"job-{size}", bucket)
    answer = requests.get(link, timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"], answer.content == video) == (200, "video/mp4", True)
    assert answer.headers["ETag"].strip('"').partition("-")[2] == (str(parts) if parts > 1 else "")
    assert "s3cret" not in link


def test_a_bucket_that_is_not_there(bucket: Settings) -> None:
    other = Settings(**{**vars(bucket), "bucket_name": "other"})
    with pytest.raises(JobError, match="the bucket did not take the file: NoSuchBucket"):
        deliver(b"video", "x.mp4", "job", other)


def test_nothing_but_the_videos_is_there(bucket: Settings) -> None:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=bucket.bucket_endpoint_url, **keys)
    found = client.list_objects_v2(Bucket="videos")["Contents"]
    assert {entry["Key"] for entry in found} == {"job-1000.mp4", "job-20000000.mp4"}
    assert client.list_multipart_uploads(Bucket="videos").get("Uploads", []) == []
