"""The time that the stages and tasks of a playbook took."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.connections import no_python, refused_root, unreachable

MOST_TASKS = 5
LEAST_S = 1.0
"""A stage that took less, and has changed nothing, is not shown."""
_OF_A_SERVICE = re.compile(r"(?!preflight: |wanmetal: )[a-z_]+: ")
"""What a role says that has to do with a service begins so; a play has a sentence for a name."""
_COMMAND = re.compile(r"\./deploy|\bssh ")
"""What a line has that is there to be copied, and so is not broken."""
_OF_A_WORKER = re.compile(r": (ready|\d+ problems?)$")
MOST_HOSTS = 3
"""Of more hosts, the end shows a line each."""


@dataclass
class _Stage:
    seconds: float = 0.0
    changes: int = 0


class Stages:
    """Adds up stages. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._tasks: list[tuple[float, str, str]] = []
        self._open: tuple[str, str, float] | None = None

    def begin(self, stage: str, task: str) -> None:
        """A task of a stage begins, and the one before ends."""
        self.end()
        self._stages.setdefault(stage, _Stage())
        self._open = (stage, task, self._clock())

    def running(self, longer_than: float, hosts: Sequence[str]) -> str:
        """A line about the task that runs, where it takes long."""
        task = self._open
        if not task or (seconds := self._clock() - task[2]) < longer_than / 2:
            return ""
        where = f" on {', '.join(hosts[:MOST_HOSTS])}" if hosts else ""
        more = f" and {len(hosts) - MOST_HOSTS} more" if len(hosts) > MOST_HOSTS else ""
        return f"... {task[1]}: {seconds:.0f} s so far{where}{more}"

    def changed(self) -> None:
        """A host was changed by the task that runs."""
        if self._open:
            self._stages[self._open[0]].changes += 1

    def end(self) -> None:
        """The task that runs ends, and none begins yet."""
        if self._open:
            stage, task, begin = self._open
            seconds = self._clock() - begin
            self._stages[stage].seconds += seconds
            self._tasks.append((seconds, stage, task))
            self._open = None

    def report(self, slowest_from: float, columns: int = 80) -> list[str]:
        """Lines for a terminal: stages in their order, then the slowest tasks."""
        self.end()
        if not self._stages:
            return []
        shown = {name: one for name, one in self._stages.items() if one.changes or one.seconds >= LEAST_S}
        # What stands beside the name takes 31 columns.
        names = {name: textwrap.shorten(name, max(columns - 31, 20), placeholder="…") for name in shown}
        width = max(map(len, [*names.values(), "total"]))
        lines = ["", "Stages"]
        for name, stage in shown.items():
            changes = f"{stage.changes} changed" if stage.changes else "unchanged"
            lines.append(f"  {names[name]:<{width}}  {stage.seconds:8.1f} s  {changes}")
        changes_in_all = sum(stage.changes for stage in self._stages.values())
        lines.append(
            f"  {'total':<{width}}  {sum(stage.seconds for stage in self._stages.values()):8.1f} s  "
            + (f"{changes_in_all} changed" if changes_in_all else "nothing changed")
        )
        slow = sorted((task for task in self._tasks if task[0] >= slowest_from), reverse=True)[:MOST_TASKS]
        if slow:
            lines += [
                "Slowest tasks",
                *(
                    line
                    for seconds, stage, task in slow
                    for line in wrapped(f"  {seconds:8.1f} s  {stage}: {task}", columns, 14)
                ),
            ]
        return lines


_LISTED = re.compile(r"(?m)^(\S.*)\n  found   (.*)\n  needed  (.*)\n  fix     (.*)$")
"""A problem, as plugin_utils.problems lists it."""
AROUND = re.compile(
    r"^(Task failed: |Action failed: |Module failed: |Finalization of task args for '[\w.]+' failed: "
    r"|Error while resolving value for '\w+': |The (filter|lookup) plugin '[\w.]+' failed: |\w+\.\w+\.\w+: )+"
)
"""What Ansible puts before a reason."""


_NO_REASON = re.compile(
    r"(?i)(non-zero return code|module failure|module result deserialization failed|one or more items failed).*|\W*"
)
"""Messages that leave the reason to what the command wrote."""
_REASON = re.compile(r"(?i)(?!w:|warning).*(\be: |error|fatal|fail|cannot|could not|denied|no such|not found|unable)")


def first_line(result: Mapping[str, Any]) -> str:
    """Say in a line why a task failed, and how to fix it where that is known."""
    text = _reason(result)
    if listed := _LISTED.findall(text):
        what, found, needed, fix = (part.strip() for part in listed[0])
        more = f" (and {len(listed) - 1} more above)" if len(listed) > 1 else ""
        return f"{what}: {found}; needed: {needed}; fix: {fix}{more}"
    if problem := unreachable(text) if result.get("unreachable") else refused_root(text) or no_python(text):
        return f"{problem.what}: {problem.found}; needed: {problem.needed}; fix: {problem.fix}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return line if len(line) <= 300 else f"{line[:299]}…"


def _reason(result: Mapping[str, Any]) -> str:
    """The message, or what the command wrote where the message only says that it failed."""
    if "censored" in result:
        return "what it wrote can hold secrets, so it is not shown"
    if failed := [one for one in result.get("results") or [] if isinstance(one, Mapping) and one.get("failed")]:
        item = failed[0].get("_ansible_item_label", failed[0].get("item"))
        return _reason(failed[0]) if not isinstance(item, str | int) else f"{item}: {_reason(failed[0])}"
    text = AROUND.sub("", str(result.get("msg") or "").strip())
    if text and not _NO_REASON.fullmatch(text.partition("\n")[0]):
        return text
    wrote = [str(result.get(f"{kind}{name}") or "") for name in ("stderr", "stdout") for kind in ("", "module_")]
    if _LISTED.search("\n".join(wrote)):
        return "\n".join(wrote)
    lines = [line.strip() for line in "\n".join(wrote).splitlines() if line.strip()]
    # A traceback has its reason last.
    lines = lines[-1:] if lines[:1] == ["Traceback (most recent call last):"] else lines
    line = next((line for line in lines if _REASON.match(line)), lines[0] if lines else "")
    command = result.get("cmd") or ""
    program = Path((command if isinstance(command, list) else command.split() or [""])[0]).name
    ended = f"{program or 'a program'} ended with status {result['rc']}" if result.get("rc") else ""
    return ": ".join(filter(None, [ended, line])) or text or "it gives no reason"


def wrapped(text: str, width: int, indent: int | None = None) -> list[str]:
    """Break a line between words alone, so that what is there to be copied stays whole; as its second column stands."""
    start = re.match(r" *(\S+( \S+)*  +)?", text)
    indent = len(start[0] if start else "") if indent is None else indent
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def inventory_options(inventories: Sequence[str], root: Path, here: Path) -> str:
    """Return what names these inventories in a command; nothing for those that ./deploy takes by itself."""
    own = next((root / name for name in ("my_hosts", "gpu_hosts") if (root / name).exists()), root)
    if [Path(one).resolve() for one in inventories] == [own.resolve()]:
        return ""
    shown = [os.path.relpath(one, here) if Path(one).is_relative_to(here) else one for one in inventories]
    return "".join(f" -i {shlex.quote(one)}" for one in shown)


def closing(
    hosts: Mapping[str, Mapping[str, int]],
    failed: Mapping[str, str],
    said: Mapping[str, Sequence[str]],
    command: str = "./deploy ",
    options: str = "",
    width: int = 80,
) -> list[str]:
    """Lines for the end: what failed, and what there is to say of each host, with what was changed there.

    ``options`` name the inventory in the commands, which end their lines, where it is not the one that they take
    without. Lines are wrapped to ``width``, but for commands, which are there to be copied.
    """
    wrong = [host for host, counts in hosts.items() if counts["failures"] or counts["unreachable"]]
    well = [host for host in hosts if host in said and host not in wrong]
    lines = ["", "Failed"] if wrong else []
    alike: dict[str, list[str]] = {}
    for host in wrong:
        alike.setdefault(failed.get(host, "see above"), []).append(host)
    for reason, where in alike.items():
        lines += wrapped(f"  {', '.join(where)}: {reason}", width, 4)
    begun = [host for host in wrong if hosts[host]["ok"] and _OF_A_SERVICE.match(failed.get(host, "comfyui: "))]
    reached = [host for host in begun if not hosts[host]["unreachable"] and "; fix: " not in failed.get(host, "")]
    if reached:
        there = f"{options} --limit {','.join(reached)}"
        lines += ["", *_led("What the services there wrote", f"{command}logs{there}", width)]
        lines += _led("The likely cause and its fix", f"{command}doctor{there}", width)
    for host in well:
        changed = hosts[host]["changed"]
        first, *rest = said[host]
        head = f"{first}, {f'{changed} changed' if changed else 'nothing changed'}"
        lines += [*([] if len(well) > MOST_HOSTS and host != well[0] else [""]), head]
        for line in rest if len(well) <= MOST_HOSTS else ():
            copied = _COMMAND.search(line)
            lines += [line + options * ("./deploy" in line)] if copied else wrapped(line, width)
    if len(well) > MOST_HOSTS:
        lines += _led("How to reach one of them", f"{command}status{options} --limit HOST", width)
    elif any(_OF_A_WORKER.search(said[host][0]) for host in well):
        lines += [
            "",
            *_led("To render a video on each host and check all that runs", f"{command}verify{options}", width),
        ]
    return lines


def _led(text: str, command: str, width: int) -> list[str]:
    """A command with what it is for: behind it, or where that is too long, alone in a line, to be copied."""
    line = f"{text}: {command}"
    return [line] if len(line) <= width else [f"{text}:", f"  {command}"]
