"""A service that is switched with a way back, and removed with what it has left.

Before anything changes, the files that it has are kept in a record. The record goes once the new ones have answered, so
that a deploy which was cut off anywhere is finished, or rolled back, by the next.
"""

from __future__ import annotations

import base64
import contextlib
import grp
import json
import os
import pwd
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import FileError, opened_folder, read_regular
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.state import made_unit, users
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import (
    BootingHost,
    ConfigFile,
    Host,
    SwitchError,
    switch_lock,
)

TMPFILES = Path("/etc/tmpfiles.d")

_ASK_S = 10.0
_SETTLE_S = 5.0
"""How long a service without an address has to run."""

Ask = Callable[[Mapping[str, Any]], str]


def ask(question: Mapping[str, Any]) -> str:
    """What is wrong with the answer to a question, or an empty string."""
    url = question["url"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        headers = {}
        if question.get("header"):
            headers[question["header"]] = (
                f"{question['prefix']}{_secret(Path(question['secret_file']), question['secret'])}"
            )
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (addresses of this host)
        with opener.open(request, timeout=_ASK_S) as answer:
            answer.read(2**20)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace").strip()
        return f"{url} answers with HTTP status {error.code}{f': {said}' if said else ''}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{url} does not answer ({getattr(reason, 'strerror', '') or reason})"
    return ""


def _secret(path: Path, name: str) -> str:
    lines = read_regular(path).decode(errors="replace").splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith(f"{name}=")), "")


@dataclass
class Outcome:
    """What was done."""

    changed: bool = False
    reasons: list[str] = field(default_factory=list)
    restarted: bool = False
    diff: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Service:
    """A service, the files that it is to have, and the addresses that have to answer."""

    host: Host
    config: Sequence[ConfigFile]
    answers: Sequence[Mapping[str, Any]] = ()
    timeout_s: float = 60.0
    ask: Ask = ask

    @property
    def _record(self) -> Path:
        return self.host.root / "services" / f"{self.host.unit}.json"

    def run(self, check: bool = False) -> Outcome:
        """Bring the service to what is wanted; raise SwitchError where it does not answer."""
        host = self.host
        cut_off = self._record.is_file()
        differing = [item for item in self.config if host.differs(item)]
        state = host.unit_state(host.unit)
        active, enabled = state.get("ActiveState") == "active", state.get("UnitFileState") == "enabled"
        outcome = Outcome(
            reasons=[
                *(["an earlier switch was cut off"] if cut_off else []),
                *(f"{item.dest} differs" for item in differing),
                *([] if active else [f"{host.unit} does not run"]),
                *([] if enabled else [f"{host.unit} is not enabled"]),
            ]
        )
        outcome.changed = bool(outcome.reasons)
        outcome.diff = [_diff(item) for item in differing if not item.secret]
        if check or not outcome.changed:
            return outcome
        if not cut_off and not differing and active:
            self._systemctl("enable", "--quiet")
            return outcome
        self._refuse_broken_unit(differing)
        anew = cut_off or bool(differing)
        before = self._keep(active) if anew else {}
        started = host.now()

        def give_up() -> None:
            self._go_back(before)
            self._forget()

        with host.guarded(give_up) if anew else contextlib.nullcontext():
            failure = self._bring_up(differing, anew)
        outcome.restarted = True
        if failure:
            log = host.journal(started)
            back = "It was not changed, so there is nothing to go back to."
            if anew:
                try:
                    back = self._go_back(before)
                except OSError as error:  # the record stays for the next run
                    raise SwitchError(f"{host.unit} {failure}. Going back failed too: {error}.") from error
            self._forget()
            raise SwitchError(f"{host.unit} {failure}. {back}\nIts last lines:\n{log or '(the journal has none)'}")
        self._forget()
        return outcome

    # -- forward

    def _bring_up(self, differing: Sequence[ConfigFile], anew: bool) -> str:
        """Install, start and ask. Returns what failed."""
        host = self.host
        try:
            for item in differing:
                host.write(item.dest, item.content, item.owner, item.group, item.mode)
        except (OSError, LookupError) as error:
            return f"could not be installed ({error})"
        if failure := self._load([item.dest for item in self.config]):
            return failure
        # What starts it is a link of its own, which "enabled" does not look at.
        self._systemctl("reenable", "--quiet")
        code, text = self._systemctl("restart" if anew else "start")
        if code:
            return f"did not start ({text.splitlines()[0] if text else code})"
        return self._wait()

    def _wait(self) -> str:
        """Wait for the answers. Returns what failed."""
        host = self.host
        process = self._process()
        deadline = host.now() + (self.timeout_s if self.answers else _SETTLE_S)
        while True:
            reason = next(filter(None, map(self.ask, self.answers)), "")
            state, pid = self._process()
            if state != "active" or (state, pid) != process:
                return f"did not stay up (it is {state or 'unknown'})" if state != "active" else "was started again"
            if self.answers and not reason:
                return ""
            if host.now() >= deadline:
                return f"runs, but {reason}" if reason else ""
            host.sleep(0.5)

    def _process(self) -> tuple[str, str]:
        state = self.host.unit_state(self.host.unit)
        return state.get("ActiveState", ""), state.get("MainPID", "")

    def _load(self, files: Iterable[Path]) -> str:
        """Let systemd read what was written. Returns what failed."""
        self.host.systemctl("daemon-reload")
        self._systemctl("reset-failed")
        folders = [str(path) for path in files if path.parent == TMPFILES and path.is_file()]
        code, text = self.host.run(["systemd-tmpfiles", "--create", *folders]) if folders else (0, "")
        return f"has folders that could not be made ({text})" if code else ""

    def _systemctl(self, *arguments: str) -> tuple[int, str]:
        return self.host.systemctl(*arguments, self.host.unit)

    def _refuse_broken_unit(self, differing: Iterable[ConfigFile]) -> None:
        for item in differing:
            if item.dest.parent == self.host.units and (
                complaint := self.host.verify_unit(item.dest.name, item.content, ())
            ):
                raise SwitchError(
                    f"systemd-analyze verify refuses {item.dest}; nothing was changed. It says: {complaint}"
                )

    # -- back

    def _keep(self, active: bool) -> dict[str, Any]:
        """Record the files that are there, secrets included: for root alone. An earlier record counts more."""
        before: dict[str, Any] = {"files": {}, "active": active, "workers": self.host.running_workers()}
        with contextlib.suppress(FileNotFoundError, ValueError):
            before |= json.loads(read_regular(self._record))
        before["files"] = {**{str(item.dest): _read(item.dest) for item in self.config}, **before["files"]}
        self._record.parent.mkdir(mode=0o700, exist_ok=True)
        self.host.write(self._record, json.dumps(before).encode(), "root", "root", 0o600)
        self.host.at_boot_call(roll_back_at_boot, before=[self.host.unit, *before["workers"]])
        return before

    def _forget(self) -> None:
        self.host.at_boot.remove()
        self._record.unlink(missing_ok=True)

    def roll_back(self) -> str:
        """Put back what was there before a switch that has not come to its end. Says what it did."""
        said = "Nothing has to be rolled back."
        with contextlib.suppress(FileNotFoundError):
            said = self._go_back(json.loads(read_regular(self._record)))
        self._forget()
        return said

    def _go_back(self, before: Mapping[str, Any]) -> str:
        host = self.host
        files: Mapping[str, Any] = before["files"]
        first = files.get(str(host.units / host.unit)) is None
        # While systemd still knows whose part they are, and how they are stopped.
        if strangers := [unit for unit in host.running_workers() if unit not in before["workers"]]:
            host.systemctl("stop", *strangers)
        if first:
            self._systemctl("disable", "--quiet", "--now")
        for dest, entry in files.items():
            path = Path(dest)
            if entry is None:
                path.unlink(missing_ok=True)
                continue
            content = base64.b64decode(entry["content"])
            with contextlib.suppress(LookupError):
                host.write(path, content, entry["owner"], entry["group"], entry["mode"])
        self._load(map(Path, files))
        if first:
            return "There is no earlier one to go back to, so it was removed."
        self._systemctl("reenable", "--quiet")
        if not before["active"]:
            self._systemctl("stop")
            return "The earlier one, which did not run, is in its place again."
        code, text = self._systemctl("restart")
        if code:
            return f"Going back to the earlier one failed too ({text.splitlines()[0] if text else code})."
        return "The earlier one is back and serves again."


def roll_back_at_boot(root: str, config_dir: str, unit: str, units: str) -> str:
    """Roll a switch back that the end of its host has cut off. Says what it did."""
    host = BootingHost(Path(root), Path(config_dir), unit, Path(units))
    with switch_lock(host.root, 0):
        return f"{unit}: {Service(host, ()).roll_back()}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = path.stat()
        content = read_regular(path)
    except FileNotFoundError:
        return None
    return {
        "content": base64.b64encode(content).decode(),
        "owner": _name(lambda: pwd.getpwuid(found.st_uid).pw_name),
        "group": _name(lambda: grp.getgrgid(found.st_gid).gr_name),
        "mode": found.st_mode & 0o7777,
    }


def _name(look: Callable[[], str]) -> str:
    try:
        return look()
    except KeyError:
        return "root"


def _diff(item: ConfigFile) -> dict[str, str]:
    try:
        before = read_regular(item.dest).decode(errors="replace")
    except OSError:
        before = ""
    name = str(item.dest)
    after = item.content.decode(errors="replace")
    return {"before": before, "after": after, "before_header": name, "after_header": name}


# -- removal


def remove(host: Host, patterns: Iterable[str], user: str, check: bool = False) -> Outcome:
    """Stop a service, remove it and what the patterns name, then its user where a role has made it."""
    outcome = Outcome()
    unit = host.units / host.unit
    if host.unit and made_unit(unit):
        outcome.reasons.append(f"{host.unit} is there")
        if not check:
            host.systemctl("disable", "--now", "--quiet", host.unit)
    switched = [host.root / "services" / f"{host.unit}.json", *host.at_boot.paths, unit]
    record = map(str, switched) if host.unit else ()
    # The unit goes last: a deploy looks for it, and goes on with a removal that was cut off.
    for path in dict.fromkeys(path for pattern in [*patterns, *record] for path in expanded(pattern)):
        if path.parent == host.units and path.is_file() and not made_unit(path):
            continue  # somebody's own service of the same name
        # What lies behind a link that a service may have made is not ours.
        with contextlib.suppress(FileError):
            if not check:
                _remove(path)
            outcome.reasons.append(f"{path} is there")
    if outcome.reasons and not check:
        host.systemctl("daemon-reload")
    if user and (users([user])[user] or {}).get("ours") and not names_user(user, host.units, without=unit):
        outcome.reasons.append(f"user {user} is there")
        if not check:
            code, text = host.run(["userdel", user])
            if code:
                raise SwitchError(f"user {user} could not be removed: {text}")
    outcome.changed = bool(outcome.reasons)
    return outcome


def expanded(pattern: str) -> list[Path]:
    """What a pattern names, links included."""
    path = Path(pattern)
    if any(mark in pattern for mark in "*?["):
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    return [path] if path.is_symlink() or path.exists() else []


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, and follow no link that others than root can have made."""
    with opened_folder(path.parent) as folder, contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(path.name, dir_fd=folder)
        except IsADirectoryError:
            shutil.rmtree(f"/proc/self/fd/{folder}/{path.name}")


def names_user(user: str, units: Path, without: Path) -> bool:
    """Whether another unit runs as a user."""
    wanted = f"User={user}"
    others = (path for path in units.glob("*.service") if path != without and path.is_file())
    return any(wanted in path.read_text(encoding="utf-8", errors="replace").splitlines() for path in others)
