"""Runs a module of the collection as its own process, without a connection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def run_module(name: str, arguments: dict[str, Any], check: bool = False, **environment: str) -> dict[str, Any]:
    """Return what the module answers; ``failed`` is in it when it failed."""
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.wanmetal.comfyui.plugins.modules.{name}"],
        input=json.dumps(given),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert bool(answer.get("failed")) is bool(done.returncode)
    return answer
