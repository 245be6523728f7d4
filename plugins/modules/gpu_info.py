from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Read the NVIDIA GPUs of a host and the state of their driver
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Works before any driver is there. The cards are then read from sysfs, and named by a table of PCI device ids from
    Maxwell to Blackwell. With a driver that works, C(nvidia-smi) says the rest.
  - Says what is wrong with the driver, and the fix. Changes nothing.
  - M(wanmetal.comfyui.host_state) has the same in its answer.
options:
  root:
    description: Folder that C(/proc), C(/sys), C(/usr/bin) and so on are looked for in.
    type: path
    default: /
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Read the GPUs
  wanmetal.comfyui.gpu_info:
  become: true

- name: Show what one worker each may run on
  ansible.builtin.debug:
    msg: "{{ ansible_facts['gpu_info'].devices | map(attribute='uuid') }}"
"""

RETURN = r"""
ansible_facts:
  description: C(gpu_info), a mapping with all that follows.
  type: dict
  returned: success
  contains:
    gpu_info:
      description: See below.
      type: dict
gpus:
  description:
    - The cards, in the driver's order; those that the driver does not know come last.
    - In a container, and in WSL, the driver's alone where it works.
  type: list
  elements: dict
  returned: success
  contains:
    pci_address:
      description: As sysfs has it, for example V(0000:3b:00.0).
      type: str
    device_id:
      description: PCI device id, four hexadecimal digits. Null where there is no sysfs of it.
      type: str
    name:
      description: The driver's name of it; before there is a driver, its chip and id.
      type: str
    architecture:
      description: >-
        V(maxwell), V(pascal), V(volta), V(turing), V(ampere), V(ada), V(hopper), V(blackwell), V(older), or
        V(unknown), which is most likely younger.
      type: str
    compute_capability:
      description: For example V(8.9). Null where unknown.
      type: str
    kernel_driver:
      description: The kernel's driver of the card, for example V(nvidia), V(nouveau) or V(vfio-pci). Empty without one.
      type: str
    index:
      description: The driver's number of it. This and all below are null without a driver that works.
      type: int
    uuid:
      description: Its UUID, which C(CUDA_VISIBLE_DEVICES) takes.
      type: str
    vram_mb:
      description: Memory in MiB.
      type: int
    ecc:
      description: Whether its memory corrects errors. Null where it cannot.
      type: bool
    mig:
      description: Whether it is in slices. Null where it cannot be.
      type: bool
    persistence:
      description: Whether the driver keeps it awake.
      type: bool
    mig_devices:
      description: MIG slices with C(uuid), C(profile) and C(vram_mb), which is taken from the profile's name.
      type: list
      elements: dict
    sources:
      description: Where each of these comes from, V(pci) (sysfs and the table) or V(nvidia-smi).
      type: dict
driver:
  description: The driver.
  type: dict
  returned: success
  contains:
    loaded:
      description: Version of the kernel module that is loaded, by the kernel or by C(nvidia-smi), or null.
      type: str
    loaded_modules:
      description: V(open) or V(proprietary), or null.
      type: str
    installed:
      description: Version of the module on disk for the running kernel, or null.
      type: str
    installed_modules:
      description: V(open) or V(proprietary), or null.
      type: str
    library:
      description: Version of the NVML library, where it says so because it does not fit the module. Else null.
      type: str
    packages:
      description: Installed packages of the driver, each with C(version) and C(hold).
      type: dict
    managed:
      description: Whether the role nvidia_driver has installed it.
      type: bool
    nouveau:
      description: Whether the module nouveau is loaded.
      type: bool
    ready:
      description: Whether C(nvidia-smi) works and shows a card.
      type: bool
    error:
      description: What C(nvidia-smi) said where it fails. Empty else, also where there is none.
      type: str
    cuda:
      description: The latest CUDA that the driver supports, or null.
      type: str
host:
  description:
    - C(kind), V(machine), V(container) or V(wsl); C(kernel), its release; C(headers), whether the headers of the
      running kernel are there; C(secure_boot), null where the firmware knows none.
  type: dict
  returned: success
devices:
  description:
    - What one worker each may run on, GPUs and MIG slices, with C(uuid), C(name), C(vram_mb), C(compute_capability) and
      C(gpu), the UUID of the card. Empty without a driver that works.
  type: list
  elements: dict
  returned: success
problems:
  description: >-
    What is wrong, each with C(kind) (V(mismatch), V(nouveau), V(headers), V(not built), V(mok) or V(smi)), C(found) and
    C(fix).
  type: list
  elements: dict
  returned: success
sources:
  description: Where the fields of C(driver) and C(host) come from.
  type: dict
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.gpu import gpu_info


def main() -> None:
    module = AnsibleModule(argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True)
    found = gpu_info(Path(module.params["root"]))
    module.exit_json(changed=False, ansible_facts={"gpu_info": found}, **found)


if __name__ == "__main__":
    main()
