"""Action ``wanmetal.comfyui.doctor``: compares what a host shows with the table of diagnoses, and writes the bundle."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.wanmetal.comfyui.plugins.action import host_state
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import write_whole
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.redact import is_secret, known_values, redact
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.diagnoses import diagnose, lines, said_of

_HERE = {"accelerator": "gpu", "allow_remote": False, "ports": [], "log": None, "bundle": None}
"""Options that the host does not need."""
_MOST_LOG = 400_000


class ActionModule(host_state.ActionModule):
    """Ansible's entry point. Where a host cannot be reached, this says why, as preflight does."""

    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; see there."""
        variables = task_vars or {}
        host = str(variables.get("inventory_hostname", "host"))
        args = dict(self._task.args)
        here = {name: args.pop(name, default) for name, default in _HERE.items()}
        self._task.args = args
        result: dict[str, Any] = super().run(tmp, variables)
        if result.get("failed"):
            return result
        facts, files = result.pop("facts"), result.pop("files")
        log = Path(here["log"] or os.devnull)
        text = log.read_text(errors="replace")[-_MOST_LOG:] if log.is_file() else ""
        text = redact(text, known_values(self._secrets(variables)))
        facts["deploy"], facts["deploy_all"] = said_of(host, text), text.splitlines()
        facts["place"] = {
            **{name: args[name] for name in ("root", "data")},
            "accelerator": here["accelerator"],
            "allow_remote": boolean(here["allow_remote"]),
            "ports": [int(port) for port in here["ports"]],
        }
        found = diagnose(facts)
        shown = lines(host, found, str(here["bundle"] or ""))
        if here["bundle"]:
            files["doctor.txt"] = "\n".join(lines(host, found, "")) + "\n"
            _write(Path(here["bundle"]), {**files, "deploy.log": text} if text else files)
        return {**result, "changed": False, "diagnoses": found, "lines": shown, "bundle": str(here["bundle"] or "")}

    def _secrets(self, variables: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Texts among a host's variables that are secret by their name, or stand in a mapping of secrets."""
        names = [name for name in variables if is_secret(str(name)) or str(name).endswith("_environment")]
        found = []
        for name in names:
            value = self._templar.template(variables[name])
            for key, inner in value.items() if isinstance(value, Mapping) else [(name, value)]:
                if isinstance(inner, str):
                    found.append((str(key), inner))
        return found


def _write(path: Path, files: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, io.BytesIO(data))
    write_whole(path, buffer.getvalue(), 0o600)
