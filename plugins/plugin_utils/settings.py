"""The settings of an inventory: whether they are known, well typed, in range, and fit together.

Types and choices come from the roles' own argument specs; what those cannot say is in ``RULES``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks import mirrors
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import custom_nodes, locks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, shown, told

ROLES = Path(__file__).resolve().parents[2] / "roles"

Spec = Mapping[str, Any]
ReadFile = Callable[[str], "bytes | None"]
"""Gives a file on the controller, found as Ansible finds it, or None where there is none."""

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
    problems += _ports(typed)
    for rule in RULES:
        if all(name in typed for name in (rule.option, *rule.uses)):
            found = rule.find(read, typed[rule.option], *(typed[name] for name in rule.uses))
            if found:
                problems.append(Problem("settings", rule.option, found, rule.needed, rule.fix))
    skipped = typed.get("preflight_skip", ())
    return [problem for problem in problems if problem.kind not in skipped]


def unrenderable(name: str, error: Exception, spec: Spec) -> Problem:
    """The problem of a setting whose template cannot be rendered."""
    reason = "" if _secret(name, spec) else f": {told(str(error).splitlines()[0])}"
    return Problem(
        "settings",
        name,
        f"a template that cannot be rendered{reason}",
        wanted(spec),
        "define what the template uses, for every host that it is rendered for, or give it a default()",
    )


# -- names


def _unknown(given: Iterable[str], specs: Specs) -> list[Problem]:
    problems = []
    for name in sorted(given):
        if name in specs.known or not name.startswith(specs.prefixes):
            continue
        close = difflib.get_close_matches(name, sorted(specs.known), n=1)
        problems.append(
            Problem(
                NAMES,
                name,
                "a name that no role knows",
                "names of the roles' settings, since a misspelt one would do nothing",
                f"did you mean {close[0]}?" if close else "remove it, or give your own variable another prefix",
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


def _secret(name: str, spec: Spec) -> bool:
    return bool(spec.get("no_log")) or re.search(r"_(environment|key|password|secret|token)$", name) is not None


def _typed(name: str, value: object, spec: Spec) -> tuple[Any, Problem | None]:
    found = "" if _fits(value, spec) else shown(value)
    result = None
    if not found:
        result = ArgumentSpecValidator({name: _as_texts(spec)}).validate({name: value})
        if result.error_messages:
            inner = "options" in spec
            found = f"{shown(value)} ({result.error_messages[0].rstrip('.')})" if inner else shown(value)
    if result is not None and not found:
        return result.validated_parameters[name], None
    if _secret(name, spec):
        found = f"{next((word for kind, word in _KINDS.items() if isinstance(value, kind)), 'a value')}, not shown"
    elif value is None:
        found = "nothing (null)"
    elif isinstance(value, str) and spec.get("type") in {"bool", "list", "dict"}:
        found = f"the text {shown(value)}"
    elif isinstance(value, bool) and spec.get("type", "str") == "str":
        found = f"{value}, which YAML makes of words like yes, no, on and off"
    return None, Problem("settings", name, found, wanted(spec), _type_fix(name, value, spec))


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
        # A text such as "false" counts as true in templates.
        return isinstance(value, bool)
    if kind in {"int", "float"}:
        return not isinstance(value, bool)
    if kind == "dict":
        return isinstance(value, Mapping)
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
        truth = value.lower() in {"yes", "on", "true", "y", "t", "1"}
        return f"write it without quotes in YAML, or on the command line as -e '{json.dumps({name: truth})}'"
    if spec.get("type") in {"list", "dict"} and isinstance(value, str):
        example = [value] if spec["type"] == "list" and not spec.get("options") else spec.get("default", {})
        example = spec.get("default", []) if _secret(name, spec) else example
        return f"write it as YAML in the inventory, or on the command line as -e '{json.dumps({name: example})}'"
    close = difflib.get_close_matches(str(value), map(str, spec.get("choices", ())), n=1)
    if close:
        return f"did you mean {name}: {close[0]}?"
    if "default" in spec:
        return f"for example {name}: {json.dumps(spec['default'])}, which is the default"
    return f"correct {name}"


# -- ranges, forms and contradictions


@dataclass(frozen=True)
class Rule:
    """What a setting must be like beyond its type.

    ``find`` gets a reader of files, the setting and the settings that it ``uses``, all of their right types. It
    returns what it found that is wrong, or an empty string.
    """

    option: str
    find: Callable[..., str]
    needed: str
    fix: str
    uses: tuple[str, ...] = ()


def _ports(typed: Mapping[str, Any]) -> list[Problem]:
    problems = []
    ports = {name: value for name, value in typed.items() if name.endswith("_port")}
    for name, port in ports.items():
        same = [other for other in ports if other < name and ports[other] == port]
        if not 1024 <= port <= 65535:
            found, fix = shown(port), "choose a port that the services' user, who is not root, may open"
        elif same:
            found, fix = f"{port}, which {same[0]} has, too", "give each service a port of its own"
        else:
            continue
        problems.append(Problem("settings", name, found, "a port of its own from 1024 to 65535", fix))
    return problems


def _between(option: str, low: float, high: float, unit: str) -> Rule:
    return Rule(
        option,
        lambda _, value: "" if low <= value <= high else f"{value} {unit}",
        f"{low} to {high} {unit}",
        f"choose a number of {unit} in that range",
    )


def _matches(pattern: str) -> Callable[..., str]:
    return lambda _, value: "" if re.fullmatch(pattern, str(value)) else shown(value)


def _entries(wrong: Callable[[Any], bool]) -> Callable[..., str]:
    """Name the entries of a list that are wrong."""
    return lambda _, value: ", ".join(shown(entry) for entry in value if wrong(entry))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _remote(listen: str) -> bool:
    address = _address(listen)
    return address is not None and not address.is_loopback


def _not_an_address(_: ReadFile, listen: str) -> str:
    return "" if _address(listen) else shown(listen)


def _exposed(_: ReadFile, listen: str, allowed: bool) -> str:
    return f"{listen} with comfyui_allow_remote: false" if _remote(listen) and not allowed else ""


def _loopback_only(networks: Sequence[str]) -> bool:
    return set(networks) <= {"localhost", "127.0.0.0/8", "127.0.0.1", "::1", "::1/128"}


def _walled_in(_: ReadFile, networks: Sequence[str], listen: str) -> str:
    closed = _remote(listen) and _loopback_only(networks)
    return f"comfyui_listen: {listen} with comfyui_ip_allow: {list(networks)}" if closed else ""


def _nobody_to_call(_: ReadFile, networks: Sequence[str], api_nodes: bool) -> str:
    closed = api_nodes and _loopback_only(networks)
    return f"comfyui_partner_nodes: true with comfyui_ip_allow: {list(networks)}" if closed else ""


def _not_a_network(entry: str) -> bool:
    if entry in {"any", "localhost", "link-local", "multicast"}:
        return False
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        return True
    return False


def _networks(option: str) -> Rule:
    return Rule(
        option,
        _entries(_not_a_network),
        "networks such as 10.0.0.0/8, single addresses, or any, localhost, link-local, multicast",
        "correct the entry: a network has zeros after its prefix, so 10.1.2.0/24 and not 10.1.2.3/24",
    )


_VRAM_FLAGS = ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram")
_OWNED_FLAGS = {
    "--listen": "comfyui_listen",
    "--port": "comfyui_port",
    "--preview-method": "comfyui_preview_method",
    "--max-upload-size": "comfyui_max_upload_mb",
    "--extra-model-paths-config": "comfyui_extra_model_paths",
    "--base-directory": "wanmetal_data_dir",
    "--input-directory": "wanmetal_data_dir",
    "--output-directory": "wanmetal_data_dir",
    "--temp-directory": "wanmetal_data_dir",
    "--user-directory": "wanmetal_data_dir",
    "--database-url": "wanmetal_data_dir",
    "--disable-api-nodes": "comfyui_partner_nodes",
    "--use-sage-attention": "sageattention_enabled",
    **dict.fromkeys(_VRAM_FLAGS, "comfyui_vram_mode"),
    "--cpu": "wanmetal_accelerator",
}
_GPU_FLAGS = {
    "--async-offload",
    "--cuda-device",
    "--cuda-malloc",
    "--directml",
    "--disable-cuda-malloc",
    "--disable-smart-memory",
    "--reserve-vram",
    "--use-flash-attention",
    "--use-sage-attention",
}


def _flags(arguments: Iterable[str]) -> list[str]:
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]


def _owned_flags(_: ReadFile, arguments: Sequence[str]) -> str:
    # ComfyUI's parser takes any unambiguous beginning of a flag for the flag.
    owners = [
        f"{flag} ({', '.join(sorted({owner for full, owner in _OWNED_FLAGS.items() if full.startswith(flag)}))})"
        for flag in _flags(arguments)
        if any(full.startswith(flag) for full in _OWNED_FLAGS)
    ]
    return ", ".join(owners)


def _gpu_flags(_: ReadFile, arguments: Sequence[str], accelerator: str) -> str:
    flags = [flag for flag in _flags(arguments) if flag in _GPU_FLAGS]
    return f"{', '.join(flags)} with wanmetal_accelerator: cpu" if accelerator == "cpu" and flags else ""


def _bad_names(_: ReadFile, environment: Mapping[str, object]) -> str:
    return ", ".join(shown(name) for name in environment if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)))


def _bad_values(_: ReadFile, environment: Mapping[str, object]) -> str:
    wrong = [
        str(name)
        for name, value in environment.items()
        if isinstance(value, bool) or not isinstance(value, str | int | float) or re.search(r"[\n\0]", str(value))
    ]
    return f"something else in {', '.join(wrong)} (values are not shown)" if wrong else ""


def _owned_names(_: ReadFile, environment: Mapping[str, object], tcmalloc: bool, sageattention: bool) -> str:
    owned = {"HOME", *(["LD_PRELOAD"] if tcmalloc else []), *(["PYTHONPATH"] if sageattention else [])}
    return ", ".join(name for name in map(str, environment) if name in owned or name.startswith("WANMETAL_"))


_OLDEST_BRANCH = 570
"""The first that runs CUDA 12.8."""

_API_NAMES = {
    *(
        "ALWAYS_RESTART_COMFYUI",
        "CACHE_DIR",
        "CMD",
        "COMFYUI_PORT_HOST",
        "COMFY_HOME",
        "DIRECT_ADDRESS",
        "HOME",
        "HOST",
    ),
    *("INPUT_DIR", "LOG_LEVEL", "LRU_CACHE_SIZE_GB", "MANIFEST", "MANIFEST_JSON", "MAX_BODY_SIZE_MB", "MODEL_DIR"),
    *("OUTPUT_DIR", "PATH", "PORT", "PREPEND_FILENAMES", "SHELL", "WORKFLOW_DIR"),
}

_SYSTEM_FOLDERS = {
    *("/", "/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin", "/srv"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/share"),
    *("/var", "/var/cache", "/var/lib", "/var/log", "/var/spool"),
}
_PASSING_FOLDERS = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/run", "/var/tmp")  # noqa: S108


def _bad_folder(path: object) -> bool:
    text = str(path)
    return (
        not re.fullmatch(r"(/[A-Za-z0-9_+@-][A-Za-z0-9._+@-]*)+", text)
        or text in _SYSTEM_FOLDERS
        or any(PurePosixPath(text).is_relative_to(folder) for folder in _PASSING_FOLDERS)
    )


def _own_folder(option: str) -> Rule:
    return Rule(
        option,
        lambda _, path: shown(path) if _bad_folder(path) else "",
        "the absolute path of a folder of its own that outlives a restart of the host, of letters, digits and ._+@-",
        "choose a folder like the default: not one of the system's, not under /tmp or /run, without a slash at the end",
    )


def _apart(option: str, other: str, why: str) -> Rule:
    """``option`` must not lie in ``other``."""
    return Rule(
        option,
        lambda _, inner, outer: (
            f"{inner}, which lies in {other}: {outer}"
            if not _bad_folder(outer) and PurePosixPath(inner).is_relative_to(PurePosixPath(outer))
            else ""
        ),
        f"a folder that is not in {other}, since {why}",
        f"move {option} or {other}",
        (other,),
    )


def _bad_mirrors(_: ReadFile, entries: object) -> str:
    try:
        mirrors.check(entries)
    except (TypeError, ValueError) as error:
        return str(error).replace("mirrors[", "entry [", 1)
    return ""


def _shadowed_mirrors(read: ReadFile, entries: Sequence[Mapping[str, str]]) -> str:
    prefixes = [] if _bad_mirrors(read, entries) else [entry["prefix"] for entry in entries]
    for index, prefix in enumerate(prefixes):
        for earlier in prefixes[:index]:
            if mirrors.rewrite(prefix, [{"prefix": earlier, "replacement": "file:///taken/"}]) != prefix:
                return f"{shown(prefix)} after {shown(earlier)}, which takes all that it fits"
    return ""


def _bad_script(read: ReadFile, script: str) -> str:
    if not script:
        return ""
    content = read(script)
    if content is None:
        return f"{shown(script)}, which is no file on the controller"
    # A script from a vault is decrypted when it is copied.
    return "" if content.startswith((b"#!", b"$ANSIBLE_VAULT")) else f"{shown(script)}, which has no #! line"


def _bad_locks(_: ReadFile, folder: str) -> str:
    if not folder:
        return ""
    path = Path(folder).expanduser()
    if not path.is_dir():
        return f"{shown(folder)}, which is no folder on the controller"
    locks = [*path.glob("*.yml"), *path.glob("python/*.txt")]
    return "" if locks else f"{shown(folder)}, which holds neither *.yml nor python/*.txt"


def _bad_packs(_: ReadFile, entries: Sequence[Mapping[str, Any]], variant: str) -> str:
    lock = locks.load("custom_nodes")
    names = list(lock["variants"][variant])
    found = []
    for entry in entries:
        found.append(custom_nodes.wrong_entry(entry, names))
        names.append(str(entry["name"]))
    return "; ".join(filter(None, found))


_WORKFLOWS = ROLES.parent / "files/workflows/index.json"


def _bad_workflows(read: ReadFile, entries: Sequence[object]) -> str:
    index = json.loads(_WORKFLOWS.read_text(encoding="utf-8"))
    found = [] if entries else ["none"]
    for entry in entries:
        if isinstance(entry, str):
            found += [] if entry in index else [shown(entry)]
        elif not isinstance(entry, Mapping) or not entry.keys() >= {"name", "graph", "settings"}:
            found.append(shown(entry))
        elif read(str(entry["graph"])) is None:
            found.append(f"{shown(entry['graph'])}, which is no file on the controller")
    return ", ".join(found)


def _bad_own_workflows(read: ReadFile, entries: Sequence[str]) -> str:
    found = []
    for entry in entries:
        content = read(entry)
        if content is None:
            found.append(f"{shown(entry)}, which is no file on the controller")
            continue
        try:
            data = json.loads(content)
        except ValueError:
            found.append(f"{shown(entry)}, which is no JSON")
            continue
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            found.append(f"{shown(entry)}, which is not in the form in which the browser saves workflows")
    return "; ".join(found)


def _packs_missing(_: ReadFile, enabled: bool, entries: Sequence[object], variant: str) -> str:
    index = json.loads(_WORKFLOWS.read_text(encoding="utf-8"))
    names = [entry for entry in entries if isinstance(entry, str) and index.get(entry, {}).get("packs")]
    return f"wanmetal_variant: base with {', '.join(names)}" if enabled and variant == "base" and names else ""


def _half_a_bucket(_: ReadFile, endpoint: str, *parts: str) -> str:
    if not endpoint:
        return ""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", endpoint):
        return shown(endpoint)
    names = ("handler_bucket_key_id", "handler_bucket_secret", "handler_bucket_name")
    missing = [name for name, part in zip(names, parts, strict=True) if not part]
    return f"a bucket without {', '.join(missing)}" if missing else ""


RULES: tuple[Rule, ...] = (
    _own_folder("wanmetal_root"),
    _own_folder("wanmetal_data_dir"),
    _own_folder("wanmetal_cache_dir"),
    _own_folder("wanmetal_config_dir"),
    _apart("wanmetal_root", "wanmetal_data_dir", "the services, which own that one, could change their own code"),
    _apart("wanmetal_config_dir", "wanmetal_data_dir", "the services, which own that one, could change settings"),
    _apart("wanmetal_cache_dir", "wanmetal_data_dir", "the services, which own that one, could change packages"),
    _apart("wanmetal_data_dir", "wanmetal_root", "an uninstall removes that one and keeps the data"),
    _apart("wanmetal_root", "wanmetal_cache_dir", "a cache may be deleted at any time"),
    _apart("wanmetal_data_dir", "wanmetal_cache_dir", "a cache may be deleted at any time"),
    _apart("wanmetal_config_dir", "wanmetal_cache_dir", "a cache may be deleted at any time"),
    *(
        Rule(
            name,
            lambda _, value: "" if value != "root" and re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", value) else shown(value),
            "a name of small letters, digits, _ and -, at most 31, and not root",
            f"choose a name of its own, such as {name}: wanmetal",
        )
        for name in ("wanmetal_user", "wanmetal_group", "handler_user", "comfyui_api_user", "jupyterlab_user")
    ),
    Rule(
        "wanmetal_mirrors",
        _bad_mirrors,
        "entries of prefix and replacement, each a URL with its host or file:///, without user and password",
        "correct the entry; credentials belong into a netrc file on the host",
    ),
    Rule(
        "wanmetal_mirrors",
        _shadowed_mirrors,
        "prefixes that can each be used: the first that fits wins",
        "remove one of the two, or put the longer one first",
    ),
    Rule(
        "wanmetal_locks_dir",
        _bad_locks,
        "a folder of locks on the controller, laid out like files/locks of the collection",
        "correct the path, make the locks with playbooks/lock.yml, or leave it empty for the shipped ones",
    ),
    *(
        rule
        for name in ("wanmetal_environment", "comfyui_environment", "comfyui_api_environment")
        for rule in (
            Rule(
                name,
                _bad_names,
                "names of letters, digits and _, none of them beginning with a digit",
                "rename the entry",
            ),
            Rule(
                name,
                _bad_values,
                "a text or a number on one line as each value",
                'quote words such as "true" and "yes"; a text of several lines belongs into a file',
            ),
        )
    ),
    Rule(
        "comfyui_environment",
        _owned_names,
        "names that nothing else sets",
        "remove the entry; LD_PRELOAD needs comfyui_tcmalloc: false, and PYTHONPATH sageattention_enabled: false",
        ("comfyui_tcmalloc", "sageattention_enabled"),
    ),
    Rule(
        "comfyui_listen",
        _not_an_address,
        "one IP address, not a host name and not a list",
        "write 127.0.0.1 (this host only), an address of the host, or 0.0.0.0",
    ),
    Rule(
        "comfyui_listen",
        _exposed,
        "a loopback address: ComfyUI asks nobody for a password, and node packs run any code",
        "reach it through ssh -L 8188:127.0.0.1:8188 HOST, or set comfyui_allow_remote: true where a firewall "
        "guards the network",
        ("comfyui_allow_remote",),
    ),
    _networks("comfyui_ip_allow"),
    Rule(
        "comfyui_ip_allow",
        _walled_in,
        "the networks that are to reach the address, since all others are dropped",
        "add them to comfyui_ip_allow, or set comfyui_listen: 127.0.0.1",
        ("comfyui_listen",),
    ),
    Rule(
        "comfyui_ip_allow",
        _nobody_to_call,
        "the networks of the services that API nodes call, since all others are dropped",
        "set comfyui_ip_allow: [any], or comfyui_partner_nodes: false",
        ("comfyui_partner_nodes",),
    ),
    Rule(
        "nvidia_driver_branch",
        lambda _, branch: (
            shown(branch) if not re.fullmatch(r"[5-9]\d\d", branch) or int(branch) < _OLDEST_BRANCH else ""
        ),
        f"the number of a branch from {_OLDEST_BRANCH} on, without what comes after its dot",
        'for example nvidia_driver_branch: "580", the last one for Maxwell, Pascal and Volta',
    ),
    _between("nvidia_driver_reboot_timeout", 60, 7200, "seconds"),
    Rule(
        "sageattention_architectures",
        _entries(lambda entry: not re.fullmatch(r"\d{1,2}\.\d", entry)),
        "compute capabilities such as 8.9 and 12.0, in quotes",
        'correct the entry, for example sageattention_architectures: ["8.9", "12.0"]',
    ),
    Rule(
        "sageattention_build_memory_max",
        _matches(r"\d+[KMGT]?|\d{1,3}%|infinity"),
        "a size such as 32G, a percentage, or infinity",
        "for example sageattention_build_memory_max: 80%, which is the default",
    ),
    _between("sageattention_build_threads", 0, 1024, "threads"),
    _between("sageattention_build_timeout", 60, 86400, "seconds"),
    _between("sageattention_test_timeout", 10, 86400, "seconds"),
    _between("sageattention_max_error", 0.0001, 1, "of the norm"),
    _between("sageattention_min_speedup", 0, 100, "times"),
    Rule(
        "custom_nodes_extra",
        _bad_packs,
        "packs that the variant does not have, each with a name for its folder, a repository and a whole commit",
        "correct the entry: docs/custom-nodes.md shows one",
        ("wanmetal_variant",),
    ),
    _between("comfyui_max_upload_mb", 1, 1_000_000, "MB"),
    _between("comfyui_start_timeout", 10, 3600, "seconds"),
    _between("comfyui_drain_timeout", 0, 86400, "seconds"),
    _between("comfyui_canary_timeout", 5, 3600, "seconds"),
    _between("comfyui_releases_keep", 1, 100, "releases"),
    Rule(
        "comfyui_instances",
        lambda _, number: "" if re.fullmatch(r"auto|[1-9]|1[0-6]", str(number)) else shown(number),
        "auto, or a number of workers from 1 to 16",
        "for example comfyui_instances: auto",
    ),
    *(
        Rule(
            name,
            _matches(r"infinity|[1-9][0-9]*[KMGT]?|[1-9][0-9]?%|100%"),
            "infinity, bytes with K, M, G or T behind them, or a share such as 90%",
            f"for example {name}: {example}",
        )
        for name, example in (
            ("comfyui_memory_max", "96G"),
            ("comfyui_api_memory_max", "4G"),
            ("jupyterlab_memory_max", "25%"),
        )
    ),
    _between("comfyui_api_max_body_mb", 1, 500, "MB"),
    _between("comfyui_api_cache_gb", 1, 10_000, "GB"),
    Rule(
        "comfyui_api_checksum",
        lambda _, sha256, source: (
            f"{shown(sha256)} with comfyui_api_source: binary"
            if source == "binary" and not re.fullmatch(r"[0-9a-f]{64}", sha256)
            else ""
        ),
        "the sha256 of the file that is fetched: its makers publish none",
        "fetch it on a machine that you trust, look at it with sha256sum, and set comfyui_api_checksum; or leave "
        "comfyui_api_source: source, whose hashes are known",
        ("comfyui_api_source",),
    ),
    _networks("comfyui_api_ip_deny"),
    _networks("jupyterlab_ip_deny"),
    *(
        Rule(
            name,
            lambda _, networks: ", ".join(one for one in networks if one in {"any", "localhost", "127.0.0.0/8"}),
            "networks that do not hold this host, since ComfyUI is on it",
            "remove the entry",
        )
        for name in ("comfyui_api_ip_deny", "jupyterlab_ip_deny")
    ),
    Rule(
        "comfyui_api_environment",
        lambda _, environment: ", ".join(name for name in map(str, environment) if name in _API_NAMES),
        "names that no setting makes",
        "remove the entry, or use the setting comfyui_api_… for it",
    ),
    Rule(
        "comfyui_extra_args",
        _owned_flags,
        "arguments that no setting makes",
        "use the setting that is named in brackets",
    ),
    Rule(
        "comfyui_extra_args",
        _gpu_flags,
        "no argument that needs a GPU while ComfyUI runs without one",
        "remove the argument, or set wanmetal_accelerator: gpu",
        ("wanmetal_accelerator",),
    ),
    Rule(
        "comfyui_extra_args",
        _entries(lambda entry: bool(re.search(r"[\n\0]|^\s*$", entry) or re.match(r"--?[a-z-]+\s", entry))),
        "one argument an entry, none of them empty or of several lines",
        'split it: ["--reserve-vram", "2"] or ["--reserve-vram=2"], not ["--reserve-vram 2"]',
    ),
    Rule(
        "comfyui_extra_model_paths",
        _entries(
            lambda entry: (
                not re.fullmatch(r"/[^\n\0]+", entry)
                or ".." in PurePosixPath(entry).parts
                or any(PurePosixPath(entry).is_relative_to(folder) for folder in _PASSING_FOLDERS)
            )
        ),
        "absolute paths of folders that the service sees, so not under /tmp, /run and the like",
        "correct the entry, for example /srv/models",
    ),
    Rule(
        "comfyui_extra_model_paths",
        lambda _, paths, data: ", ".join(
            shown(path)
            for index, path in enumerate(paths)
            if path in paths[:index] or PurePosixPath(path) == PurePosixPath(data) / "models"
        ),
        "each folder once, and not the folder of models that is there anyway",
        "remove the entry",
        ("wanmetal_data_dir",),
    ),
    Rule(
        "comfyui_before_start",
        _bad_script,
        "a script on the controller that begins with #!, found as Ansible finds files",
        'correct the path (a sure one is "{{ inventory_dir }}/before-start.sh"), or leave it empty',
    ),
    Rule(
        "workflows_extra",
        _bad_own_workflows,
        "files on the controller that ComfyUI's browser page has saved, found as Ansible finds files",
        "correct the path, or save the workflow with Save rather than Export (API)",
    ),
    Rule(
        "handler_workflows",
        _bad_workflows,
        "names of workflows in files/workflows, or your own with name, graph (a file) and settings; one at least",
        "correct the entry; playbooks and docs/handler.md tell the names",
    ),
    Rule(
        "handler_enabled",
        _packs_missing,
        "a variant with the node packs of the handler's workflows",
        "set wanmetal_variant: wan, or handler_workflows to workflows of ComfyUI's own nodes",
        ("handler_workflows", "wanmetal_variant"),
    ),
    Rule(
        "handler_bucket_endpoint",
        _half_a_bucket,
        "an http(s) address without a user, and with it the key, its id and the bucket's name",
        "set all of handler_bucket_endpoint, _key_id, _secret and _name, or none",
        ("handler_bucket_key_id", "handler_bucket_secret", "handler_bucket_name"),
    ),
    Rule(
        "handler_image_allow",
        _entries(lambda entry: _not_a_network(entry) or entry in {"any", "localhost", "link-local", "multicast"}),
        "networks such as 10.0.0.0/8, or single addresses",
        "correct the entry: a network has zeros after its prefix",
    ),
    Rule(
        "handler_environment",
        _bad_names,
        "names of letters, digits and _, none of them beginning with a digit",
        "rename the entry",
    ),
    Rule(
        "handler_environment",
        _bad_values,
        "a text or a number on one line as each value",
        'quote words such as "true" and "yes"; a text of several lines belongs into a file',
    ),
    Rule(
        "handler_environment",
        lambda _, environment: ", ".join(
            name for name in map(str, environment) if name.startswith(("HANDLER_", "BUCKET_", "COMFYUI_", "PYTHON"))
        ),
        "names that nothing else sets",
        "use the setting handler_… of that name",
    ),
    Rule(
        "handler_memory_max",
        _matches(r"infinity|[1-9][0-9]*[KMGT]?|[1-9][0-9]?%|100%"),
        "infinity, bytes with K, M, G or T behind them, or a share such as 90%",
        "for example handler_memory_max: 4G",
    ),
    _between("handler_concurrency", 1, 16, "jobs"),
    _between("handler_queue", 1, 10_000, "jobs"),
    _between("handler_job_timeout", 10, 86_400, "seconds"),
    _between("handler_keep_hours", 1, 8760, "hours"),
    _between("handler_image_timeout", 1, 600, "seconds"),
    _between("handler_image_mb", 1, 200, "MB"),
    _between("handler_image_megapixels", 1, 200, "million pixels"),
    _between("handler_inline_mb", 1, 200, "MB"),
    _between("handler_bucket_link_hours", 1, 168, "hours"),
    _between("wan_models_connections", 1, 16, "connections"),
    _between("wan_models_parallel", 1, 64, "files"),
    *(
        Rule(
            option,
            _matches(r"(\d+[KMGTkmgt]?)?"),
            "bytes, with K, M, G or T behind them, or nothing",
            f"for example {option}: 50M",
        )
        for option in ("wan_models_limit", "wan_models_reserve")
    ),
    Rule(
        "wan_models_share_address",
        lambda _, address, share: shown(address) if (share or address) and not _address(address) else "",
        "an address of the host that the fleet can reach, as wan_models_share is true",
        "set it for each host, for example in host_vars, or set wan_models_share: false",
        ("wan_models_share",),
    ),
    Rule(
        "wan_models_share_allow",
        _entries(_not_a_network),
        "networks such as 10.0.0.0/8, or single addresses",
        "correct the entry: a network has zeros after its prefix",
    ),
)
