"""Graphs as the browser saves them become those that ComfyUI takes."""

from __future__ import annotations

import json

from .failure import JobError


def convert(workflow: str, object_info: str) -> bytes:
    """Convert one, by what ComfyUI says of its node types."""
    # The program on a host has these files of the collection beside it.
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
    from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import from_object_info

    try:
        return json.dumps(to_api(json.loads(workflow), from_object_info(json.loads(object_info)))).encode()
    except ConversionError as error:
        raise JobError("request", f"the workflow cannot be converted to API format: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise JobError("request", "the workflow is neither in API format nor as the browser saves it") from error
