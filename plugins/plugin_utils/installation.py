"""Settings for what another ComfyUI has: a folder of it, a snapshot of ComfyUI-Manager, or comfy-build.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size as human
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.custom_nodes import wrong_entry
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import shown
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_kinds import texts
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_rules import OWNED_FLAGS, VRAM_FLAGS
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.settings import check, load_specs
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.yaml_of_others import Loader

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+):(?P<path>[^/].*)")
_SNAPSHOT = {"git_custom_nodes", "cnr_custom_nodes", "file_custom_nodes"}
_MOST_NAMES = 20


def read(text: str) -> dict[str, Any]:
    """Read a snapshot of ComfyUI-Manager, or a comfy-build.yaml, into the shape of a folder that was looked at."""
    try:
        data = yaml.load(text, Loader=Loader)  # noqa: S506 (it is a safe one)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-13-45 is a ValueError
        raise ValueError(f"it is neither JSON nor YAML: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("custom_nodes"), dict):
        data = {**data, **data["custom_nodes"]}
    if isinstance(data, dict) and _SNAPSHOT & set(data):
        return _of_snapshot(data)
    if isinstance(data, dict) and isinstance(data.get("definition"), dict):
        return _of_build(data["definition"])
    raise ValueError(
        "it is neither a snapshot of ComfyUI-Manager (with git_custom_nodes) nor a comfy-build.yaml (with definition)"
    )


def _mapping(data: Mapping[str, Any], name: str) -> dict[Any, Any]:
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found {shown(value)}, needed is a mapping")  # noqa: TRY004 (of the file)
    return value


def _list(data: Mapping[str, Any], name: str, kinds: type | tuple[type, ...] = dict) -> list[Any]:
    value = data.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, kinds) for one in value):
        raise ValueError(f"{name}: found {shown(value)}, needed is a list of mappings")
    return value


def _of_snapshot(data: Mapping[str, Any]) -> dict[str, Any]:
    packs: list[dict[str, Any]] = []
    for url, entry in _mapping(data, "git_custom_nodes").items():
        about = entry if isinstance(entry, dict) else {"hash": entry}
        packs.append(
            {
                "name": _name(str(url)),
                "repository": str(url),
                "commit": str(about.get("hash") or ""),
                "disabled": bool(about.get("disabled")),
                "requirements": ["requirements.txt"],
            }
        )
    for name, version in _mapping(data, "cnr_custom_nodes").items():
        problem = f"it is {name} {version} of ComfyUI's registry, which names no commit"
        packs.append({"name": str(name), "disabled": False, "problem": problem})
    for one in _list(data, "file_custom_nodes", (dict, str)):
        about = one if isinstance(one, dict) else {"filename": one}
        if about.get("filename") != "websocket_image_save.py":
            problem = "it is a single file and no git repository"
            packs.append(
                {"name": str(about.get("filename")), "disabled": bool(about.get("disabled")), "problem": problem}
            )
    return {"packs": packs, "commit": str(data.get("comfyui") or ""), "assumed": True}


def _of_build(data: Mapping[str, Any]) -> dict[str, Any]:
    packs: list[dict[str, Any]] = []
    for one in _list(data, "customNodes"):
        repository = str(one.get("repository") or "")
        name = str(one.get("name") or one.get("id") or _name(repository))
        pack = {"name": name, "disabled": False, "requirements": ["requirements.txt"]}
        if repository:
            commit = str(one.get("commit") or one.get("gitRef") or "")
            packs.append({**pack, "name": _name(repository), "repository": repository, "commit": commit})
        elif one.get("registryVersion"):
            what = f"{one.get('id') or name} {one['registryVersion']}"
            packs.append({**pack, "problem": f"it is {what} of ComfyUI's registry, which names no commit"})
        else:
            packs.append({**pack, "problem": "comfy-build.yaml names no repository for it"})
    base = str(data.get("baseComfyVersion") or "")
    return {
        "packs": packs,
        "wanted": _list(data, "models"),
        **({"commit": base} if _COMMIT.fullmatch(base) else {"version": base.removeprefix("v")}),
        "assumed": True,
    }


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2].removesuffix(".git")


def settings(
    found: Mapping[str, Any],
    *,
    catalogue: Mapping[str, Any],
    shipped: Sequence[str] = (),
    repositories: Mapping[str, str] | None = None,
    comfyui: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the settings, and what could not be taken over."""
    notes: list[str] = []
    made: dict[str, Any] = {}
    pinned = comfyui or {}
    there = found.get("version") or str(found.get("commit") or "")[:12]
    if there and pinned and there not in {pinned["version"], pinned["commit"][:12]}:
        notes.append(f"ComfyUI there is {there}; {pinned['version']} takes its place")
    if packs := list(_packs(found, shipped, repositories or {}, notes)):
        made["custom_nodes_extra"] = packs
        if found.get("assumed"):
            notes.append(
                "requirements: [requirements.txt] is assumed for each pack, since the file does not say it: take it "
                "away from those that have no such file"
            )
    made.update(_models(found, catalogue, notes))
    made.update(_options(found.get("arguments") or [], notes))
    _leave_out(made, notes)
    if found.get("extra_model_paths"):
        notes.append(
            f"{found['path']}/extra_model_paths.yaml names further folders: add those that are laid out like models to "
            "comfyui_extra_model_paths, and those with files of the catalogue to wan_models_existing"
        )
    if found.get("workflows"):
        notes.append(
            f"workflows are in {found['workflows']}: after the deploy, copy them to user/default/workflows in "
            "wanmetal_data_dir, or name those under workflows_extra that shall be checked"
        )
    return {"settings": made, "notes": notes}


def _packs(
    found: Mapping[str, Any], shipped: Sequence[str], repositories: Mapping[str, str], notes: list[str]
) -> Iterator[dict[str, Any]]:
    known = {name.lower(): name for name in [*repositories, *shipped]}
    taken: dict[str, str] = {}
    for pack in found.get("packs") or []:
        name = str(pack["name"])
        if name.lower() in {"comfyui-manager", "comfyui_manager"}:
            notes.append(f"{name} is left out: packs come with releases here, and a running ComfyUI installs none")
            continue
        if known.get(name.lower()) in shipped:
            notes.append(f"{name} is left out: the variant has it, at the commit that was tested with its ComfyUI")
            continue
        if pack.get("disabled"):
            notes.append(f"{name} is left out: it is disabled there")
            continue
        address = repositories.get(known.get(name.lower(), ""), "")
        if problem := pack.get("problem"):
            notes.append(
                f"{name} is left out: {problem}. "
                + (f"Find its commit in {address}, and add it" if address else "If it is needed, add it")
                + " to custom_nodes_extra as docs/custom-nodes.md says"
            )
            continue
        url, said = _address(str(pack["repository"]))
        notes += [f"{name}: {note}" for note in [*said, *(pack.get("notes") or [])]]
        entry = {"name": name, "repository": url, "commit": str(pack["commit"]).lower()}
        if name.lower() in taken:
            notes.append(f"{name} from {url} is left out: {taken[name.lower()]} is a pack of the same name")
        elif wrong := wrong_entry(entry, shipped):
            notes.append(f"{name} is left out: custom_nodes_extra would hold {wrong}")
        else:
            taken[name.lower()] = url
            yield {**entry, **({"requirements": pack["requirements"]} if pack.get("requirements") else {})}


def _address(url: str) -> tuple[str, list[str]]:
    """Return an address that a host can fetch from without anybody's key or password."""
    match = _SCP.fullmatch(url)
    if match and "://" not in url:
        url = f"ssh://{match['user'] or 'git'}@{match['host']}/{match['path']}"
    for host in ("github.com", "gitlab.com", "codeberg.org"):
        url = re.sub(rf"^(ssh|git)://(git@)?{re.escape(host)}(:\d+)?/", f"https://{host}/", url)
    bare = re.sub(r"^(https?://)[^/@]*@", r"\1", url)
    return bare, ["its address had a password or a user in it, which is left out"] if bare != url else []


def _models(found: Mapping[str, Any], catalogue: Mapping[str, Any], notes: list[str]) -> Iterator[tuple[str, Any]]:
    files = catalogue["files"]
    by_hash = {entry["sha256"]: id_ for id_, entry in files.items() if entry.get("sha256")}
    wanted: list[Any] = []
    unknown: list[str] = []
    for model in found.get("models") or []:
        id_ = model["id"]
        if not id_:
            unknown.append(f"{model['path']} ({human(model['bytes'])})")
        elif id_ not in wanted:
            wanted.append(id_)
            place = f"{files[id_]['folder']}/{files[id_]['name']}"
            if place != model["path"]:
                notes.append(f"{model['path']} gets the catalogue's name, {place}: workflows have to name that")
    for model in found.get("wanted") or []:
        sha256 = str(model.get("sha256") or "").lower()
        url = str(model.get("sourceUri") or "")
        name = str(model.get("filename") or url.partition("?")[0].rpartition("/")[2])
        if sha256 in by_hash:
            wanted += [by_hash[sha256]] if by_hash[sha256] not in wanted else []
        elif url:
            entry = {"name": name, "folder": str(model.get("type") or ""), "url": url}
            wanted.append({**entry, "sha256": sha256} if sha256 else entry)
        else:
            notes.append(f"{model.get('type')}/{name} is left out: comfy-build.yaml names no address for it")
    if found.get("models") or wanted:
        yield "wan_models_sets", []
    if wanted:
        yield "wan_models_files", wanted
    if any(model["id"] for model in found.get("models") or []):
        yield "wan_models_existing", [found["models_dir"]]
    if unknown:
        yield "comfyui_extra_model_paths", [found["models_dir"]]
        more = f" and {len(unknown) - _MOST_NAMES} others" if len(unknown) > _MOST_NAMES else ""
        notes.append(
            f"models that the catalogue does not know, which ComfyUI reads where they are: "
            f"{', '.join(unknown[:_MOST_NAMES])}{more}"
        )


def _leave_out(made: dict[str, Any], notes: list[str]) -> None:
    """Leave out what a deploy would refuse, and what Ansible would run: these words are anybody's."""
    specs = load_specs()

    def wrong(name: str, value: Any) -> str:
        if any(re.search(r"\{[{%#]", text) for _unused, text in texts(value)):
            return "found {{, {% or {#, which Ansible takes for a template of its own"
        if name in {"comfyui_extra_model_paths", "wan_models_existing"}:  # a deploy says what is wrong with a folder
            return ""
        if name == "wan_models_files":  # ids are of the catalogue that was given
            value = [entry for entry in value if isinstance(entry, Mapping)]
        problems = check({**made, name: value}, (), specs, lambda _unused: None)
        found = (f"found {one.found}, needed is {one.needed}" for one in problems if one.what == name)
        return next(found, "")

    for name, value in list(made.items()):
        if isinstance(value, list) and name != "comfyui_extra_args" and wrong(name, value):
            left: list[Any] = []
            for entry in value:
                if why := wrong(name, [*left, entry]):
                    what = entry.get("name", "") if isinstance(entry, Mapping) else entry
                    notes.append(f"{shown(what)} is left out of {name}: {why}")
                else:
                    left.append(entry)
            made[name] = left
        elif why := wrong(name, value):
            del made[name]
            notes.append(f"{name} is left out: {why}")


def _options(arguments: Sequence[str], notes: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    further: list[str] = []
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    index = 0
    while index < len(words):
        flag = words[index]
        values = []
        while index + 1 < len(words) and not words[index + 1].startswith("--"):
            index += 1
            values.append(words[index])
        index += 1
        value = values[0] if values else ""
        if flag in VRAM_FLAGS:
            if flag != "--normalvram":
                made["comfyui_vram_mode"] = flag.removeprefix("--")
        elif flag in {"--port", "--max-upload-size"} and re.fullmatch("[0-9]{1,9}", value):
            made[OWNED_FLAGS[flag]] = int(value)
        elif flag == "--preview-method":
            made[OWNED_FLAGS[flag]] = value
        elif flag == "--use-sage-attention":
            made[OWNED_FLAGS[flag]] = True
        elif flag == "--cpu":
            made[OWNED_FLAGS[flag]] = "cpu"
        elif flag == "--listen" and value in {"", "0.0.0.0", "::", "0.0.0.0,::"}:  # noqa: S104 (what is there)
            notes.append(
                "ComfyUI there listens on all addresses, without a password; here it listens on loopback, and the way "
                "in is SSH (docs/security.md)"
            )
        elif flag in {"--disable-api-nodes", "--listen", "--disable-auto-launch", "--auto-launch"}:
            pass
        elif flag in OWNED_FLAGS or flag in {"--enable-manager", "--multi-user", "--tls-keyfile", "--tls-certfile"}:
            notes.append(
                f"{' '.join([flag, *values])} is left out: {OWNED_FLAGS.get(flag, 'it')} has its own place here"
            )
        elif flag.startswith("--"):
            further += [flag, *values]
    if further:
        made["comfyui_extra_args"] = further
    return made


def fragment(result: Mapping[str, Any], *, source: str, host: str = "") -> str:
    """Write settings as a file for an inventory, with what was left out as comments."""
    place = f"host_vars/{host}.yml" if host else "group_vars"
    lines = [
        "---",
        f"# Settings for what {source}{f' of {host}' if host else ''} has. Look at them, and put what you want into",
        f"# the inventory, as {place}. Nothing reads this file.",
    ]
    if result["notes"]:
        lines += ["#", "# Left to you:", *(f"# - {' '.join(plain(note).split())}" for note in result["notes"])]
    body = json.loads(json.dumps(result["settings"]))  # without Ansible's own types
    lines.append(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=1000) if body else "{}\n")
    return "\n".join(lines)
