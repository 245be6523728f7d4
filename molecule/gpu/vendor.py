#!/usr/bin/env python3
"""vendor.py make: a repository as the vendor has it, of packages that hold next to nothing, and a GPU to look at.

vendor.py old|bare: the GPU with a driver of long ago, or with none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

FAKE = Path("/srv/fake")
REPOSITORY = Path("/srv/vendor/debian12/x86_64")
KERNEL = "6.1.0-37-amd64"
DRIVER = "580.95.05"
TOOLKIT = ("cuda-cudart-dev", "cuda-cccl", "cuda-driver-dev", "cuda-nvrtc-dev", "cuda-profiler-api")

SMI = f"""#!/bin/sh
loaded=$(sed -n 's/.*x86_64  \\([0-9.]*\\)  .*/\\1/p' {FAKE}/proc/driver/nvidia/version 2> /dev/null)
[ -n "$loaded" ] || {{ echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9; }}
[ "$loaded" = VERSION ] || {{ echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18; }}
case $1 in
  --version) echo 'CUDA Version        : 13.0' ;;
  *) echo "0, 00000000:01:00.0, GPU-5a1c0000-0000-0000-0000-000000000000, NVIDIA L4, 8.9, 23034, VERSION, Enabled, \
[N/A], Enabled" ;;
esac
"""
MODINFO = """#!/bin/sh
case $1 in *version) echo VERSION ;; *) echo 'Dual MIT/GPL' ;; esac
"""
# Loads what is installed, where nothing is loaded, as the real one does.
MODPROBE = f"""#!/bin/sh
version=$({FAKE}/usr/sbin/modinfo --field=version) || exit 1
[ -e {FAKE}/proc/driver/nvidia/version ] || {{
  mkdir -p {FAKE}/proc/driver/nvidia
  echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  $version  Release Build" \
    > {FAKE}/proc/driver/nvidia/version
}}
"""
UNIT = "[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart=/bin/true\n\n[Install]\nWantedBy=multi-user.target\n"
NVCC = """#!/bin/sh
echo 'Cuda compilation tools, release 12.8, V12.8.93'
"""
ALTERNATIVE = "#!/bin/sh\nupdate-alternatives --install /usr/local/cuda cuda /usr/local/cuda-12.8 128\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if text.startswith("#!"):
        path.chmod(0o755)


def package(name: str, version: str, depends: str = "", files: dict[str, str] | None = None, postinst: str = "") -> str:
    """Build a package and give its entry in the index."""
    work = Path("/srv/work")
    shutil.rmtree(work, ignore_errors=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Test <test@example.com>\n"
    control += f"Depends: {depends}\n" if depends else ""
    control += "Description: stands in for the vendor's\n"
    write(work / "DEBIAN/control", control)
    if postinst:
        write(work / "DEBIAN/postinst", postinst)
    for path, text in (files or {}).items():
        write(work / path.lstrip("/"), text)
    archive = REPOSITORY / f"{name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", "-Znone", work, archive], check=True, stdout=2)
    content = archive.read_bytes()
    return (
        f"{control}Filename: ./{archive.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    )


def packages() -> str:
    full = f"{DRIVER}-1"
    modinfo = {f"{FAKE}/usr/sbin/modinfo": MODINFO.replace("VERSION", DRIVER)}
    build = f"{FAKE}/lib/modules/{KERNEL}/build/Makefile"
    index = [
        package("nvidia-driver-pinning-580", "580-1"),
        package("nvidia-open-580", full, f"nvidia-kernel-open-dkms (= {full}), nvidia-smi (= {full})"),
        package("nvidia-kernel-open-dkms", full, files=modinfo),
        package(
            "nvidia-smi",
            full,
            f"libnvidia-ml1 (= {full})",
            {f"{FAKE}/usr/bin/nvidia-smi": SMI.replace("VERSION", DRIVER)},
        ),
        package("libnvidia-ml1", "535.183.01-1"),
        package("libnvidia-ml1", full),
        package("nvidia-persistenced", full, files={"/lib/systemd/system/nvidia-persistenced.service": UNIT}),
        package(f"linux-headers-{KERNEL}", "99", files={build: ""}),
        package("linux-headers-amd64", "99", f"linux-headers-{KERNEL}"),
        package("cuda-nvcc-12-8", "12.8.93-1", files={"/usr/local/cuda-12.8/bin/nvcc": NVCC}, postinst=ALTERNATIVE),
        *(package(f"{name}-12-8", "12.8.90-1") for name in TOOLKIT),
        # What a pin keeps away.
        package("cuda-cccl-12-8", "13.0.1-1"),
    ]
    return "".join(index)


def repository() -> None:
    REPOSITORY.mkdir(parents=True)
    index = packages().encode()
    (REPOSITORY / "Packages").write_bytes(index)
    release = "Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
    write(REPOSITORY / "Release", f"{release} {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n")
    home = Path("/srv/gnupg")
    home.mkdir(mode=0o700)
    os.environ["GNUPGHOME"] = str(home)

    def gpg(*words: str | Path) -> str:
        command = ["gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase=", *words]
        return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout

    gpg("--quick-gen-key", "Test <test@example.com>", "ed25519", "sign", "never")
    gpg("--clearsign", "--output", REPOSITORY / "InRelease", REPOSITORY / "Release")
    write(REPOSITORY / "3bf863cc.pub", gpg("--armor", "--export"))
    listed = gpg("--list-keys", "--with-colons")
    write(Path("/srv/fingerprint"), next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr")))


def card() -> None:
    """A GPU, and what a host without its driver shows."""
    device = FAKE / "sys/bus/pci/devices/0000:01:00.0"
    for name, text in {"class": "0x030200", "vendor": "0x10de", "device": "0x27b8"}.items():
        write(device / name, f"{text}\n")
    write(FAKE / "proc/sys/kernel/osrelease", f"{KERNEL}\n")
    write(FAKE / "proc/modules", "ext4 1 0 - Live 0x0\n")
    for folder in ("var/lib/dpkg", "etc/apt"):
        (FAKE / folder).parent.mkdir(parents=True, exist_ok=True)
        (FAKE / folder).symlink_to(f"/{folder}")
    write(Path("/usr/local/sbin/modprobe"), MODPROBE)
    write(Path("/usr/local/sbin/update-initramfs"), "#!/bin/sh\n")
    Path("/etc/modprobe.d").mkdir()  # a machine has it with its kernel
    # Somebody else's toolkit, which the alternative leads to.
    Path("/usr/local/cuda-11.8").mkdir()
    command = ["update-alternatives", "--install", "/usr/local/cuda", "cuda", "/usr/local/cuda-11.8", "118"]
    subprocess.run(command, check=True)


def bare() -> None:
    """Take the driver away, as if it had never been there."""
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\n", "*nvidia*"], text=True, capture_output=True, check=False
    )
    names = shown.stdout.split()
    if names:
        subprocess.run(["apt-mark", "unhold", *names], check=True, stdout=2)
        subprocess.run(["dpkg", "--purge", "--force-depends", *names], check=True, stdout=2)
    for path in (*Path("/etc/apt").glob("*/*wanmetal-nvidia*"), *Path("/usr/share/keyrings").glob("wanmetal-*")):
        path.unlink()
    shutil.rmtree(FAKE / "proc/driver", ignore_errors=True)


def old() -> None:
    bare()
    write(FAKE / "usr/bin/nvidia-smi", SMI.replace("VERSION", "535.183.01"))
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build\n"
    write(FAKE / "proc/driver/nvidia/version", line)


def make() -> None:
    repository()
    card()


if __name__ == "__main__":
    {"make": make, "bare": bare, "old": old}[sys.argv[1]]()
