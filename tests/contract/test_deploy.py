"""What ./deploy says at its end, and that a run of nothing is no success."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.tests.contract import house

BIN = Path(sys.executable).parent

# Instead of Ansible: notes what was asked, says how far it came, and ends as it is told.
STAND_IN = """\
#!/bin/sh
echo "$*" >> "$ASKED"
[ -z "$SAID" ] || echo "$SAID" >> "$ANSIBLE_LOG_PATH"
[ -z "$FAR" ] || printf %s "$FAR" > "$WANMETAL_STAGES_CHANGED_FILE"
exit "$STATUS"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(house.ROOT / "deploy", tmp_path / "deploy")
    for name, text in (("tools/venv", "#!/bin/sh\n"), (".venv/deploy/bin/ansible-playbook", STAND_IN)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def deploy(
    checkout: Path, *arguments: str, status: int = 0, far: str = "", said: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASKED": str(checkout / "asked"), "STATUS": str(status), "FAR": far, "SAID": said}
    environment |= {"TMPDIR": str(checkout), "WANMETAL_LAB_DIR": str(checkout / "lab")}
    command: list[str | Path] = [checkout / "deploy", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--lab", "--help"],
        ["--lab", "-e", "x=1", "-h"],
        ["--lab-remove", "--help"],
        ["-i", "x", "--help"],
    ],
)
def test_help_explains_and_runs_nothing(checkout: Path, arguments: list[str]) -> None:
    before = set(checkout.rglob("*"))
    done = deploy(checkout, *arguments)
    assert done.returncode == 0
    assert "./deploy --lab-remove" in done.stdout
    assert set(checkout.rglob("*")) == before


@pytest.mark.parametrize(
    ("status", "far", "advice", "not_said"),
    [
        (1, "", "Correct what is said above.", "same command"),
        (2, "", "./deploy --help has examples; the deploy failed (status 2). Correct", "same command"),
        (2, "unchanged", "Nothing has been changed. Correct what is said above.", "same command"),
        (4, "unchanged", "Nothing has been changed. Correct what is said above.", "same command"),
        (2, "changed", "the same command continues from here.", "Nothing has been changed"),
        (4, "changed", "the same command continues from here.", "Nothing has been changed"),
        (99, "changed", "interrupted (status 130). Run the same command again: it continues from here.", "Correct"),
    ],
)
def test_what_is_advised_depends_on_how_far_it_came(
    checkout: Path, status: int, far: str, advice: str, not_said: str
) -> None:
    done = deploy(checkout, "-i", "mine,", status=status, far=far)
    assert done.returncode == (130 if status == 99 else status)
    assert advice in done.stderr
    assert not_said not in done.stderr
    asked = (checkout / "asked").read_text().splitlines()
    assert asked[0] == f"{checkout}/site.yml -i mine,"
    assert all(again.startswith("--syntax-check ") for again in asked[1:])
    assert {path.name for path in checkout.iterdir()} == {"deploy", "tools", ".venv", "asked", "reports"}


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("[ERROR]: Completely failed to parse inventory source /x", "Correct the inventory, or what -e gives"),
        ("[ERROR]: Specified inventory, host pattern and/or --limit leaves us with no hosts to target.", "--limit: it"),
    ],
)
def test_an_inventory_that_gives_no_hosts_is_told_with_a_fix(checkout: Path, said: str, advice: str) -> None:
    assert advice in deploy(checkout, "-i", "mine,", status=1, said=said).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-i"], "-i needs a value after it"),
        (["--limit"], "--limit needs a value after it"),
        (["--diff", "-e"], "-e needs a value after it"),
        (["-i", "missing"], "-i names 'missing', which is not there. Name a file or a folder that lists hosts"),
        (["--inventory=missing"], "--inventory names 'missing'"),
        (["-e", "@missing.yml"], "-e names the file 'missing.yml', which cannot be read. Correct its path"),
        (["-i", "a,", "--vault-password-file", "missing"], "--vault-password-file names 'missing'"),
        (["--become-password-file=missing"], "--become-password-file names 'missing', which cannot be read"),
        (["--private-key", "missing"], "--private-key names 'missing'"),
        (["--lab", "--key-file", "missing"], "--key-file names 'missing'"),
        (["-i", "a,", "--tags", "models,modles"], "--tags: no task has the tag 'modles'. There are: api comfyui "),
        (["-i", "a,", "--skip-tags=comfy"], "--skip-tags: no task has the tag 'comfy'"),
        (["-i", "a,", "-t", "x"], "-t: no task has the tag 'x'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_with_a_fix(checkout: Path, arguments: list[str], said: str) -> None:
    (checkout / "playbooks").symlink_to(house.ROOT / "playbooks")
    done = deploy(checkout, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"deploy: {said}")
    assert "Nothing was started." in done.stderr
    assert not (checkout / "asked").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-i", "a,b"],
        ["--inventory=deploy", "-e", "size=1"],
        ["-e", '{"file": "missing"}', "--vault-password-file", "deploy"],
        ["--vault-password-file=~/.vault", "--check"],
        ["-i", "~/hosts"],
        ["--tags", "comfyui,models", "--skip-tags=driver", "-t", "all"],
    ],
)
def test_arguments_that_ansible_reads_go_there(
    checkout: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    (checkout / "playbooks").symlink_to(house.ROOT / "playbooks")
    assert deploy(checkout, *arguments).returncode == 0
    assert " ".join(arguments) in (checkout / "asked").read_text()


# -- the operations


OPERATIONS = sorted(
    path.stem for path in (house.ROOT / "playbooks").glob("*.yml") if path.stem not in {"hosts", "site"}
)


@pytest.fixture
def whole(checkout: Path) -> Path:
    """With the playbooks, which name the operations."""
    (checkout / "playbooks").symlink_to(house.ROOT / "playbooks")
    return checkout


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_playbook_is_an_operation_with_a_description(whole: Path, name: str) -> None:
    assert re.search(rf"(?m)^  {name} +[A-Z].{{10,}}", deploy(whole, "--help").stdout)
    said = deploy(whole, name, "--help").stdout
    assert said.startswith(f"./deploy {name}")
    assert f"ansible-playbook wanmetal.comfyui.{name} -i INVENTORY" in said
    assert not (whole / "asked").exists()
    assert deploy(whole, name, "-i", "mine,").returncode == 0
    assert (whole / "asked").read_text() == f"{whole}/playbooks/{name}.yml -i mine,\n"


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["civitai", "290640,290641"], """civitai.yml -i {inventory} -e {{"id": "290640,290641"}}"""),
        (
            ["rollback", "0.3-1", "--limit", "a"],
            """rollback.yml -i {inventory} -e {{"comfyui_rollback_to": "0.3-1"}} --limit a""",
        ),
        (["queue"], "queue.yml -i {inventory}"),
        (["queue", "status"], """queue.yml -i {inventory} -e {{"queue_action": "status"}}"""),
        (
            ["queue", "token", "add", 'a"b', "--limit", "c", "d"],
            """queue.yml -i {inventory} -e {{"queue_action": "token add a\\"b"}} --limit c d""",
        ),
        (["civitai", 'a"', "-i", "x,"], """civitai.yml -e {{"id": "a\\""}} -i x,"""),
    ],
)
def test_the_first_argument_may_stand_alone(whole: Path, arguments: list[str], asked: str) -> None:
    assert deploy(whole, *arguments).returncode == 0
    assert (whole / "asked").read_text() == f"{whole}/playbooks/{asked.format(inventory=whole / 'gpu_hosts')}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verifi"], "there is no 'verifi'"),
        (["hosts"], "there is no 'hosts'"),
        (["backup/../site"], "there is no"),
        (["verify", "gpu1"], "verify takes no 'gpu1'"),
    ],
)
def test_what_is_no_operation_is_said(whole: Path, arguments: list[str], said: str) -> None:
    done = deploy(whole, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (whole / "asked").exists()


def test_the_inventory_of_init_is_used_where_there_is_one(whole: Path) -> None:
    assert deploy(whole).returncode == 0
    (whole / "my_hosts").mkdir()
    assert "inventory my_hosts" in deploy(whole, "verify").stdout
    asked = (whole / "asked").read_text().splitlines()
    assert asked == [f"{whole}/site.yml -i {whole}/gpu_hosts", f"{whole}/playbooks/verify.yml -i {whole}/my_hosts"]


def test_a_failure_names_its_log(whole: Path) -> None:
    stand_in = whole / ".venv/deploy/bin/ansible-playbook"
    stand_in.write_text('#!/bin/sh\necho what it said > "$ANSIBLE_LOG_PATH"\nexit 2\n')
    assert "the whole log is in reports/verify.log" in deploy(whole, "verify", "-i", "mine,").stderr
    log = whole / "reports/verify.log"
    assert (log.read_text(), log.stat().st_mode & 0o077) == ("what it said\n", 0)


@pytest.mark.parametrize(
    ("words", "found", "not_found"),
    [
        (["./deploy", "r"], ["rollback"], ["verify"]),
        (["./deploy", ""], ["init", "verify", "--lab"], ["hosts", "site"]),
        (["./deploy", "init", "--h"], ["--hosts", "--help"], ["--lab"]),
        (["./deploy", "init", "--variant", ""], ["wan"], ["--yes"]),
        (["./deploy", "logs", "c"], ["comfyui"], ["jupyterlab"]),
        (["./deploy", "verify", "--vault-password-file", ""], [], ["--check"]),
        (["./deploy", "u"], ["upgrade", "uninstall"], ["queue"]),
        (["./deploy", "queue", ""], ["status", "drain", "token"], ["add", "-i"]),
        (["./deploy", "queue", "token", ""], ["add", "revoke"], ["status"]),
        (["./deploy", "queue", "drain", "gpu1", "--c"], ["--check"], ["add"]),
        (["./deploy", "-e", "comfyui_po"], ["comfyui_port="], ["comfyui_listen="]),
    ],
)
def test_names_are_completed(words: list[str], found: list[str], not_found: list[str]) -> None:
    script = (
        f'eval "$(./deploy completion)"; COMP_WORDS=({" ".join(map(shlex.quote, words))}); '
        f"COMP_CWORD={len(words) - 1}; _wanmetal_deploy; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", script], cwd=house.ROOT, capture_output=True, text=True, check=True)
    assert set(found) <= set(done.stdout.split())
    assert not set(not_found) & set(done.stdout.split())


# -- a deploy of nothing

GPU1: dict[str, dict[str, str]] = {"gpu1": {}}
INVENTORIES: dict[str, tuple[str | None, list[str], str]] = {
    "another group": (yaml.safe_dump({"workers": {"hosts": GPU1}}), [], "the group workers"),
    "no group": (yaml.safe_dump({"all": {"hosts": GPU1}}), [], "ungrouped hosts"),
    "nothing": ("", [], "no group"),
    "no YAML": ("gpu_hosts:\n  hosts:\n    gpu1: {\n", [], "no group"),
    "no file": (None, [], "no group"),
    "no host in it": (
        yaml.safe_dump({"gpu_hosts": {}, "others": {"hosts": GPU1}}),
        [],
        "the group others, gpu_hosts without hosts",
    ),
    "another host": (
        yaml.safe_dump({"gpu_hosts": {"hosts": GPU1}, "others": {"hosts": {"other": {}}}}),
        ["--limit", "other"],
        "the group others, gpu_hosts with gpu1",
    ),
}


@pytest.mark.parametrize("case", INVENTORIES)
def test_a_deploy_of_nothing_fails_and_names_the_groups(tmp_path: Path, case: str) -> None:
    """As a collection, without the settings of this checkout's ansible.cfg."""
    text, arguments, found = INVENTORIES[case]
    if text is not None:
        (tmp_path / "hosts.yml").write_text(text)
    (tmp_path / "ansible.cfg").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(house.ROOT / "collections"),
    }
    command: list[str | Path] = [
        BIN / "ansible-playbook",
        "-i",
        tmp_path / "hosts.yml",
        "wanmetal.comfyui.site",
        *arguments,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "There is nothing to do" in done.stdout
    assert f"found   {found}" in done.stdout
    assert str(tmp_path / "hosts.yml") in done.stdout


def test_every_playbook_of_hosts_asks_for_them_first() -> None:
    for path in sorted((house.ROOT / "playbooks").glob("*.yml")):
        plays = house.read(path)
        first = plays[0].get("ansible.builtin.import_playbook", "")
        if path.stem not in {"hosts", "site"} and any("gpu_hosts" in str(play.get("hosts")) for play in plays):
            assert first == "hosts.yml", path.name
    assert house.read(house.ROOT / "playbooks/site.yml")[0]["ansible.builtin.import_playbook"] == "preflight.yml"
