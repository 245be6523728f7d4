"""The models that workflows name: of the official templates by a list, of files by what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError, to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflows import model_name, needs


def of_templates(
    names: Sequence[str], templates: Mapping[str, Mapping[str, Any]], catalogue: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Return what official templates need."""
    ids = {f"{entry['folder']}/{entry['name']}": id_ for id_, entry in catalogue["files"].items()}
    for name in names:
        models = templates[name]["models"]
        yield {
            "name": name,
            "ids": [ids[model] for model in models if model in ids],
            "entries": [],
            "unknown": [model for model in models if model not in ids],
        }


def of_files(texts: Mapping[str, str], catalogue: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return what workflows need that are files: of the catalogue, else by the address and the folder in the file."""
    known = {model_name(entry): id_ for id_, entry in catalogue["files"].items()}
    for name, text in texts.items():
        try:
            graph = json.loads(text.removeprefix("\ufeff"))
            listed = dict(_listed(graph))
            needed = needs(
                to_api(graph, workflow_schemas.recorded(), strict=False), workflow_schemas.recorded(), catalogue
            )
        except (ConversionError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"wan_models_workflows: {name} is no workflow that can be read: {error}") from error
        entries, unknown = [], []
        for model in needed.unknown:
            # A name as Windows writes it is of a file that the catalogue may have all the same.
            plain = model.replace("\\", "/")
            folder, _unused, base = plain.rpartition("/")
            found = listed.get(plain) or listed.get(base)
            if plain in known or not found:
                unknown.append(model)
                continue
            place = "/".join(filter(None, [found["folder"], folder]))
            entries.append({**found, "name": base, "folder": place})
        yield {"name": name, "ids": list(needed.models), "entries": entries, "unknown": unknown}


def _listed(value: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Find what the browser keeps of models, at the whole workflow or at a node, in subgraphs too."""
    if isinstance(value, Mapping):
        models = value.get("models")
        for one in models if isinstance(models, list) else []:
            if isinstance(one, Mapping) and one.get("name") and one.get("url") and one.get("directory"):
                entry = {"folder": str(one["directory"]), "url": str(one["url"])}
                if str(one.get("hash_type")).lower() in ("sha256", "none") and one.get("hash"):
                    entry["sha256"] = one["hash"]
                yield str(one["name"]), entry
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []:
        yield from _listed(part)
