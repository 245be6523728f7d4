from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, listed, shown, told
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_kinds import secret
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.setting_rules import ON_CONTROLLER, RULES

SPECS = settings.load_specs()


def no_files(_: str) -> None:
    return None


def of(specs: dict[str, Any]) -> settings.Specs:
    return settings.Specs(specs, frozenset(specs), ("demo_",))


def test_the_defaults_of_all_roles_are_in_order() -> None:
    assert settings.check({}, [], SPECS, no_files) == []


def test_each_rule_is_about_settings_that_exist() -> None:
    assert RULES.keys() | ON_CONTROLLER <= SPECS.options.keys()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("comfyui_rollback_to", True),  # of another entry point than main
        ("comfyui_prot", False),
        ("wanmetal_uv", False),  # a variable of a role, which an inventory cannot set
        ("preflight_host", False),
        ("__comfyui_plan", True),
        ("comfy_port", True),
        ("ansible_port", True),
        ("port", True),
        ("download_vace", True),
        ("download_vase", False),
        ("LORA_IDS_TO_DOWNLOAD", False),
    ],
)
def test_unknown_names(name: str, known: bool) -> None:
    found = settings.check({}, [name], SPECS, no_files)
    assert [problem.what for problem in found] == ([] if known else [name])


def test_unknown_names_may_be_skipped() -> None:
    assert settings.check({"preflight_skip": ["names"]}, ["comfyui_prot"], SPECS, no_files) == []


@pytest.mark.parametrize(
    ("spec", "value", "typed"),
    [
        ({"type": "int"}, "8188", 8188),
        ({"type": "int"}, 8188, 8188),
        ({"type": "bool"}, True, True),
        ({"type": "str"}, 5, "5"),
        ({}, "text", "text"),
        ({"type": "str", "choices": ["3.11", "3.12"]}, 3.11, "3.11"),
        ({"type": "path"}, "~/x/$HOME", "~/x/$HOME"),
        ({"type": "list", "elements": "path"}, ["~/x"], ["~/x"]),
        ({"type": "list"}, [{"a": 1}], [{"a": 1}]),
        ({"type": "dict"}, {"a": 1}, {"a": 1}),
        ({"type": "raw"}, 1.5, 1.5),
        ({"type": "list", "elements": "dict", "options": {"a": {"type": "int"}}}, [{"a": "1"}], [{"a": 1}]),
    ],
)
def test_types_that_fit(spec: dict[str, Any], value: object, typed: object) -> None:
    assert settings._typed("demo_x", value, spec) == (typed, None)


@pytest.mark.parametrize(
    ("spec", "value", "found"),
    [
        ({"type": "int"}, "80a", "'80a'"),
        ({"type": "int"}, 80.5, "80.5"),
        ({"type": "int"}, True, "True"),
        ({"type": "int"}, None, "nothing (null)"),
        ({"type": "int"}, float("inf"), "inf"),
        ({"type": "int"}, "inf", "'inf'"),
        ({"type": "int"}, "1e9", "'1e9'"),
        ({"type": "int"}, "1_000", "'1_000'"),
        ({"type": "int"}, " 5", "' 5'"),
        ({"type": "int"}, "+5", "'+5'"),
        ({"type": "int"}, "\u0661\u0662", "'\u0661\u0662'"),
        ({"type": "int"}, 80.0, "80.0"),
        ({"type": "float"}, "1e5", "'1e5'"),
        ({"type": "float"}, "nan", "'nan'"),
        ({"type": "float"}, float("nan"), "nan"),
        ({"type": "dict"}, {1: "a"}, "{1: 'a'}"),
        ({"type": "list", "elements": "dict", "options": {"a": {}}}, [{1: 2}], "[{1: 2}]"),
        ({"type": "bool"}, "maybe", "the text 'maybe'"),
        ({"type": "bool"}, "0", "the text '0'"),
        ({"type": "bool"}, 1, "1"),
        ({"type": "str"}, False, "False, which YAML makes of words like yes, no, on and off"),
        ({"type": "str"}, ["a"], "['a']"),
        ({"type": "path"}, {"a": 1}, "{'a': 1}"),
        ({"type": "list"}, "a,b", "the text 'a,b'"),
        ({"type": "dict"}, "a=1", "the text 'a=1'"),
        ({"type": "list", "elements": "str"}, [["a"]], "[['a']]"),
        ({"type": "list", "elements": "str"}, [None], "[None]"),
        ({"type": "str", "choices": ["git"]}, "gitt", "'gitt'"),
        ({"type": "str"}, ["https://me:pass@host/"], "['https://***@host/']"),
        ({"type": "str", "no_log": True}, ["s3cret"], "a list, not shown"),
        ({"type": "int", "no_log": True}, "s3cret", "a text, not shown"),
    ],
)
def test_types_that_do_not_fit(spec: dict[str, Any], value: object, found: str) -> None:
    _, problem = settings._typed("demo_x", value, spec)
    assert problem is not None
    assert problem.found == found
    assert "s3cret" not in problem.fix


@pytest.mark.parametrize(("text", "meant"), [("false", False), ("True", True), ("no", False), ("ON", True)])
def test_truth_values_as_the_command_line_gives_them(text: str, meant: bool) -> None:
    assert settings._typed("demo_x", text, {"type": "bool"}) == (meant, None)


def test_inner_options_are_checked() -> None:
    spec = {"type": "list", "elements": "dict", "options": {"prefix": {"type": "str", "required": True}}}
    values: list[list[object]] = [[{}], [{"prefix": "a", "prefx": "b"}], [3]]
    for value in values:
        _, problem = settings._typed("demo_x", value, spec)
        assert problem is not None
        assert "prefix" in problem.found + problem.needed


def test_a_required_setting_has_to_be_set() -> None:
    found = settings.check({}, [], of({"demo_x": {"type": "int", "required": True}}), no_files)
    assert [(problem.what, problem.found, problem.needed) for problem in found] == [
        ("demo_x", "nothing", "a whole number")
    ]


@pytest.mark.parametrize(
    ("ports", "wrong"),
    [
        ({"demo_port": 8188}, []),
        ({"demo_port": 1023}, ["demo_port"]),
        ({"demo_port": 65536}, ["demo_port"]),
        ({"demo_a_port": 9000, "demo_b_port": 9001}, []),
        ({"demo_a_port": 9000, "demo_b_port": 9000}, ["demo_b_port"]),
        ({"demo_a_port": 9000, "demo_b_port": "9000"}, ["demo_b_port"]),
    ],
)
def test_ports(ports: dict[str, object], wrong: list[str]) -> None:
    specs = of({name: {"type": "int"} for name in ports})
    assert [problem.what for problem in settings.check(ports, [], specs, no_files)] == wrong


@pytest.mark.parametrize("path", ["/", "//", "/./", "//tmp/x", "/srv/..", "srv"])
def test_a_path_that_is_no_place_of_its_own(path: str) -> None:
    specs = of({"demo_paths": {"type": "list", "elements": "path"}})
    assert settings.check({"demo_paths": [path]}, [], specs, no_files)


def test_a_folder_has_room_for_what_is_put_into_it() -> None:
    specs = of({"demo_dir": {"type": "path"}})
    found = [bool(settings.check({"demo_dir": "/srv" + "/x" * length}, [], specs, no_files)) for length in (98, 99)]
    assert found == [False, True]


GOOD: list[dict[str, object]] = [
    {"comfyui_listen": "0.0.0.0", "comfyui_allow_remote": True, "comfyui_ip_allow": ["10.0.0.0/8"]},  # noqa: S104
    {"comfyui_listen": "::1"},
    {"comfyui_listen": "127.8.8.8"},
    {"comfyui_ip_allow": ["any"]},
    {"comfyui_ip_allow": ["10.1.2.3", "fd00::/8", "link-local"]},
    {"comfyui_extra_args": ["--reserve-vram", "2", "--cpu-vae", "--fast", "fp16_accumulation"]},
    {"comfyui_extra_args": ["--verbose", "DEBUG with words"]},
    {"comfyui_memory_max": "90%"},
    {"comfyui_memory_max": 100_000_000},
    {"wan_models_limit": 50_000},
    {"wan_models_limit": "0", "wan_models_reserve": "1K"},
    {"comfyui_environment": {"HF_HOME": "/x", "N": 3}},
    {"comfyui_environment": {"LD_PRELOAD": "x"}, "comfyui_tcmalloc": False},
    {"comfyui_extra_model_paths": ["/srv/models one", "/home/me/models"]},
    {"wanmetal_root": "/srv/wanmetal/root", "wanmetal_cache_dir": "/srv/wanmetal/cache"},
    {"wanmetal_cache_dir": "/opt/wanmetal/cache"},
    {"wanmetal_data_dir": "/data"},
    {
        "wanmetal_mirrors": [
            {"prefix": "https://a", "replacement": "http://m"},
            {"prefix": "https://ab", "replacement": "http://m"},
        ]
    },
]


@pytest.mark.parametrize("values", GOOD)
def test_settings_that_are_in_order(values: dict[str, object]) -> None:
    assert settings.check(values, [], SPECS, no_files) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"#!/bin/sh\n", ""),
        (b"$ANSIBLE_VAULT;1.1", ""),
        (b"echo", "'x.sh', which has no #! line"),
        (None, "'x.sh', which is no file on the controller"),
    ],
)
def test_the_hook_is_read(content: bytes | None, found: str) -> None:
    problems = settings.check({"comfyui_before_start": "x.sh"}, [], SPECS, lambda _: content)
    assert [problem.found for problem in problems] == ([found] if found else [])


def test_own_locks(tmp_path: Path) -> None:
    def found() -> list[str]:
        return [p.found for p in settings.check({"wanmetal_locks_dir": str(tmp_path)}, [], SPECS, no_files)]

    assert found() == [f"'{tmp_path}', which holds neither *.yml nor python/*.txt"]
    (tmp_path / "upstream.yml").touch()
    assert found() == []
    for content in (b"sets: {a: b}", b"files: []\nsets: {}", b"a: \xff"):
        folder = tmp_path / hashlib.sha256(content).hexdigest()
        folder.mkdir()
        (folder / "models.yml").write_bytes(content)
        (problem,) = settings.check(
            {"wanmetal_locks_dir": str(folder), "wan_models_files": ["vae"]}, [], SPECS, no_files
        )
        assert "models.yml" in problem.found
    too_long = {"wanmetal_locks_dir": "x" * 5000, "wan_models_files": ["vae"]}
    assert "no folder" in settings.check(too_long, [], SPECS, no_files)[0].found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "http://user:pw@proxy:3128"),
        ("https_proxy", "user:pw@proxy:3128"),
        ("UV_DEFAULT_INDEX", "https://ghp_token@packages.example.com/simple"),
        ("UV_INDEX", "a=https://x/simple b=https://u%3Apw@y/simple"),
        ("PIP_EXTRA_INDEX_URL", "https://x/simple https://u:p@y"),
        ("MIRROR", "https://x/simple?token=abc"),
        ("UV_INDEX_INTERNAL_PASSWORD", "x"),
        ("HF_TOKEN", "hf_x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("GIT_CONFIG_VALUE_0", "Authorization: Basic abc"),
    ],
)
def test_a_credential_in_the_environment_of_fetching_is_refused(name: str, value: str) -> None:
    [problem] = settings.check({"wanmetal_environment": {name: value, "A": "b"}}, [], SPECS, no_files)
    assert problem.what == "wanmetal_environment"
    assert f"in {name} (" in problem.found
    assert value not in problem.found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "http://proxy.example.com:3128"),
        ("NO_PROXY", "localhost,.example.com,10.0.0.0/8,[::1]"),
        ("SSL_CERT_FILE", "/etc/ssl/certs/a@b.pem"),
        ("HF_TOKEN_PATH", "/root/token"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/root/key.json"),
        ("GIT_SSH_COMMAND", "ssh -l git host"),
        ("SOURCES", "git+ssh://git@github.com/a/b"),
        ("UV_INDEX_INTERNAL_USERNAME", "reader"),
        ("UV_KEYRING_PROVIDER", "subprocess"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ],
)
def test_what_is_no_credential_is_not(name: str, value: str) -> None:
    assert settings.check({"wanmetal_environment": {name: value}}, [], SPECS, no_files) == []


def test_names_of_secret_settings() -> None:
    secrets = {name for name, spec in SPECS.options.items() if secret(name, spec)}
    assert {"comfyui_environment", "wanmetal_environment"} <= secrets
    assert all(fnmatch(name, "*_environment") or SPECS.options[name].get("no_log") for name in secrets)


def test_an_error_of_a_template_names_what_is_missing_but_no_secret() -> None:
    error = ValueError("'token' is undefined\nwith a second line")
    assert "'token' is undefined" in settings.unrenderable("demo_x", error, {}).found
    assert "token" not in settings.unrenderable("demo_environment", error, {"type": "dict"}).found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (5, "5"),
        ("https://u:p@h/x", "'https://***@h/x'"),
        ("x" * 200, "'" + "x" * 116 + "..."),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_told_and_listed() -> None:
    assert told("git+https://tok@h/x.git") == "git+https://***@h/x.git"
    assert listed([Problem("disk", "a", "b", "c", "d")], "One:") == "One:\n\na\n  found   b\n  needed  c\n  fix     d"


API = b'{"1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},' + (
    b' "2": {"class_type": "SaveImage", "_meta": {"title": "Save"},'
    b' "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}'
)
FILES = {
    "api.json": API,
    "bom.json": b"\xef\xbb\xbf" + API,
    "powershell.json": API.decode().encode("utf-16"),
    "request.json": b'{"input": {"workflow": ' + API + b"}}",
    "saved.json": b'{"nodes": []}',
    "video.mp4": b"\0\0\0\x20ftypisom\0" + API + b"\0moov",
    "other.json": b'{"a": 1}',
    "list.json": b"[]",
    "cut.json": API[:-9],
    "deep.json": b"[" * 100_000,
    "empty.json": b"",
    "page.mp4": b"<html></html>",
    "black.png": b"\x89PNG\r\n\x1a\n",
}


def wrong(name: str, value: object) -> str:
    problems = settings.check({name: value}, [], SPECS, FILES.get)
    assert {problem.what for problem in problems} <= {name}
    return problems[0].found if problems else ""


@pytest.mark.parametrize("file", ["api.json", "bom.json", "powershell.json", "request.json", "saved.json", "video.mp4"])
def test_files_with_a_workflow_in_any_form_are_taken(file: str) -> None:
    assert wrong("workflows_extra", [file]) == ""


@pytest.mark.parametrize(
    "file", ["other.json", "list.json", "cut.json", "deep.json", "empty.json", "page.mp4", "black.png"]
)
def test_files_without_a_workflow_are_named(file: str) -> None:
    assert wrong("workflows_extra", ["saved.json", file]).startswith(f"'{file}', which holds no workflow: ")


def test_workflows_that_would_get_one_name_are_refused() -> None:
    assert wrong("workflows_extra", ["api.json", "there/api.png"]).startswith("'api' twice")
    mine = {"name": "mine", "graph": "api.json", "settings": {"filename_prefix": ["Save", "filename_prefix"]}}
    assert wrong("handler_workflows", [mine]) == ""
    assert wrong("handler_workflows", [mine, mine]) == "'mine' twice"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": None}, "{"),
        ({"name": ["mine"]}, "{"),
        ({"graph": {"1": {}}}, "{"),
        ({"settings": []}, "{"),
        ({"settings": {"image": "Save"}}, "{"),
        ({"settings": {"image": ["Save"]}}, "{"),
        ({"settings": {"image": ["Save", None]}}, "{"),
        ({"more": 1}, "{"),
        ({"graph": "none.json"}, "'mine': 'none.json', which is no file on the controller"),
        ({"graph": "other.json"}, "'mine': 'other.json', which holds no workflow"),
        ({"settings": {}}, "'mine': filename_prefix: 0 nodes of its graph are titled ''"),
        ({"settings": {"filename_prefix": ["Sav", "x"]}}, "'mine': filename_prefix: 0 nodes"),
        (
            {"settings": {"filename_prefix": ["Save", "prefix"]}},
            "'mine': filename_prefix: the node 'Save' has no input",
        ),
        ({"settings": {"filename_prefix": ["Save", "images"]}}, "'mine': filename_prefix: the node 'Save' has a link"),
    ],
)
def test_a_workflow_for_the_handler_that_would_not_start_is_named(change: dict[str, Any], found: str) -> None:
    mine = {"name": "mine", "graph": "api.json", "settings": {"filename_prefix": ["Save", "filename_prefix"]}}
    assert wrong("handler_workflows", [{**mine, **change}]).startswith(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wan_models_tokens", {"example.com": None}),
        ("wan_models_tokens", {"example.com": {"secret": "hidden"}}),
        ("wan_models_tokens", {"": "hidden"}),
        ("wan_models_tokens", {"https://example.com/models": "hidden"}),
        ("wan_models_tokens", {"me@example.com": "hidden"}),
        ("handler_bucket_name", "https://s3.example.com/b"),
        ("handler_bucket_name", "a b"),
        ("handler_bucket_name", "b/folder"),
        ("handler_bucket_region", "us east"),
        ("monitoring_alertmanager_config", "none.yml"),
        ("monitoring_keep_days", 0),
        ("queue_port", 65535),
        ("wanmetal_environment", {"PATH": "/srv/bin"}),
        ("wanmetal_environment", {"LD_PRELOAD": "/srv/x.so"}),
        ("wanmetal_environment", {"HTTPS_PROXY": "http://proxy:3128", "PYTHONPATH": "/srv"}),
        ("queue_port", 8387),
        ("nvidia_driver_branch", "5\u0668\u0660"),
        ("comfyui_extra_model_paths", [""]),
        ("wan_models_verify_schedule", "Sun \u0660\u0664:\u0660\u0660"),
        ("handler_queue_url", "https://ex\u00e4mple.com"),
        ("handler_queue_url", "https://example.com:99999"),
        ("handler_bucket_endpoint", "https://[:::]"),
    ],
)
def test_values_that_would_fail_on_the_host_are_refused(name: str, value: object) -> None:
    found = wrong(name, value)
    assert found
    assert "hidden" not in found


@pytest.mark.parametrize("host", ["example.com", "https://example.com", "http://10.0.0.7:8080", "[::1]:9000"])
def test_hosts_that_have_tokens(host: str) -> None:
    assert wrong("wan_models_tokens", {host: "t"}) == ""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"requirements": "requirements.txt"}, "requirements: 'requirements.txt', which has to be a list"),
        ({"packages": "numpy"}, "packages: 'numpy', which has to be a list"),
        ({"node_types": "Mine"}, "node_types: 'Mine', which has to be a list"),
        ({"folders": "ckpts=models"}, "folders: 'ckpts=models', which has to be a mapping"),
        ({"folders": None}, "folders: None, which has to be a mapping"),
        ({"requirements": [None]}, "requirements: [None], which has to be a list"),
        ({"accepted": [{"kind": ["x"], "where": "x", "why": "x"}]}, "accepted: kind: ['x'], which has to be a text"),
        (
            {"packages": ["--index-url https://example.com"]},
            "mine with '--index-url https://example.com' under packages",
        ),
        ({"packages": ["-e ."]}, "mine with '-e .' under packages"),
        ({"packages": [""]}, "mine with '' under packages"),
        ({"without": ["numpy<2"]}, "mine with 'numpy<2' under without"),
        ({"node_types": [" "]}, "mine with ' ' under node_types"),
        ({"name": "a" * 101}, "the name 'aaa"),
        ({"repository": "https://example.com"}, "mine from 'https://example.com', which is no address"),
        ({"repository": "https:///mine"}, "mine from 'https:///mine', which is no address"),
    ],
)
def test_a_pack_s_parts_have_their_types(change: dict[str, Any], found: str) -> None:
    mine = {"name": "mine", "repository": "https://example.com/mine", "commit": "0" * 40}
    right = {"requirements": ["requirements.txt"], "packages": ["numpy<2", "a[b] @ https://example.com/x", "c"]}
    assert wrong("custom_nodes_extra", [{**mine, **right, "without": ["torch"], "node_types": ["My Node"]}]) == ""
    assert wrong("custom_nodes_extra", [{**mine, **change}]).startswith(found)
