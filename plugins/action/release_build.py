"""Shows what a host receives while ``wanmetal.comfyui.release_build`` runs."""

from __future__ import annotations

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.received import Watched


class ActionModule(Watched):
    """Ansible's entry point."""
