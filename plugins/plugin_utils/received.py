"""What a host receives while a task fetches packages there."""

from __future__ import annotations

import copy
import threading
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size


def received(counters: str) -> int:
    """Bytes that came in by all interfaces but loopback, of a text of /proc/net/dev."""
    rows = [line.partition(":") for line in counters.splitlines() if ":" in line]
    return sum(int(numbers.split()[0]) for name, _unused, numbers in rows if name.strip() != "lo")


class Watched(ActionBase):  # type: ignore[misc]
    """Runs its module, and shows meanwhile what the host receives, and how fast."""

    _supports_check_mode = True
    _supports_async = False
    module: str | None = None
    """What it runs, where that is not the module of its own name."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; see the class."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        over = threading.Event()
        # The module has the connection to itself; this one shares what it was set up with.
        beside = copy.copy(self._connection)
        beside.become = None
        head = f"{task_vars.get('inventory_hostname', 'host')}: {self._task.get_name().rpartition(' : ')[2]}"
        watch = threading.Thread(target=self._watch, args=(head, beside, over), daemon=True)
        watch.start()
        try:
            arguments = dict(self._task.args)
            return {**result, **self._execute_module(self.module, module_args=arguments, task_vars=task_vars)}
        finally:
            over.set()
            watch.join(1)

    def _watch(self, head: str, connection: Any, over: threading.Event, every: float = 20.0) -> None:
        begun = last = time.monotonic()
        first = before = _look(connection)
        while not over.wait(every):
            now, amount = time.monotonic(), _look(connection)
            text = f"{head}: {now - begun:.0f} s so far"
            if first is not None and before is not None and amount is not None:
                text += f", {size(amount - first)} received, {size((amount - before) / (now - last))}/s"
            last, before = now, amount
            if not over.is_set():
                self._display.display(text)


def _look(connection: Any) -> int | None:
    """What has come in; nothing where the host does not say, which must not end what is watched."""
    try:
        return received(str(connection.exec_command("cat /proc/net/dev", sudoable=False)[1], "utf-8"))
    except Exception:
        return None
