"""A check of a deploy of the whole site to a bare host, by each ansible-core that is promised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import cores
from tests.worker import PROJECT, Worker, run

worker = Worker("cores1")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    worker.remove()
    worker.up()
    yield
    worker.remove()


@pytest.mark.parametrize("core", cores.PROMISED)
def test_the_whole_site_is_checked(core: str) -> None:
    # The compiler of cu128 comes from the vendor's repository, whose key a check reads: the scenario gpu has one.
    settings = json.dumps({**cores.EVERYTHING, "wanmetal_lane": "cu130", "preflight_skip": ["sources"]})
    program = cores.need(core, all_of_them=True) / "ansible-playbook"
    command: list[str | Path] = [program, PROJECT / "site.yml", *worker.inventory, "--check", "-e", settings]
    said = run(*command, ANSIBLE_DEPRECATION_WARNINGS="true").stdout
    assert "failed=0" in said
    for service in ("comfyui", "comfyui-api", "jupyterlab", "comfyui-handler"):
        assert f"start    {service}.service" in said
    made = "find /etc/systemd/system /srv/wanmetal/hosts -name 'comfyui*' -o -path '/srv/wanmetal/hosts/*'"
    assert worker.ssh(made) == ""
