"""What ComfyUI's page begins with on a host: page.js in the folder web, and the gallery of example_workflows."""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}
WEB_DIRECTORY = "web"
