"""Whether ComfyUI would take a workflow: node types, inputs, ranges and links, against what node types are known."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import (
    ConversionError,
    is_group_node,
    to_api,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import Input, NodeType, Schemas

_BROWSER_TYPES = {"*", "COMBO"}
_NAMED = 8
"""More choices than these are counted, and a few of them named."""


def read(workflow: Any, schemas: Schemas) -> dict[str, Any]:
    """Return a workflow of either format in API format. A ConversionError says why it is none.

    Values without names, those of node types that are not known, are left out.
    """
    try:
        api = to_api(workflow, schemas, strict=False)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"this is no workflow of ComfyUI's ({type(error).__name__}: {error})") from error
    bare = [id_ for id_, node in api.items() if not isinstance(node.get("inputs"), Mapping)]
    if bare:
        raise ConversionError(f"the node {bare[0]} has no inputs")
    return api


def problems(
    api: Mapping[str, Any], schemas: Schemas, trusted: Collection[str] = (), *, strict: bool = False
) -> list[str]:
    """Return what ComfyUI would refuse in a graph in API format, a line each.

    Nodes of types in ``trusted`` are not looked at, and may be the end of others. ``strict`` tells what ComfyUI passes
    over, too: nodes that lead to no end, inputs that a type does not have; and group nodes, which it never sees.
    """
    looked_at = {
        id_: node
        for id_, node in api.items()
        if node["class_type"] not in trusted and (strict or not is_group_node(node["class_type"]))
    }
    ends = [
        id_
        for id_, node in api.items()
        if id_ not in looked_at or (node["class_type"] in schemas and schemas[node["class_type"]].ends)
    ]
    runs = set(api) if strict else _leading_to(ends, api)
    found = []
    for id_, node in looked_at.items():
        known = schemas.get(node["class_type"])
        if known is None:
            found.append(f"{named(id_, node)}: the node type {node['class_type']} is not known")
        elif id_ in runs:
            found += [f"{named(id_, node)}: {line}" for line in _node_problems(known, node["inputs"], api, schemas)]
            found += [f"{named(id_, node)}: {line}" for line in _strange_inputs(known, node["inputs"]) if strict]
    if not ends:
        found.append("nothing is saved or shown at its end")
    return found


def unknown_types(api: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return the node types that a graph in API format needs besides those that are known."""
    used = dict.fromkeys(str(node["class_type"]) for node in api.values())
    return [kind for kind in used if kind not in known and not is_group_node(kind)]


def named(id_: str, node: Mapping[str, Any]) -> str:
    """A node for people."""
    return f"node {id_} ({(node.get('_meta') or {}).get('title') or node['class_type']})"


def _leading_to(ends: Collection[str], api: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    left = list(ends)
    while left:
        id_ = left.pop()
        if id_ in api and id_ not in found:
            found.add(id_)
            given = api[id_]["inputs"].values()
            left += [value[0] for value in given if isinstance(value, list) and value and isinstance(value[0], str)]
    return found


def _node_problems(
    known: NodeType, given: Mapping[str, Any], api: Mapping[str, Any], schemas: Schemas
) -> Iterator[str]:
    for one in known.inputs:
        if one.name in given:
            yield from _input_problems(one, given[one.name], api, schemas)
        elif not one.optional:
            yield f"the input {one.name} is missing"


def _strange_inputs(known: NodeType, given: Mapping[str, Any]) -> Iterator[str]:
    dynamic = {name for one in known.inputs for name in one.brings(given.get(one.name))}
    strange = [name for name in given if known.input(name) is None and name not in dynamic]
    if strange:
        yield f"{known.name} has no input {', '.join(strange)}"


def _input_problems(one: Input, value: Any, api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    if isinstance(value, list):
        yield from _link_problems(one, value, api, schemas)
        return
    if not one.widget:
        yield f"{one.name} must be linked, found {value!r}"
    elif one.type in ("INT", "FLOAT"):
        yield from _number_problems(one, value)
    elif one.type == "BOOLEAN" and not isinstance(value, bool):
        yield f"{one.name} must be true or false, found {value!r}"
    elif one.type == "STRING" and not isinstance(value, str):
        yield f"{one.name} must be text, found {value!r}"
    elif one.type == "COMBO" and one.choices is not None and value not in one.choices:
        yield f"{one.name} must be {_choices(one.choices, value)}, found {value!r}"


def _choices(offered: Sequence[Any], value: object) -> str:
    names = [str(one) for one in offered]
    if not names:
        return "one of a list that is empty"
    if len(names) <= _NAMED:
        return f"one of {', '.join(names)}"
    like = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4) or names[:3]
    return f"one of {len(names)}, such as {', '.join(like)}"


def _number_problems(one: Input, value: Any) -> Iterator[str]:
    right = isinstance(value, int if one.type == "INT" else int | float) and not isinstance(value, bool)
    if not right:
        yield f"{one.name} must be a number, found {value!r}"
        return
    least, most = one.options.get("min"), one.options.get("max")
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"at most {most}" if least is None else f"{least} to {most}"
        yield f"{one.name} must be {limits}, found {value}"


def _link_problems(one: Input, value: list[Any], api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    if len(value) != 2 or not isinstance(value[0], str) or not isinstance(value[1], int):
        yield f"{one.name} is a list, and no link"
        return
    origin = api.get(value[0])
    if origin is None:
        yield f"{one.name} is linked to node {value[0]}, which is not there"
        return
    known = schemas.get(origin["class_type"])
    if known is None:
        return
    if not 0 <= value[1] < len(known.outputs):
        yield f"{one.name} is linked to output {value[1]} of {known.name}, which has {len(known.outputs)}"
        return
    kind = known.outputs[value[1]][0]
    if not set(kind.split(",")) & set(one.type.split(",")) and not {kind, one.type} & _BROWSER_TYPES:
        yield f"{one.name} wants {one.type}, and is linked to {kind} of {known.name}"
