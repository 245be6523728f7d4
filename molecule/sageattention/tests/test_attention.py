"""Two hosts after one build, a driver that changed on the second, and wrong kernels on the first."""

from __future__ import annotations

import json
from typing import Any


def root(host: Any) -> str:
    """The lab keeps the releases of each host below one mount."""
    return f"/srv/wanmetal/hosts/{host.check_output('hostname')}/sageattention"


def is_first(host: Any) -> bool:
    return str(host.check_output("hostname")).endswith("1")


def folders(host: Any, version: str = "2.2.0") -> list[str]:
    return str(host.check_output(f"ls -1d {root(host)}/{version}-*")).split()


def written(host: Any, path: str) -> Any:
    return json.loads(host.file(path).content_string)


def arguments(host: Any) -> list[str]:
    pid = host.check_output("systemctl show comfyui.service --property=MainPID --value")
    return str(host.file(f"/proc/{pid}/cmdline").content_string).split("\0")


def right(host: Any) -> str:
    """The folder of the kernels that are right."""
    [folder] = [path for path in folders(host) if written(host, f"{path}/result.json")["passed"]]
    return folder


def test_one_host_has_built_for_both(host: Any) -> None:
    folder = right(host)
    assert written(host, f"{folder}/wheel.json")["architectures"] == ["8.9", "9.0"]
    log = host.file(f"{folder}/build.log")
    assert log.exists == is_first(host)
    if log.exists:
        assert "nvcc -arch 8.9" in log.content_string
        assert "nvcc -arch 9.0" in log.content_string
        assert "for 8.9 9.0" in log.content_string


def test_the_build_left_nothing_behind(host: Any) -> None:
    assert host.check_output("find /var/cache/private/wanmetal-build -mindepth 1 2> /dev/null || true") == ""
    assert host.check_output("systemctl list-units --all --no-legend 'wanmetal-build-*' 'wanmetal-attention-*'") == ""


def test_each_host_has_tested_it_on_its_own_gpu(host: Any) -> None:
    result = written(host, f"{right(host)}/result.json")
    if is_first(host):
        assert (result["gpus"], result["driver"]) == (["NVIDIA GeForce RTX 4090"], "580.65.06")
    else:
        assert (result["gpus"], result["driver"]) == (["NVIDIA H100 80GB HBM3"], "590.44.01")
    assert 0 < result["worst_error"] < 0.1


def test_the_worker_uses_it_where_it_passed(host: Any) -> None:
    used = "--use-sage-attention" in arguments(host)
    assert used == (not is_first(host))
    pid = host.check_output("systemctl show comfyui.service --property=MainPID --value")
    environment = host.file(f"/proc/{pid}/environ").content_string
    assert (f"PYTHONPATH={right(host)}/site" in environment.split("\0")) == used
    told = host.check_output(f"journalctl --unit=comfyui.service _PID={pid} --output=cat")
    assert ("Using sage attention" in told) == used


def test_wrong_kernels_are_recorded(host: Any) -> None:
    wrong = [path for path in folders(host) if path != right(host)]
    assert len(wrong) == (1 if is_first(host) else 0)
    for path in wrong:
        result = written(host, f"{path}/result.json")
        assert not result["passed"]
        assert "NaN" in host.file(f"{path}/test.log").content_string
    if is_first(host):
        # The next method could not do better without a GPU.
        [earlier] = folders(host, "1.0.6")
        assert not written(host, f"{earlier}/result.json")["passed"]


def test_what_it_needs_at_run_time_stays(host: Any) -> None:
    assert host.run("gcc --version").rc == 0
    assert host.run("test -e /usr/include/python3.11/Python.h").rc == 0
