"""The time that the stages and tasks of a playbook took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MOST_TASKS = 5


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
        self._end()
        self._stages.setdefault(stage, _Stage())
        self._open = (stage, task, self._clock())

    def changed(self) -> None:
        """A host was changed by the task that runs."""
        if self._open:
            self._stages[self._open[0]].changes += 1

    def _end(self) -> None:
        if self._open:
            stage, task, begin = self._open
            seconds = self._clock() - begin
            self._stages[stage].seconds += seconds
            self._tasks.append((seconds, stage, task))
            self._open = None

    def report(self, slowest_from: float) -> list[str]:
        """Lines for a terminal: stages in their order, then the slowest tasks."""
        self._end()
        if not self._stages:
            return []
        width = max(map(len, [*self._stages, "total"]))
        lines = ["", "Stages"]
        for name, stage in self._stages.items():
            changes = f"{stage.changes} changed" if stage.changes else "unchanged"
            lines.append(f"  {name:<{width}}  {stage.seconds:8.1f} s  {changes}")
        changes_in_all = sum(stage.changes for stage in self._stages.values())
        lines.append(
            f"  {'total':<{width}}  {sum(stage.seconds for stage in self._stages.values()):8.1f} s  "
            + (f"{changes_in_all} changed" if changes_in_all else "nothing changed")
        )
        slow = sorted((task for task in self._tasks if task[0] >= slowest_from), reverse=True)[:MOST_TASKS]
        if slow:
            lines += [
                "Slowest tasks",
                *(f"  {seconds:8.1f} s  {stage}: {task}" for seconds, stage, task in slow),
            ]
        return lines
