"""The settings of the Docker image that wanmetal takes the place of, as settings of roles."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import yaml
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import shown, told
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.yaml_of_others import Loader

Settings = dict[str, Any]


@dataclass(frozen=True)
class Old:
    """One of the image's settings: what it had when nothing was said, and what becomes of it."""

    default: str
    become: Callable[[str], Settings]
    settings: tuple[str, ...]
    """The names that ``become`` may give."""
    secret: bool = False


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "true", "t", "yes", "y", "on", "enabled"}:
        return True
    if word in {"", "0", "false", "f", "no", "n", "off", "disabled", "none", "null"}:
        return False
    raise ValueError("true or false, yes or no, on or off, 1 or 0")


def _sets(*names: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    return lambda text: {"wan_models_sets": list(names) if _bool(text) else []}, ("wan_models_sets",)


def _switch(name: str, yes: object = True, no: object = False) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    return lambda text: {name: yes if _bool(text) else no}, (name,)


def _text(name: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    return lambda text: {name: text}, (name,)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text.strip()):
        raise ValueError("a port, such as 8288")
    return int(text)


def _ids(name: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    def become(text: str) -> Settings:
        parts = [part for part in re.split(r"[\s,]+", text) if part]
        if not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
            raise ValueError("version ids of CivitAI, with commas between them")
        return {name: [int(part) for part in parts]}

    return become, (name,)


def _url(text: str) -> Settings:
    """ComfyUI runs on the host itself, so that its port is all there is to say."""
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname, parts.port or 80
    except ValueError:
        scheme, host, port = "", None, 0
    if scheme != "http" or host not in {"127.0.0.1", "localhost", "0.0.0.0", "::1"}:  # noqa: S104 (a name for here)
        raise ValueError("an address of the host itself, such as http://127.0.0.1:8188, since ComfyUI runs there")
    return {"comfyui_port": port}


def _level(text: str) -> Settings:
    return {"comfyui_api_log_level": text.strip().lower()}


def _full(*sets: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    further = {"wan_models_sets": list(sets)} if sets else {}
    return lambda text: {"wan_models_profile": "full", **further} if _bool(text) else {}, (
        "wan_models_profile",
        *further,
    )


TABLE: dict[str, Old] = {
    "SERVE_API_LOCALLY": Old("true", *_switch("comfyui_api_enabled")),
    "download_480p_native_models": Old("true", *_sets("wan21-i2v-480p", "wan21-t2v", "wan21-t2v-1.3b")),
    "download_720p_native_models": Old("true", *_sets("wan21-i2v-720p", "wan21-t2v", "wan21-t2v-1.3b")),
    "download_vace": Old("true", *_sets("wan21-vace")),
    "download_wan_fun_and_sdxl_helper": Old("false", *_sets("wan21-fun-control", "sdxl-helper")),
    "debug_models": Old("false", *_full()),
    "download_vace_debug": Old("false", *_full("wan21-vace")),
    "CHECKPOINT_IDS_TO_DOWNLOAD": Old("", *_ids("wan_models_checkpoints")),
    "LORAS_IDS_TO_DOWNLOAD": Old("", *_ids("wan_models_loras")),
    "civitai_token": Old("", *_text("wan_models_civitai_token"), secret=True),
    "enable_optimizations": Old("false", *_switch("sageattention_enabled")),
    "change_preview_method": Old("true", *_switch("comfyui_preview_method", "auto", "none")),
    "COMFYUI_URL": Old("http://127.0.0.1:8188", _url, ("comfyui_port",)),
    "PORT": Old("8288", lambda text: {"comfyui_api_port": _port(text)}, ("comfyui_api_port",)),
    "LOG_LEVEL": Old("info", _level, ("comfyui_api_log_level",)),
    "BUCKET_ENDPOINT_URL": Old("", *_text("handler_bucket_endpoint")),
    "BUCKET_ACCESS_KEY_ID": Old("", *_text("handler_bucket_key_id"), secret=True),
    "BUCKET_SECRET_ACCESS_KEY": Old("", *_text("handler_bucket_secret"), secret=True),
    "BUCKET_NAME": Old("", *_text("handler_bucket_name")),
}
"""Of sets of models all are taken; of another setting that two entries give, the later one has the last word."""

NAMES = {name.lower(): name for name in TABLE}
_COMMON = ("PORT", "LOG_LEVEL", "BUCKET_NAME")
"""Names that other programs and inventories have as well."""
_AS_WRITTEN = (*_COMMON, "COMFYUI_URL")  # comfyui_url is a variable of a role
PATTERN = f"^(?:{'|'.join(_AS_WRITTEN)}|(?i:{'|'.join(name for name in TABLE if name not in _AS_WRITTEN)}))$"
"""Variables of an inventory that are meant."""


def meant(name: str) -> str:
    """The image's name that a strange one nearly is, or an empty text."""
    own = [known for known in NAMES if NAMES[known] not in _COMMON]
    close = difflib.get_close_matches(name.lower(), own, n=1, cutoff=0.85)
    return "" if re.match(PATTERN, name) or not close else NAMES[close[0]]


ReadFile = Callable[[str], str]
"""Gives the text of a file on the controller; raises OSError where there is none."""


@dataclass
class Found:
    """What a file says."""

    values: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, value: str) -> None:
        """Take a value by the image's name, in small or capital letters. A name that nearly fits is a mistake."""
        known = NAMES.get(name.lower())
        if known is None and meant(name):
            self.problems.append(f"{name}: the image has no such setting; did you mean {meant(name)}?")
        elif known is None:
            self.unknown.append(name)
        elif self.values.get(known, value) != value:
            self.problems.append(f"{known}: found two values, needed is one (as {name}, too)")
        else:
            self.values[known] = value


# -- files

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*(?:=|:\s)\s*(.*)")
_REFERENCE = re.compile(
    r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-+?])((?:[^{}]|\{[^{}]*\})*))?\})"  # perhaps with one inside
)


def _lines(text: str, where: str = "") -> tuple[dict[str, str], list[str], list[str]]:
    """Names and values of a ``.env`` file, the lines that are neither those nor comments, and which of these matter."""
    values, strange, wrong = {}, [], []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.lstrip("\ufeff")), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        found = _LINE.fullmatch(stripped)
        if found:
            values[found[1]] = _unquoted(found[2])
            continue
        strange.append(f"{where}line {number}")
        words = re.findall(r"[A-Za-z]\w*", stripped)
        for name in [word for word in words if re.match(PATTERN, word) and word not in _COMMON][:1]:
            wrong.append(f"{strange[-1]}: found {name} in a form that is not known, needed is a line {name}=VALUE")
    return values, strange, wrong


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(r"""(["'])(.*?)\1\s*(?:#.*)?""", text)
    return quoted[2] if quoted else re.sub(r"(?:^|\s+)#.*", "", text).strip()


class _Loader(Loader):
    """Reads what has a tag of compose, such as ``!override``, like what has none."""


def _untagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if tag == "reset":
        return None
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_Loader.add_multi_constructor("!", _untagged)


def _services(text: str) -> list[Mapping[str, Any]]:
    """The services of a compose file, or none where the text is no such file. A ValueError says why it is no YAML."""
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a safe one)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if re.search(r"^services[ \t]*:", text, re.MULTILINE):
            raise ValueError(" ".join(str(error).split())) from error
        return []
    services = data.get("services") if isinstance(data, Mapping) else None
    return [one for one in services.values() if isinstance(one, Mapping)] if isinstance(services, Mapping) else []


def read(name: str, read_file: ReadFile) -> Found:
    """Read a ``.env`` file, or a compose file with its services' ``environment`` and ``env_file``."""
    found = Found()
    try:
        text = read_file(name)
    except (OSError, ValueError) as error:
        found.problems.append(
            f"{name}: found no file that can be read ({told(str(error))}), needed is the .env or compose file"
        )
        return found
    try:
        services = _services(text)
    except ValueError as error:
        found.problems.append(
            f"{name}: found a compose file that is no YAML ({told(str(error))}), needed is one that compose takes"
        )
        return found
    if services:
        folder = PurePath(name).parent
        all_values = [_service(found, service, folder, read_file) for service in services]
        # A database beside it has a PORT, too.
        meant = [one for one in all_values if any(re.match(PATTERN, key) and key not in _COMMON for key in one)]
        pairs = [pair for one in meant for pair in one.items()]
    else:
        values, found.unknown, found.problems = _lines(text)
        pairs = list(values.items())
    for key, value in pairs:
        found.add(key, value)
    if not found.values and not found.problems:
        found.problems.append(
            f"{name}: found no setting of the image in it, needed is its .env file, with lines such as "
            "download_vace=false, or its docker-compose.yml, with environment or env_file"
        )
    return found


def _service(found: Found, service: Mapping[str, Any], folder: PurePath, read_file: ReadFile) -> dict[str, str]:
    """The environment of a service, which wins over its files."""
    values: dict[str, str] = {}
    outside: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        outside = _lines(read_file(str(folder / ".env")))[0]
    files = service.get("env_file") or []
    for entry in files if isinstance(files, list) else [files]:
        path, _unused = _filled(str(entry.get("path", "")) if isinstance(entry, Mapping) else str(entry), outside)
        try:
            more, strange, wrong = _lines(read_file(str(folder / path)), f"{path} ")
        except (OSError, ValueError):
            if not isinstance(entry, Mapping) or entry.get("required", True):
                found.problems.append(f"env_file: found no file {path}, needed is one that can be read")
            continue
        values |= more
        found.unknown += strange
        found.problems += wrong
    environment = service.get("environment") or {}
    given: dict[Any, Any] = {}
    for one in environment if isinstance(environment, list) else [environment]:
        key, sign, text = str(one).partition("=")
        given |= one if isinstance(one, Mapping) else {key: text if sign else None}
    for key, value in given.items():
        # Compose takes a name without a value from where it is started, and ${NAME} from there or from .env.
        values[str(key)] = "${" + str(key) + "}" if value is None else _as_text(value)
    for key, value in list(values.items()):
        values[key], missing = _filled(value, outside)
        if missing and key.lower() in NAMES:
            found.problems.append(
                f"{key}: found no value for {missing}, needed is one, here or in a file .env beside it"
            )
    return values


def _filled(text: str, outside: Mapping[str, str]) -> tuple[str, str]:
    """Fill in what compose would, and name what has no value."""
    missing = ""

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        dollar, bare, name, sign, word = match.groups(default="")
        known = outside.get(bare or name)
        there = bool(known) or (known is not None and not sign.startswith(":"))
        if dollar:
            return "$"
        if sign[-1:] == ("+" if there else "-"):
            filled, lacks = _filled(word, outside)
            missing = missing or lacks
            return filled
        if not there and sign[-1:] != "+":
            missing = missing or bare or name
        return known if known and there and sign[-1:] != "+" else ""

    return _REFERENCE.sub(value, text), missing


# -- translation


def translate(found: Found, given: Mapping[str, object], defaults: bool) -> dict[str, Any]:
    """Return settings, unknown names, and problems. Values that are secrets stand in the settings alone.

    ``given`` are values by the old names from elsewhere, which win over the file. ``defaults`` fills in what the image
    had where nothing was said.
    """
    more = Found()
    for name, value in given.items():
        more.add(name, _as_text(value))
    values = found.values | more.values
    problems = found.problems + more.problems
    settings: Settings = {}
    for name, old in TABLE.items():
        if name not in values and not defaults:
            continue
        value = values.get(name, old.default)
        try:
            new = old.become(value)
        except ValueError as error:
            shown_value = "a value that is not shown" if old.secret else shown(value)
            problems.append(f"{name}: found {shown_value}, needed is {error}")
            continue
        if "wan_models_sets" in new:
            new["wan_models_sets"] = list(
                dict.fromkeys([*settings.get("wan_models_sets", []), *new["wan_models_sets"]])
            )
        settings |= new
    return {"settings": settings, "unknown": found.unknown, "problems": problems, "pattern": PATTERN}


def _as_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
