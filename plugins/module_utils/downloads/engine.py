"""Fetches a list of files: asks where they are, lets aria2c move them, verifies them, and gives them their names."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import content, plan, progress
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.aria2 import (
    Aria2,
    GoneError,
    control_length,
    control_of,
    leading_bytes,
    piece_size,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import (
    Problem,
    delay_s,
    from_any,
    from_aria2,
    tries,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Follower, Record, reread, sha256
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Request, Settings, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import Answer, ask, described, hosts
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.stream import Stream
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import account, opened_folder, sync_folder
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration, plain
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size as human

LOCK = "lock"
_SHORT = 64 * 1024 * 1024
_RESTARTS = 50
_LONGEST_TEXT = 600
# What was fetched before one of these cannot be used.
_SPOILT = frozenset({"restart", "wrong_size"})
# These cost an attempt even when bytes were moved, or a host that never gets it right would be asked for ever.
_NO_PROGRESS = _SPOILT | {"wrong_hash", "html"}
_MODE = 0o750


@dataclass(eq=False)
class Download:
    """One file on its way."""

    wanted: Wanted
    connections: int
    step: str = "ask"
    """ask, asking, ready, moving, verifying, resting, done or failed"""
    there: Path | None = None
    """A file that has the name already and has to be verified."""
    answer: Answer | None = None
    part: Path = field(default_factory=Path)
    size: int | None = None
    done: int = 0
    before: int = 0
    """The most bytes that there were before: beginning anew is no progress."""
    attempt: int = 0
    until: float = 0.0
    peers_failed: bool = False
    gid: str = ""
    follower: Follower | None = None
    stream: Stream | None = None
    mark: tuple[float, int, int] = (0.0, 0, 0)
    """When the speed was looked at last, the bytes then, and the best growth so far."""
    reread: bool = False
    rejected: int = 0
    problem: Problem | None = None
    digest: str = ""
    by: str = "catalogue"
    note: str = ""

    @property
    def label(self) -> str:
        """Name for people."""
        return self.wanted.name or self.wanted.id

    @property
    def asked(self) -> Answer:
        """What was answered: only a file that is there is looked at without asking."""
        if self.answer is None:
            raise AssertionError(f"{self.label} was not asked for")
        return self.answer

    @property
    def moved(self) -> int:
        """Bytes that are there."""
        return self.stream.moved if self.stream else self.done


@dataclass
class Outcome:
    """What a run did."""

    files: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    unwanted: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    changed: bool = False
    interrupted: bool = False
    fetched_bytes: int = 0
    seconds: float = 0.0
    restarts: int = 0


class Engine:
    """One run over a list."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        settings: Settings,
        lock: int,
        report: Callable[[dict[str, Any]], None] = lambda _state: None,
    ) -> None:
        self._settings = settings
        self._wanted = list(wanted)
        self._report = report
        self._record = Record(settings.state_dir)
        self._record.adopt()
        self._items: list[Download] = []
        self._claims: dict[Path, tuple[str, Download | None]] = {}
        """Who has, or will have, which name."""
        self._news: queue.Queue[Callable[[], None]] = queue.Queue()
        self._pool = ThreadPoolExecutor(max_workers=6)
        self._aria2 = Aria2(lock=lock, limit=settings.limit, pause_s=settings.pause_s)
        self._hosts_rest: dict[str, float] = {}
        self._meter = progress.Meter()
        self._outcome = Outcome()
        self._stop = threading.Event()
        self._reported = 0.0

    def stop(self) -> None:
        """Ask the run to end early, keeping what it has."""
        self._stop.set()

    def read_again(self) -> None:
        """Hash what was verified before; what is no longer right loses its name, and is fetched again."""
        for item in reread(self._record, self._settings.owner_list):
            self._set_aside(Path(item["path"]))

    def run(self) -> Outcome:
        """Fetch and verify everything that is missing."""
        begun = time.monotonic()
        self._sort()
        try:
            while not self._stop.is_set() and any(item.step not in {"done", "failed"} for item in self._items):
                self._advance()
                self._show()
        finally:
            self._outcome.interrupted = self._stop.is_set()
            self._end()
        self._outcome.seconds = time.monotonic() - begun
        self._settle()
        if self._items:
            self._show(last=True)
        return self._outcome

    def _sort(self) -> None:
        owner_list = self._settings.owner_list
        for wanted in self._wanted:
            found = plan.look_at(wanted, self._settings.root, self._record, owner_list)
            if found.status == "verified":
                self._outcome.files.append(self._present(found))
                unpacked = [path for path, proof in self._record.of(wanted.id, owner_list) if proof.archive]
                for path in {Path(found.path), *unpacked}:
                    self._claims[path] = (wanted.id, None)
                continue
            item = Download(wanted, self._settings.connections)
            if wanted.placed:
                self._claims[self._path(item)] = (wanted.id, item)
            if found.status == "unverified":
                self._to_verify(item, Path(found.path))
            self._items.append(item)
        # Long files first: the short ones fill the gaps, and what is hashed last is small.
        self._items.sort(key=lambda item: -item.wanted.guess)

    def _present(self, found: plan.Found) -> dict[str, Any]:
        proof = self._record.proofs[found.path]
        return {
            "id": found.id,
            "path": found.path,
            "status": "present",
            "bytes": found.bytes,
            "sha256": proof.sha256,
            "proof": proof.by,
        }

    def _to_verify(self, item: Download, path: Path) -> None:
        item.there = path
        item.size = item.done = item.before = path.stat().st_size

    def _advance(self) -> None:
        now = time.monotonic()
        moving = sum(item.step == "moving" for item in self._items)
        asked = sum(item.step in {"asking", "ready"} and not item.there and item.wanted.placed for item in self._items)
        # Nothing is fetched before all names are known, or one file could take the name of another.
        unnamed = any(
            item.step in {"ask", "asking"}
            and not item.wanted.placed
            and not item.attempt
            and not self._rests(item, now)
            for item in self._items
        )
        for item in self._items:
            if item.step == "resting" and now >= item.until:
                item.step = "ask"
            # Only as many are asked for as can start soon: a signed link is good for an hour.
            now_or_later = item.there or not item.wanted.placed or (not unnamed and asked < self._settings.parallel)
            if item.step == "ask" and now_or_later and not self._rests(item, now):
                asked += not item.there and item.wanted.placed
                self._ask(item)
            elif item.step == "ready" and moving < self._settings.parallel:
                moving, asked = moving + 1, asked - 1
                self._try(item, self._move)
        self._poll()
        short = any(item.step == "moving" and (item.size or 0) < _SHORT for item in self._items)
        self._listen(0.05 if short else 0.25)

    def _rests(self, item: Download, now: float) -> bool:
        return any(self._hosts_rest.get(host, 0.0) > now for host in hosts(item.wanted, self._settings))

    def _listen(self, wait: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._news.get(timeout=wait)()
            while True:
                self._news.get_nowait()()

    def _try(self, item: Download, action: Callable[[Download], None]) -> None:
        try:
            action(item)
        except GoneError:
            self._fail(item, Problem("crashed", "aria2c ended"))
        except Exception as error:  # one file's trouble is not the others'
            self._fail(item, from_any(error))

    # Asking

    def _ask(self, item: Download) -> None:
        item.step = "asking"
        self._pool.submit(self._ask_now, item)

    def _ask_now(self, item: Download) -> None:
        """Ask in a thread; the answer is dealt with in the main loop."""
        answer: Answer | None = None
        named: Wanted | None = None
        digest = ""
        trouble: Problem | None = None
        try:
            if not item.wanted.placed:
                named = described(item.wanted, self._settings)
            elif not (item.there and item.wanted.sha256):
                peers = bool(self._settings.peers) and not item.peers_failed
                answer = ask(item.wanted, self._settings, peers=peers, limited=self._limited)
            if item.there:
                digest = sha256(item.there)
        except Exception as error:  # a thread that does not report would be waited for, for ever
            trouble = from_any(error)
        self._news.put(lambda: self._try(item, lambda _item: self._answered(item, named or answer, digest, trouble)))

    def _limited(self, host: str, wait_s: float) -> None:
        if wait_s <= self._settings.longest_wait_s:
            self._hosts_rest[host] = time.monotonic() + wait_s

    def _answered(self, item: Download, answer: Answer | Wanted | None, digest: str, trouble: Problem | None) -> None:
        if trouble:
            raise trouble
        if isinstance(answer, Wanted):
            item.wanted = answer
            self._claim(item)
            if self._path(item).exists():
                self._to_verify(item, self._path(item))
            item.step = "ask"
            return
        if answer:
            item.answer, item.wanted, item.by = answer, answer.wanted, answer.by
        if item.there:
            self._judge_there(item, item.there, digest)
            return
        path = self._path(item)
        item.size = item.asked.size
        item.part = path.with_name(
            f".{path.name}.{plan.tag(item.asked.expected, item.size, item.asked.version)}{plan.PART}"
        )
        item.step = "ready"

    def _claim(self, item: Download) -> None:
        """Take a name that was not known before; where another file has it, neither is fetched."""
        other, rival = self._claims.setdefault(self._path(item), (item.wanted.id, item))
        if rival is item:
            return
        problem = self._taken(item, item.wanted.path, other)
        if rival and not rival.there and rival.step == "ask":
            self._fail(rival, problem)
        raise problem

    def _taken(self, item: Download, path: str, other: str) -> Problem:
        return Problem(
            "same_name",
            f"{item.wanted.id} and {other} would both be {path}; give one of them another name in wan_models_files, "
            "for example civitai: 12345 with name: other.safetensors",
        )

    def _others(self, path: Path, archive: str = "") -> str:
        """Say whose a file is that another list has fetched."""
        proof = self._record.untouched(path)
        if proof and proof.owner_list != self._settings.owner_list and not (archive and proof.archive == archive):
            return f"{proof.id} of the list {proof.owner_list}"
        return ""

    def _judge_there(self, item: Download, path: Path, digest: str) -> None:
        expected = item.answer.expected if item.answer else item.wanted.sha256
        size = path.stat().st_size
        why = f"what was there has sha256 {digest}, wanted is {expected}"
        if digest == expected or (item.answer and item.by == "size" and size == item.answer.size):
            try:
                content.check(path, path.name, hashed=item.by != "size")
            except Problem as problem:
                why = str(problem)
            else:
                item.digest, item.size, item.note = digest, size, "present"
                self._remember(item, path)
                item.step = "done"
                return
        if other := self._others(path):
            raise self._taken(item, item.wanted.path, other)
        # What is there is not what is wanted: it loses the name, and is kept.
        self._set_aside(path)
        item.note = f"{why}; it is kept as {path.name}.rejected"
        item.there, item.size, item.done, item.before = None, None, 0, 0
        item.step = "ask"

    def _set_aside(self, path: Path) -> None:
        rejected = path.with_name(path.name + plan.REJECTED)
        path.replace(rejected)
        self._record.forget(path)
        self._outcome.set_aside.append(str(rejected))
        self._outcome.changed = True

    # Moving

    def _move(self, item: Download) -> None:
        size = item.size
        if size is None:
            raise AssertionError(f"{item.label} has no size")
        first = item.asked.sources[0]
        item.part.parent.mkdir(parents=True, exist_ok=True)
        whole = self._prepare(item)
        self._room(item)
        item.step = "moving"
        item.done = plan.allocated(item.part)
        item.before = max(item.before, item.done)
        item.mark = (time.monotonic(), item.done, 0)
        item.reread = False
        self._follow(item)
        if whole:
            self._complete(item)
        elif first.single:
            item.stream = Stream(
                first,
                item.part,
                lambda stream, problem: self._news.put(
                    lambda: self._try(item, lambda _item: self._streamed(item, stream, problem))
                ),
                limit=self._settings.limit // self._settings.parallel,
                timeout_s=self._settings.timeout_s,
                version=item.asked.version,
            )
            item.stream.start()
        else:
            if not self._aria2.alive:
                self._aria2.start()
            item.gid = self._aria2.add(
                [source.url for source in item.asked.sources],
                item.part,
                connections=item.connections if first.ranges else 1,
                split=self._settings.split_from,
                piece=piece_size(size),
                in_order=first.ranges and size >= self._settings.follow_from and item.attempt == 0,
                version=item.asked.version,
            )

    def _prepare(self, item: Download) -> bool:
        """Keep of a broken download only what can be continued; say whether all of it is there."""
        first = item.asked.sources[0]
        control = control_of(item.part)
        if not item.part.exists():
            control.unlink(missing_ok=True)
            return False
        length = item.part.stat().st_size
        if not control.exists() and length == item.size:
            return True
        if first.single:
            # One stream writes from front to back, so the length says how far it came.
            fits = not control.exists() and length < (item.size or 0)
        else:
            fits = control_length(control) == item.size and first.ranges
        if not fits:
            discard(item.part)
        return False

    def _room(self, item: Download) -> None:
        device = item.part.parent.stat().st_dev
        promised = sum(
            max(0, (other.size or 0) - plan.allocated(other.part))
            for other in self._items
            if other.step == "moving" and other.part.parent.stat().st_dev == device
        )
        need = (item.size or 0) - plan.allocated(item.part)
        free = plan.free(item.part) - self._settings.reserve - promised
        if need > free:
            raise Problem(
                "disk_full",
                f"the disk is too full: {human(need)} are needed below {item.part.parent}, and "
                f"{human(max(0, free))} are free for it",
            )

    def _follow(self, item: Download) -> None:
        item.follower = Follower(
            item.part,
            lambda follower, result: self._news.put(
                lambda: self._try(item, lambda _item: self._judge(item, follower, result))
            ),
        )
        item.follower.start()

    def _poll(self) -> None:
        if not any(item.gid for item in self._items):
            return
        if not self._aria2.alive:
            self._lost()
            return
        try:
            states = {state["gid"]: state for state in self._aria2.status()}
        except (GoneError, Problem):
            return
        for item in self._items:
            if item.gid:
                state = states.get(item.gid, {"status": "removed"})
                self._try(item, lambda current, state=state: self._watch(current, state))  # type: ignore[misc]

    def _watch(self, item: Download, state: dict[str, Any]) -> None:
        host = item.asked.sources[0].host
        if state["status"] in {"complete", "error", "removed"}:
            self._dismiss(item)
            if state["status"] == "complete":
                self._complete(item)
                return
            raise from_aria2(int(state.get("errorCode") or 1), state.get("errorMessage") or "", host)
        total = int(state["totalLength"])
        if not total:
            return
        if total != item.size:
            raise Problem("wrong_size", f"{host} sends {total} bytes, and {item.size} were stated", another_try=True)
        item.done = int(state["completedLength"])
        if item.follower:
            item.follower.reach(leading_bytes(state.get("bitfield") or "", int(state["pieceLength"]), total))
        self._not_stalled(item, host)

    def _not_stalled(self, item: Download, host: str) -> None:
        now = time.monotonic()
        since, had, best = item.mark
        if now - since < self._settings.stall_s:
            return
        grown = item.done - had
        item.mark = (now, item.done, max(best, grown))
        if grown <= best // 50:
            # Nothing moves, or one slow connection holds the rest up: new connections share what is left.
            raise Problem("network", f"{host} sent only {human(max(0, grown))} in {now - since:.0f} s")

    def _dismiss(self, item: Download) -> None:
        gid, item.gid = item.gid, ""
        with contextlib.suppress(GoneError, Problem):
            self._aria2.forget(gid)

    def _lost(self) -> None:
        """The process of aria2c died: start another, and go on with what is on the disk."""
        self._aria2.kill()
        self._outcome.restarts += 1
        for item in self._items:
            if item.gid:
                item.gid = ""
                if self._outcome.restarts > _RESTARTS:
                    self._fail(item, Problem("local", "aria2c dies again and again"))
                else:
                    self._abandon(item)
                    item.step = "ask"

    def _streamed(self, item: Download, stream: Stream, problem: Problem | None) -> None:
        if item.stream is not stream:
            return
        item.done, item.stream = stream.moved, None
        if problem:
            raise problem
        self._complete(item)

    # Proving

    def _complete(self, item: Download) -> None:
        item.step = "verifying"
        actual = item.part.stat().st_size
        if actual != item.size:
            raise Problem("wrong_size", f"{actual} bytes arrived, and {item.size} were stated", another_try=True)
        item.done = actual
        if item.follower:
            item.follower.reach(actual, last=True)

    def _judge(self, item: Download, follower: Follower, result: str | Exception) -> None:
        if item.follower is not follower:
            return
        item.follower = None
        if isinstance(result, Exception):
            raise result
        expected = item.asked.expected
        if expected in {result, None}:
            item.digest = result
            try:
                content.check(item.part, item.wanted.name, hashed=item.by != "size")
            except Problem as problem:
                self._reject(item, problem)
            self._name(item)
        elif not item.reread:
            # The front was hashed while it was written: read it all again before it is called wrong.
            item.reread = True
            self._follow(item)
            self._complete(item)
        else:
            known = "known before" if item.by == "catalogue" else "stated by the host"
            # Bytes can be damaged on the way, once.
            text = f"sha256 is {result}, expected is {expected} ({known})"
            self._reject(item, Problem("wrong_hash", text, another_try=True))

    def _reject(self, item: Download, problem: Problem) -> None:
        path = item.part.with_name(item.wanted.name + plan.REJECTED)
        item.part.replace(path)
        item.rejected += 1
        if str(path) not in self._outcome.set_aside:
            self._outcome.set_aside.append(str(path))
        self._outcome.changed = True
        raise replace(problem, message=f"{problem}; what came is kept as {path.name}")

    def _name(self, item: Download) -> None:
        """Give a verified file its name, for good."""
        path = self._path(item)
        if path.suffix == ".zip":
            self._open_archive(item, path)
        else:
            item.part.chmod(0o644)
            item.part.replace(path)
            sync_folder(path.parent)
            self._remember(item, path)
        for left in list(plan.parts(path)):
            discard(left)
        if item.rejected:
            rejected = path.with_name(path.name + plan.REJECTED)
            rejected.unlink(missing_ok=True)
            self._outcome.set_aside.remove(str(rejected))
        item.step = "done"
        self._outcome.changed = True
        self._outcome.fetched_bytes += item.size or 0

    def _open_archive(self, item: Download, path: Path) -> None:
        found = content.look(item.part)
        if found.bytes > plan.free(path) - self._settings.reserve:
            raise Problem("disk_full", f"{human(found.bytes)} are needed to unpack {path.name}")
        members = [path.parent / name for name in found.take]
        for member in members:
            other = self._others(member, item.digest) or self._claims.get(member, (item.wanted.id, None))[0]
            if other != item.wanted.id:
                raise self._taken(item, member.name, other)
        for member in members:
            self._claims[member] = (item.wanted.id, item)
            if member.exists() and not self._record.untouched(member):
                self._set_aside(member)
        for member in content.unpack(item.part, path.parent, found, hashed=item.by != "size"):
            self._record.add(
                member,
                id_=item.wanted.id,
                owner_list=self._settings.owner_list,
                sha256=sha256(member),
                by=item.by,
                archive=item.digest,
            )
        sync_folder(path.parent)
        discard(item.part)
        left = f"; left out: {content.names(found.leave)}" if found.leave else ""
        item.note = f"{path.name} held {', '.join(found.take)}{left}"

    def _remember(self, item: Download, path: Path) -> None:
        self._record.add(path, id_=item.wanted.id, owner_list=self._settings.owner_list, sha256=item.digest, by=item.by)

    def _path(self, item: Download) -> Path:
        return self._settings.root / item.wanted.path

    # Trouble

    def _abandon(self, item: Download) -> None:
        if item.follower:
            item.follower.stop()
            item.follower = None
        if item.stream:
            item.stream.stop()
            item.stream = None
        if item.gid:
            with contextlib.suppress(GoneError, Problem):
                self._aria2.cut(item.gid)
            item.gid = ""

    def _fail(self, item: Download, problem: Problem) -> None:
        """Decide between another attempt and giving up."""
        lasts = bool(item.answer and item.answer.sources[0].ranges) and problem.kind not in _NO_PROGRESS
        progressed = lasts and item.moved > item.before
        self._abandon(item)
        item.before = max(item.before, item.done)
        if not (problem.kind == "disk_full" and item.rejected):
            item.problem = problem
        if problem.kind in _SPOILT and item.part.name:
            with contextlib.suppress(OSError):
                discard(item.part)
        if problem.kind == "link_refused":
            item.connections = 4 if item.connections > 4 else 1
        if item.answer and item.answer.from_peers and not item.peers_failed:
            # A peer that fails costs no attempt: the origin is the last source.
            item.peers_failed = True
            item.step = "ask"
            return
        item.attempt = 0 if progressed else item.attempt + 1
        wait = delay_s(problem, item.attempt, self._settings.pause_s)
        if wait > self._settings.longest_wait_s:
            item.problem = replace(problem, message=f"{problem} and asks to wait {duration(wait)}")
        elif not problem.lasting and item.attempt < tries(problem, self._settings.tries):
            item.step, item.until = "resting", time.monotonic() + wait
            return
        item.step = "failed"

    def _end(self) -> None:
        for item in self._items:
            if item.follower:
                item.follower.stop()
            if item.stream:
                item.stream.stop()
        if any(item.gid for item in self._items):
            self._aria2.stop()
        else:
            self._aria2.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # Telling

    def _settle(self) -> None:
        outcome = self._outcome
        for item in self._items:
            status = {"done": "present" if item.note == "present" else "fetched", "failed": "failed"}
            entry = {
                "id": item.wanted.id,
                "path": str(self._path(item)),
                "status": status.get(item.step, "pending"),
                "bytes": item.size,
                "sha256": item.digest or None,
                "proof": item.by if item.step == "done" else None,
            }
            if item.note not in {"", "present"}:
                entry["note"] = item.note
            outcome.files.append(entry)
            if item.step == "failed" and item.problem:
                text = plain(self._settings.tokens.hide(str(item.problem)))  # part of it may be a host's own words
                outcome.failed.append(
                    {
                        "id": item.wanted.id,
                        "file": item.label,
                        "kind": item.problem.kind,
                        "problem": text[:_LONGEST_TEXT],
                    }
                )
        if outcome.fetched_bytes > _SHORT * 4:
            self._record.rate = outcome.fetched_bytes / outcome.seconds
            self._record.save()
        self._prune()

    def _prune(self) -> None:
        settings, outcome = self._settings, self._outcome
        outcome.unwanted = plan.unwanted(self._wanted, settings.root, self._record, settings.owner_list)
        if not settings.prune or outcome.failed or outcome.interrupted:
            return
        for item in outcome.unwanted:
            path = Path(item["path"])
            discard(path)
            self._record.forget(path)
            outcome.removed.append(str(path))
            outcome.changed = True
        outcome.unwanted = []

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._reported < 1.0:
            return
        self._reported = now
        done = sum(item.moved for item in self._items)
        self._meter.add(now, done)
        state = {
            "phase": "done" if last else "fetching",
            "pid": os.getpid(),
            "at": int(time.time()),
            "done": done,
            "total": sum(max(item.size or item.wanted.guess, item.moved) for item in self._items),
            "rate": round(self._meter.rate),
            "files": len(self._items),
            "files_done": sum(item.step == "done" for item in self._items),
            "failed": sum(item.step == "failed" for item in self._items),
            "resting": sum(item.step == "resting" for item in self._items),
            "verifying": sum(
                item.step == "verifying" or bool(item.there) for item in self._items if item.step != "done"
            ),
            "moving": [
                {"name": item.label, "done": item.moved, "bytes": item.size or 0}
                for item in self._items
                if item.step == "moving"
            ],
        }
        progress.save(self._settings.state_dir, state)
        self._report(state)


def discard(part: Path) -> None:
    """Remove a file, or what a broken download has left of it."""
    part.unlink(missing_ok=True)
    control_of(part).unlink(missing_ok=True)


def make_folders(request: Request) -> None:
    """Make the folders that the user may not make, and give them to it."""
    root, state_dir = request.settings.root, request.settings.state_dir
    root.mkdir(parents=True, exist_ok=True)
    tops = {PurePosixPath(item.folder).parts[0] for item in request.wanted if item.folder}
    for folder in [state_dir, *(root / top for top in sorted(tops))]:
        if not folder.exists():
            folder.mkdir(parents=True)
            # Whatever the umask of the host's root is, the services may read.
            folder.chmod(_MODE)
        if not request.user:
            continue
        owner = account(request.user)
        with opened_folder(folder) as handle:
            if os.fstat(handle).st_uid == owner.pw_uid:
                continue
            os.chown(f"/proc/self/fd/{handle}", owner.pw_uid, owner.pw_gid)
            # What an earlier run as another user has left.
            for entry in folder.iterdir() if folder == state_dir else []:
                os.chown(entry.name, owner.pw_uid, owner.pw_gid, dir_fd=handle, follow_symlinks=False)
