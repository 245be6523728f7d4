#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_lock
short_description: Fill and re-check the catalogue of models from what Hugging Face states
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Asks Hugging Face for the size and sha256 of every file of the catalogue that is published there, with one request
    for each repository and revision. Nothing is downloaded. Runs on the controller.
  - A size or sha256 that is null is filled in. Comments and order stay, and an C(about_bytes) that is no longer needed
    goes.
  - What is known is never replaced. Where Hugging Face states something else, or has no such file any longer, that is a
    finding.
  - In check mode it asks, and writes nothing.
options:
  src:
    description: The catalogue, as it is.
    type: path
    required: true
  dest:
    description: Where the filled one is written. May be the same file.
    type: path
    required: true
  files:
    description: The C(files) of the catalogue, by id, as its YAML reads.
    type: dict
    required: true
  mirrors:
    description: Where Hugging Face is asked in place of its own address, as C(wanmetal_mirrors).
    type: list
    elements: dict
    default: []
  tokens:
    description: Tokens by host, for gated repositories and higher rate limits.
    type: dict
    default: {}
  tries:
    description: Attempts for each request, where another one makes sense.
    type: int
    default: 3
  pause:
    description: Seconds before the second attempt; doubled before each further one.
    type: float
    default: 2
attributes:
  check_mode:
    description: Asks, and writes nothing.
    support: full
  diff_mode:
    description: Shows the lines of the catalogue that change.
    support: full
"""

EXAMPLES = r"""
- name: Fill the catalogue
  wanmetal.comfyui.model_lock:
    src: files/locks/models.yml
    dest: files/locks/models.yml
    files: "{{ lookup('wanmetal.comfyui.lock', 'models').files }}"
  delegate_to: localhost
"""

RETURN = r"""
filled:
  description: What was filled in, a line for each file.
  returned: success
  type: list
  elements: str
  sample: ["film-net-fp32: bytes 68717568"]
findings:
  description: What contradicts the catalogue, is no longer published, or could not be asked for. A line for each.
  returned: success
  type: list
  elements: str
requests:
  description: How many repositories and revisions were asked about.
  returned: success
  type: int
unasked:
  description: Ids of files that are not on Hugging Face, which this cannot check.
  returned: success
  type: list
  elements: str
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem, delay_s
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Tokens
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import fetch_list
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks import models as model_lock
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite

# These will be the same for the next repository.
_OF_THE_HOST = {"dns", "tls", "network", "rate_limited"}
_LONGEST_WAIT_S = 60.0


def ask(params: dict[str, Any], repository: str, revision: str, paths: list[str]) -> list[Any]:
    """Ask about one repository, again where that makes sense."""
    url = rewrite(model_lock.address(repository, revision), params["mirrors"])
    for attempt in range(params["tries"]):
        try:
            return fetch_list(url, Tokens(params["tokens"]), model_lock.form(paths))
        except Problem as problem:
            wait = delay_s(problem, attempt, params["pause"])
            if attempt + 1 == params["tries"] or problem.lasting or wait > _LONGEST_WAIT_S:
                raise
            time.sleep(wait)
    raise ValueError(f"tries must be at least 1, found {params['tries']}")


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "mirrors": {"type": "list", "elements": "dict", "default": []},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "tries": {"type": "int", "default": 3},
            "pause": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    params = module.params
    stated: dict[model_lock.Place, model_lock.Stated] = {}
    unheard: dict[tuple[str, str], Problem] = {}
    asked = model_lock.questions(params["files"])
    try:
        before = Path(params["src"]).read_text(encoding="utf-8")
        for (repository, revision), paths in asked.items():
            try:
                stated |= model_lock.read(repository, revision, ask(params, repository, revision, paths))
            except Problem as problem:
                if problem.kind in _OF_THE_HOST:
                    module.fail_json(
                        msg=f"The models cannot be looked up: {problem}. Nothing was written. Where this machine has "
                        "no way to huggingface.co, set a proxy in wanmetal_environment or a mirror in wanmetal_mirrors."
                    )
                unheard[repository, revision] = problem
        verdict = model_lock.compare(params["files"], stated, unheard)
        after = model_lock.edit(before, verdict.fill)
    except (model_lock.LockError, OSError, TypeError, ValueError) as error:
        module.fail_json(msg=f"{params['src']}: {error}")
    dest = Path(params["dest"])
    changed = not dest.exists() or dest.read_text(encoding="utf-8") != after
    if changed and not module.check_mode:
        draft = Path(module.tmpdir) / "models.yml"
        draft.write_text(after, encoding="utf-8")
        module.atomic_move(str(draft), str(dest))
        module.set_mode_if_different(str(dest), "0644", False)
    module.exit_json(
        changed=changed,
        filled=model_lock.told(verdict.fill),
        findings=[f"{repository} at {revision}: {problem}" for (repository, revision), problem in unheard.items()]
        + verdict.findings,
        requests=len(asked),
        unasked=verdict.unasked,
        diff={"before": before, "after": after, "before_header": params["src"], "after_header": str(dest)},
    )


if __name__ == "__main__":
    main()
