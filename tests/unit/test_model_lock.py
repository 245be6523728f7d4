"""The catalogue against what the Hub states: what is filled in, what contradicts, and what is left alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks import models as model_lock
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.models import LockError, Place, Stated
from ansible_collections.wanmetal.comfyui.tests.origin.origin import Blob, Fault, Origin
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

HUB = "https://huggingface.co"
PIN = "1" * 40
OLD, NEW = "a" * 64, "b" * 64
SHIPPED = Path(__file__).resolve().parents[2] / "files/locks/models.yml"


def entry(*urls: str, size: int | None = None, sha256: str | None = None) -> dict[str, Any]:
    return {"urls": list(urls), "bytes": size, "sha256": sha256}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"{HUB}/own/repo/resolve/main/a/b.pt", [Place("own/repo", "main", "a/b.pt")]),
        (f"{HUB}/own/repo/resolve/{PIN}/a%20b.pt?download=true", []),
        (f"{HUB}/own/repo/resolve/{PIN}/a%20b.pt", [Place("own/repo", PIN, "a b.pt")]),
        (f"{HUB}/own/repo/blob/main/a.pt", []),
        ("https://github.com/own/repo/resolve/main/a.pt", []),
    ],
)
def test_a_place_is_read_from_an_address(url: str, expected: list[Place]) -> None:
    assert model_lock.places(entry(url)) == expected


def test_a_repository_and_revision_is_asked_once() -> None:
    files = {
        "one": entry(f"{HUB}/own/repo/resolve/main/1.pt", f"{HUB}/other/copy/resolve/main/1.pt"),
        "two": entry(f"{HUB}/own/repo/resolve/main/2.pt"),
        "again": entry(f"{HUB}/own/repo/resolve/main/2.pt"),
        "pinned": entry(f"{HUB}/own/repo/resolve/{PIN}/1.pt"),
    }
    assert model_lock.questions(files) == {
        ("own/repo", "main"): ["1.pt", "2.pt"],
        ("other/copy", "main"): ["1.pt"],
        ("own/repo", PIN): ["1.pt"],
    }
    assert model_lock.form(["a b", "c"]) == b"paths=a+b&paths=c"


def test_the_shipped_catalogue_asks_few_questions() -> None:
    asked = model_lock.questions(yaml.safe_load(SHIPPED.read_text())["files"])
    assert sum(map(len, asked.values())) > 90
    assert sum(map(len, asked.values())) > 3 * len(asked), "many files a request"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"type": "file", "path": "a", "size": 7, "lfs": {"oid": OLD}}, {Place("r", "m", "a"): Stated(7, OLD)}),
        # Outside of LFS there is a git hash only, and xetHash is none of the content.
        ({"type": "file", "path": "a", "size": 7, "oid": "1" * 40}, {Place("r", "m", "a"): Stated(7, None)}),
        ({"type": "file", "path": "a", "size": 7, "xetHash": OLD}, {Place("r", "m", "a"): Stated(7, None)}),
        ({"type": "directory", "path": "a", "size": 0}, {}),
        ("nonsense", {}),
    ],
)
def test_an_answer_is_read(item: object, expected: dict[Place, Stated]) -> None:
    assert model_lock.read("r", "m", [item]) == expected


ONE, COPY = f"{HUB}/own/repo/resolve/main/1.pt", f"{HUB}/other/copy/resolve/main/1.pt"
IN_ONE, IN_COPY = Place("own/repo", "main", "1.pt"), Place("other/copy", "main", "1.pt")


@pytest.mark.parametrize(
    ("known", "stated", "fill", "finding"),
    [
        (entry(ONE), {IN_ONE: Stated(7, OLD)}, {"bytes": 7, "sha256": OLD}, ""),
        (entry(ONE, size=7), {IN_ONE: Stated(7, OLD)}, {"sha256": OLD}, ""),
        (entry(ONE, size=7, sha256=OLD), {IN_ONE: Stated(7, OLD)}, {}, ""),
        (entry(ONE, size=7, sha256=OLD), {IN_ONE: Stated(7, None)}, {}, ""),
        (entry(ONE, size=7, sha256=OLD), {IN_ONE: Stated(8, NEW)}, {}, f"sha256 is {OLD} here, and own/repo at main"),
        (entry(ONE, size=7), {IN_ONE: Stated(8, NEW)}, {}, "bytes is 7 here, and own/repo at main states 8"),
        (entry(ONE, sha256=OLD), {IN_ONE: Stated(8, NEW)}, {}, f"sha256 is {OLD} here"),
        (entry(ONE), {}, {}, "own/repo at main has no 1.pt"),
        (entry(ONE, COPY), {IN_ONE: Stated(7, OLD), IN_COPY: Stated(7, NEW)}, {}, "its addresses state different"),
        (entry(ONE, COPY), {IN_ONE: Stated(7, OLD), IN_COPY: Stated(7, OLD)}, {"bytes": 7, "sha256": OLD}, ""),
    ],
)
def test_what_is_known_is_compared_and_never_replaced(
    known: dict[str, Any], stated: dict[Place, Stated], fill: dict[str, Any], finding: str
) -> None:
    verdict = model_lock.compare({"it": known}, stated)
    assert verdict.fill == ({"it": fill} if fill else {})
    assert len(verdict.findings) == bool(finding)
    assert all(text.startswith("it: ") and finding in text for text in verdict.findings)


def test_what_was_not_answered_is_no_finding_of_its_own() -> None:
    files = {"one": entry(ONE), "elsewhere": entry("https://github.com/a/b/c.pt")}
    verdict = model_lock.compare(files, {}, [("own/repo", "main")])
    assert (verdict.fill, verdict.findings, verdict.unasked) == ({}, [], ["elsewhere"])


CATALOGUE = f"""\
# comment
sets:
  one: {{files: [one]}}

files:
  # about one
  one:
    name: 1.pt
    urls:
      - {ONE}
    bytes: null
    about_bytes: 900
    sha256: null  # nobody knows
    task: i2v

  two:
    bytes: 5
    sha256: null
    note: it's
"""


def test_an_edit_touches_nulls_and_nothing_else() -> None:
    after = model_lock.edit(CATALOGUE, {"one": {"bytes": 7, "sha256": OLD}, "two": {"sha256": NEW}})
    assert after == CATALOGUE.replace("bytes: null\n    about_bytes: 900\n", "bytes: 7\n").replace(
        "null  # nobody knows", f"{OLD}  # nobody knows"
    ).replace("sha256: null\n", f"sha256: {NEW}\n")
    assert model_lock.edit(CATALOGUE, {}) == CATALOGUE


@pytest.mark.parametrize("fill", [{"three": {"bytes": 7}}, {"two": {"bytes": 7}}])
def test_an_edit_without_a_place_is_refused(fill: dict[str, dict[str, int | str]]) -> None:
    with pytest.raises(LockError, match=f"no place was found for {next(iter(fill))} .bytes."):
        model_lock.edit(CATALOGUE, fill)


def test_every_null_of_the_shipped_catalogue_can_be_filled() -> None:
    text = SHIPPED.read_text()
    files = yaml.safe_load(text)["files"]
    stated = {
        place: Stated(known["bytes"] or 7, known["sha256"] or OLD)
        for known in files.values()
        for place in model_lock.places(known)
    }
    verdict = model_lock.compare(files, stated)
    assert verdict.findings == []
    after = yaml.safe_load(model_lock.edit(text, verdict.fill))
    assert after["sets"] == yaml.safe_load(text)["sets"]
    for id_, known in files.items():
        filled = verdict.fill.get(id_, {})
        expected = {key: value for key, value in known.items() if key != "about_bytes" or "bytes" not in filled}
        assert after["files"][id_] == expected | filled


# The module


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


def lock(origin: Origin, catalogue: Path, check: bool = False, **more: Any) -> dict[str, Any]:
    arguments = {
        "src": str(catalogue),
        "dest": str(catalogue),
        "files": yaml.safe_load(catalogue.read_text())["files"],
        "mirrors": [{"prefix": HUB, "replacement": origin.hub}],
        "tries": 2,
        "pause": 0.01,
    }
    return run_module("model_lock", arguments | more, check)


def written(folder: Path, blobs: list[Blob], known: dict[str, dict[str, Any]] | None = None) -> Path:
    text = "sets: {}\n\nfiles:\n"
    for number, blob in enumerate(blobs):
        fields = {"bytes": "null", "sha256": "null", **(known or {}).get(blob.name, {})}
        repository = "own/repo" if number < 2 else "own/other"
        text += f"  {blob.name}:\n    urls: [{HUB}/{repository}/resolve/main/deep/{blob.name}]\n"
        text += "".join(f"    {key}: {value}\n" for key, value in fields.items())
    path = folder / "models.yml"
    path.write_text(text)
    return path


def test_the_module_fills_and_checks_again(origin: Origin, tmp_path: Path) -> None:
    blobs = [origin.add(Blob(f"{number}.pt", 1000 + number)) for number in range(3)]
    catalogue = written(tmp_path, blobs, {"1.pt": {"sha256": OLD}})
    before = catalogue.read_text()
    seen = lock(origin, catalogue, check=True, tokens={origin.hub: "hf_secret"})
    assert seen["changed"]
    assert catalogue.read_text() == before == seen["diff"]["before"]
    assert [item.authorization for item in origin.seen] == ["Bearer hf_secret"] * 2
    assert "hf_secret" not in str(seen)
    assert (seen["requests"], len(origin.seen)) == (2, 2), "one request for each repository"
    first = lock(origin, catalogue)
    assert catalogue.read_text() == seen["diff"]["after"] == first["diff"]["after"]
    assert first["filled"] == [f"{n}.pt: bytes {1000 + n}, sha256 {blobs[n].sha256}" for n in (0, 2)]
    assert [finding.partition(" here")[0] for finding in first["findings"]] == [f"1.pt: sha256 is {OLD}"]
    files = yaml.safe_load(catalogue.read_text())["files"]
    assert (files["1.pt"]["sha256"], files["1.pt"]["bytes"]) == (OLD, None), "nothing of what is in doubt is taken"
    again = lock(origin, catalogue)
    assert (again["changed"], again["filled"], again["findings"]) == (False, [], first["findings"])


def test_one_repository_that_does_not_answer_leaves_the_others(origin: Origin, tmp_path: Path) -> None:
    blobs = [origin.add(Blob(f"{number}.pt", 1000 + number)) for number in range(3)]
    catalogue = written(tmp_path, blobs)
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    origin.fail(Fault("status", "api", 9, 401, "repo", headers=gated))
    done = lock(origin, catalogue)
    assert [line.partition(":")[0] for line in done["filled"]] == ["2.pt"]
    (finding,) = done["findings"]
    assert finding.startswith("own/repo at main: ")
    assert "a token for 127.0.0.1" in finding


def test_what_passes_is_asked_again(origin: Origin, tmp_path: Path) -> None:
    catalogue = written(tmp_path, [origin.add(Blob("0.pt", 10))])
    origin.fail(Fault("status", "api", 1, 503))
    assert lock(origin, catalogue)["findings"] == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", "api", 99, 429, headers={"Retry-After": "300"}), "limits the rate"),
        (Fault("reset", "api", 99), "no connection with 127.0.0.1"),
    ],
)
def test_a_host_that_does_not_answer_is_named_once(origin: Origin, tmp_path: Path, fault: Fault, says: str) -> None:
    catalogue = written(tmp_path, [origin.add(Blob(f"{number}.pt", 10)) for number in range(3)])
    before = catalogue.read_text()
    origin.fail(fault)
    failed = lock(origin, catalogue)
    assert failed["failed"]
    assert says in failed["msg"]
    assert "Nothing was written" in failed["msg"]
    assert len(origin.seen) <= 2
    assert catalogue.read_text() == before


def test_no_way_to_the_host_is_said_kindly(origin: Origin, tmp_path: Path) -> None:
    catalogue = written(tmp_path, [Blob("0.pt", 10)])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mirrors = [{"prefix": HUB, "replacement": f"http://127.0.0.1:{closed.getsockname()[1]}"}]
        failed = lock(origin, catalogue, mirrors=mirrors)
    assert "cannot be looked up: no connection with 127.0.0.1" in failed["msg"]
    assert "wanmetal_mirrors" in failed["msg"]
