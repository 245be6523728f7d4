from __future__ import annotations

DOCUMENTATION = r"""
name: workflow_file
short_description: Read the workflow of a file of ComfyUI's
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads what the browser or the API has saved, and finds the workflow inside a request, an answer, or the metadata of
    a picture or a video.
  - Of files above 64 MB, the first and the last 24 MB are read.
options:
  _terms:
    description: Paths, as in P(ansible.builtin.file#lookup).
    required: true
"""

EXAMPLES = r"""
- name: Show the workflow that a video was made with
  ansible.builtin.debug:
    msg: "{{ lookup('wanmetal.comfyui.workflow_file', 'mine.mp4') | from_json }}"
"""

RETURN = r"""
_raw:
  description: The workflow as JSON, in the format in which the file has it; of a file that is a workflow, its text.
  type: list
  elements: str
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflow_files


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup."""

    def run(self, terms: Sequence[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Read; see the documentation above."""
        self.set_options(var_options=variables, direct=kwargs)
        found = []
        for term in terms:
            path = self.find_file_in_search_path(variables, "files", term)
            if not path:
                raise AnsibleLookupError(f"the workflow {term} is not on this machine: give the path of a file")
            try:
                data = workflow_files.load(Path(path))
                graph, where = workflow_files.read(data)
            except (OSError, ValueError) as error:
                raise AnsibleLookupError(f"the workflow {term}: {error}") from error
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = ""
            found.append(json.dumps(graph) if where or not text else text)
        return found
