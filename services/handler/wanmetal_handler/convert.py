"""Graphs as the browser saves them, and those with node types that others stand for, become what ComfyUI takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .failure import JobError


def needed(workflow: Mapping[str, Any]) -> bool:
    """Whether a graph is of the browser's format, or has node types that may have to be replaced."""
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import table

    kinds = {str(node.get("class_type")) for node in workflow.values() if isinstance(node, Mapping)}
    return isinstance(workflow.get("nodes"), list) or not kinds.isdisjoint(table())


def convert(workflow: str, object_info: str) -> bytes:
    """Convert one, by what ComfyUI says of its node types."""
    # The program on a host has these files of the collection beside it.
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import replace
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import from_object_info

    try:
        schemas = from_object_info(json.loads(object_info))
        graph, replaced = replace(json.loads(workflow), schemas, schemas)
        return json.dumps([to_api(graph, schemas, queued=True), [str(one) for one in replaced]]).encode()
    except ConversionError as error:
        raise JobError("request", f"the workflow cannot be converted to API format: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise JobError("request", "the workflow is neither in API format nor as the browser saves it") from error
