"""Shows the progress of ``wanmetal.comfyui.aria2_download`` while it runs."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import progress

_LONGEST_S = 14 * 24 * 3600
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 10.0
# The host goes on without us, so a connection that breaks is given time to come back.
_PATIENCE_S = 600.0


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs the module detached, and looks at the file in which it tells how far it is."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; see the class."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        every = int(args.get("progress", 20))
        plain = self._task.check_mode or every <= 0 or bool(args.get("background"))
        if plain:
            result.update(self._execute_module(module_args=args, task_vars=task_vars))
        else:
            result.update(self._watched(args, task_vars, every))
        return result

    def _watched(self, args: dict[str, Any], task_vars: dict[str, Any], every: int) -> dict[str, Any]:
        screen = Screen(self._display, task_vars, every)
        before = self._progress(args)
        # The wrapper that detaches the module takes its time limit from the task.
        kept, self._task.async_val = self._task.async_val, _LONGEST_S
        try:
            started: dict[str, Any] = self._execute_module(module_args=args, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = kept
        if "results_file" not in started:
            return started
        job = {"jid": started["ansible_job_id"], "_async_dir": str(Path(started["results_file"]).parent)}
        asked = time.monotonic() - _ASK_EVERY_S
        heard = time.monotonic()
        pause = 0.2
        while True:
            time.sleep(pause)
            pause = min(_LOOK_EVERY_S, pause * 1.5)
            try:
                state = self._progress(args)
                if state and state != before:
                    screen.show(state)
                over = state is not None and state != before and state["phase"] == "done"
                if over or pause < _LOOK_EVERY_S or time.monotonic() - asked > _ASK_EVERY_S:
                    asked = time.monotonic()
                    answer = self._job(job, "status", task_vars)
                    if answer.get("finished"):
                        screen.clear()
                        self._job(job, "cleanup", task_vars)
                        return {key: value for key, value in answer.items() if key not in _OF_THE_WRAPPER}
                heard = time.monotonic()
            except AnsibleConnectionFailure:
                if time.monotonic() - heard > _PATIENCE_S:
                    raise
                screen.say("the connection broke; the download continues, and this waits for the host")
                self._connection.reset()
                time.sleep(5)

    def _job(self, job: dict[str, str], mode: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status", module_args={**job, "mode": mode}, task_vars=task_vars
        )
        return answer

    def _progress(self, args: dict[str, Any]) -> dict[str, Any] | None:
        # The file belongs to the user that fetches, who may have put anything in its place.
        path = shlex.quote(f"{args.get('state_dir')}/{progress.NAME}")
        command = f"dd if={path} iflag=nofollow,nonblock bs=256K count=1 status=none"
        return progress.parse(self._low_level_execute_command(command, executable=None).get("stdout") or "")


_OF_THE_WRAPPER = {
    "ansible_job_id",
    "started",
    "finished",
    "results_file",
    "stdout",
    "stdout_lines",
    "stderr",
    "stderr_lines",
}


class Screen:
    """One line a host: refreshed in place in a terminal with a single host, else now and then."""

    def __init__(self, display: Any, task_vars: dict[str, Any], every: int) -> None:
        self._display = display
        self._host = str(task_vars.get("inventory_hostname", "host"))
        self._in_place = terminal() and len(task_vars.get("ansible_play_hosts_all", [])) == 1
        self._every = 0.0 if self._in_place else float(min(every, 5) if terminal() else every)
        self._next = time.monotonic() + min(self._every, 3.0)
        self._drawn = False

    def show(self, state: dict[str, Any]) -> None:
        """Show where it is, when it is time."""
        if time.monotonic() < self._next or state["phase"] == "done":
            return
        self._next = time.monotonic() + self._every
        self.say(progress.line(state, max(40, self._display.columns - len(self._host) - 4) if self._in_place else 0))

    def say(self, text: str) -> None:
        """Show a line."""
        if self._in_place:
            self._drawn = True
            self._display.display(f"\r\033[K{self._host}: {text}", newline=False, screen_only=True)
        else:
            self._display.display(f"{self._host}: {text}")

    def clear(self) -> None:
        """Make room for the result."""
        if self._drawn:
            self._display.display("\r\033[K", newline=False, screen_only=True)


def terminal() -> bool:
    """Say whether people look at a terminal. This process has no output of its own; its parent's counts."""
    try:
        return str(Path(f"/proc/{os.getppid()}/fd/1").readlink()).startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
