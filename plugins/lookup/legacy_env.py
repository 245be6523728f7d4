from __future__ import annotations

DOCUMENTATION = r"""
name: legacy_env
short_description: Settings of roles out of the settings of the Docker image
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Reads a C(.env) or compose file with the settings of the Docker image that wanmetal takes the place of, and gives
    the settings of roles that they are now. docs/from-docker.md lists them.
  - Of a compose file, C(environment) and C(env_file) of the services are read, and a C(.env) beside it.
  - Names may be spelt in small or capital letters, truth values in every usual way.
options:
  _terms:
    description: The file on the controller, which may be encrypted with ansible-vault, or an empty text.
    type: list
    elements: str
    required: true
  given:
    description: Further values by the image's names. They win over those of the file.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Show what an old file means
  ansible.builtin.debug:
    msg: "{{ lookup('wanmetal.comfyui.legacy_env', '/srv/old/.env') }}"
"""

RETURN = r"""
_raw:
  description:
    - For each file, C(settings) by their names, secrets among them, with what the image had where it says nothing.
    - C(unknown) are names and lines that mean nothing, C(problems), what cannot be, without secrets. A file in which is
      no setting of the image is such a problem, and so is a name that nearly fits.
    - C(pattern) is a regular expression of the variables of an inventory that count as settings of the image.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import Found, read, translate


class LookupModule(LookupBase):  # type: ignore[misc]
    """Translate; see the documentation above."""

    def run(
        self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: object
    ) -> list[dict[str, Any]]:
        """Return one item for each file."""
        self.set_options(var_options=variables, direct=kwargs)
        # It finds vaults' passwords.
        file = lookup_loader.get("ansible.builtin.file", loader=self._loader, templar=self._templar)

        def read_file(name: str) -> str:
            try:
                return str(file.run([name], variables, rstrip=False)[0])
            except AnsibleError as error:
                raise OSError(str(error)) from error

        given = self.get_option("given")
        return [translate(read(term, read_file) if term else Found(), given, bool(term)) for term in terms]
