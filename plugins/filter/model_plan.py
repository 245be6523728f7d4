from __future__ import annotations

DOCUMENTATION = r"""
name: model_plan
short_description: Put together the list of model files that settings ask for, and what a host has of them
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Turns sets, files and CivitAI version ids into one list of files for M(wanmetal.comfyui.aria2_download). A
    file that several sets share is there once. Nothing is asked of any host.
  - Every address in the list has passed the mirrors.
  - With O(state), joins such a list with what M(wanmetal.comfyui.aria2_download) found in check mode, and says what is
    missing, what it costs and how long it takes.
options:
  _input:
    description: The catalogue, as in C(files/locks/models.yml), with C(sets) and C(files). With O(state), a plan.
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
  variant:
    description: Variant of the node packs, which some files are for.
    type: str
    default: wan
  workflows:
    description: Workflows of files whose models are wanted, as JSON, by the names that messages give them.
    type: dict
    default: {}
  template_names:
    description: Official templates whose models are wanted, of those of C(files/locks/templates.yml).
    type: list
    elements: str
    default: []
  templates:
    description: The official templates, as in that file.
    type: dict
    default: {}
  mirrors:
    description: Mirrors, as for P(wanmetal.comfyui.mirror#filter).
    type: list
    elements: dict
    default: []
  state:
    description: The result of M(wanmetal.comfyui.aria2_download) in check mode.
    type: dict
  models_dir:
    description: Folder of the models on the host. Only with O(state).
    type: str
    default: ""
  rate:
    description:
      - Bytes a second to reckon with. 0 takes what the host has measured, or assumes 100 MB/s and says so. Only with
        O(state).
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Show which files a set has on a card of 24 GB
  ansible.builtin.debug:
    msg: "{{ (lookup('wanmetal.comfyui.lock', 'models')
              | wanmetal.comfyui.model_plan(sets=['wan21-t2v'], vram_mb=[24564])).files }}"

- name: Show what is missing
  ansible.builtin.debug:
    msg: "{{ (planned | wanmetal.comfyui.model_plan(state=found, models_dir='/var/lib/wanmetal/models')).lines }}"
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
      description:
        - Each set with the ids of its files, those of the sets that it stands on included.
        - With O(state), C(files), C(bytes), C(shared) with the sets above it, and C(missing) in their place.
      type: list
      elements: dict
    notes:
      description: What else there is to say.
      type: list
      elements: str
    bytes_total:
      description: Size of all files, as far as it is known or estimated. With O(state).
      type: int
    bytes_missing:
      description: Bytes to fetch. With O(state).
      type: int
    bytes_written:
      description: Bytes of disk that are needed, temporary ones included. With O(state).
      type: int
    missing:
      description: Ids of the files that are not there, or not verified yet. With O(state).
      type: list
      elements: str
    disks:
      description: By file system, C(free), C(needed), C(reserve), C(left) and C(enough). With O(state).
      type: list
      elements: dict
    enough:
      description: Whether the disks are large enough. With O(state).
      type: bool
    unwanted:
      description: Files that were fetched once, and that nothing asks for any longer. With O(state).
      type: list
      elements: dict
    seconds:
      description: Estimate of the time. With O(state).
      type: int
    part:
      description: The part of the plan that P(wanmetal.comfyui.preflight#filter) takes. With O(state).
      type: dict
    lines:
      description: All of it for a terminal. With O(state).
      type: list
      elements: str
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import on_host, plan
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflow_models import of_files, of_templates


def model_plan(
    planned: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    models_dir: str = "",
    rate: int = 0,
    workflows: Mapping[str, str] | None = None,
    template_names: Sequence[str] = (),
    templates: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Plan; see the documentation above."""
    try:
        if state is not None:
            return on_host(planned, state, models_dir, rate)
        named = [*of_templates(template_names, templates or {}, planned), *of_files(workflows or {}, planned)]
        return plan(planned, workflows=named, **settings)
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(f"wanmetal.comfyui.model_plan: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Name them for Ansible."""
        return {"model_plan": model_plan}
