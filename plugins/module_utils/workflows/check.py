"""Whether ComfyUI would take a workflow: node types, inputs, ranges and links, against what node types are known."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import (
    CUSTOM_COMBO,
    ConversionError,
    is_group_node,
    to_api,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import ANY, Input, NodeType, Schemas

_CONVERTED = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
"""Types whose values ComfyUI converts before it looks at them, and how."""
_NAMED = 8
"""More choices than these are counted, and a few of them named."""


def read(workflow: Any, schemas: Schemas, *, strict: bool = False, queued: bool = False) -> dict[str, Any]:
    """Return a workflow of either format in API format. A ConversionError says why it is none.

    Values without names, those of node types that are not known, are left out unless ``strict``. What the
    browser fills in as it queues is filled in where it is ``queued``.
    """
    try:
        api = to_api(workflow, schemas, strict=strict, queued=queued)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ConversionError(f"this is no workflow of ComfyUI's ({type(error).__name__}: {error})") from error
    strange = [id_ for id_, node in api.items() if not isinstance(node["class_type"], str)]
    if strange:
        raise ConversionError(f"the node {strange[0]} has no type: its class_type is no text")
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
    about = node.get("_meta")  # which is for people alone, so ComfyUI takes anything there
    return f"node {id_} ({(isinstance(about, Mapping) and about.get('title')) or node['class_type']})"


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
    for one in known.given(given):
        if one.name in given:
            yield from _input_problems(one, given[one.name], api, schemas)
        elif not one.optional:
            yield f"the input {one.name} is missing"


def _strange_inputs(known: NodeType, given: Mapping[str, Any]) -> Iterator[str]:
    names = {one.name for one in known.given(given)}
    # these nodes take inputs of any name
    free = known.name.endswith("(rgthree)") or known.name == CUSTOM_COMBO
    strange = [] if free else [name for name in given if name not in names]
    if strange:
        yield f"{known.name} has no input {', '.join(map(str, strange))}"


def _input_problems(one: Input, value: Any, api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    if isinstance(value, list):
        yield from _link_problems(one, value, api, schemas)
        return
    if isinstance(value, Mapping) and "__value__" in value:
        value = value["__value__"]
    if convert := _CONVERTED.get(one.type):
        try:
            yield from _limits(one, value, convert(value))
        except (OverflowError, TypeError, ValueError):
            wanted = "a whole number" if one.type == "INT" else "a number"
            yield f"{one.name} must be {wanted}, found {value!r}"
    elif one.choices is not None:
        chosen = value if one.options.get("multiselect") and isinstance(value, list) else [value]
        for wrong in [each for each in chosen if each not in one.choices]:
            yield f"{one.name} must be {_choices(one.choices, wrong)}, found {wrong!r}"
    elif not one.widget and _is_made(one.type, schemas):
        yield f"{one.name} must be linked, found {value!r}"


def _is_made(kind: str, schemas: Schemas) -> bool:
    """Whether a type is what nodes give, such as a model; others are values of widgets that packs bring."""
    return kind not in ANY and any(kind == given for known in schemas.values() for given, _unused in known.outputs)


def _limits(one: Input, value: Any, converted: Any) -> Iterator[str]:
    if isinstance(converted, str):
        return
    least, most = one.options.get("min"), one.options.get("max")
    if isinstance(converted, float) and math.isnan(converted):  # no limit holds it
        raise ValueError(value)
    if (least is not None and converted < least) or (most is not None and converted > most):
        limits = f"at least {least}" if most is None else f"at most {most}" if least is None else f"{least} to {most}"
        yield f"{one.name} must be {limits}, found {value}"


def _choices(offered: Sequence[Any], value: object) -> str:
    names = [str(one) for one in offered]
    if not names:
        return "one of a list that is empty"
    if len(names) <= _NAMED:
        return f"one of {', '.join(names)}"
    like = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4) or names[:3]
    return f"one of {len(names)}, such as {', '.join(like)}"


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
    fits = {*kind.split(","), kind} & {*one.type.split(","), one.type} or {*kind.split(","), *one.type.split(",")} & ANY
    if not fits:
        yield f"{one.name} wants {one.type}, and is linked to {kind} of {known.name}"
