"""Make files/workflows from the sources: python -m tools.workflows writes, with --check it says what is not current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ansible/collections"))

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows

from tools.workflows import vace, wan21, wan22, wrapper
from tools.workflows.builder import Workflow
from tools.workflows.parts import ALL

SOURCES = (wan21, vace, wan22, wrapper)
RESULT = (
    "**Where the result is:** in the last node on the right, and on the host in the folder `output` "
    "(as shipped `/var/lib/wanmetal/output`). Press *Run* to make it."
)


def made() -> dict[Path, str]:
    """Return every file with its text."""
    schemas = workflow_schemas.recorded()
    catalogue = locks.load("models")
    files: dict[Path, str] = {}
    index: dict[str, Any] = {}
    needs: dict[str, workflows.Needs] = {}
    for entry in sorted(ALL, key=lambda one: one.name):
        w = Workflow(entry.name, catalogue, entry.about, entry.change)
        with w.group("About"):
            w.note(f"## {entry.name}\n\n{entry.about}\n\n**What to change:** {entry.change}\n\n{RESULT}")
        entry.build(w)
        ui = w.ui()
        api = to_api(ui, schemas)
        files[workflows.FOLDER / f"{entry.name}.json"] = workflows.written(ui)
        needs[entry.name] = workflows.needs(api, schemas, catalogue)
        used = needs[entry.name].models
        index[entry.name] = {
            "about": entry.about,
            "packs": needs[entry.name].packs,
            "models": [list(ids) for ids in dict.fromkeys(w.models) if ids[0] in used],
            "settings": {name: list(place) for name, place in w.settings.items()},
        }
    files[workflows.INDEX] = _written(index) + "\n"
    files |= documented(index, needs)
    return files


def _written(value: Any, indent: str = "") -> str:
    """JSON with a line for each value that is no object."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    lines = [f"{indent} {json.dumps(name)}: {_written(inner, indent + ' ')}" for name, inner in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def documented(index: dict[str, Any], needs: dict[str, workflows.Needs]) -> dict[Path, str]:
    """Return docs/workflows.md with its table renewed."""
    file = ROOT / "docs/workflows.md"
    if not file.is_file():
        return {}
    rows = workflows.table(needs)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    abouts = [f"- **{name}**: {entry['about']}" for name, entry in index.items()]
    text = file.read_text(encoding="utf-8")
    for mark, made_lines in (("table", lines), ("list", abouts)):
        start, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
        head, _, rest = text.partition(start)
        text = head + start + "\n" + "\n".join(made_lines) + "\n\n" + end + rest.partition(end)[2]
    return {file: text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file is not current")
    arguments = parser.parse_args()
    files = made()
    old = [file for file in workflows.FOLDER.glob("*.json") if file not in files]
    stale = [file for file, text in files.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    for file in [*stale, *old]:
        done = "written" if file in files else "removed"
        print(f"{'not current' if arguments.check else done}: {file.relative_to(ROOT)}")
    if arguments.check:
        return 1 if stale or old else 0
    for file in stale:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(files[file], encoding="utf-8")
    for file in old:
        file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
