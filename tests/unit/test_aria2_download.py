"""The module as its own process, and what an operator sees of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.action import aria2_download
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import exclusive
from ansible_collections.wanmetal.comfyui.tests.origin.house import House
from ansible_collections.wanmetal.comfyui.tests.origin.origin import Fault, Origin
from ansible_collections.wanmetal.comfyui.tests.trees import deep
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

TOKEN = "hf_very_secret_token"  # noqa: S105


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Origin() as origin:
        yield House(tmp_path, origin)


def download(house: House, *names: str, check: bool = False, **more: Any) -> dict[str, Any]:
    files = [
        {
            "name": name,
            "folder": "loras",
            "urls": [house.origin.hub_url(name)],
            "bytes": house.origin.blobs[name].size,
            "sha256": house.origin.blobs[name].sha256,
        }
        for name in names
    ]
    arguments = {"files": files, "dest": str(house.root), "state_dir": str(house.state), "reserve": "", "pause": 0.01}
    return run_module("aria2_download", arguments | more, check)


def test_check_mode_shows_the_plan_and_changes_nothing(house: House) -> None:
    blob = house.blob("a.safetensors")
    seen = download(house, blob.name, check=True)
    assert (seen["changed"], seen["bytes_missing"], seen["enough"]) == (True, blob.size, True)
    assert seen["diff"]["after"] == f"{house.path(blob)} 307 kB\n"
    assert not house.root.exists()
    assert house.origin.seen == []


def test_check_mode_tells_what_will_fail(house: House) -> None:
    blob = house.blob("rain.safetensors")
    house.origin.models[4] = [70]
    for number in (1, 2):
        house.origin.publish(number, blob)
    files = [{"civitai": 1}, {"civitai": 2}, {"civitai": 4}]
    notes = download(house, check=True, files=files, civitai_api=house.origin.hub)["notes"]
    assert any("civitai-1 and civitai-2 would all be" in note and "loras/rain.safetensors" in note for note in notes)
    assert any("civitai-4: 4 is the id of a model of CivitAI" in note for note in notes)
    assert len(notes) == 2


def test_a_run_changes_once(house: House) -> None:
    blob = house.blob("a.safetensors")
    done = download(house, blob.name)
    assert (done["changed"], done["fetched_bytes"]) == (True, blob.size)
    assert done["diff"]["after"] == f"{house.path(blob)} 307 kB\n"
    assert house.right(blob)
    again = download(house, blob.name)
    assert (again["changed"], again["diff"]) == (False, {"before": "", "after": ""})
    assert not download(house, blob.name, check=True)["changed"]


def test_the_umask_of_the_host_does_not_count(house: House) -> None:
    blob = house.blob("a.safetensors")
    before = os.umask(0o077)
    try:
        assert not download(house, blob.name).get("failed")
    finally:
        os.umask(before)
    assert (house.path(blob).stat().st_mode & 0o777, house.path(blob).parent.stat().st_mode & 0o777) == (0o644, 0o750)


def test_a_url_is_in_no_result(house: House) -> None:
    blob = house.blob("a.safetensors")
    assert house.origin.hub_url(blob.name) not in json.dumps(download(house, blob.name))
    signed = [{"name": "b.bin", "folder": "loras", "urls": [f"{house.origin.hub}/b.bin?token={TOKEN}"]}]
    failed = download(house, files=signed)
    assert "in its query (token=, not shown)" in failed["msg"]
    assert TOKEN not in json.dumps(failed)


def test_a_failure_names_each_file_and_keeps_the_others(house: House) -> None:
    good, bad = house.blob("good.safetensors"), house.blob("bad.safetensors")
    house.origin.fail(Fault("status", "hub", 9, 404, bad.name))
    failed = download(house, good.name, bad.name)
    assert failed["msg"].startswith("1 of 2 files could not be fetched: bad.safetensors: ")
    assert failed["changed"]
    assert house.right(good)


def test_a_second_run_says_which_one_it_waits_for(house: House) -> None:
    blob = house.blob("a.safetensors")
    with exclusive(house.state / LOCK):
        failed = download(house, blob.name)
    assert f"another download runs on this host (process {os.getpid()}, since " in failed["msg"]


def test_a_token_is_in_no_result_and_no_log(house: House, tmp_path: Path) -> None:
    gated = house.blob("gated.safetensors", token=TOKEN)
    tokens = {house.origin.hub: TOKEN}
    for check in (True, False):
        assert TOKEN not in json.dumps(download(house, gated.name, check=check, tokens=tokens))
    assert house.right(gated)
    other = house.blob("other.safetensors", token="hf_another")  # noqa: S106
    assert TOKEN not in json.dumps(download(house, gated.name, other.name, tokens=tokens))
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".safetensors")]
    assert written
    assert [path for path in written if TOKEN in path.read_text(errors="replace")] == []


# What is shown while it runs


class Display:
    """Takes what would be shown."""

    columns = 80

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, text: str, **_options: object) -> None:
        self.shown.append(text)


TOLD = {
    "phase": "fetching",
    "done": 5_000_000,
    "total": 10_000_000,
    "rate": 1_000_000,
    "files": 2,
    "files_done": 1,
    "failed": 0,
    "resting": 0,
    "verifying": 0,
    "moving": [{"name": "a.safetensors", "done": 1, "bytes": 2}],
}
LINE = " 50 %  5.0 MB of 10.0 MB  1.0 MB/s  5 s left  1/2 files  a.safetensors 50 %"


@pytest.mark.parametrize(
    ("terminal", "hosts", "expected"),
    [
        # A pipe gets a line now and then.
        (False, ["gpu1"], [f"gpu1: {LINE}", f"gpu1: {LINE}"]),
        # Several hosts would write over each other in a terminal.
        (True, ["gpu1", "gpu2"], [f"gpu1: {LINE}"] * 4),
    ],
)
def test_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, hosts: list[str], expected: list[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(aria2_download, "terminal", lambda: terminal)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    display = Display()
    screen = aria2_download.Screen(display, {"inventory_hostname": "gpu1", "ansible_play_hosts_all": hosts}, 20)
    for second in range(25):
        clock[0] = float(second)
        screen.show(TOLD)
    screen.clear()
    assert display.shown[: len(expected)] == expected
    assert len(display.shown) <= len(expected) + 1


def test_a_terminal_is_refreshed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aria2_download, "terminal", lambda: True)
    display = Display()
    screen = aria2_download.Screen(display, {"inventory_hostname": "gpu1", "ansible_play_hosts_all": ["gpu1"]}, 20)
    screen.show(TOLD)
    screen.show(TOLD)
    screen.clear()
    assert len(display.shown) == 3
    assert all(text.startswith("\r\033[Kgpu1: ") and "\n" not in text for text in display.shown[:2])
    assert len(display.shown[0]) < 90
    assert display.shown[2] == "\r\033[K"


def test_what_a_host_has_already_is_linked_and_not_fetched(house: House, tmp_path: Path) -> None:
    named, renamed, far = (house.blob(f"{name}.safetensors", 300_000 + number) for number, name in enumerate("abc"))
    old = tmp_path / "ComfyUI" / "models"
    (old / "loras" / "deep").mkdir(parents=True)
    there = {"loras/a.safetensors": named, "loras/deep/other-name.safetensors": renamed}
    for path, blob in there.items():
        (old / path).write_bytes(blob.data)
        (old / path).chmod(0o644)
    (old / "loops").symlink_to(old)
    (old / "circle.safetensors").symlink_to("circle.safetensors")
    # The size of one, and other bytes: only its sha256 tells.
    (old / "loras" / "c.safetensors").write_bytes(bytes(far.size))
    names = [blob.name for blob in (named, renamed, far)]
    with deep(old / "loras/deep", "d.safetensors"):
        seen = download(house, *names, check=True, existing=[str(old), str(tmp_path / "none")])
    assert {item["id"]: item["status"] for item in seen["files"]} == dict.fromkeys(names, "existing")
    assert (seen["changed"], seen["bytes_missing"]) == (True, 0)
    assert seen["notes"] == [f"there is no folder {tmp_path}/none with existing models here"]
    assert not house.root.exists()
    done = download(house, *names, existing=[str(old)])
    assert done["taken_over"] == [f"loras/{blob.name} is linked from {old}/{path}" for path, blob in there.items()]
    assert done["fetched_bytes"] == far.size
    assert all(house.right(blob) for blob in (named, renamed, far))
    assert all(house.path(blob).samefile(old / path) for path, blob in there.items())
    assert all((old / path).stat().st_mode & 0o777 == 0o644 for path in there)
    assert not download(house, *names, existing=[str(old)])["changed"]


def test_a_file_that_not_everybody_may_read_is_copied(house: House, tmp_path: Path) -> None:
    blob = house.blob("a.safetensors")
    old = tmp_path / "old"
    old.mkdir()
    (old / blob.name).write_bytes(blob.data)
    (old / blob.name).chmod(0o600)
    seen = download(house, blob.name, check=True, existing=[str(old)])
    assert seen["disks"][0]["needed"] == blob.size
    done = download(house, blob.name, existing=[str(old)])
    assert done["taken_over"] == [f"loras/{blob.name} is copied from {old}/{blob.name}"]
    assert (done["fetched_bytes"], house.right(blob)) == (0, True)
    assert not house.path(blob).samefile(old / blob.name)
    assert house.path(blob).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in house.path(blob).parent.iterdir()] == [blob.name]


def test_a_link_that_others_can_change_leads_nowhere_new(house: House, tmp_path: Path) -> None:
    """What is linked is the file that was hashed, by the path without links that it had when it was listed."""
    blob = house.blob("a.safetensors")
    old, store = tmp_path / "old", tmp_path / "store"
    old.mkdir()
    store.mkdir()
    (store / "blob").write_bytes(blob.data)
    (store / "blob").chmod(0o644)
    (old / blob.name).symlink_to(store / "blob")
    done = download(house, blob.name, existing=[str(old)])
    assert done["taken_over"] == [f"loras/{blob.name} is linked from {store}/blob"]
    assert not house.path(blob).is_symlink()
    (old / "gone.safetensors").symlink_to(store / "nothing")
    assert not download(house, blob.name, existing=[str(old)])["changed"]
