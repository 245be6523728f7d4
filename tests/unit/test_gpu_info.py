from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import gpu as gpu_info
from ansible_collections.wanmetal.comfyui.tests.unit.gpu_hosts import HOSTS, KERNEL, Host, dpkg, make
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

# What each kind of host is answered with: architectures, names, memory, whether the driver works, its version, the
# number of devices for workers, and the kinds of problems.
EXPECTED: dict[str, tuple[list[str], str, int | None, bool, str | None, int, list[str]]] = {
    "no gpu": ([], "", None, False, None, 0, []),
    "one, without a driver": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, None, 0, []),
    "one": (["ada"], "NVIDIA GeForce RTX 4090", 24564, True, "580.95.05", 1, []),
    "eight": (["hopper"] * 8, "NVIDIA H100 80GB HBM3", 81559, True, "580.95.05", 8, []),
    "mixed": (["volta", "blackwell"], "Tesla V100-SXM2-16GB", 16384, True, "580.95.05", 1, []),
    "mig": (["ampere"], "NVIDIA A100-SXM4-40GB", 40960, True, "580.95.05", 2, []),
    "driver broken": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, None, 0, ["smi"]),
    "mismatch": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, "580.95.05", 0, ["mismatch"]),
    "nouveau": (["pascal"], "NVIDIA GP10x [10de:1b38]", None, False, None, 0, ["nouveau"]),
    "wsl": (["ampere"], "NVIDIA GeForce RTX 3080", 10240, True, "580.95.05", 1, []),
    "container": (["hopper"], "NVIDIA H100 80GB HBM3", 81559, True, "570.133.20", 1, []),
    "secure boot": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, None, 0, ["mok"]),
    "no headers": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, None, 0, ["headers"]),
    "given to a virtual machine": (["ada"], "NVIDIA AD10x [10de:2684]", None, False, None, 0, []),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_kind_of_host(tmp_path: Path, kind: str) -> None:
    found = gpu_info.gpu_info(make(tmp_path, HOSTS[kind]))
    first = next(iter(found["gpus"]), {"name": "", "vram_mb": None})
    assert EXPECTED[kind] == (
        [gpu["architecture"] for gpu in found["gpus"]],
        first["name"],
        first["vram_mb"],
        found["driver"]["ready"],
        found["driver"]["loaded"],
        len(found["devices"]),
        [problem["kind"] for problem in found["problems"]],
    )


@pytest.mark.parametrize("kind", HOSTS)
def test_every_field_that_is_known_says_where_from(tmp_path: Path, kind: str) -> None:
    found = gpu_info.gpu_info(make(tmp_path, HOSTS[kind]))
    for gpu in found["gpus"]:
        known = {name for name in gpu if gpu[name] not in (None, [])} - {"sources", "kernel_driver"}
        assert set(gpu["sources"]) == known
        assert set(gpu["sources"].values()) <= {"pci", "nvidia-smi"}
    for place in found["sources"]:
        group, _, name = place.partition(".")
        assert name in found[group]


def test_one_return_shape(tmp_path: Path) -> None:
    """As the module documents it, on all hosts."""
    import yaml
    from ansible_collections.wanmetal.comfyui.plugins.modules import gpu_info as module

    documented = yaml.safe_load(module.RETURN)
    for number, host in enumerate(HOSTS.values()):
        found = gpu_info.gpu_info(make(tmp_path / str(number), host))
        assert set(found) == set(documented) - {"ansible_facts"}
        assert set(found["driver"]) == set(documented["driver"]["contains"])
        for gpu in found["gpus"]:
            assert set(gpu) == set(documented["gpus"]["contains"])
        assert set(found["host"]) == {"kind", "kernel", "headers", "secure_boot"}


def test_all_that_a_driver_tells(tmp_path: Path) -> None:
    found = gpu_info.gpu_info(make(tmp_path, HOSTS["one"]))
    assert found["driver"]["loaded_modules"] == found["driver"]["installed_modules"] == "open"
    assert found["driver"]["cuda"] == "13.0"
    assert found["driver"]["packages"]["nvidia-open-580"] == {"version": "580.95.05-1", "hold": True}
    assert "nvidia-container-toolkit" not in found["driver"]["packages"]
    assert found["host"] == {"kind": "machine", "kernel": KERNEL, "headers": True, "secure_boot": None}
    [gpu] = found["gpus"]
    assert (gpu["uuid"], gpu["persistence"]) == ("GPU-00000000-aaaa-bbbb-cccc-000000000000", True)
    assert (gpu["ecc"], gpu["mig"], gpu["kernel_driver"]) == (None, None, "nvidia")
    assert gpu["sources"]["architecture"] == "pci"
    assert gpu["sources"]["name"] == "nvidia-smi"
    assert found["devices"] == [
        {
            "uuid": gpu["uuid"],
            "name": "NVIDIA GeForce RTX 4090",
            "vram_mb": 24564,
            "compute_capability": "8.9",
            "gpu": gpu["uuid"],
        }
    ]


def test_slices(tmp_path: Path) -> None:
    found = gpu_info.gpu_info(make(tmp_path, HOSTS["mig"]))
    assert [(entry["name"], entry["vram_mb"], entry["gpu"]) for entry in found["devices"]] == [
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 20480, found["gpus"][0]["uuid"]),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5120, found["gpus"][0]["uuid"]),
    ]
    assert found["devices"][0]["uuid"] == "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"


def test_a_gpu_in_mig_mode_without_slices_takes_no_work(tmp_path: Path) -> None:
    host = HOSTS["mig"]
    found = gpu_info.gpu_info(make(tmp_path, Host(**{**vars(host), "listed": host.listed.splitlines()[0] + "\n"})))
    assert found["gpus"][0]["mig"]
    assert found["devices"] == []


def test_a_card_that_the_driver_does_not_know_comes_last(tmp_path: Path) -> None:
    gpus = gpu_info.gpu_info(make(tmp_path, HOSTS["mixed"]))["gpus"]
    assert [(gpu["index"], gpu["device_id"]) for gpu in gpus] == [(0, "1db1"), (None, "2b85")]


def test_cuda_by_an_older_nvidia_smi(tmp_path: Path) -> None:
    root = make(tmp_path, HOSTS["one"])
    text = (root / "usr/bin/nvidia-smi").read_text().replace("--version)", "--version) exit 2 ;;\n'')")
    (root / "usr/bin/nvidia-smi").write_text(text.replace("CUDA Version        : 13.0", "| CUDA Version: 12.2 |"))
    assert gpu_info.gpu_info(root)["driver"]["cuda"] == "12.2"


@pytest.mark.parametrize(
    ("device", "architecture", "capability"),
    [
        (0x1180, "older", ""),  # GTX 680
        (0x1380, "maxwell", "5.0"),  # GTX 750 Ti
        (0x13F2, "maxwell", "5.2"),  # Tesla M60
        (0x17C2, "maxwell", "5.2"),  # Titan X
        (0x15F8, "pascal", "6.0"),  # P100
        (0x1B06, "pascal", "6.1"),  # GTX 1080 Ti
        (0x1BB3, "pascal", "6.1"),  # P4
        (0x1DB6, "volta", "7.0"),  # V100
        (0x1E07, "turing", "7.5"),  # RTX 2080 Ti
        (0x1EB8, "turing", "7.5"),  # T4
        (0x2182, "turing", "7.5"),  # GTX 1660 Ti
        (0x20B5, "ampere", "8.0"),  # A100 80 GB
        (0x2204, "ampere", "8.6"),  # RTX 3090
        (0x2236, "ampere", "8.6"),  # A10
        (0x25B6, "ampere", "8.6"),  # A2
        (0x2330, "hopper", "9.0"),  # H100
        (0x2335, "hopper", "9.0"),  # H200
        (0x2342, "hopper", "9.0"),  # GH200
        (0x2684, "ada", "8.9"),  # RTX 4090
        (0x26B9, "ada", "8.9"),  # L40S
        (0x27B8, "ada", "8.9"),  # L4
        (0x2882, "ada", "8.9"),  # RTX 4060
        (0x2901, "blackwell", "10.0"),  # B200
        (0x2B85, "blackwell", "12.0"),  # RTX 5090
        (0x2BB1, "blackwell", "12.0"),  # RTX PRO 6000
        (0x2C02, "blackwell", "12.0"),  # RTX 5080
        (0x2D04, "blackwell", "12.0"),  # RTX 5060 Ti
        (0x2E12, "blackwell", "12.1"),  # GB10
        (0x2F04, "blackwell", "12.0"),  # RTX 5070
        (0x3182, "blackwell", "10.3"),  # B300
        (0x3F00, "unknown", ""),
    ],
)
def test_generations(device: int, architecture: str, capability: str) -> None:
    chip = gpu_info.chip_of(device)
    assert (chip.architecture, chip.capability) == (architecture, capability)


def test_ranges_do_not_overlap() -> None:
    for before, after in zip(gpu_info.CHIPS, gpu_info.CHIPS[1:], strict=False):
        assert before.first <= before.last < after.first


def test_a_card_of_a_later_generation_is_known_by_its_driver(tmp_path: Path) -> None:
    host = HOSTS["one"]
    gpus = gpu_info.gpu_info(make(tmp_path, Host(**{**vars(host), "cards": {"01": "3f00"}})))["gpus"]
    assert (gpus[0]["architecture"], gpus[0]["sources"]["architecture"]) == ("ada", "nvidia-smi")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (dpkg("1", "nvidia-open-580", hold=True), {"nvidia-open-580": {"version": "1-1", "hold": True}}),
        (dpkg("1", "libnvidia-compute-580").replace("ok installed", "ok config-files"), {}),
        (dpkg("1", "nvidia-container-toolkit", "libnvidia-container1", "bash"), {}),
        (
            dpkg("2", "linux-modules-nvidia-580-server-open-generic"),
            {"linux-modules-nvidia-580-server-open-generic": {"version": "2-1", "hold": False}},
        ),
    ],
)
def test_packages(text: str, expected: dict[str, Any]) -> None:
    assert gpu_info.packages(text) == expected


@pytest.mark.parametrize(("value", "expected"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (None, None)])
def test_secure_boot(tmp_path: Path, value: bytes | None, expected: bool | None) -> None:
    folder = tmp_path / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True)
    if value:
        (folder / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(value)
    assert gpu_info.secure_boot(tmp_path) is expected


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path, HOSTS["one"])
    (root / "usr/bin/nvidia-smi").write_text("#!/bin/sh\nexec sleep 5\n")
    monkeypatch.setattr(gpu_info, "_SECONDS", 0.2)
    found = gpu_info.gpu_info(root)
    assert not found["driver"]["ready"]
    assert "timed out" in found["driver"]["error"]
    assert [problem["kind"] for problem in found["problems"]] == ["smi"]


def test_the_module(tmp_path: Path) -> None:
    answer = run_module("gpu_info", {"root": str(make(tmp_path, HOSTS["one"]))}, check=True)
    assert answer["ansible_facts"]["gpu_info"]["gpus"] == answer["gpus"]
    assert not answer["changed"]
