"""Workflows in the files that people have: requests, answers, pictures and videos."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleLookupError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.wanmetal.comfyui.plugins.lookup import workflow_file
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflow_files import NoWorkflowError, load, read

UI = {"nodes": [{"id": 1, "type": "Note"}], "links": []}
API = {"1": {"class_type": "EmptyImage", "inputs": {"width": 64}}}


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, body in [(b"IHDR", bytes(13)), *chunks, (b"IDAT", b'{"not": "this"}'), (b"IEND", b"")]:
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


def text(data: Any) -> bytes:
    return json.dumps(data).encode()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n "])
@pytest.mark.parametrize("graph", [UI, API])
def test_a_file_that_is_a_workflow(graph: dict[str, Any], mark: bytes) -> None:
    assert read(mark + text(graph)) == (graph, "")


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_a_file_of_powershell(coding: str) -> None:
    mark = b"\xfe\xff" if coding == "utf-16-be" else b""
    assert read(mark + text(UI).decode().encode(coding)) == (UI, "")


@pytest.mark.parametrize(
    ("whole", "graph", "where"),
    [
        ({"input": {"workflow": API, "images": []}}, API, "input.workflow"),
        ({"prompt": API, "client_id": "x"}, API, "prompt"),
        ({"input": {"prompt": json.dumps(API)}}, API, "input.prompt"),
        ({"output": API, "workflow": UI}, UI, "workflow"),
        ({"prompt": API, "extra_data": {"extra_pnginfo": {"workflow": UI}}}, UI, "extra_data.extra_pnginfo.workflow"),
        ([{"workflow": UI}], UI, "workflow"),
        ({"queue_running": [[0, "a", API, {}, ["1"]]]}, API, "queue_running.[2]"),
        (
            {"a": {"prompt": [0, "a", API, {"extra_pnginfo": {"workflow": UI}}, ["1"]], "outputs": {}}},
            UI,
            "a.prompt.[3].extra_pnginfo.workflow",
        ),
    ],
)
def test_a_workflow_inside_a_request(whole: Any, graph: dict[str, Any], where: str) -> None:
    assert read(b"\xef\xbb\xbf" + text(whole)) == (graph, where)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"workflow\0" + text(UI)),
        (b"zTXt", b"workflow\0\0" + zlib.compress(text(UI))),
        (b"iTXt", b"workflow\0\0\0\0\0" + text(UI)),
        (b"iTXt", b"workflow\0\1\0en\0flow\0" + zlib.compress(text(UI))),
    ],
)
def test_a_picture(chunk: tuple[bytes, bytes]) -> None:
    assert read(png((b"tEXt", b"prompt\0" + text(API)), chunk)) == (UI, "a picture's metadata")


@pytest.mark.parametrize(
    "data",
    [
        b'RIFF\0\0\0\0WEBPVP8 \xff\xfe{"EXIF\0\0MM\0*prompt:' + text(API) + b"\0workflow:" + text(UI) + b"\0",
        b"\0\0\0\x18ftypmp42" + bytes(range(256)) + b"\0\0\0\x01data\0" + text({"prompt": json.dumps(API)}),
        b"\x1aE\xdf\xa3webm COMMENT" + text({"workflow": UI, "prompt": API}) + b"\xff",
    ],
    ids=["webp", "mp4", "webm"],
)
def test_a_video_or_another_picture(data: bytes) -> None:
    graph, where = read(data)
    assert graph == (UI if b"nodes" in data else API)
    assert where == "the file's metadata"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "this is no JSON"),
        (b'{"input": {}}', "neither nodes nor class types"),
        (b"hello", "neither JSON nor a picture or a video"),
        (png(), "there is no workflow in a picture's metadata"),
        (png((b"zTXt", b"workflow\0\0broken")), "there is no workflow in a picture's metadata"),
        (b"\0\0\0\x18ftypmp42", "there is no workflow in the file's metadata"),
        (b"[" * 100_000, "this is no JSON"),
        (b'{"a":' * 100_000, "this is no JSON"),
        (b"\0" + b'{"a":' * 100_000, "there is no workflow in the file's metadata"),
        (b"\0" + b'{"a":x' * 1_000_000, "there is no workflow in the file's metadata"),
    ],
)
def test_a_file_without_one(data: bytes, message: str) -> None:
    with pytest.raises(NoWorkflowError, match=message):
        read(data)


def test_a_shipped_example_has_none() -> None:
    picture = Path(__file__).resolve().parents[2] / "files/workflows/input/wanmetal-example.png"
    with pytest.raises(NoWorkflowError):
        read(picture.read_bytes())


@pytest.mark.parametrize(("at", "found"), [(0, True), (70_000_000, True), (35_000_000, False)])
def test_of_a_large_video_its_ends_are_read(at: int, found: bool, tmp_path: Path) -> None:
    file = tmp_path / "large.mkv"
    with file.open("wb") as opened:
        opened.truncate(75_000_000)
        opened.seek(at)
        opened.write(b"\x1aE\xdf\xa3" + text({"workflow": UI}))
    assert len(load(file)) < 50_000_000
    if found:
        assert read(load(file)) == (UI, "the file's metadata")
    else:
        with pytest.raises(NoWorkflowError, match="there is no workflow in the file's metadata"):
            read(load(file))


def test_the_lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/plain.json").write_text(json.dumps(UI, indent=1))
    (tmp_path / "inside.json").write_bytes(b"\xef\xbb\xbf" + text({"input": {"workflow": API}}))
    (tmp_path / "picture.png").write_bytes(png((b"tEXt", b"workflow\0" + text(UI))))
    monkeypatch.chdir(tmp_path)
    lookup = workflow_file.LookupModule(loader=DataLoader())
    plain, inside, picture = lookup.run(["plain.json", str(tmp_path / "inside.json"), "picture.png"], {})
    assert plain == json.dumps(UI, indent=1)
    assert [json.loads(inside), json.loads(picture)] == [API, UI]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.json", "none.json is not on this machine"),
        ("hello.mp4", "hello.mp4: there is no workflow"),
        (".", "file"),
    ],
)
def test_the_lookup_names_what_it_cannot_read(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hello.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnsibleLookupError, match=said):
        workflow_file.LookupModule(loader=DataLoader()).run([name], {})
