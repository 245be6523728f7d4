"""The filters of the collection. Each is documented in the file beside this one that has its name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check, schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import (
    canary_workflows,
    custom_nodes,
    driver,
    installation,
    models,
    openpgp,
    release,
    report,
    report_page,
    wheels,
    workers,
    workflow_models,
    workflows,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight as checks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import counted, listed

Function = Callable[..., Any]


def comfyui_workers(instances: int | str, devices: list[dict[str, Any]], **of: Any) -> list[dict[str, Any]]:
    of |= {"port": int(of["port"]), "visible": of.get("visible") or None}
    return workers.workers(instances, devices, **of)


def host_workflows(
    files: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Any],
    packs: Mapping[str, Mapping[str, Any]] | None = None,
    extra: Mapping[str, str] | None = None,
    **release: str,
) -> dict[str, Any]:
    return workflows.for_host(files, packs or {}, catalogue, extra or {}, **release)


def imported_settings(found: object, source: str, *, host: str = "", **known: Any) -> dict[str, Any]:
    try:
        read = found if isinstance(found, Mapping) else installation.read(str(found))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    made = installation.settings(read, **known)
    return {"text": installation.fragment(made, source=source, host=host), "notes": made["notes"]}


def model_plan(
    planned: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    models_dir: str = "",
    rate: int = 0,
    workflows: Mapping[str, str] | None = None,
    template_names: Sequence[str] = (),
    templates: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    if state is not None:
        return models.on_host(planned, state, models_dir, rate)
    named = [
        *workflow_models.of_templates(template_names, templates or {}, planned),
        *workflow_models.of_files(workflows or {}, planned),
    ]
    return models.plan(planned, workflows=named, **settings)


def node_packs(
    lock: dict[str, Any],
    variant: str,
    extra: list[dict[str, Any]] | None = None,
    mirrors: object = (),
    folder: str = "",
    python_lock: str | None = None,
    gate: dict[str, Any] | None = None,
    comfyui: str = "",
) -> list[dict[str, Any]] | str:
    found = custom_nodes.packs(lock, variant, extra or [], mirrors, folder)
    if gate is not None:
        return custom_nodes.untried(found, gate, comfyui)
    if python_lock is not None:
        return custom_nodes.lock_problem(python_lock, [pack["label"] for pack in found])
    return found


def preflight(
    parts: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    places: Mapping[str, Any] | None = None,
    skip: Sequence[str] = (),
    allow_untested_os: bool = False,
) -> dict[str, Any]:
    plan = parts if isinstance(parts, Mapping) else checks.merge(parts)
    if state is None:
        return {"plan": plan}
    found = checks.problems(plan, state, places=places or {}, skip=skip, allow_untested_os=allow_untested_os)
    heading = f"{counted(len(found), 'thing')} on this host must be fixed first. Nothing has been changed."
    return {
        "plan": plan,
        "problem": listed(found, heading) if found else "",
        "lines": checks.summary(plan, state, skip=skip),
    }


def workflow_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    known = schemas.from_object_info(object_info) if object_info else schemas.recorded()
    return check.read(workflow, known, strict=True)


FILTERS: dict[str, Function] = {
    "apt_fix": driver.apt_fix,
    "attention_methods": wheels.methods,
    "canary_workflows": canary_workflows.canary_workflows,
    "closing_lines": report.closing_lines,
    "comfyui_worker_files": workers.files,
    "comfyui_workers": comfyui_workers,
    "driver_plan": driver.driver_plan,
    "gate_notes": custom_nodes.gate_notes,
    "host_workflows": host_workflows,
    "imported_settings": imported_settings,
    "mirror": rewrite,
    "model_plan": model_plan,
    "node_packs": node_packs,
    "openpgp_keys": openpgp.fingerprints,
    "preflight": preflight,
    "release_id": release.release_id,
    "report_lines": report.report_lines,
    "report_page": report_page.report_page,
    "with_renders": report_page.with_renders,
    "workflow_api": workflow_api,
}


def _naming(name: str, function: Function) -> Function:
    """A filter whose errors say which it is."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (custom_nodes.PackError, ConversionError, TypeError, ValueError) as error:
            raise AnsibleFilterError(f"wanmetal.comfyui.{name}: {error}") from error

    return called


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Function]:
        """Filters by name."""
        return {name: _naming(name, function) for name, function in FILTERS.items()}
