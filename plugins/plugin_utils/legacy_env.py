"""The settings of the Docker image that wanmetal takes the place of: its ``.env`` file, as settings of roles."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import shown

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


def _switch(name: str, yes: object = True, no: object = False) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    return lambda text: {name: yes if _bool(text) else no}, (name,)


def _text(name: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    return lambda text: {name: text}, (name,)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("a port, such as 8288")
    return int(text)


def _ids(name: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    def become(text: str) -> Settings:
        parts = [part for part in re.split(r"[\s,]+", text) if part]
        if not all(part.isascii() and part.isdigit() for part in parts):
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


def _full(*further: str) -> tuple[Callable[[str], Settings], tuple[str, ...]]:
    names = ("wan_models_profile", *further)
    return lambda text: {"wan_models_profile": "full", **dict.fromkeys(further, True)} if _bool(text) else {}, names


TABLE: dict[str, Old] = {
    "SERVE_API_LOCALLY": Old("true", *_switch("comfyui_api_enabled")),
    "download_480p_native_models": Old("true", *_switch("download_480p_native_models")),
    "download_720p_native_models": Old("true", *_switch("download_720p_native_models")),
    "download_vace": Old("true", *_switch("download_vace")),
    "download_wan_fun_and_sdxl_helper": Old("false", *_switch("download_wan_fun_and_sdxl_helper")),
    "debug_models": Old("false", *_full()),
    "download_vace_debug": Old("false", *_full("download_vace")),
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
"""Where two entries give the same setting, the later one has the last word."""

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=\s*(.*)")


def read(text: str) -> tuple[dict[str, str], list[str]]:
    """Names and values of a ``.env`` file, and the numbers of the lines that are neither those nor comments."""
    values, strange = {}, []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        found = _LINE.fullmatch(stripped)
        if found:
            values[found[1]] = _unquoted(found[2])
        else:
            strange.append(f"line {number}")
    return values, strange


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(r"""(["'])(.*?)\1\s*(?:#.*)?""", text)
    return quoted[2] if quoted else re.sub(r"(?:^|\s+)#.*", "", text).strip()


def translate(text: str, given: Mapping[str, object], defaults: bool) -> dict[str, Any]:
    """Return settings, unknown names, and problems. Values that are secrets stand in the settings alone.

    ``given`` are values by the old names from elsewhere, which win over the file. ``defaults`` fills in what the image
    had where nothing was said.
    """
    values, unknown = read(text)
    unknown += [_hinted(name) for name in values if name not in TABLE]
    values = {name: value for name, value in values.items() if name in TABLE}
    values |= {name: _as_text(value) for name, value in given.items() if name in TABLE}
    settings: Settings = {}
    problems = []
    for name, old in TABLE.items():
        if name not in values and not defaults:
            continue
        value = values.get(name, old.default)
        try:
            settings |= old.become(value)
        except ValueError as error:
            found = "a value that is not shown" if old.secret else shown(value)
            problems.append(f"{name}: found {found}, needed is {error}")
    return {"settings": settings, "unknown": unknown, "problems": problems, "names": list(TABLE)}


def _as_text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _hinted(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), [old.lower() for old in TABLE], n=1, cutoff=0.8)
    return f"{name} (did you mean {next(old for old in TABLE if old.lower() == close[0])}?)" if close else name
