from __future__ import annotations

DOCUMENTATION = r"""
name: model_plan
short_description: Put together the list of model files that settings ask for
version_added: 0.1.0
author: The wanmetal team
description:
  - Turns sets, files and CivitAI version ids into one list of files for M(wanmetal.comfyui.aria2_download). A
    file that several sets share is there once. Nothing is asked of any host.
  - Every address in the list has passed the mirrors.
options:
  _input:
    description: The catalogue, as in C(files/locks/models.yml), with C(sets) and C(files).
    type: dict
    required: true
  sets:
    description: Names of sets.
    type: list
    elements: str
    default: []
  files:
    description:
      - Further files. A text is the id of a file of the catalogue.
      - A mapping has C(name) and C(folder), and C(url) or C(urls), or C(repo), C(path) and C(revision) on Hugging Face,
        or C(civitai), a version id, with or without C(file_id). C(bytes) and C(sha256) are optional.
    type: list
    elements: raw
    default: []
  checkpoints:
    description: CivitAI version ids of checkpoints, as a list or as text with commas.
    type: raw
    default: []
  loras:
    description: CivitAI version ids of LoRAs, as a list or as text with commas.
    type: raw
    default: []
  versions:
    description: CivitAI version ids whose type says the folder, as a list or as text with commas.
    type: raw
    default: []
  profile:
    description: V(small), V(fp8), V(full), or V(auto) for the one that fits the smallest card.
    type: str
    default: auto
  vram_mb:
    description:
      - Memory of each GPU in MiB, as M(wanmetal.comfyui.gpu_info) has it in C(devices), which are slices where MIG has
        cut a GPU up. Empty without a driver.
    type: list
    elements: int
    default: []
  cpu:
    description: Whether no GPU is going to be used.
    type: bool
    default: false
  mirrors:
    description: Mirrors, as for P(wanmetal.comfyui.mirror#filter).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Show which files a set has on a card of 24 GB
  ansible.builtin.debug:
    msg: "{{ (lookup('wanmetal.comfyui.lock', 'models')
              | wanmetal.comfyui.model_plan(sets=['wan21-t2v'], vram_mb=[24564])).files }}"
"""

RETURN = r"""
_value:
  description:
    - The list and where it comes from.
    - The filter fails, naming the setting, when a set, a file or an id is not known or is malformed.
  type: dict
  contains:
    profile:
      description: The profile that was chosen.
      type: str
    profile_reason:
      description: Why.
      type: str
    files:
      description: The files, as M(wanmetal.comfyui.aria2_download) takes them.
      type: list
      elements: dict
    sets:
      description: Each set with the ids of its files, those of the sets that it stands on included.
      type: list
      elements: dict
    notes:
      description: What else there is to say.
      type: list
      elements: str
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import plan


def model_plan(catalogue: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Plan; see the documentation above."""
    try:
        return plan(catalogue, **settings)
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.model_plan: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"model_plan": model_plan}
