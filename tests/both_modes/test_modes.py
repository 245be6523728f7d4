"""The same host, deployed from the checkout and from the installed collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker import PROJECT, STATE, Worker, changed, run


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    host = Worker("modes")
    host.remove()
    host.up()
    yield host
    host.remove()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout with nothing but the built collection and an inventory."""
    folder = tmp_path_factory.mktemp("installed")
    run("ansible-galaxy", "collection", "build", "--output-path", folder)
    (archive,) = folder.glob("wanmetal-comfyui-*.tar.gz")
    run("ansible-galaxy", "collection", "install", "--offline", "-p", folder / "collections", archive, cwd=folder)
    return folder


def test_collection_deploys_like_the_checkout(worker: Worker, installed: Path) -> None:
    group_vars = (PROJECT / "inventories/lab/group_vars/gpu_hosts.yml").read_text()
    (installed / "group_vars").mkdir()
    (installed / "group_vars/gpu_hosts.yml").write_text(group_vars)
    (installed / "hosts.yml").write_text((STATE / "hosts.yml").read_text())

    def playbook(name: str) -> str:
        return run(
            "ansible-playbook",
            f"wanmetal.comfyui.{name}",
            *("-i", "hosts.yml", "--limit", worker.name),
            cwd=installed,
            ANSIBLE_COLLECTIONS_PATH=str(installed / "collections"),
        ).stdout

    assert changed(playbook("site")) > 0
    pid = worker.main_pid()
    assert changed(playbook("site")) == 0
    assert changed(worker.playbook("site.yml")) == 0
    assert worker.main_pid() == pid
    assert "no problems" in playbook("verify")
    assert (installed / f"reports/canary-{worker.name}.mp4").stat().st_size > 1000
