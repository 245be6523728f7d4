#!/usr/bin/env python3
"""Make what is made of the roles' argument specs: their READMEs and the list in the shipped inventory.

tools/docs.py writes them; tools/docs.py --check says which are not current, and fails then.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COLLECTION = "wanmetal.comfyui"
FIRST = ("wanmetal", "comfyui")
"""Roles that come first in the list of settings; the others follow by name."""

FOR_ONE_RUN = ("comfyui_rollback_to", "sageattention_retry", "wanmetal_serial", "wanmetal_uninstall_data")
"""Settings that belong to a command rather than to a host."""

NEEDS = {
    "comfyui": ("nvidia_driver",),
    "sageattention": ("nvidia_driver", "comfyui"),
    "comfyui_api": ("comfyui",),
    "comfyui_api_v2": ("comfyui",),
    "jupyterlab": ("comfyui",),
    "handler": ("comfyui",),
    "monitoring": ("comfyui",),
}
"""Roles that come before a role in a play of its own, besides the role wanmetal."""

HEAD = (
    "The settings of the hosts in gpu_hosts, each with its default. To change one, remove the # before its name. "
    "The README of each role says more. Made by tools/docs.py from the roles' argument specs."
)

Spec = Mapping[str, Any]

# -- Ansible's markup

_QUOTED = re.compile(r"\b(C|O|V|E|M|P|RV|B|I|U|L)\(((?:\\.|[^\\)])*)\)")


def markdown(text: str) -> str:
    """Ansible's markup as Markdown: ``O(x)`` becomes a name in backticks, and so on."""

    def turned(match: re.Match[str]) -> str:
        kind, inner = match[1], re.sub(r"\\(.)", r"\1", match[2])
        if kind == "B":
            return f"**{inner}**"
        if kind == "I":
            return f"*{inner}*"
        if kind == "U":
            return f"<{inner}>"
        if kind == "L":
            words, _, url = inner.rpartition(",")
            return f"[{words.strip()}]({url.strip()})"
        if kind == "P":
            inner = inner.partition("#")[0]
        return f"`{inner}`"

    return _QUOTED.sub(turned, text)


def plain(text: str) -> str:
    """Ansible's markup as a text without any."""
    return re.sub(r"[`*]", "", markdown(text))


def paragraphs(description: str | list[str]) -> list[str]:
    return [" ".join(text.split()) for text in ([description] if isinstance(description, str) else description)]


# -- what the roles say


def specs_of(root: Path, role: str) -> dict[str, Spec]:
    """Entry points of a role."""
    text = (root / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8")
    found: dict[str, Spec] = yaml.safe_load(text)["argument_specs"]
    return found


def roles_of(root: Path) -> list[str]:
    names = sorted(path.parts[-3] for path in root.glob("roles/*/meta/argument_specs.yml"))
    return [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]


def tasks_of(root: Path, entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Tasks of a play, also those in blocks and in the files that it imports."""
    for entry in entries:
        yield entry
        if name := entry.get("ansible.builtin.import_tasks") or entry.get("ansible.builtin.include_tasks"):
            yield from tasks_of(root, yaml.safe_load((root / "playbooks" / name).read_text(encoding="utf-8")))
        for part in ("block", "rescue", "always"):
            yield from tasks_of(root, entry.get(part, []))


def plays_of(root: Path, role: str) -> Iterator[tuple[str, str, list[str]]]:
    """Playbook, text and tags of each play that a role is in."""
    for path in sorted(root.glob("playbooks/*.yml")):
        texts = [f"- {text.strip()}\n" for text in re.split(r"(?m)^- ", path.read_text(encoding="utf-8"))[1:]]
        for text in texts:
            [play] = yaml.safe_load(text)
            tags = [*play.get("tags", [])]
            used = False
            for entry in [*play.get("roles", []), *tasks_of(root, play.get("tasks", []))]:
                called = entry.get("ansible.builtin.import_role") or entry.get("ansible.builtin.include_role") or {}
                if f"{COLLECTION}.{role}" in (entry.get("role"), called.get("name")):
                    used = True
                    tags += entry.get("tags", [])
            if used:
                yield path.stem, text, tags


# -- a role's README


def value_of(value: object) -> str:
    """A value as it is written in YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return '""' if value == "" else text


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def rows(options: Mapping[str, Spec], above: str = "") -> Iterator[str]:
    for name, spec in options.items():
        many = f" of {spec['elements']}" if "elements" in spec else ""
        default = (
            f"`{value_of(spec['default'])}`" if "default" in spec else "required" if spec.get("required") else "none"
        )
        text = " ".join(markdown(part) for part in paragraphs(spec["description"]))
        if len(spec.get("choices", [])) > 1:
            text += f" One of {', '.join(f'`{value_of(choice)}`' for choice in spec['choices'])}."
        yield f"| `{above}{name}` | {spec.get('type', 'str')}{many} | {cell(default)} | {cell(text)} |"
        yield from rows(spec.get("options", {}), f"{above}{name}[].")


def readme(root: Path, role: str) -> str:
    """README of a role."""
    specs = specs_of(root, role)
    main = specs["main"]
    blocks = [
        f"# {COLLECTION}.{role}",
        "<!-- Made by tools/docs.py from meta/argument_specs.yml: change that, and run it again. -->",
        *(markdown(text) for text in paragraphs(main["description"])),
        "## Settings",
    ]
    if main.get("options"):
        head = ["| setting | type | default | what it is |", "| --- | --- | --- | --- |"]
        blocks.append("\n".join([*head, *rows(main["options"])]))
    else:
        blocks.append("None.")
    others = {name: spec for name, spec in specs.items() if name != "main"}
    if others:
        blocks += [
            "## Entry points",
            "Besides `main`, for `tasks_from`:",
            "\n".join(
                f"- `{name}`: {' '.join(markdown(text) for text in paragraphs(spec['description']))}"
                + (f" Takes {', '.join(f'`{option}`' for option in own)}." if (own := own_options(spec, main)) else "")
                for name, spec in others.items()
            ),
        ]
    plays = list(plays_of(root, role))
    tags = sorted({tag for _, _, found in plays for tag in found})
    books = list(dict.fromkeys(f"`{COLLECTION}.{name}`" for name, _, _ in plays))
    blocks += ["## Tags", ", ".join(f"`{tag}`" for tag in tags) if tags else "None."]
    blocks += ["## Where it is used", f"In {', '.join(books)}." if books else "By other roles."]
    blocks += ["A playbook of your own:", f"```yaml\n{playbook(root, role)}```"]
    return "\n\n".join(blocks) + "\n"


def needed(role: str) -> list[str]:
    """Roles that a role needs before it, in their order."""
    if role == "wanmetal":
        return []
    return list(dict.fromkeys(["wanmetal", *(name for need in NEEDS.get(role, ()) for name in (*needed(need), need))]))


def playbook(root: Path, role: str) -> str:
    """The shortest playbook that has a role, as text."""
    plays = ((name, text) for name, text, _ in plays_of(root, role))
    own = next((text for name, text in plays if name == role and f"{COLLECTION}.{role}" in text), "")
    if own:
        return f"---\n{own}"
    tasks = ""
    for name in [*needed(role), role]:
        task = plain(specs_of(root, name)["main"]["short_description"])
        entry = "        tasks_from: release\n" if (role, name) == ("sageattention", "comfyui") else ""
        public = "        public: true\n" if name != role else ""
        call = f"      ansible.builtin.import_role:\n        name: {COLLECTION}.{name}\n{entry}{public}"
        tasks += f"\n    - name: {task}\n{call}"
    if role == "sageattention":
        call = f"      ansible.builtin.import_role:\n        name: {COLLECTION}.comfyui\n        tasks_from: switch\n"
        given = '      vars:\n        comfyui_sageattention_path: "{{ sageattention_path }}"\n'
        given += '        comfyui_ck_attention: "{{ sageattention_kitchen }}"\n'
        tasks = f"{tasks}        public: true\n\n    - name: Switch ComfyUI to the release\n{call}{given}"
    head = "- name: My hosts\n  hosts: gpu_hosts\n  gather_facts: false\n  become: true\n  tasks:"
    return f"---\n{head}{tasks}"


def own_options(spec: Spec, main: Spec) -> list[str]:
    """Settings of an entry point that takes some only."""
    options = spec.get("options", {})
    return [] if options.keys() == main.get("options", {}).keys() else list(options)


# -- the settings of the shipped inventory


def comment(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def setting(name: str, spec: Spec) -> str:
    text = plain(paragraphs(spec["description"])[0])
    if len(spec.get("choices", [])) > 1:
        text += f" One of: {', '.join(value_of(choice) for choice in spec['choices'])}."
    return f"{comment(text)}\n# {name}: {value_of(spec['default'])}"


def settings(root: Path) -> str:
    """Every setting with a default, as a comment, by role."""
    parts = [f"---\n{comment(HEAD)}"]
    one_run = []
    for role in roles_of(root):
        main = specs_of(root, role)["main"]
        named = {name: spec for name, spec in main.get("options", {}).items() if "default" in spec}
        lines = [setting(name, spec) for name, spec in named.items() if name not in FOR_ONE_RUN]
        one_run += [setting(name, spec) for name, spec in named.items() if name in FOR_ONE_RUN]
        if lines:
            parts += [f"# ---- {role}: {plain(main['short_description'])}", *lines]
    if one_run:
        parts += ["# ---- for one run: give these on the command line, with -e", *one_run]
    return "\n\n".join(parts) + "\n"


# -- the files


def made(root: Path = ROOT) -> dict[str, str]:
    """All files that are made, by their path."""
    files = {f"roles/{role}/README.md": readme(root, role) for role in roles_of(root)}
    return {**files, "inventories/gpu_hosts/group_vars/gpu_hosts.yml": settings(root)}


def stale(root: Path = ROOT) -> list[str]:
    """Files that are not current, or should not be there."""
    files = made(root)
    wrong = [name for name, text in files.items() if _text(root / name) != text]
    strays = [str(path.relative_to(root)) for path in root.glob("roles/*/README.md")]
    return wrong + sorted(name for name in strays if name not in files)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        wrong = stale()
        for name in wrong:
            print(f"docs: {name} is not current: run tools/docs.py")
        return 1 if wrong else 0
    for name, text in made().items():
        path = ROOT / name
        if _text(path) != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"docs: wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
