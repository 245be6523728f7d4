"""The settings of an inventory: whether they are known, well typed, in range, and fit together.

Types and choices come from the roles' own argument specs. Beyond that, a setting has rules by what it is
(setting_kinds) and by its name (setting_rules).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import setting_kinds as kinds
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import meant
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, shown, told
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_kinds import EVERY, ReadFile, Seen, Spec, secret
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_rules import ON_CONTROLLER, RULES

ROLES = Path(__file__).resolve().parents[2] / "roles"

NAMES = "names"
"""The kind of problem that an unknown name is. The others are of the kind ``settings``."""


@dataclass(frozen=True)
class Specs:
    """What the roles say of their settings."""

    options: Mapping[str, Spec]
    """The settings of a deploy: those of every role's entry point ``main``."""
    known: frozenset[str]
    """Names that any entry point of any role takes."""
    prefixes: tuple[str, ...]
    """What our settings begin with."""


def load_specs(roles: Path = ROLES) -> Specs:
    """Read the argument specs of all roles."""
    options: dict[str, Spec] = {}
    known: set[str] = set()
    prefixes = []
    for file in sorted(roles.glob("*/meta/argument_specs.yml")):
        prefixes.append(f"{file.parts[-3]}_")
        for name, entry in yaml_load(file.read_text(encoding="utf-8"))["argument_specs"].items():
            known |= entry.get("options", {}).keys()
            if name == "main":
                options |= entry.get("options", {})
    return Specs(options, frozenset(known), tuple(prefixes))


def check(values: Mapping[str, object], given: Iterable[str], specs: Specs, read: ReadFile) -> list[Problem]:
    """Everything that is wrong with the settings of a host.

    ``values`` are the settings that are set, by inventory or by the defaults of a role; ``given`` are the names
    that the operator set, known or not.
    """
    problems = _unknown(given, specs)
    typed: dict[str, Any] = {}
    for name, spec in specs.options.items():
        if name in values:
            value, problem = _typed(name, values[name], spec)
        elif spec.get("required"):
            value, problem = None, Problem("settings", name, "nothing", wanted(spec), f"set {name}")
        elif "default" in spec and "{{" not in str(spec["default"]):
            value, problem = spec["default"], None
        else:
            continue
        if problem:
            problems.append(problem)
        else:
            typed[name] = value
    for name in typed:
        problem = _against_rules(name, specs, typed, read)
        problems += [problem] if problem else []
    skipped = typed.get("preflight_skip", ())
    return [problem for problem in problems if problem.kind not in skipped]


def _against_rules(name: str, specs: Specs, typed: Mapping[str, Any], read: ReadFile) -> Problem | None:
    """The first rule that a setting breaks: those that follow build on it."""
    spec, own = specs.options[name], RULES.get(name, ())
    seen = Seen(name, spec, specs.options, typed, read)
    for rule in (*EVERY, *kinds.of(name, spec, own, on_host=name not in ON_CONTROLLER), *own):
        try:
            found = rule.find(typed[name], seen)
        except KeyError as missing:
            # It compares with a setting that has a problem of its own.
            if missing.args[0] not in specs.options:
                raise
            continue
        if found:
            fix = rule.fix.replace("{name}", name).replace("{default}", str(spec.get("default", "")))
            return Problem("settings", name, found, rule.needed, fix)
    return None


def places(values: Mapping[str, object], specs: Specs) -> dict[str, dict[str, str]]:
    """The accounts and folders on the host that settings name as our own, by setting."""
    named = {name: str(values.get(name, spec.get("default", ""))) for name, spec in specs.options.items()}
    return {
        kind: {name: value for name, value in named.items() if name.endswith(endings) and name not in ON_CONTROLLER}
        for kind, endings in (("users", "_user"), ("groups", "_group"), ("folders", ("_dir", "_root")))
    }


def unrenderable(name: str, error: Exception, spec: Spec) -> Problem:
    """The problem of a setting whose template cannot be rendered."""
    reason = "" if secret(name, spec) else f": {told(str(error).splitlines()[0])}"
    return Problem(
        "settings",
        name,
        f"a template that cannot be rendered{reason}",
        wanted(spec),
        "define what the template uses, for every host that it is rendered for, or give it a default()",
    )


# -- names and values that there were once

_GONE: dict[str, str] = {
    "comfyui_source": "remove it: ComfyUI comes from its repository, or from a mirror in wanmetal_mirrors; for a lab "
    "that reaches no git host, set wanmetal_variant: practice",
    "wan_models_allow_unproven": "it is called wan_models_allow_unverified now",
}
_GONE_VALUES: dict[tuple[str, str], str] = {
    (
        "comfyui_vram_mode",
        "normalvram",
    ): "remove the line: ComfyUI has no --normalvram any longer, and auto does the same",
}

# -- names


def _unknown(given: Iterable[str], specs: Specs) -> list[Problem]:
    problems = []
    for name in sorted(given):
        close = difflib.get_close_matches(name, sorted(specs.known), n=1)
        if name.startswith(specs.prefixes) and name not in specs.known:
            fix = f"did you mean {close[0]}?" if close else "remove it, or give your own variable another prefix"
            fix = _GONE.get(name, fix)
            whose = "of the roles' settings"
        elif old := meant(name):
            whose, fix = "of the Docker image's settings", f"did you mean {old}?"
        else:
            continue
        problems.append(
            Problem(
                NAMES,
                name,
                "a name that no role knows",
                f"names {whose}, since a misspelt one would do nothing",
                fix,
            )
        )
    return problems


# -- types

_WORDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "path": "a path",
    "raw": "a value",
    "str": "a text",
}
_TRUTH_VALUES = {"true", "false", "yes", "no", "on", "off"}
_KINDS = {bool: "a truth value", int: "a number", str: "a text", list: "a list", dict: "a mapping"}


def wanted(spec: Spec) -> str:
    """What a spec asks for, in words."""
    if "choices" in spec:
        one = f"one of {', '.join(map(str, spec['choices']))}"
        return f"a list, each {one}" if spec.get("type") == "list" else one
    words = _WORDS[spec.get("type", "str")]
    if "options" in spec:
        return f"{words}{' of mappings' if words == 'a list' else ''} with {' and '.join(spec['options'])}"
    if spec.get("elements"):
        return f"{words}, each entry {_WORDS[spec['elements']]}"
    return words


def _typed(name: str, value: object, spec: Spec) -> tuple[Any, Problem | None]:
    found = _unlike(value, spec)
    result = None
    if not found:
        result = ArgumentSpecValidator({name: _as_texts(spec)}).validate({name: value})
        if result.error_messages:
            inner = "options" in spec
            found = f"{shown(value)} ({result.error_messages[0].rstrip('.')})" if inner else shown(value)
    if result is not None and not found:
        return result.validated_parameters[name], None
    if secret(name, spec):
        found = f"{next((word for kind, word in _KINDS.items() if isinstance(value, kind)), 'a value')}, not shown"
    elif value is None:
        found = "nothing (null)"
    elif isinstance(value, str) and spec.get("type") in {"bool", "list", "dict"}:
        found = f"the text {shown(value)}"
    elif isinstance(value, bool) and spec.get("type", "str") == "str":
        found = f"{value}, which YAML makes of words like yes, no, on and off"
    return None, Problem("settings", name, found, wanted(spec), _type_fix(name, value, spec))


def _unlike(value: object, spec: Spec) -> str:
    """What of a value does not have its type, parts of it included: roles see them as they are written."""
    if not _fits(value, spec):
        return shown(value)
    options = spec.get("options", {})
    for entry in value if isinstance(value, list) else [value]:
        inner = entry if isinstance(entry, Mapping) else {}
        for name in options.keys() & inner.keys():
            if found := _unlike(inner[name], options[name]):
                return f"{name}: {found}, which has to be {wanted(options[name])}, in {shown(entry)}"
    return ""


def _as_texts(spec: Spec) -> dict[str, Any]:
    """Paths as texts: the validator would expand ~ and $HOME to those of the controller."""
    return {key: "str" if key in {"type", "elements"} and value == "path" else value for key, value in spec.items()}


def _fits(value: object, spec: Spec) -> bool:
    """Refuse what Ansible would convert into something that nobody meant, or that roles do not convert."""
    kind = spec.get("type", "str")
    if value is None:
        return False
    if kind in {"str", "path"}:
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if kind == "bool":
        # As -e name=false and an INI inventory give it. Roles read it with the filter bool.
        return isinstance(value, bool) or str(value).lower() in _TRUTH_VALUES
    if kind in {"int", "float"} and isinstance(value, str):
        # Python reads more than the programs do that get the text: other digits, 1_000, 1e9, blanks around it.
        return re.fullmatch(r"-?[0-9]{1,18}" if kind == "int" else r"-?[0-9]{1,18}(\.[0-9]{1,18})?", value) is not None
    if kind in {"int", "float"}:
        return not isinstance(value, bool) and (
            not isinstance(value, float) or (math.isfinite(value) and kind != "int")
        )
    if kind == "dict":
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    if kind == "list":
        element = {"type": spec.get("elements", "raw")}
        return isinstance(value, list) and all(_fits(entry, element) for entry in value)
    return True


def _type_fix(name: str, value: object, spec: Spec) -> str:
    if value is None:
        return f"remove the line to get the default, or give {name} a value"
    if isinstance(value, bool) and spec.get("type", "str") == "str":
        return "put the word into quotes"
    if spec.get("type") == "bool" and isinstance(value, str):
        return f"write {name}: true or {name}: false"
    if spec.get("type") in {"list", "dict"} and isinstance(value, str):
        words = [word.strip(" '\"") for word in value.strip(" []").split(",")]
        example = words if spec["type"] == "list" and not spec.get("options") else spec.get("default", {})
        example = spec.get("default", []) if secret(name, spec) else example
        return f"write it as YAML in the inventory, or on the command line as -e '{json.dumps({name: example})}'"
    if gone := _GONE_VALUES.get((name, str(value))):
        return gone
    close = difflib.get_close_matches(str(value), map(str, spec.get("choices", ())), n=1)
    if close:
        return f"did you mean {name}: {close[0]}?"
    if "default" in spec:
        return f"for example {name}: {json.dumps(spec['default'])}, which is the default"
    return f"correct {name}"
