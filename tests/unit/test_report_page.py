"""The page of verify: what a host says is text in it, and nothing in it needs the network."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report_page import (
    MOST_RENDERS,
    report_page,
    with_renders,
)

NOW = "2026-11-27 16:00:00"
HOSTILE = (
    "</style></title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}{% raw %} javascript:x &amp;"
)
REPORT: dict[str, Any] = {
    "host": "gpu1",
    "current": "0.33.0-b760b7fe8d",
    "previous": "0.32.0-aaaaaaaaaa",
    "release": {"comfyui": "0.33.0", "variant": "wan", "lane": "cu128"},
    "verified": {"release": "0.33.0-b760b7fe8d"},
    "units": {
        "comfyui.service": {
            **{"active": "active", "sub": "running", "enabled": "enabled", "restarts": 2, "memory_bytes": 10**9},
            "since": "Sun 2026-11-22 08:38:51 UTC",
        }
    },
    "services": {"comfyui.service": "HTTP status 503"},
    "sockets": [{"address": "127.0.0.1", "port": 8188, "unit": "comfyui.service", "command": "python", "pid": 1}],
    "versions": {"comfyui": "0.33.0", "torch": "2.10.0+cu128"},
    "devices": [{"name": "cuda:0 NVIDIA L4", "type": "cuda", "memory_bytes": 24 * 2**30}],
    "workers": {
        "comfyui.service": {"queue": 2, "last_job": {"id": "job-9", "status": "error", "finished": "2027-01-15"}}
    },
    "custom_nodes": {"KJNodes": {"commit": "f" * 40, "seconds": 1.5}},
    "workflows": {"Wan22-5B": []},
    "workflows_notes": ["workflow x: a later one"],
    "models": [{"path": "models/vae/a.safetensors", "bytes": 5 * 10**9, "problem": "it has 1 of 2 bytes"}],
    "attention": "SageAttention 2.2.0, 1.8 times as fast",
    "gpu": {"driver": {"loaded": "580.95.05"}},
    "canary": {
        **{"rendered": True, "reason": "", "seconds": 6.4},
        "workflow": {"name": "Native-TextToVideo-1.3B", "seconds": 41.5, "details": {}},
    },
    "problems": ["comfyui-api.service is failed: see journalctl -u comfyui-api"],
}


class Page(HTMLParser):
    """Elements of a page, each with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["style"] else data


def page(*reports: dict[str, Any], missing: tuple[str, ...] = (), folder: Path = Path("/nowhere")) -> Page:
    made = Page(report_page(reports, missing, str(folder), NOW))
    assert made.open == []
    return made


def run(number: int) -> dict[str, Any]:
    return {
        "time": f"run {number}",
        "release": "r",
        "canary_s": 5.0 + number,
        "workflow": "W",
        "workflow_s": 40,
        "well": number != 1,
    }


def hostile(value: Any) -> Any:
    """The same with another text in each place, names of units and packs among them."""
    if isinstance(value, dict):
        named = value.keys() & {"comfyui.service", "KJNodes", "Wan22-5B", "torch"}
        return {HOSTILE if key in named else key: hostile(inner) for key, inner in value.items()}
    return [hostile(inner) for inner in value] if isinstance(value, list) else HOSTILE


def test_all_of_a_host_is_there(tmp_path: Path) -> None:
    (tmp_path / "canary-gpu1.mp4").write_bytes(b"video")
    made = page({**REPORT, "renders": [run(n) for n in range(3)]}, missing=("gpu2",), folder=tmp_path)
    for words in (
        *(
            "2 workers: 2 with problems",
            NOW,
            "0.33.0-b760b7fe8d",
            "0.32.0-aaaaaaaaaa",
            "2.10.0+cu128",
            "NVIDIA L4, 25.8 GB",
        ),
        *(
            "580.95.05",
            "SageAttention 2.2.0, 1.8 times as fast",
            "KJNodes 1.5 s",
            "1 file, 5.0 GB",
            "it has 1 of 2 bytes",
        ),
        *("127.0.0.1:8188", "HTTP status 503", "42 s", "comfyui-api.service is failed: see", "a later one", "1.0 GB"),
        *("Canary, seconds of the last 3 runs", "Workflow W, seconds of the last 3 runs", "run 1, r: 6 s, failed"),
        *("gpu2", "it could not be reached", "no report"),
    ):
        assert words in made.text, words
    [video] = [attributes for tag, attributes in made.elements if tag == "video"]
    assert video["src"] == "data:video/mp4;base64," + base64.b64encode(b"video").decode()
    assert sum(tag == "circle" for tag, _attributes in made.elements) == 6


def test_a_host_that_says_almost_nothing() -> None:
    made = page({"host": "gpu1", "problems": [], "canary": {}})
    assert "1 worker: all in order" in made.text
    assert not [tag for tag, _attributes in made.elements if tag in {"svg", "video"}]


@pytest.mark.parametrize("renders", [[], [run(0)], [run(0), run(1)], "x", [{"time": HOSTILE, "canary_s": True}]])
def test_what_a_host_says_is_text(renders: Any, tmp_path: Path) -> None:
    usual = page({**REPORT, "renders": [run(0), run(1)] if len(renders) == 2 else []}, missing=("x",))
    said = hostile(REPORT)
    said["canary"].update(rendered=True, reason="")
    one = {**said, "renders": renders if isinstance(renders, list) else []}
    made = page(one, missing=(HOSTILE,), folder=tmp_path)
    assert {tag for tag, _attributes in made.elements} <= {tag for tag, _attributes in usual.elements} | {"svg"}
    assert not [name for _tag, attributes in made.elements for name in attributes if name.startswith("on")]
    assert made.text.count("<script>alert(1)</script>") > 20
    assert "49" not in made.text


def test_it_needs_nothing_from_anywhere() -> None:
    made = page(REPORT, {**REPORT, "host": "gpu2", "problems": []})
    for tag, attributes in made.elements:
        assert tag not in {"script", "link", "iframe", "object", "base", "form"}
        assert "style" not in attributes
        for name in ("src", "href", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:video/mp4;base64,"))
    [policy] = [a["content"] or "" for tag, a in made.elements if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_it_can_be_read_by_everybody() -> None:
    made = page(REPORT, {**REPORT, "host": "gpu2"})
    assert ("html", {"lang": "en"}) in made.elements
    assert all(attributes.get("scope") for tag, attributes in made.elements if tag == "th")
    assert all(attributes.get("aria-label") for tag, attributes in made.elements if tag in {"svg", "video"})
    names = [attributes["id"] for _tag, attributes in made.elements if "id" in attributes]
    assert len(names) == len(set(names))
    labels = {attributes["aria-labelledby"] for _tag, attributes in made.elements if "aria-labelledby" in attributes}
    links = {(attributes["href"] or "")[1:] for tag, attributes in made.elements if tag == "a"}
    assert labels | links <= set(names)


def test_renders_are_kept_from_run_to_run(tmp_path: Path) -> None:
    path = tmp_path / "report-gpu1.json"
    for number in range(MOST_RENDERS + 2):
        path.write_text(json.dumps(with_renders(REPORT, str(path), f"t{number}")))
    renders = json.loads(path.read_text())["renders"]
    assert [one["time"] for one in renders] == [f"t{number}" for number in range(2, MOST_RENDERS + 2)]
    assert renders[0]["workflow_s"] == 41.5
    failed = with_renders({**REPORT, "canary": {"rendered": True, "reason": "black", "seconds": 1.0}}, str(path), "now")
    assert failed["renders"][-1] == {"time": "now", "release": REPORT["current"], "canary_s": 1.0, "well": False}
    assert with_renders({**REPORT, "canary": {}}, str(path), "now")["renders"] == renders


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"renders": 3}', '{"renders": [3]}'])
def test_an_earlier_report_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    assert [one["time"] for one in with_renders(REPORT, str(path), "now")["renders"]] == ["now"]
