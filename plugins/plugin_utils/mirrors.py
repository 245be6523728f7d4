"""The rewriting of URLs, which modules on hosts share with filters on the controller."""

from __future__ import annotations

from ansible_collections.wanmetal.comfyui.plugins.module_utils.mirrors import check, rewrite

__all__ = ["check", "rewrite"]
