from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.legacy_env import TABLE, read, translate
from hypothesis import given
from hypothesis import strategies as st

SPECS = settings.load_specs()


def only(text: str) -> dict[str, Any]:
    found = translate(text, {}, False)
    assert (found["unknown"], found["problems"]) == ([], [])
    result: dict[str, Any] = found["settings"]
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SERVE_API_LOCALLY=true", {"comfyui_api_enabled": True}),
        ("SERVE_API_LOCALLY=", {"comfyui_api_enabled": False}),
        ("download_480p_native_models=Yes", {"download_480p_native_models": True}),
        ("download_720p_native_models='off'", {"download_720p_native_models": False}),
        ("download_vace=0", {"download_vace": False}),
        ("download_wan_fun_and_sdxl_helper=ON", {"download_wan_fun_and_sdxl_helper": True}),
        ("debug_models=1", {"wan_models_profile": "full"}),
        ("debug_models=0", {}),
        ("download_vace_debug=true", {"wan_models_profile": "full", "download_vace": True}),
        ("download_vace_debug=true\ndownload_vace=false", {"wan_models_profile": "full", "download_vace": True}),
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
    found = translate("", {}, True)["settings"]
    assert found == {
        "comfyui_api_enabled": True,
        "download_480p_native_models": True,
        "download_720p_native_models": True,
        "download_vace": True,
        "download_wan_fun_and_sdxl_helper": False,
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
        ("\ufeffA=1\r\n# no\r\n\r\nexport B = 'x y' # why\r\n", {"A": "1", "B": "x y"}, []),
        ('A="a \'b\' # c"\nB=a b # c\nC=#x\nD="', {"A": "a 'b' # c", "B": "a b", "C": "", "D": '"'}, []),
        ("A=1\nA=2\nno name\n=3", {"A": "2"}, ["line 3", "line 4"]),
    ],
)
def test_reading(text: str, values: dict[str, str], strange: list[str]) -> None:
    assert read(text) == (values, strange)


def test_unknown_names_are_listed_with_a_hint_and_without_values() -> None:
    found = translate("CIVITAI_TOKEN=s3cret\nHF_HOME=/x\njust words s3cret", {}, False)
    assert found["unknown"] == ["line 3", "CIVITAI_TOKEN (did you mean civitai_token?)", "HF_HOME"]
    assert found["settings"] == {}


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
    (found,) = translate(text, {}, False)["problems"]
    assert found.startswith(problem)


def test_values_from_elsewhere_win_over_the_file() -> None:
    given_ = {"PORT": 8300, "download_vace": False, "LORAS_IDS_TO_DOWNLOAD": [1, 2], "civitai_token": None, "other": 1}
    assert translate("PORT=8301\ndownload_vace=true", given_, False)["settings"] == {
        "comfyui_api_port": 8300,
        "download_vace": False,
        "wan_models_loras": [1, 2],
        "wan_models_civitai_token": "",
    }


@given(st.text())
def test_any_text_is_read_and_secrets_are_told_nowhere(text: str) -> None:
    found = translate(f"{text}\nBUCKET_SECRET_ACCESS_KEY=s3cret-of-mine", {}, True)
    assert "s3cret-of-mine" in found["settings"].values()
    assert "s3cret-of-mine" not in json.dumps([found["unknown"], found["problems"]])


def test_secrets_are_those_of_the_specs() -> None:
    """What is secret in the old file is secret as a setting, too."""
    for name, old in TABLE.items():
        for setting in old.settings:
            if setting in SPECS.options:
                assert bool(SPECS.options[setting].get("no_log")) == old.secret, name
