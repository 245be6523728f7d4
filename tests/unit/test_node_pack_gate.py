"""The gate of node packs: small packs, each with one behaviour, on a stand-in for ComfyUI's start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.packs import gate
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import custom_nodes
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

# What the real one has of these names, as far as an import of packs meets it.
CORE = {
    "comfy/options.py": "def enable_args_parsing():\n    pass\n",
    "torch.py": "def load(path, weights_only=True):\n    return path\n",
    "server.py": """
class Route:
    def __init__(self, method, path, handler):
        self.method, self.path, self.handler = method, path, handler

class Routes(list):
    def get(self, path):
        return lambda handler: self.append(Route("GET", path, handler)) or handler
    def post(self, path):
        return lambda handler: self.append(Route("POST", path, handler)) or handler

class App:
    class router:
        routes = staticmethod(lambda: [])

class PromptServer:
    instance = None
    def __init__(self):
        self.routes, self.app = Routes(), App()
        PromptServer.instance = self
""",
    "nodes.py": """
import importlib.util, logging, os, sys, traceback
NODE_CLASS_MAPPINGS = {"KSampler": object}

async def load_custom_node(path, ignore=set(), module_parent="custom_nodes"):
    try:
        name = path.replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, os.path.join(path, "__init__.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        NODE_CLASS_MAPPINGS.update(module.NODE_CLASS_MAPPINGS)
        return True
    except Exception as error:
        logging.warning(traceback.format_exc())
        logging.warning(f"Cannot import {path} module for custom nodes: {error}")
        return False
""",
    "main.py": """
import asyncio, os, sys
import nodes, server
base = sys.argv[sys.argv.index("--base-directory") + 1]
server.PromptServer()
for name in os.listdir(os.path.join(base, "custom_nodes")):
    asyncio.run(nodes.load_custom_node(os.path.join(base, "custom_nodes", name)))
""",
}
NODE = '\nclass Node:\n    pass\n\nNODE_CLASS_MAPPINGS = {"Magic": Node}\n'
SERVER = "from server import PromptServer\nroutes = PromptServer.instance.routes\n"


def made(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("core"), CORE)


def found(core: Path, folder: Path, files: dict[str, str], accepted: Any = ()) -> dict[str, Any]:
    pack = made(folder / "my-pack", files)
    did = gate.tried(Path(sys.executable), core, pack, "my-pack", 600)
    return gate.report(pack, "my-pack", did, accepted)


REFUSED = {
    "connects": (
        "connections",
        "import socket\ntry:\n    socket.create_connection(('203.0.113.1', 80), 1)\nexcept OSError:\n    pass\n",
    ),
    "looks a name up": (
        "connections",
        "import socket\ntry:\n    socket.gethostbyname('example.org')\nexcept OSError:\n    pass\n",
    ),
    "connects in a thread": (
        "connections",
        "import threading as t, urllib.request as u\nt.Thread(target=u.urlopen, args=('http://203.0.113.1/',)).start()\n",
    ),
    "asks pip what is there": (
        "processes",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'freeze'])\n",
    ),
    "starts a shell": ("processes", "import os\nos.system('true')\n"),
    "needs to write into its folder": (
        "import",
        "import os\nos.mkdir(os.path.join(os.path.dirname(__file__), 'wildcards'))\n",
    ),
    "lacks a package": ("import", "import no_such_package_at_all\n"),
    "ends ComfyUI": ("import", "import sys\nsys.exit(3)\n"),
    "ends the process": ("import", "import os\nos._exit(0)\n"),
    "replaces torch.load": ("replaces", "import torch\ntorch.load = lambda path: None\n"),
    "evaluates a text of the graph": (
        "evaluates",
        "def run(formula, x):\n    text = formula.strip()\n    return eval(text, {'x': x})\n",
    ),
    "executes what it was given": (
        "evaluates",
        "import builtins\nclass A:\n    def run(self, *code):\n        builtins.exec(code[0])\n",
    ),
    "makes a function of a text": ("evaluates", "run = lambda text: eval(f'lambda x: {text}')\n"),
    "installs when it runs": (
        "installs",
        "import subprocess, sys\ndef run():\n    subprocess.run([sys.executable, '-m', 'pip', 'install', 'onnx'])\n",
    ),
    "installs through a shell": ("installs", "import os\ndef run(name):\n    os.system(f'pip install {name}')\n"),
    "clones when it runs": (
        "installs",
        "import subprocess\ndef run(url):\n    subprocess.run(['git', 'clone', url])\n",
    ),
    "runs Python of a model": (
        "remote-code",
        "def run(AutoModel, name):\n    return AutoModel.from_pretrained(name, trust_remote_code=True)\n",
    ),
    "restarts for anybody": (
        "route",
        SERVER
        + "import os\n@routes.get('/my/reboot')\nasync def reboot(request):\n    os.execv('/bin/true', ['true'])\n",
    ),
    "downloads for anybody": (
        "route",
        SERVER
        + "import urllib.request\ndef fetched(url):\n    urllib.request.urlretrieve(url, '/tmp/x')\n"
        + "@routes.post('/my/download')\nasync def download(request):\n    fetched((await request.json())['url'])\n",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_refuses_a_pack(name: str, core: Path, tmp_path: Path) -> None:
    kind, text = REFUSED[name]
    report = found(core, tmp_path, {"__init__.py": text + NODE})
    assert {one["kind"] for one in report["reasons"]} == {kind}
    assert report["verdict"] == "refused"
    assert report["why"]


PASSES = {
    "does nothing": ("", []),
    "asks ffmpeg": (
        "import subprocess\ntry:\n    subprocess.run(['ffmpeg', '-version'])\nexcept OSError:\n    pass\n",
        ["starts ffmpeg while it is imported"],
    ),
    "goes on where it cannot write": (
        "import os\ntry:\n    os.mkdir(__file__.replace('__init__.py', 'styles'))\nexcept OSError:\n    pass\n",
        ["tries to write into its folder: styles"],
    ),
    "writes into home": (
        "import os\nos.mkdir(os.path.expanduser('~/.mine'))\n",
        ["writes while it is imported: ~/.mine"],
    ),
    "evaluates its own text": ("eval('1 + 1')\n", ["evaluates a text of its own while it is imported: __init__.py:1"]),
    "reads weights": (
        "import torch\ndef run(path):\n    return torch.load(path, weights_only=False)\n",
        ["1 times torch.load with weights_only=False: a pickle can run code"],
    ),
    "downloads when it runs": (
        "def run(hf_hub_download):\n    hf_hub_download('a/b', 'c')\n",
        ["1 times hf_hub_download"],
    ),
    "has a route": (
        SERVER + "@routes.get('/my/sizes')\nasync def sizes(request):\n    return [1]\n",
        ["route GET /my/sizes"],
    ),
    "calls what is named like it": ("class A:\n    def run(self, model):\n        return model.eval()\n", []),
    "says how to install": ("def run():\n    raise ImportError('run pip install onnx')\n", []),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_is_told_and_passes(name: str, core: Path, tmp_path: Path) -> None:
    text, notes = PASSES[name]
    report = found(core, tmp_path, {"__init__.py": text + NODE})
    assert (report["verdict"], report["reasons"], report["notes"]) == ("passes", [], notes)
    assert report["node_types"] == 1


def test_a_pack_sees_nothing_of_this_machine(core: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    text = f"import os\nassert not os.path.exists({str(secret)!r})\nassert 'PYTHONPATH' not in os.environ\n"
    assert found(core, tmp_path, {"__init__.py": text + NODE})["reasons"] == []


def test_files_that_are_not_imported(core: Path, tmp_path: Path) -> None:
    evaluates = "def run(text):\n    return eval(text)\n"
    files = {"__init__.py": NODE, "tests/test_it.py": evaluates, "install.py": evaluates, "broken.py": "print 'x'\n"}
    report = found(core, tmp_path, files)
    assert report["verdict"] == "passes"
    assert [note.partition(",")[0] for note in report["notes"]] == ["install.py:2", "tests/test_it.py:2"]
    files["__init__.py"] = "from .tests import test_it\n" + NODE
    files["tests/__init__.py"] = ""
    assert [one["where"] for one in found(core, tmp_path, files)["reasons"]] == ["tests/test_it.py:2"]


@pytest.mark.parametrize(
    ("where", "kind", "verdict"),
    [
        ("lib", "evaluates", "passes"),
        ("lib/one.py", "evaluates", "passes"),
        ("li", "evaluates", "refused"),
        ("lib", "installs", "refused"),
        ("other.py", "evaluates", "refused"),
    ],
)
def test_what_is_accepted(where: str, kind: str, verdict: str, core: Path, tmp_path: Path) -> None:
    files = {"__init__.py": NODE, "lib/one.py": "def run(text):\n    return eval(text)\n"}
    accepted = [{"where": where, "kind": kind, "why": "it is of the configuration"}]
    report = found(core, tmp_path, files, accepted)
    assert report["verdict"] == verdict
    if verdict == "passes":
        assert report["accepted"][0]["accepted"] == "it is of the configuration"
    else:
        assert "no longer does what is accepted of it" in report["why"]


def test_the_module(core: Path, tmp_path: Path) -> None:
    pack = made(tmp_path / "my-pack", {"__init__.py": "import os\nos.system('true')\n" + NODE})
    arguments = {"name": "my-pack", "path": str(pack), "core": str(core), "python": sys.executable, "commit": "a" * 40}
    answer = run_module("node_pack_gate", arguments)
    assert answer["summary"] == "my-pack is refused: it starts programs while it is imported (while it is imported)"
    assert answer["report"]["commit"] == "a" * 40
    assert "path: there is no" in run_module("node_pack_gate", {**arguments, "path": "/nowhere"})["msg"]


def test_what_the_plan_says() -> None:
    commit, comfyui = "a" * 40, "b" * 40
    entry = {"commit": commit, "comfyui": comfyui, "verdict": "passes", "why": "", "reasons": [], "accepted": []}
    extra = [{"name": "mine", "commit": commit}]

    def said(report: dict[str, Any]) -> str:
        return custom_nodes.gate_notes({"packs": {"mine": report}}, extra, comfyui)[0]

    assert said(entry).endswith("mine: the gate of node packs found nothing that refuses it")
    assert "and it is installed since you name it: it restarts" in said(
        {**entry, "verdict": "refused", "why": "restarts"}
    )
    assert "this commit was not tried" in said({**entry, "commit": "c" * 40})
    assert "tried on another commit of ComfyUI" in said({**entry, "comfyui": "c" * 40})
    assert custom_nodes.gate_notes({"packs": {}}, [], comfyui) == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"commit": "c" * 40}, True),
        ({"comfyui": "c" * 40}, True),
        ({"accepted": [{"accepted": "x"}]}, True),
    ],
)
def test_what_is_tried_again(change: dict[str, Any], again: bool) -> None:
    pack = {"name": "mine", "release": {"commit": "a" * 40}, "accepted": []}
    entry = {"commit": "a" * 40, "comfyui": "b" * 40, "reasons": [], "accepted": [], **change}
    assert bool(custom_nodes.untried([pack], {"packs": {"mine": entry}}, "b" * 40)) is again
    assert custom_nodes.untried([pack], {"packs": {}}, "b" * 40) == [pack]
