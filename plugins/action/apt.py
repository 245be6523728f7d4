"""Shows what a host receives while ``ansible.builtin.apt`` runs."""

from __future__ import annotations

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.received import Watched


class ActionModule(Watched):
    """Ansible's entry point."""

    module = "ansible.builtin.apt"
