"""The settings of an operator, as they arrive in the running service."""

from __future__ import annotations

import json
from typing import Any

UNIT = "comfyui.service"
TOLD = 's3cret "quoted" $HOME \\ %n `id`'


def show(host: Any, name: str) -> str:
    return str(host.check_output(f"systemctl show {UNIT} --property={name} --value"))


def environment(host: Any) -> dict[str, str]:
    text = host.file(f"/proc/{show(host, 'MainPID')}/environ").content_string
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def answer(host: Any, path: str) -> Any:
    return json.loads(host.check_output(f"curl --silent --fail http://127.0.0.1:8199{path}"))


def test_second_run_left_the_process_alone(host: Any) -> None:
    assert f"MainPID={show(host, 'MainPID')}\n" in host.file("/run/main-process").content_string


def test_default_folders(host: Any) -> None:
    assert host.file("/opt/wanmetal/current").linked_to.startswith("/opt/wanmetal/releases/0.3.75-")
    assert show(host, "WorkingDirectory") == "/opt/wanmetal/current/ComfyUI"


def test_source_came_from_the_mirrored_repository(host: Any) -> None:
    record = json.loads(host.file("/opt/wanmetal/current/release.json").content_string)
    assert record["source"] == "git"
    assert not host.file("/opt/wanmetal/current/ComfyUI/.git").exists


def test_arguments(host: Any) -> None:
    command = host.file(f"/proc/{show(host, 'MainPID')}/cmdline").content_string.split("\0")
    assert command[command.index("--port") + 1] == "8199"
    assert command[command.index("--preview-method") + 1] == "none"
    assert command[-3:-1] == ["--verbose", "DEBUG"]


def test_environment_arrives_unchanged(host: Any) -> None:
    assert environment(host)["OPERATOR_TOKEN"] == TOLD


def test_secret_is_in_its_file_only(host: Any) -> None:
    file = host.file("/etc/wanmetal/comfyui.env")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    for command in (
        f"systemctl cat {UNIT}",
        f"systemctl show {UNIT}",
        "journalctl --no-pager --output=cat",
        "ps -ww -eo args",
    ):
        assert "s3cret" not in host.check_output(command)
    assert host.run("runuser --user nobody -- cat /etc/wanmetal/comfyui.env").rc != 0


def test_no_tcmalloc(host: Any) -> None:
    assert "LD_PRELOAD" not in environment(host)


def test_memory_limit(host: Any) -> None:
    assert show(host, "MemoryMax") == str(8 * 2**30)


def test_hook_ran_as_the_service_user(host: Any) -> None:
    assert "the hook ran as wanmetal" in host.check_output(f"journalctl --no-pager --unit={UNIT}")


def test_further_models_are_seen(host: Any) -> None:
    assert "elsewhere.safetensors" in answer(host, "/models/loras")


def test_uploads_and_outputs_stay_outside_the_release(host: Any) -> None:
    assert answer(host, "/system_stats")["system"]["argv"].count("/var/lib/wanmetal/output") == 1
