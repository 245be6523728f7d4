"""Rules that settings have by their names: one table a role. Those that they have by what they are: setting_kinds."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks import mirrors
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check as workflow_check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import (
    custom_nodes,
    locks,
    models,
    wheels,
    workflow_files,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import shown, told
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_kinds import (
    Rule,
    Seen,
    address,
    bad_folder,
    between,
    entries,
    matches,
)

ON_CONTROLLER = frozenset(
    {"sageattention_cache_dir", "verify_output_dir", "wanmetal_env_file", "wanmetal_locks_dir", "workflows_extra"}
)
"""Folders and files of the controller. What all other settings name is on the host."""

Rules = Mapping[str, Sequence[Rule]]

# -- wanmetal


def _apart(other: str, why: str) -> Rule:
    """The folder must not lie in ``other``."""

    def find(inner: str, seen: Seen) -> str:
        outer = seen.settings[other]
        lies = not bad_folder(outer) and inner != outer and PurePosixPath(inner).is_relative_to(outer)
        return f"{inner}, which lies in {other}: {outer}" if lies else ""

    return Rule(find, f"a folder that is not in {other}, since {why}", f"move {{name}} or {other}")


_SECRET_NAME = re.compile(
    r"(?i)(token|passw(or)?d|passphrase|secret|credentials?|api_?key|access_?key|private_?key|auth|cookie)s?(_|$)"
)


def _secrets_by_name(environment: Mapping[str, object], _unused: Seen) -> str:
    """Files that hold one are fine: their paths are no secrets."""
    secret = [
        str(name)
        for name, value in environment.items()
        if (_SECRET_NAME.search(str(name)) and not str(value).startswith("/"))
        or re.search(r"(?i)authorization:|\b(bearer|basic)\s", str(value))
    ]
    return f"one in {', '.join(secret)} (values are not shown)" if secret else ""


def _bad_mirrors(entries_: object, _unused: Seen) -> str:
    try:
        mirrors.check(entries_)
    except (TypeError, ValueError) as error:
        return str(error).replace("mirrors[", "entry [", 1)
    return ""


def _shadowed_mirrors(entries_: Sequence[Mapping[str, str]], _unused: Seen) -> str:
    prefixes = [entry["prefix"] for entry in entries_]
    for index, prefix in enumerate(prefixes):
        for earlier in prefixes[:index]:
            if mirrors.rewrite(prefix, [{"prefix": earlier, "replacement": "file:///taken/"}]) != prefix:
                return f"{shown(prefix)} after {shown(earlier)}, which takes all that it fits"
    return ""


def _bad_locks(folder: str, _unused: Seen) -> str:
    if not folder:
        return ""
    path = Path(folder).expanduser()
    if not os.path.isdir(path):  # noqa: PTH112 (a Path raises where a name is too long)
        return f"{shown(folder)}, which is no folder on the controller"
    found = [*path.glob("*.yml"), *path.glob("python/*.txt")]
    if not found:
        return f"{shown(folder)}, which holds neither *.yml nor python/*.txt"
    try:
        _catalogue(folder)
    except locks.LockError as error:
        return told(" ".join(str(error).replace(f"{path}/", "").split()))
    return ""


_CACHE = "a cache may be deleted at any time"
_SERVICES = "the services, which own that one, could change {}"
_OF_PROGRAMS = re.compile("PATH|HOME|SHELL|IFS|ENV|BASH_ENV|PYTHON(PATH|HOME)|LD_.*")
_WANMETAL: Rules = {
    "wanmetal_root": [
        _apart("wanmetal_data_dir", _SERVICES.format("their own code")),
        _apart("wanmetal_cache_dir", _CACHE),
    ],
    "wanmetal_data_dir": [
        _apart("wanmetal_root", "an uninstall removes that one and keeps the data"),
        _apart("wanmetal_cache_dir", _CACHE),
    ],
    "wanmetal_cache_dir": [_apart("wanmetal_data_dir", _SERVICES.format("packages"))],
    "wanmetal_config_dir": [
        _apart("wanmetal_data_dir", _SERVICES.format("settings")),
        _apart("wanmetal_cache_dir", _CACHE),
    ],
    "wanmetal_environment": [
        Rule(
            entries(lambda name: _OF_PROGRAMS.fullmatch(str(name)) is not None),
            "no name that decides which programs and libraries the deploy itself runs, as root",
            "remove the entry; what ComfyUI alone needs belongs in comfyui_environment",
        ),
        Rule(
            _secrets_by_name,
            "no password and no token: tasks put these values into command lines, which every user of a host can read",
            "let the host hold it: an index's in /root/.netrc with mode 0600, a proxy's in a proxy on the host itself "
            "that asks for none; a token for models belongs in wan_models_tokens",
        ),
    ],
    "wanmetal_mirrors": [
        Rule(
            _bad_mirrors,
            "entries of prefix and replacement, each a URL with its host or file:///, without user and password",
            "correct the entry; credentials belong in a netrc file on the host",
        ),
        Rule(
            _shadowed_mirrors,
            "prefixes that can each be used: the first that fits wins",
            "remove one of the two, or put the longer one first",
        ),
    ],
    "wanmetal_locks_dir": [
        Rule(
            _bad_locks,
            "a folder of locks on the controller, laid out like files/locks of the collection",
            "correct the path, make the locks with playbooks/lock.yml, or leave it empty for the shipped ones",
        )
    ],
    "wanmetal_serial": [
        Rule(
            lambda value, _unused: ", ".join(
                shown(one)
                for one in (value if isinstance(value, list) else [value])
                if not re.fullmatch(r"[1-9][0-9]{0,5}|[1-9][0-9]?%|100%", str(one))
            ),
            "a number of hosts or a share such as 25%, or a list of them",
            "for example wanmetal_serial: 1",
        )
    ],
}

# -- comfyui


def _loopback_only(networks: Sequence[str]) -> bool:
    return set(networks) <= {"localhost", "127.0.0.0/8", "127.0.0.1", "::1", "::1/128"}


def _remote(listen: str) -> bool:
    one = address(listen)
    return one is not None and not one.is_loopback


def _exposed(listen: str, seen: Seen) -> str:
    allowed = seen.settings["comfyui_allow_remote"]
    return f"{listen} with comfyui_allow_remote: false" if _remote(listen) and not allowed else ""


def _walled_in(networks: Sequence[str], seen: Seen) -> str:
    listen = seen.settings["comfyui_listen"]
    closed = _remote(listen) and _loopback_only(networks)
    return f"comfyui_listen: {listen} with comfyui_ip_allow: {list(networks)}" if closed else ""


def _nobody_to_call(networks: Sequence[str], seen: Seen) -> str:
    closed = seen.settings["comfyui_partner_nodes"] and _loopback_only(networks)
    return f"comfyui_partner_nodes: true with comfyui_ip_allow: {list(networks)}" if closed else ""


VRAM_FLAGS = ("--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram")
OWNED_FLAGS = {
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
    **dict.fromkeys(VRAM_FLAGS, "comfyui_vram_mode"),
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
    "--use-ck-attention",
    "--use-flash-attention",
    "--use-sage-attention",
}


def _flags(arguments: Iterable[str]) -> list[str]:
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]


def _owned_flags(arguments: Sequence[str], _unused: Seen) -> str:
    # ComfyUI's parser takes any unambiguous beginning of a flag for the flag.
    owners = [
        f"{flag} ({', '.join(sorted({owner for full, owner in OWNED_FLAGS.items() if full.startswith(flag)}))})"
        for flag in _flags(arguments)
        if any(full.startswith(flag) for full in OWNED_FLAGS)
    ]
    return ", ".join(owners)


def _gpu_flags(arguments: Sequence[str], seen: Seen) -> str:
    accelerator = seen.settings["wanmetal_accelerator"]
    flags = [flag for flag in _flags(arguments) if flag in _GPU_FLAGS]
    return f"{', '.join(flags)} with wanmetal_accelerator: cpu" if accelerator == "cpu" and flags else ""


def _owned_names(environment: Mapping[str, object], seen: Seen) -> str:
    owned = {
        "HOME",
        *(["LD_PRELOAD"] if seen.settings["comfyui_tcmalloc"] else []),
        *(["PYTHONPATH"] if seen.settings["sageattention_enabled"] else []),
    }
    return ", ".join(name for name in map(str, environment) if name in owned or name.startswith("WANMETAL_"))


def _bad_script(script: str, seen: Seen) -> str:
    if not script:
        return ""
    content = seen.read(script)
    if content is None:
        return f"{shown(script)}, which is no file on the controller"
    # A script from a vault is decrypted when it is copied.
    return "" if content.startswith((b"#!", b"$ANSIBLE_VAULT")) else f"{shown(script)}, which has no #! line"


def _models_twice(paths: Sequence[str], seen: Seen) -> str:
    own = PurePosixPath(seen.settings["wanmetal_data_dir"]) / "models"
    return ", ".join(
        shown(path) for index, path in enumerate(paths) if path in paths[:index] or PurePosixPath(path) == own
    )


_COMFYUI: Rules = {
    "comfyui_environment": [
        Rule(
            _owned_names,
            "names that nothing else sets",
            "remove the entry; LD_PRELOAD needs comfyui_tcmalloc: false, and PYTHONPATH sageattention_enabled: false",
        )
    ],
    "comfyui_listen": [
        Rule(
            _exposed,
            "a loopback address: ComfyUI asks nobody for a password, and node packs run any code",
            "reach it through ssh -L 8188:127.0.0.1:8188 HOST, or set comfyui_allow_remote: true where a firewall "
            "guards the network",
        )
    ],
    "comfyui_ip_allow": [
        Rule(
            _walled_in,
            "the networks that are to reach the address, since all others are dropped",
            "add them to comfyui_ip_allow, or set comfyui_listen: 127.0.0.1",
        ),
        Rule(
            _nobody_to_call,
            "the networks of the services that API nodes call, since all others are dropped",
            "set comfyui_ip_allow: [any], or comfyui_partner_nodes: false",
        ),
    ],
    "comfyui_start_timeout": [between(10, 3600, "seconds")],
    "comfyui_drain_timeout": [between(0, 86400, "seconds")],
    "comfyui_canary_timeout": [between(5, 3600, "seconds")],
    "comfyui_releases_keep": [between(1, 100, "releases")],
    "comfyui_rollback_to": [
        Rule(
            matches(r"[A-Za-z0-9][A-Za-z0-9._+-]*"),
            "previous, or the name of a release",
            "for example comfyui_rollback_to: previous",
        )
    ],
    "comfyui_instances": [
        Rule(
            matches(r"auto|[1-9]|1[0-6]"),
            "auto, or a number of workers from 1 to 16",
            "for example comfyui_instances: auto",
        )
    ],
    "comfyui_extra_args": [
        Rule(_owned_flags, "arguments that no setting makes", "use the setting that is named in brackets"),
        Rule(
            _gpu_flags,
            "no argument that needs a GPU while ComfyUI runs without one",
            "remove the argument, or set wanmetal_accelerator: gpu",
        ),
        Rule(
            entries(lambda entry: not entry.strip() or re.match(r"--?[a-z-]+\s", entry) is not None),
            "one argument an entry, none of them empty",
            'split it: ["--reserve-vram", "2"] or ["--reserve-vram=2"], not ["--reserve-vram 2"]',
        ),
    ],
    "comfyui_extra_model_paths": [
        Rule(_models_twice, "each folder once, and not the folder of models that is there anyway", "remove the entry")
    ],
    "comfyui_before_start": [
        Rule(
            _bad_script,
            "a script on the controller that begins with #!, found as Ansible finds files",
            'correct the path (a sure one is "{{ inventory_dir }}/before-start.sh"), or leave it empty',
        )
    ],
}

# -- custom_nodes


def _bad_packs(packs: Sequence[Mapping[str, Any]], seen: Seen) -> str:
    names = list(locks.load("custom_nodes")["variants"][seen.settings["wanmetal_variant"]])
    found = []
    for entry in packs:
        found.append(custom_nodes.wrong_entry(entry, names))
        names.append(str(entry["name"]))
    return "; ".join(filter(None, found))


_CUSTOM_NODES: Rules = {
    "custom_nodes_extra": [
        Rule(
            _bad_packs,
            "packs that the variant does not have, each with a name for its folder, a repository and a whole commit",
            "correct the entry: docs/custom-nodes.md shows one",
        )
    ]
}

# -- wan_models


@lru_cache(maxsize=1)
def _catalogue(own_dir: str) -> Mapping[str, Any]:
    catalogue = locks.load("models", own_dir)
    for key in ("files", "sets"):
        held = catalogue.get(key)
        if not isinstance(held, Mapping) or not all(isinstance(one, Mapping) for one in held.values()):
            raise locks.LockError(f"models.yml in {own_dir} must hold {key}, a mapping of mappings")
    return catalogue


def _not_planned(option: str) -> Callable[[Any, Seen], str]:
    """What the plan of the models says against one of its settings, beside the sets and whatever the profile."""

    def find(value: Any, seen: Seen) -> str:
        if not value:
            return ""
        try:
            catalogue = _catalogue(seen.settings["wanmetal_locks_dir"])
        except locks.LockError:
            return ""  # wanmetal_locks_dir has that problem
        sets = [name for name in seen.settings["wan_models_sets"] if name in catalogue["sets"]]
        chosen = seen.settings["wan_models_profile"]
        found = []
        for profile in (chosen,) if chosen in models.PROFILES else models.PROFILES:
            try:
                models.plan(catalogue, profile=profile, sets=sets, **{option: value})
            except (TypeError, ValueError) as error:
                found.append(str(error))
            else:
                return ""
        return told(re.sub(r"^wan_models_\w+?(?=[\[: ]):? ?", "", found[0]))

    return find


def _no_such_sets(names: Sequence[str], seen: Seen) -> str:
    try:
        known = _catalogue(seen.settings["wanmetal_locks_dir"])["sets"]
    except locks.LockError:
        return ""
    found = []
    for name in names:
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        if name not in known:
            found.append(f"{shown(name)}{f' (did you mean {close[0]}?)' if close else ''}")
    return ", ".join(found)


def _no_such_workflows(names: Sequence[str], seen: Seen) -> str:
    templates = locks.load("templates")
    found = []
    for name in names:
        if name not in templates and seen.read(name) is None:
            close = difflib.get_close_matches(name, templates, n=1)
            found.append(f"{shown(name)}{f' (did you mean {close[0]}?)' if close else ''}")
    return ", ".join(found)


def _no_address(value: str, seen: Seen) -> str:
    return shown(value) if seen.settings["wan_models_share"] and not value else ""


def _bad_tokens(tokens: Mapping[str, object], _unused: Seen) -> str:
    """No token is shown."""
    host = r"(https?://)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?"
    found = [shown(name) for name, token in tokens.items() if not re.fullmatch(host, name)]
    found += [
        f"something else than a text for {shown(name)}" for name, one in tokens.items() if not isinstance(one, str)
    ]
    return ", ".join(found)


_WAN_MODELS: Rules = {
    "wan_models_sets": [
        Rule(
            _no_such_sets,
            "sets of models: " + ", ".join(sorted(locks.load("models")["sets"])),
            "correct the name; docs/models.md says what each set holds",
        )
    ],
    "wan_models_workflows": [
        Rule(
            _no_such_workflows,
            "names of official templates in files/locks/templates.yml, or files on the controller",
            "correct the name or the path",
        )
    ],
    "wan_models_files": [
        Rule(_not_planned("files"), "ids of the catalogue, or files as in docs/models.md", "correct the entry")
    ],
    "wan_models_checkpoints": [
        Rule(_not_planned("checkpoints"), "version ids of CivitAI, which are numbers", "correct the entry")
    ],
    "wan_models_loras": [Rule(_not_planned("loras"), "version ids of CivitAI, which are numbers", "correct the entry")],
    "wan_models_tokens": [
        Rule(
            _bad_tokens,
            "the token of each host: a text by the host's name",
            "write the host without a path, and the token in quotes behind it",
        )
    ],
    "wan_models_connections": [between(1, 16, "connections")],
    "wan_models_parallel": [between(1, 64, "files")],
    **{
        option: [
            Rule(
                matches(r"0?|[0-9]{1,15}[KMGTkmgt]|[0-9]{4,15}"),
                "bytes, with K, M, G or T behind them (1K at least), or nothing",
                f"for example {option}: 50M",
            )
        ]
        for option in ("wan_models_limit", "wan_models_reserve")
    },
    "wan_models_share_address": [
        Rule(
            _no_address,
            "an address of the host that the fleet can reach, as wan_models_share is true",
            "set it for each host, for example in host_vars, or set wan_models_share: false",
        )
    ],
}

# -- workflows and handler

_WORKFLOWS = Path(__file__).resolve().parents[2] / "files/workflows/index.json"


def _workflow(file: object, seen: Seen) -> tuple[dict[str, Any], str]:
    """The workflow that a file holds, or why it holds none."""
    if (content := seen.read(str(file))) is None:
        return {}, "which is no file on the controller"
    try:
        return workflow_files.read(content)[0], ""
    except ValueError as error:
        return {}, f"which holds no workflow: {told(str(error))}"


def _bad_own_workflows(files: Sequence[str], seen: Seen) -> str:
    stems = [PurePosixPath(entry).stem for entry in files]
    found = [f"{shown(stem)} twice, and the browser lists one" for stem in sorted(set(stems)) if stems.count(stem) > 1]
    found += [f"{shown(entry)}, {why}" for entry in files if (why := _workflow(entry, seen)[1])]
    return "; ".join(found)


def _bad_workflows(workflows: Sequence[object], seen: Seen) -> str:
    index = json.loads(_WORKFLOWS.read_text(encoding="utf-8"))
    found = [] if workflows else ["none"]
    names = [str(entry.get("name")) if isinstance(entry, Mapping) else str(entry) for entry in workflows]
    found += [f"{shown(name)} twice" for name in sorted(set(names)) if names.count(name) > 1]
    for entry in workflows:
        if isinstance(entry, str):
            found += [] if entry in index else [shown(entry)]
        elif not isinstance(entry, Mapping) or not _is_own_workflow(entry):
            found.append(shown(entry))
        else:
            found += [f"{shown(entry['name'])}: {why}" for why in _unfit(entry, seen)]
    return ", ".join(found)


def _is_own_workflow(entry: Mapping[str, Any]) -> bool:
    """Whether it has its parts, and no others: name, graph, and for each field a node's title and an input."""
    settings = entry.get("settings")
    return (
        entry.keys() == {"name", "graph", "settings"}
        and all(isinstance(entry[key], str) and entry[key] for key in ("name", "graph"))
        and isinstance(settings, Mapping)
        and all(
            isinstance(place, list) and len(place) == 2 and all(isinstance(word, str) for word in place)
            for place in settings.values()
        )
    )


def _unfit(entry: Mapping[str, Any], seen: Seen) -> list[str]:
    """How the map of a workflow for the handler differs from its graph: the service would not start."""
    graph, why = _workflow(entry["graph"], seen)
    if why:
        return [f"{shown(entry['graph'])}, {why}"]
    try:
        api = workflow_check.read(graph, workflow_schemas.recorded(), strict=True)
    except ConversionError as error:
        return [f"{shown(entry['graph'])}, {told(str(error))}"]
    found = []
    for name, (title, key) in {"filename_prefix": ("", "filename_prefix"), **entry["settings"]}.items():
        nodes = [
            one for one in api.values() if str((one.get("_meta") or {}).get("title") or one["class_type"]) == title
        ]
        value = nodes[0]["inputs"].get(key) if len(nodes) == 1 else None
        if len(nodes) != 1:
            found.append(f"{name}: {len(nodes)} nodes of its graph are titled {shown(title)}, one has to be")
        elif value is None or isinstance(value, list):
            what = "a link at" if value else "no input"
            found.append(f"{name}: the node {shown(title)} has {what} {shown(key)}")
    return found


def _no_such_warmup(warmup: str, seen: Seen) -> str:
    workflows = seen.settings["handler_workflows"]
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in workflows]
    return shown(warmup) if warmup and warmup not in names else ""


def _packs_missing(enabled: bool, seen: Seen) -> str:
    index = json.loads(_WORKFLOWS.read_text(encoding="utf-8"))
    wanted = [entry for entry in seen.settings["handler_workflows"] if isinstance(entry, str)]
    names = [entry for entry in wanted if index.get(entry, {}).get("packs")]
    variant = seen.settings["wanmetal_variant"]
    return f"wanmetal_variant: {variant} with {', '.join(names)}" if enabled and variant != "wan" and names else ""


def _half_a_bucket(endpoint: str, seen: Seen) -> str:
    names = ("handler_bucket_key_id", "handler_bucket_secret", "handler_bucket_name")
    missing = [name for name in names if endpoint and not seen.settings[name]]
    return f"a bucket without {', '.join(missing)}" if missing else ""


_USUAL_WORKERS = 8  # how many there are is known on the host alone where comfyui_instances is auto
_SCALE = {"": 1e-6, "K": 1e-3, "M": 1.0, "G": 1e3, "T": 1e6}


def _too_little_memory(limit: str, seen: Seen) -> str:
    """Compare with what services/handler gives its two processes that decode, and with what is held of each job."""
    names = ("enabled", "concurrency", "image_megapixels", "image_mb", "video_mb", "inline_mb")
    enabled, jobs, pixels, image_mb, video_mb, inline_mb = (seen.settings[f"handler_{name}"] for name in names)
    instances = str(seen.settings["comfyui_instances"])
    jobs = jobs or (int(instances) if instances.isdigit() else _USUAL_WORKERS)
    size = re.fullmatch(r"([0-9]+)([KMGT]?)", limit)  # systemd counts in powers of 1024, which leaves a little more
    decoding = 664 + 4 * max(image_mb, video_mb) + 24 * pixels
    held = 3 * (image_mb + video_mb) + 6 * pixels + 2 * video_mb + 6 * inline_mb
    needed = 300 + 16 * (image_mb + video_mb) + min(jobs, 2) * decoding + jobs * held
    if not enabled or not size or int(size[1]) * _SCALE[size[2]] >= needed:
        return ""
    return f"{limit}, and {jobs} jobs at a time with images of {pixels} megapixels need {needed} MB"


def _too_large_as_png(pixels: int, seen: Seen) -> str:
    most = seen.settings["comfyui_max_upload_mb"]
    found = f"{pixels}, which are up to {3.02 * pixels:.0f} MB as PNG, with comfyui_max_upload_mb: {most}"
    return found if seen.settings["handler_enabled"] and 3.02 * pixels > most else ""


def _too_large_for_comfyui(video_mb: int, seen: Seen) -> str:
    most = seen.settings["comfyui_max_upload_mb"]
    found = f"{video_mb} MB with comfyui_max_upload_mb: {most}"
    return found if seen.settings["handler_enabled"] and video_mb > most else ""


def _small_record(kept: int, seen: Seen) -> str:
    image_mb, video_mb, inline_mb = (seen.settings[f"handler_{name}_mb"] for name in ("image", "video", "inline"))
    found = f"{kept} MB with handler_image_mb: {image_mb}, _video_mb: {video_mb} and _inline_mb: {inline_mb}"
    return found if kept < 4 * (image_mb + video_mb) + 2 * inline_mb else ""


_HANDLER: Rules = {
    "workflows_extra": [
        Rule(
            _bad_own_workflows,
            "files on the controller, found as Ansible finds files, each with a name of its own: workflows that "
            "ComfyUI has saved or exported, or its pictures and videos with one inside",
            "correct the path, or save the workflow again in ComfyUI's browser page",
        )
    ],
    "handler_workflows": [
        Rule(
            _bad_workflows,
            "names of workflows in files/workflows, or your own with name, graph (a file) and settings that fit it; "
            "one at least, and each once",
            "correct the entry; docs/handler.md has the names, and an example of your own",
        )
    ],
    "handler_warmup": [
        Rule(
            _no_such_warmup, "the name of one of handler_workflows", "correct the name, add it there, or leave it empty"
        )
    ],
    "handler_enabled": [
        Rule(
            _packs_missing,
            "a variant with the node packs of the handler's workflows",
            "set wanmetal_variant: wan, or handler_workflows to workflows of ComfyUI's own nodes",
        )
    ],
    "handler_bucket_endpoint": [
        Rule(
            _half_a_bucket,
            "with an address also the key, its id and the bucket's name",
            "set all of handler_bucket_endpoint, _key_id, _secret and _name, or none",
        )
    ],
    "handler_bucket_name": [
        Rule(
            matches(r"([A-Za-z0-9][A-Za-z0-9._-]{0,254})?"),
            "the bucket's name alone: letters, digits, '.', '_' and '-'",
            "correct it; the address of the store belongs in handler_bucket_endpoint",
        )
    ],
    "handler_bucket_region": [
        Rule(matches("[A-Za-z0-9_-]*"), "a region's name, or nothing", "for example {name}: us-east-1")
    ],
    "handler_environment": [
        Rule(
            entries(lambda name: str(name).startswith(("HANDLER_", "BUCKET_", "COMFYUI_", "PYTHON"))),
            "names that nothing else sets",
            "use the setting handler_… of that name",
        )
    ],
    "handler_concurrency": [between(0, 16, "jobs")],
    "handler_queue": [between(1, 10_000, "jobs")],
    "handler_job_timeout": [between(10, 86_400, "seconds")],
    "handler_image_timeout": [between(1, 600, "seconds")],
    "handler_image_mb": [between(1, 200, "MB")],
    "handler_image_megapixels": [
        between(1, 200, "million pixels"),
        Rule(
            _too_large_as_png,
            "images that ComfyUI takes: 3 bytes a pixel",
            "set fewer, or more for comfyui_max_upload_mb",
        ),
    ],
    "handler_memory_max": [
        Rule(
            _too_little_memory,
            "room for all jobs at a time",
            "set more, or less for handler_concurrency, handler_image_megapixels, _video_mb, _image_mb or _inline_mb",
        )
    ],
    "handler_keep_mb": [
        Rule(
            _small_record,
            "room for a job: 4 times handler_image_mb and handler_video_mb, and 2 times handler_inline_mb",
            "set more",
        )
    ],
    "handler_inline_mb": [between(1, 200, "MB")],
    "handler_video_mb": [
        between(1, 500, "MB"),
        Rule(_too_large_for_comfyui, "videos that ComfyUI takes", "set less, or more for comfyui_max_upload_mb"),
    ],
    "handler_media_seconds": [between(1, 3600, "seconds")],
    "handler_bucket_link_hours": [between(1, 168, "hours")],
}

# -- queue


def _no_certificate(file: str, seen: Seen) -> str:
    content = seen.read(file) if file else b"PRIVATE KEY"
    if content is None:
        return f"{shown(file)}, which is no file on the controller"
    return "" if b"PRIVATE KEY" in content else f"{shown(file)}, which has no key"


def _nameless(listen: str, seen: Seen) -> str:
    everywhere = (one := address(listen)) is not None and one.is_unspecified
    return f"{listen} without queue_name" if everywhere and not seen.settings["queue_name"] else ""


def _next_port(port: int, seen: Seen) -> str:
    taken = next((name for name, other in seen.others("_port") if other == port + 1), "")
    return (
        f"{port}, and {taken} has the next one" if taken else f"{port}, which is the last one" if port > 65534 else ""
    )


_QUEUE: Rules = {
    "queue_port": [
        Rule(
            _next_port,
            "a port whose next one is free, too: the service behind the proxy listens there",
            "choose another",
        )
    ],
    "queue_listen": [Rule(_nameless, "with all addresses also the name that hosts use", "set queue_name")],
    "queue_name": [
        Rule(
            matches(r"([A-Za-z0-9][A-Za-z0-9.-]{0,250}|[0-9A-Fa-f:]+)?"),
            "a host's name or address",
            "for example {name}: queue.example",
        )
    ],
    "queue_certificate": [
        Rule(_no_certificate, "a PEM file with the key, the certificate and its chain", "correct the path, or the file")
    ],
    "queue_database_url": [
        Rule(matches(r"(postgres(ql)?://\S+)?"), "postgresql://USER:PASSWORD@HOST/DATABASE, or nothing", "correct it")
    ],
    "queue_waiting": [between(1, 1_000_000, "jobs")],
    "queue_attempts": [between(1, 100, "attempts")],
    "queue_job_timeout": [between(10, 604_800, "seconds")],
    "queue_keep_hours": [between(1, 8760, "hours")],
    "handler_queue_url": [
        Rule(
            matches(r"(https://[A-Za-z0-9_.:\[\]-]+|http://(127\.[0-9.]+|localhost|\[::1\])(:[0-9]+)?)?"),
            "https://HOST:PORT, or http:// on this host itself",
            "correct it: a token is not sent over a network without TLS",
        )
    ],
}

# -- monitoring


def _no_alerts(file: str, seen: Seen) -> str:
    return f"{shown(file)}, which is no file on the controller" if file and seen.read(file) is None else ""


_MONITORING: Rules = {
    "monitoring_alertmanager_config": [
        Rule(_no_alerts, "a file on the controller, found as Ansible finds files, or nothing", "correct the path")
    ],
    "monitoring_keep_days": [between(1, 3650, "days")],
}

# -- comfyui_api

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


def _unknown_hash(sha256: str, seen: Seen) -> str:
    binary = seen.settings["comfyui_api_source"] == "binary"
    return f"{shown(sha256)} with comfyui_api_source: binary" if binary and not sha256 else ""


_COMFYUI_API: Rules = {
    "comfyui_api_queue": [between(1, 10_000, "jobs")],
    "comfyui_api_max_body_mb": [between(1, 500, "MB")],
    "comfyui_api_cache_gb": [between(1, 10_000, "GB")],
    "comfyui_api_checksum": [
        Rule(
            _unknown_hash,
            "the sha256 of the file that is fetched: its makers publish none",
            "fetch it on a machine that you trust, look at it with sha256sum, and set comfyui_api_checksum; or leave "
            "comfyui_api_source: source, whose hashes are known",
        )
    ],
    "comfyui_api_environment": [
        Rule(
            entries(lambda name: name in _API_NAMES),
            "names that no setting makes",
            "remove the entry, or use the setting comfyui_api_… for it",
        )
    ],
}

# -- nvidia_driver and sageattention

_OLDEST_BRANCH = 570
"""The first that runs CUDA 12.8."""

_NVIDIA_DRIVER: Rules = {
    "nvidia_driver_branch": [
        Rule(
            lambda branch, _unused: (
                "" if re.fullmatch(r"[5-9][0-9]{2}", branch) and int(branch) >= _OLDEST_BRANCH else shown(branch)
            ),
            f"the number of a branch from {_OLDEST_BRANCH} on, without what comes after its dot",
            'for example nvidia_driver_branch: "580", the last one for Maxwell, Pascal and Volta',
        )
    ],
    "nvidia_driver_reboot_timeout": [between(60, 7200, "seconds")],
}

_SAGEATTENTION: Rules = {
    "sageattention_architectures": [
        Rule(
            entries(lambda entry: not re.fullmatch(r"[0-9]{1,2}\.[0-9]", entry)),
            "compute capabilities such as 8.9 and 12.0, in quotes",
            'correct the entry, for example sageattention_architectures: ["8.9", "12.0"]',
        )
    ],
    "sageattention_wheel_url": [
        Rule(
            lambda url, _unused: shown(url) if url and not wheels.wheel_version(url) else "",
            "the address of a wheel of SageAttention, such as https://example.com/sageattention-2.2.0-py3-none-any.whl",
            "name the file itself, or leave the setting empty to have it built",
        )
    ],
    "sageattention_wheel_checksum": [
        Rule(
            lambda sha256, seen: (
                "nothing, while sageattention_wheel_url names a wheel"
                if not sha256 and seen.settings["sageattention_wheel_url"]
                else ""
            ),
            "the sha256 of that wheel",
            "take what sha256sum says of a file that you trust",
        )
    ],
    "sageattention_build_threads": [between(0, 1024, "threads")],
    "sageattention_build_timeout": [between(60, 86400, "seconds")],
    "sageattention_test_timeout": [between(10, 86400, "seconds")],
    "sageattention_max_error": [between(0.0001, 1, "of the norm")],
    "sageattention_min_speedup": [between(0, 100, "times")],
}

RULES: Rules = {
    **_WANMETAL,
    **_NVIDIA_DRIVER,
    **_COMFYUI,
    **_CUSTOM_NODES,
    **_SAGEATTENTION,
    **_WAN_MODELS,
    **_COMFYUI_API,
    **_HANDLER,
    **_QUEUE,
    **_MONITORING,
}
