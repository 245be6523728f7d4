"""./deploy init: what it takes, what it writes, and what it leaves alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import host_workflows
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import files_of_set
from ansible_collections.wanmetal.comfyui.tools import init

PROGRAM = Path(__file__).resolve().parents[2] / "tools/init.py"
BIN = Path(sys.executable).parent


def run(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, PROGRAM, "--inventory", folder / "mine", *arguments]
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environment)


def read(folder: Path, name: str) -> Any:
    return yaml.safe_load((folder / "mine" / name).read_text())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", [("localhost", "localhost", "", 22)]),
        ("gpu1.example.com", [("gpu1.example.com", "gpu1.example.com", "", 22)]),
        ("ubuntu@192.0.2.7:2222, 192.0.2.8", [("gpu1", "192.0.2.7", "ubuntu", 2222), ("gpu2", "192.0.2.8", "", 22)]),
        ("a=192.0.2.7 b=[2001:db8::1]:2022", [("a", "192.0.2.7", "", 22), ("b", "2001:db8::1", "", 2022)]),
        ("root@2001:db8::1", [("gpu1", "2001:db8::1", "root", 22)]),
        ("192.0.2.7,gpu1", [("gpu2", "192.0.2.7", "", 22), ("gpu1", "gpu1", "", 22)]),
        ("192.0.2.7:2201,192.0.2.7:2202", [("gpu1", "192.0.2.7", "", 2201), ("gpu2", "192.0.2.7", "", 2202)]),
    ],
)
def test_hosts_as_people_write_them(text: str, expected: list[tuple[str, str, str, int]]) -> None:
    assert [(host.name, host.address, host.user, host.port) for host in init.hosts_of(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "gpu1;reboot", "-oProxyCommand=x", "a@-b", "gpu1:0", "gpu1:70000", "gpu1 gpu1", "a=x a=y", "$(id)"),
        *(
            "gp\u00fc1",
            "j\u00fcrgen@gpu1",
            "gpu1:\u0662\u0662",
            "999.0.2.7",
            "192.0.2",
            "192.0.2.7.",
            "[::zz]",
            "1:2:3",
        ),
        *("all", "ungrouped=192.0.2.7", "gpu_hosts", "a=192.0.2.7 b=192.0.2.7", "a=x b=x", "localhost b=127.0.0.1"),
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(init.InitError, match="hosts"):
        init.hosts_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "data",
        "/",
        "/a/../b",
        "/a b",
        "/a;id",
        "/$HOME",
        "",
        "/etc",
        "/etc/ssh/x",
        "/tmp/x",  # noqa: S108
        "/home/me",
        "/gr\u00f6sse",
        "/srv/",
    ],
)
def test_what_is_no_folder_is_refused(text: str) -> None:
    with pytest.raises(init.InitError, match="data folder"):
        init.folder_of(text)


def test_tokens_are_told_apart() -> None:
    assert init.tokens_of("") == {}
    assert init.tokens_of("hf_x abc") == {"wan_models_huggingface_token": "hf_x", "wan_models_civitai_token": "abc"}
    with pytest.raises(init.InitError, match="two of one service"):
        init.tokens_of("hf_x hf_y")


@pytest.mark.parametrize("profile", ["small", "fp8", "full"])
@pytest.mark.parametrize("what", [name for name in init.MAKE if name != "nothing"])
def test_what_can_be_made_has_a_workflow(what: str, profile: str) -> None:
    catalogue = locks.load("models")
    ids = [id_ for name in init.sets_of(what, []) for id_ in files_of_set(catalogue, name, profile)]
    files = [{"id": id_, "folder": catalogue["files"][id_]["folder"]} for id_ in ids]
    assert host_workflows(files, catalogue=catalogue)["names"]


def test_an_inventory_by_flags(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        *("--hosts", "a=192.0.2.7,root@gpu2.example.com:2222", "--user", "ubuntu", "--jump", "me@gate.example.com"),
        *("--variant", "base", "--make", "try,upscalers", "--data-dir", "/data/wan", "--no-look"),
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path, "hosts.yml")["gpu_hosts"] == {
        "hosts": {
            "a": {"ansible_host": "192.0.2.7"},
            "gpu2.example.com": {"ansible_user": "root", "ansible_port": 2222},
        },
        "vars": {"ansible_user": "ubuntu", "ansible_ssh_common_args": "-o ProxyJump=me@gate.example.com"},
    }
    assert read(tmp_path, "group_vars/gpu_hosts/settings.yml") == {
        "wanmetal_variant": "base",
        "wan_models_sets": ["wan21-t2v-1.3b", "upscalers"],
        "wanmetal_data_dir": "/data/wan",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    listed = subprocess.run(
        [BIN / "ansible-inventory", "-i", tmp_path / "mine", "--host", "a"], capture_output=True, text=True, check=True
    )
    assert "/data/wan" in listed.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = run(tmp_path, "--hosts", "localhost", "--no-look")
    assert done.returncode == 1
    assert "is there already, and stays as it is" in done.stderr
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("vault", [False, True])
def test_tokens_are_for_their_owner_alone(tmp_path: Path, vault: bool) -> None:
    for name, token in (("hub", "hf_secret1"), ("civitai", "secret2"), ("password", "p")):
        (tmp_path / name).write_text(f"{token}\n")
    encrypt = ["--vault-password-file", str(tmp_path / "password")] if vault else []
    done = run(
        tmp_path,
        *("--hosts", "localhost", "--no-look", "--huggingface-token-file", str(tmp_path / "hub")),
        *("--civitai-token-file", str(tmp_path / "civitai"), *encrypt),
    )
    assert done.returncode == 0, done.stderr
    file = tmp_path / "mine/group_vars/gpu_hosts/secrets.yml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ("secret" not in file.read_text()) == vault
    assert "secret1" not in done.stdout + done.stderr
    if not vault:
        assert sorted(yaml.safe_load(file.read_text()).values()) == ["hf_secret1", "secret2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--hosts"),
        (["--hosts", "a b!"], "is no host"),
        (["--hosts", "a", "--make", "films"], "what to make"),
        (["--hosts", "a", "--data-dir", "x"], "data folder"),
        (["--hosts", "a", "--user", "bad user"], "user: 'bad user'"),
        (["--hosts", "a", "--user=-oProxyCommand=id"], "user: '-oProxyCommand=id'"),
        (["--hosts", "a", "--jump", "gate -oProxyCommand=id"], "jump: 'gate -oProxyCommand=id'"),
        (["--hosts", "a", "--jump", "me@gate,"], "jump: 'me@gate,'"),
        (["--hosts", "a", "--civitai-token-file", "/no/such"], "/no/such"),
        (["--hosts", "a", "--civitai-token-file", "/dev/null"], "a token is empty"),
        (["--hosts", "a", "--huggingface-token-file", __file__], "holds spaces"),
        (["--hosts", "a", "--huggingface-token-file", "~nobody-here/x"], "cannot be read"),
        (["--hosts", "a", "--inventory", "x" * 300], "File name too long"),
        (["--hosts", "a", "--inventory", "/proc/mine"], "could not be written"),
    ],
)
def test_a_wrong_flag_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["init", "--inventory", str(tmp_path / "mine"), "--no-look", *arguments])
    assert init.main() == 1
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["hf_\u00e4", "x\u200by", "\ufeffhf_x"])
def test_what_is_no_token_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(init.InitError, match="tokens: a token is empty, or holds") as refused:
        init.tokens_of(text)
    assert text not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "described"),
    [
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver, or so.",
            "1 NVIDIA GPU(s) without",
        ),
        ("No devices were found", "1 NVIDIA GPU(s) without a driver"),
        ("NVIDIA GH200 480GB, [N/A]", "NVIDIA GH200 480GB"),
        ("NVIDIA RTX 4000, Ada, 20475", "NVIDIA RTX 4000, Ada (20 GB)"),
    ],
)
def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, described: str) -> None:
    answer = tmp_path / "answer"
    answer.write_bytes(b"welcome \xff\nsystem Debian\ngpu " + said.encode() + b"\ncards 1\nfree_kb -\n")
    monkeypatch.setattr(init, "ssh", lambda *_unused: ["cat", str(answer)])
    assert described in init.described(init.look(init.Host("a", "a"), "", "", "/x"))


def test_this_machine_is_looked_at() -> None:
    found = init.look(init.hosts_of("localhost")[0], "", "", "/no/such/folder")
    assert found["system"]
    assert int(found["free_kb"]) > 0
    assert "GB free" in init.described(found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Host key verification failed.", "log in once to accept its key: ssh -p 2222 me@gpu1"),
        ("me@gpu1: Permission denied (publickey).", "ssh-copy-id -p 2222 me@gpu1"),
        ("ssh: connect to host gpu1 port 2222: Connection timed out", "try it by hand: ssh -p 2222 me@gpu1"),
    ],
)
def test_a_host_that_does_not_answer_gets_advice(error: str, said: str) -> None:
    host = init.Host("gpu1", "gpu1", "", 2222)
    assert said in init.advice(host, "me", "", error)
    assert said.replace(" -p", " -o ProxyJump=ops@gate -p") in init.advice(host, "me", "ops@gate", error)


def test_answers_that_end_are_said_on_a_line_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    with pytest.raises(init.InitError, match="nothing was written"):
        init.ask("Hosts", None, "", str, quiet=False)
    assert capsys.readouterr().out == "\n"
