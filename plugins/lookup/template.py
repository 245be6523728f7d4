from __future__ import annotations

DOCUMENTATION = r"""
name: template
short_description: Render a template without a copy of all variables
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - Gives what P(ansible.builtin.template#lookup) gives, which copies all variables of the host for each template, and
    so takes five times as long. Here templates see the variables themselves, as with M(ansible.builtin.template).
options:
  _terms:
    description: Paths, as in P(ansible.builtin.template#lookup), whose other options it takes, too.
    required: true
"""

EXAMPLES = r"""
- name: Show a unit
  ansible.builtin.debug:
    msg: "{{ lookup('wanmetal.comfyui.template', 'gallery.service.j2') }}"
"""

RETURN = r"""
_raw:
  description: The rendered texts.
  type: list
  elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase


class _Shared(dict[str, Any]):
    """Variables of which a deep copy is a flat one."""

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        return dict(self)


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup."""

    def run(self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Render; see the documentation above."""
        whole = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        rendered: list[str] = whole.run(terms, _Shared(variables or {}), **kwargs)
        return rendered
