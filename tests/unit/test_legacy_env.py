from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import (
    PATTERN,
    TABLE,
    Found,
    read,
    translate,
)
from hypothesis import given
from hypothesis import strategies as st

SPECS = settings.load_specs()


def files(**texts: str) -> Callable[[str], str]:
    """Reads these instead of a disk's."""

    def read_file(name: str) -> str:
        try:
            return texts[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    return read_file


def of(text: str, **more: str) -> Found:
    return read("file", files(**{"file": text, **more}))


def only(text: str) -> dict[str, Any]:
    found = translate(of(text), {}, False)
    assert (found["unknown"], found["problems"]) == ([], [])
    result: dict[str, Any] = found["settings"]
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SERVE_API_LOCALLY=true", {"comfyui_api_enabled": True}),
        ("SERVE_API_LOCALLY=", {"comfyui_api_enabled": False}),
        ("download_480p_native_models=Yes", {"wan_models_sets": ["wan21-i2v-480p", "wan21-t2v", "wan21-t2v-1.3b"]}),
        ("download_720p_native_models='off'", {"wan_models_sets": []}),
        ("download_vace=0", {"wan_models_sets": []}),
        ("download_wan_fun_and_sdxl_helper=ON", {"wan_models_sets": ["wan21-fun-control", "sdxl-helper"]}),
        ("debug_models=1", {"wan_models_profile": "full"}),
        ("debug_models=0", {}),
        ("download_vace_debug=true", {"wan_models_profile": "full", "wan_models_sets": ["wan21-vace"]}),
        (
            "download_vace_debug=true\ndownload_vace=false",
            {"wan_models_profile": "full", "wan_models_sets": ["wan21-vace"]},
        ),
        ("CHECKPOINT_IDS_TO_DOWNLOAD=12, 34,,56", {"wan_models_checkpoints": [12, 34, 56]}),
        ("LORAS_IDS_TO_DOWNLOAD=", {"wan_models_loras": []}),
        ("civitai_token=abc#1", {"wan_models_civitai_token": "abc#1"}),
        ("enable_optimizations=y", {"sageattention_enabled": True}),
        ("change_preview_method=false", {"comfyui_preview_method": "none"}),
        ("change_preview_method=true", {"comfyui_preview_method": "auto"}),
        ("COMFYUI_URL=http://localhost:8199/", {"comfyui_port": 8199}),
        ("PORT=8300", {"comfyui_api_port": 8300}),
        ("LOG_LEVEL=DEBUG", {"comfyui_api_log_level": "debug"}),
        (
            "BUCKET_ENDPOINT_URL=https://s3\nBUCKET_ACCESS_KEY_ID=k\nBUCKET_SECRET_ACCESS_KEY=a=b$c\nBUCKET_NAME=n",
            {
                "handler_bucket_endpoint": "https://s3",
                "handler_bucket_key_id": "k",
                "handler_bucket_secret": "a=b$c",
                "handler_bucket_name": "n",
            },
        ),
    ],
)
def test_each_setting_becomes_what_it_is_now(text: str, expected: dict[str, Any]) -> None:
    assert only(text) == expected


def test_what_nobody_said_is_as_it_was_in_the_image() -> None:
    found = translate(Found(), {}, True)["settings"]
    assert found == {
        "comfyui_api_enabled": True,
        "wan_models_sets": ["wan21-i2v-480p", "wan21-t2v", "wan21-t2v-1.3b", "wan21-i2v-720p", "wan21-vace"],
        "wan_models_checkpoints": [],
        "wan_models_loras": [],
        "wan_models_civitai_token": "",
        "sageattention_enabled": False,
        "comfyui_preview_method": "auto",
        "comfyui_port": 8188,
        "comfyui_api_port": 8288,
        "comfyui_api_log_level": "info",
        "handler_bucket_endpoint": "",
        "handler_bucket_key_id": "",
        "handler_bucket_secret": "",
        "handler_bucket_name": "",
    }


@pytest.mark.parametrize(
    ("text", "values", "strange"),
    [
        ("\ufeffPORT=1\r\n# no\r\n\r\nexport BUCKET_NAME = 'x y' # why\r\n", {"PORT": "1", "BUCKET_NAME": "x y"}, []),
        (
            'LOG_LEVEL="a \'b\' # c"\nPORT=a b # c\nBUCKET_NAME=#x\ncivitai_token="',
            {"LOG_LEVEL": "a 'b' # c", "PORT": "a b", "BUCKET_NAME": "", "civitai_token": '"'},
            [],
        ),
        ("PORT=2\nno name\n=3", {"PORT": "2"}, ["line 2", "line 3"]),
        ("PORT=1\nPORT=2", {"PORT": "2"}, []),
        (
            "CIVITAI_TOKEN=x\nDownload_Vace=false\nport=7",
            {"civitai_token": "x", "download_vace": "false", "PORT": "7"},
            [],
        ),
        ("PORT=a\x85b", {"PORT": "a\x85b"}, []),
        ("HF_HOME=/x\nPORT=1", {"PORT": "1"}, ["HF_HOME"]),
        ("PORT: 1\ndownload_vace: 'no' # as compose reads it", {"PORT": "1", "download_vace": "no"}, []),
    ],
)
def test_reading(text: str, values: dict[str, str], strange: list[str]) -> None:
    assert of(text) == Found(values, strange, [])


def test_capital_letters_switch_off_what_they_say() -> None:
    text = "DOWNLOAD_480P_NATIVE_MODELS=false\nDOWNLOAD_720P_NATIVE_MODELS=no\nDOWNLOAD_VACE=0"
    assert translate(of(text), {}, True)["settings"]["wan_models_sets"] == []


COMPOSE = """
services:
  worker:
    image: example/comfyui-wan:1
    {}
  database:
    image: postgres
    environment:
      PORT: 5432
      LOG_LEVEL: debug
"""


@pytest.mark.parametrize(
    ("service", "values"),
    [
        (
            'environment: ["download_vace=false", "SERVE_API_LOCALLY=true"]',
            {"download_vace": "false", "SERVE_API_LOCALLY": "true"},
        ),
        ("environment: {DOWNLOAD_VACE: false, PORT: 8300}", {"download_vace": "False", "PORT": "8300"}),
        ("env_file: old.env", {"download_vace": "false", "PORT": "1"}),
        ("env_file: [old.env]", {"download_vace": "false", "PORT": "1"}),
        ("env_file: [{path: gone.env, required: false}, {path: old.env}]", {"download_vace": "false", "PORT": "1"}),
        ("env_file: old.env\n    environment: {PORT: 2}", {"download_vace": "false", "PORT": "2"}),
        ('environment: ["download_vace=${VACE}"]', {"download_vace": "off"}),
        ('environment: ["download_vace=${NOTHING:-no}"]', {"download_vace": "no"}),
        (
            'environment: ["download_vace=${VACE:-yes}", "civitai_token=a$$b"]',
            {"download_vace": "off", "civitai_token": "a$b"},
        ),
        ("environment: [civitai_token]", {"civitai_token": "from-beside"}),
        ('environment: ["download_vace=${NOTHING:-${NONE-off}}"]', {"download_vace": "off"}),
        (
            'environment: ["download_vace=${VACE:?must be set}", "PORT=${VACE+8300}"]',
            {"download_vace": "off", "PORT": "8300"},
        ),
        ('environment: ["download_vace=${NOTHING:+yes}"]', {"download_vace": ""}),
        ("environment: [download_vace: false, PORT: 1]", {"download_vace": "False", "PORT": "1"}),
        ("environment: !override {download_vace: off}\n    ports: !reset []", {"download_vace": "False"}),
        ("environment: {<<: [{download_vace: no}, {PORT: 7}], PORT: 8}", {"download_vace": "False", "PORT": "8"}),
        ("env_file: {path: '${NAME:-old}.env'}", {"download_vace": "false", "PORT": "1"}),
        ("environment: download_vace=no", {"download_vace": "no"}),
    ],
)
def test_a_compose_file_is_read(service: str, values: dict[str, str]) -> None:
    beside = {"old.env": "download_vace=false\nPORT=1\n", ".env": "VACE=off\ncivitai_token=from-beside\n"}
    assert of(COMPOSE.format(service), **beside) == Found(values, [], [])


def test_services_that_agree_are_taken_together() -> None:
    text = "services: {a: {environment: {download_vace: 'no'}}, b: {environment: {DOWNLOAD_VACE: 'no', PORT: 1}}}"
    assert of(text) == Found({"download_vace": "no", "PORT": "1"}, [], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found no setting of the image in it, needed is its .env file"),
        ("# nothing\nHF_HOME=/x", "found no setting of the image in it"),
        ("version: 3\nnetworks: {}\n", "found no setting of the image in it"),
        ("services: {web: {image: nginx, environment: {PORT: 80}}}", "found no setting of the image in it"),
        ("services: {web: {image: x}}", "found no setting of the image in it"),
        ("download_vase=false", "download_vase: the image has no such setting; did you mean download_vace?"),
        ("download-vace=false", "download-vace: the image has no such setting; did you mean download_vace?"),
        ("DOWNLOAD_480_NATIVE_MODELS=no", "did you mean download_480p_native_models?"),
        ("download_vace=no\nDOWNLOAD_VACE=yes", "download_vace: found two values, needed is one"),
        (
            "services: {a: {environment: {download_vace: 'no'}}, b: {environment: {download_vace: 'yes'}}}",
            "found two values",
        ),
        ("services: {a: {environment: ['download_vace=${VACE}']}}", "found no value for VACE"),
        ("services: {a: {environment: [download_vace]}}", "found no value for download_vace"),
        ("services: {a: {env_file: 5, environment: {PORT: 1}}}", "found no file 5"),
        ("services: {a: {environment: ['download_vace=${VACE:?set it}']}}", "found no value for VACE"),
        ("PORT=1\ndownload_vace", "line 2: found download_vace in a form that is not known"),
        ("PORT=1\nset DOWNLOAD_VACE=no", "needed is a line DOWNLOAD_VACE=VALUE"),
        ("PORT=1\nwan:\n  - download_vace=no", "line 3: found download_vace in a form"),
        ("services: {a: {env_file: gone.env, environment: {PORT: 1}}}", "found no file gone.env"),
    ],
)
def test_what_would_do_something_else_than_it_says_is_refused(text: str, problem: str) -> None:
    assert any(problem in one for one in translate(of(text), {}, True)["problems"])


def test_a_file_that_is_not_there_is_a_problem() -> None:
    assert "found no file that can be read" in read("nowhere", files()).problems[0]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("download_vace", True),
        ("DOWNLOAD_VACE", True),
        ("PORT", True),
        ("port", False),
        ("log_level", False),
        ("bucket_name", False),
        ("BUCKET_NAME", True),
        ("xPORT", False),
    ],
)
def test_variables_of_an_inventory_that_count(name: str, counts: bool) -> None:
    assert bool(re.search(PATTERN, name)) == counts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("download_vace=maybe", "download_vace: found 'maybe', needed is true or false, yes or no, on or off, 1 or 0"),
        ("PORT=http", "PORT: found 'http', needed is a port, such as 8288"),
        ("LORAS_IDS_TO_DOWNLOAD=12;x", "LORAS_IDS_TO_DOWNLOAD: found '12;x', needed is version ids"),
        ("COMFYUI_URL=http://gpu-2:8188", "COMFYUI_URL: found 'http://gpu-2:8188', needed is an address of the host"),
        ("COMFYUI_URL=http://[:1", "COMFYUI_URL: found 'http://[:1', needed is an address of the host"),
    ],
)
def test_what_cannot_be_is_a_problem(text: str, problem: str) -> None:
    (found,) = translate(of(text), {}, False)["problems"]
    assert found.startswith(problem)


def test_values_from_elsewhere_win_over_the_file() -> None:
    given_ = {"PORT": 8300, "download_vace": False, "LORAS_IDS_TO_DOWNLOAD": [1, 2], "civitai_token": None, "other": 1}
    assert translate(of("PORT=8301\ndownload_vace=true"), given_, False)["settings"] == {
        "comfyui_api_port": 8300,
        "wan_models_sets": [],
        "wan_models_loras": [1, 2],
        "wan_models_civitai_token": "",
    }


@given(st.text())
def test_any_text_is_read_and_secrets_are_told_nowhere(text: str) -> None:
    found = translate(of(f"{text}\nBUCKET_SECRET_ACCESS_KEY=s3cret-of-mine"), {}, True)
    assert "s3cret-of-mine" in found["settings"].values()
    assert "s3cret-of-mine" not in json.dumps([found["unknown"], found["problems"]])


def test_secrets_are_those_of_the_specs() -> None:
    """What is secret in the old file is secret as a setting, too."""
    for name, old in TABLE.items():
        for setting in old.settings:
            if setting in SPECS.options:
                assert bool(SPECS.options[setting].get("no_log")) == old.secret, name


def test_no_variable_of_a_role_is_a_name_of_the_image() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [*root.glob("roles/*/vars/main.yml"), *root.glob("roles/*/defaults/main.yml")]
    names = {name for file in files for name in yaml.safe_load(file.read_text()) or {}}
    assert "comfyui_url" in names
    assert [name for name in names if re.match(PATTERN, name)] == []


@pytest.mark.parametrize(
    "text",
    [
        "services:\n\ta:\n\t\tenvironment: {download_vace: false}\n",
        "services: {a: {environment: {download_vace: false}}}\n---\nx: 1\n",
        "services: {a: {environment: {download_vace: 2024-13-45}}}\n",
        "services: {a: {<<: 5}}\n",
        "services: " + "{a: " * 3000 + "1" + "}" * 3000,
        "x0: &x0 [a]\n"
        + "".join(f"x{n}: &x{n} {[f'*x{n - 1}'] * 9}\n" for n in range(1, 12)).replace("'", "")
        + "services: {a: {environment: {download_vace: *x11}}}\n",
    ],
    ids=["tabs", "two documents", "no date", "no mapping to merge", "too deep", "laughs"],
)
def test_a_compose_file_that_is_no_yaml_is_called_that(text: str) -> None:
    found = read("compose.yml", lambda _unused: text)
    assert found.values == {}
    (problem,) = found.problems
    assert problem.startswith("compose.yml: found a compose file that is no YAML (")


def test_an_id_of_any_length_is_refused_in_words() -> None:
    found = read(".env", lambda _unused: f"LORAS_IDS_TO_DOWNLOAD={'9' * 5000}\n")
    (problem,) = translate(found, {}, False)["problems"]
    assert problem.endswith("needed is version ids of CivitAI, with commas between them")
