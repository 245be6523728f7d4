"""What the roles leave on a host with a GPU."""

from __future__ import annotations

import re
from typing import Any

KERNEL = """
#include <cub/cub.cuh>
#include <cuda.h>
__global__ void add(int *out, int by) { *out += by; }
extern "C" void run(int *out) { cuInit(0); add<<<1, 1>>>(out, 1); }
"""


def held(host: Any) -> list[str]:
    return str(host.check_output("apt-mark showhold")).split()


def test_the_driver_is_there_and_held(host: Any) -> None:
    assert "nvidia-open-580" in host.check_output("dpkg-query --show 'nvidia-open*'")
    assert {"nvidia-open-580", "nvidia-smi", "libnvidia-ml1", "nvidia-driver-pinning-580"} <= set(held(host))


def test_headers_came_with_it(host: Any) -> None:
    assert host.package("linux-headers-6.1.0-37-amd64").is_installed


def test_the_cards_are_kept_awake(host: Any) -> None:
    assert host.service("nvidia-persistenced").is_running
    assert host.service("nvidia-persistenced").is_enabled


def test_nouveau_is_off(host: Any) -> None:
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/wanmetal-nvidia.conf").content_string


def test_unattended_upgrades_leave_it_alone(host: Any) -> None:
    shown = host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    entries = re.findall(r':: "([^"]+)";', shown)
    for name in ("nvidia-open-580", "libnvidia-ml1", "cuda-nvcc-12-8"):
        assert any(re.match(entry, name) for entry in entries), name


def test_an_upgrade_of_the_system_replaces_nothing_of_it(host: Any) -> None:
    assert host.run("apt-get --simulate dist-upgrade | grep -E '^Inst (nvidia|libnvidia|cuda)'").rc == 1


def test_the_repository_is_trusted_by_its_own_key_alone(host: Any) -> None:
    source = host.file("/etc/apt/sources.list.d/wanmetal-nvidia.sources").content_string
    assert "Signed-By: /usr/share/keyrings/wanmetal-nvidia.asc" in source
    assert not host.file("/etc/apt/trusted.gpg.d/wanmetal-nvidia.asc").exists


def test_the_toolkit_lies_beside_another_which_stays_the_default(host: Any) -> None:
    assert "release 12.8" in host.check_output("/usr/local/cuda-12.8/bin/nvcc --version")
    assert host.check_output("readlink --canonicalize /usr/local/cuda") == "/usr/local/cuda-11.8"
    assert "cuda-nvcc-12-8" in held(host)


def test_the_pin_keeps_a_package_of_another_version_away(host: Any) -> None:
    assert host.package("cuda-cccl-12-8").version == "12.8.90-1"


def test_the_compiler_of_python_packages_compiles_for_two_generations(host: Any) -> None:
    home = host.file("/root/cuda-home").content_string
    assert "release 13.0" in host.check_output(f"{home}/bin/nvcc --version")
    host.run_expect([0], f"cat > /root/try.cu << 'END'\n{KERNEL}\nEND")
    targets = "-gencode arch=compute_89,code=sm_89 -gencode arch=compute_90a,code=sm_90a"
    libraries = f"-L{home}/lib64/stubs -lcuda -lcudart"
    host.check_output(f"{home}/bin/nvcc {targets} -shared -Xcompiler -fPIC -o /root/try.so /root/try.cu {libraries}")
    needed = host.check_output("objdump -p /root/try.so | grep NEEDED")
    assert "libcuda.so.1" in needed
