"""Fetches a list of files: asks where they are, lets aria2c move them, proves them, and gives them their names."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import archive, content, progress, survey
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.aria2 import (
    Aria2,
    GoneError,
    control_length,
    control_of,
    leading_bytes,
    piece_size,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.asking import ask, described, hosts
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.hashing import Follower, sha256
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.job import (
    Answer,
    Job,
    Outcome,
    Settings,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import (
    Problem,
    delay_s,
    from_any,
    from_aria2,
    tries,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.progress import Meter, human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.recheck import recheck
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.stream import Stream

_SHORT = 64 * 1024 * 1024
_RESTARTS = 50
# What was fetched before one of these cannot be used.
_SPOILT = frozenset({"restart", "wrong_size"})
# These cost an attempt even when bytes were moved, or a host that never gets it right would be asked for ever.
_NO_PROGRESS = _SPOILT | {"wrong_hash", "html"}


class Engine:
    """One run over a list."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        settings: Settings,
        lock: int,
        tell: Callable[[dict[str, Any]], None] = lambda _told: None,
    ) -> None:
        self._settings = settings
        self._wanted = list(wanted)
        self._tell = tell
        self._record = Record(settings.state_dir)
        self._jobs: list[Job] = []
        self._claims: dict[Path, tuple[str, Job | None]] = {}
        """Who has, or will have, which name."""
        self._news: queue.Queue[Callable[[], None]] = queue.Queue()
        self._pool = ThreadPoolExecutor(max_workers=6)
        self._aria2 = Aria2(lock=lock, limit=settings.limit, pause_s=settings.pause_s)
        self._hosts_rest: dict[str, float] = {}
        self._meter = Meter()
        self._outcome = Outcome()
        self._stop = threading.Event()
        self._told = 0.0

    def stop(self) -> None:
        """Ask the run to end early, keeping what it has."""
        self._stop.set()

    def read_again(self) -> None:
        """Hash what was proven before; what is no longer right loses its name, and is fetched again."""
        for item in recheck(self._record, self._settings.owner_list):
            self._set_aside(Path(item["path"]))

    def run(self) -> Outcome:
        """Fetch and prove everything that is missing."""
        begun = time.monotonic()
        self._sort()
        try:
            while not self._stop.is_set() and any(job.step not in {"done", "failed"} for job in self._jobs):
                self._advance()
                self._report()
        finally:
            self._outcome.interrupted = self._stop.is_set()
            self._end()
        self._outcome.seconds = time.monotonic() - begun
        self._settle()
        if self._jobs:
            self._report(last=True)
        return self._outcome

    def _sort(self) -> None:
        owner_list = self._settings.owner_list
        for wanted in self._wanted:
            found = survey.look(wanted, self._settings.root, self._record, owner_list)
            if found.status == "proven":
                self._outcome.files.append(self._present(found))
                unpacked = [path for path, proof in self._record.of(wanted.id, owner_list) if proof.archive]
                for path in {Path(found.path), *unpacked}:
                    self._claims[path] = (wanted.id, None)
                continue
            job = Job(wanted, self._settings.connections)
            if wanted.placed:
                self._claims[self._path(job)] = (wanted.id, job)
            if found.status == "unproven":
                self._to_prove(job, Path(found.path))
            self._jobs.append(job)
        # Long files first: the short ones fill the gaps, and what is hashed last is small.
        self._jobs.sort(key=lambda job: -job.wanted.guess)

    def _present(self, found: survey.Found) -> dict[str, Any]:
        proof = self._record.proofs[found.path]
        return {
            "id": found.id,
            "path": found.path,
            "status": "present",
            "bytes": found.bytes,
            "sha256": proof.sha256,
            "proof": proof.by,
        }

    def _to_prove(self, job: Job, path: Path) -> None:
        job.there = path
        job.size = job.done = job.before = path.stat().st_size

    def _advance(self) -> None:
        now = time.monotonic()
        moving = sum(job.step == "moving" for job in self._jobs)
        asked = sum(job.step in {"asking", "ready"} and not job.there and job.wanted.placed for job in self._jobs)
        # Nothing is fetched before all names are known, or one file could take the name of another.
        unnamed = any(
            job.step in {"ask", "asking"} and not job.wanted.placed and not job.attempt and not self._rests(job, now)
            for job in self._jobs
        )
        for job in self._jobs:
            if job.step == "resting" and now >= job.until:
                job.step = "ask"
            # Only as many are asked for as can start soon: a signed link is good for an hour.
            now_or_later = job.there or not job.wanted.placed or (not unnamed and asked < self._settings.parallel)
            if job.step == "ask" and now_or_later and not self._rests(job, now):
                asked += not job.there and job.wanted.placed
                self._ask(job)
            elif job.step == "ready" and moving < self._settings.parallel:
                moving, asked = moving + 1, asked - 1
                self._try(job, self._move)
        self._poll()
        short = any(job.step == "moving" and (job.size or 0) < _SHORT for job in self._jobs)
        self._listen(0.05 if short else 0.25)

    def _rests(self, job: Job, now: float) -> bool:
        return any(self._hosts_rest.get(host, 0.0) > now for host in hosts(job.wanted, self._settings))

    def _listen(self, wait: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._news.get(timeout=wait)()
            while True:
                self._news.get_nowait()()

    def _try(self, job: Job, action: Callable[[Job], None]) -> None:
        try:
            action(job)
        except GoneError:
            self._fail(job, Problem("crashed", "aria2c ended"))
        except Exception as error:  # one file's trouble is not the others'
            self._fail(job, from_any(error))

    # Asking

    def _ask(self, job: Job) -> None:
        job.step = "asking"
        self._pool.submit(self._ask_now, job)

    def _ask_now(self, job: Job) -> None:
        """Ask in a thread; the answer is dealt with in the main loop."""
        answer: Answer | None = None
        named: Wanted | None = None
        digest = ""
        trouble: Problem | None = None
        try:
            if not job.wanted.placed:
                named = described(job.wanted, self._settings)
            elif not (job.there and job.wanted.sha256):
                peers = bool(self._settings.peers) and not job.peers_failed
                answer = ask(job.wanted, self._settings, peers=peers, limited=self._limited)
            if job.there:
                digest = sha256(job.there)
        except Exception as error:  # a thread that does not report would be waited for, for ever
            trouble = from_any(error)
        self._news.put(lambda: self._try(job, lambda _job: self._answered(job, named or answer, digest, trouble)))

    def _limited(self, host: str, wait_s: float) -> None:
        if wait_s <= self._settings.longest_wait_s:
            self._hosts_rest[host] = time.monotonic() + wait_s

    def _answered(self, job: Job, answer: Answer | Wanted | None, digest: str, trouble: Problem | None) -> None:
        if trouble:
            raise trouble
        if isinstance(answer, Wanted):
            job.wanted = answer
            self._claim(job)
            if self._path(job).exists():
                self._to_prove(job, self._path(job))
            job.step = "ask"
            return
        if answer:
            job.answer, job.wanted, job.by = answer, answer.wanted, answer.by
        if job.there:
            self._judge_there(job, job.there, digest)
            return
        assert job.answer  # noqa: S101  only a file that is there is looked at without asking
        path = self._path(job)
        job.size = job.answer.size
        job.part = path.with_name(f".{path.name}.{survey.tag(job.answer.expected, job.size)}{survey.PART}")
        job.step = "ready"

    def _claim(self, job: Job) -> None:
        """Take a name that was not known before; where another file has it, neither is fetched."""
        other, rival = self._claims.setdefault(self._path(job), (job.wanted.id, job))
        if rival is job:
            return
        problem = self._taken(job, job.wanted.path, other)
        if rival and not rival.there and rival.step == "ask":
            self._fail(rival, problem)
        raise problem

    def _taken(self, job: Job, path: str, other: str) -> Problem:
        return Problem(
            "same_name",
            f"{job.wanted.id} and {other} would both be {path}; give one of them another name in wan_models_files, "
            "for example civitai: 12345 with name: other.safetensors",
        )

    def _others(self, path: Path, archive: str = "") -> str:
        """Say whose a file is that another list has fetched."""
        proof = self._record.untouched(path)
        if proof and proof.owner_list != self._settings.owner_list and not (archive and proof.archive == archive):
            return f"{proof.id} of the list {proof.owner_list}"
        return ""

    def _judge_there(self, job: Job, path: Path, digest: str) -> None:
        expected = job.answer.expected if job.answer else job.wanted.sha256
        size = path.stat().st_size
        why = f"what was there has sha256 {digest}, wanted is {expected}"
        if digest == expected or (job.answer and job.by == "size" and size == job.answer.size):
            try:
                content.check(path, path.name, hashed=job.by != "size")
            except Problem as problem:
                why = str(problem)
            else:
                job.digest, job.size, job.note = digest, size, "present"
                self._remember(job, path)
                job.step = "done"
                return
        if other := self._others(path):
            raise self._taken(job, job.wanted.path, other)
        # What is there is not what is wanted: it loses the name, and is kept.
        self._set_aside(path)
        job.note = f"{why}; it is kept as {path.name}.rejected"
        job.there, job.size, job.done, job.before = None, None, 0, 0
        job.step = "ask"

    def _set_aside(self, path: Path) -> None:
        rejected = path.with_name(path.name + survey.REJECTED)
        path.replace(rejected)
        self._record.forget(path)
        self._outcome.set_aside.append(str(rejected))
        self._outcome.changed = True

    # Moving

    def _move(self, job: Job) -> None:
        assert job.answer  # noqa: S101
        assert job.size is not None  # noqa: S101
        first = job.answer.sources[0]
        job.part.parent.mkdir(parents=True, exist_ok=True)
        whole = self._prepare(job)
        self._room(job)
        job.step = "moving"
        job.done = job.before = survey.allocated(job.part)
        job.mark = (time.monotonic(), job.done, 0)
        job.reread = False
        self._follow(job)
        if whole:
            self._complete(job)
        elif first.single:
            job.stream = Stream(
                first,
                job.part,
                lambda stream, problem: self._news.put(
                    lambda: self._try(job, lambda _job: self._streamed(job, stream, problem))
                ),
                limit=self._settings.limit // self._settings.parallel,
                timeout_s=self._settings.timeout_s,
            )
            job.stream.start()
        else:
            if not self._aria2.alive:
                self._aria2.start()
            job.gid = self._aria2.add(
                [source.url for source in job.answer.sources],
                job.part,
                connections=job.connections if first.ranges else 1,
                split=self._settings.split_from,
                piece=piece_size(job.size),
                in_order=first.ranges and job.size >= self._settings.follow_from and job.attempt == 0,
            )

    def _prepare(self, job: Job) -> bool:
        """Keep of a broken download only what can be continued; say whether all of it is there."""
        assert job.answer  # noqa: S101
        first = job.answer.sources[0]
        control = control_of(job.part)
        if not job.part.exists():
            control.unlink(missing_ok=True)
            return False
        length = job.part.stat().st_size
        if not control.exists() and length == job.size:
            return True
        if first.single:
            # One stream writes from front to back, so the length says how far it came.
            fits = not control.exists() and length < (job.size or 0)
        else:
            fits = control_length(control) == job.size and first.ranges
        if not fits:
            discard(job.part)
        return False

    def _room(self, job: Job) -> None:
        device = job.part.parent.stat().st_dev
        promised = sum(
            max(0, (other.size or 0) - survey.allocated(other.part))
            for other in self._jobs
            if other.step == "moving" and other.part.parent.stat().st_dev == device
        )
        need = (job.size or 0) - survey.allocated(job.part)
        free = survey.free(job.part) - self._settings.reserve - promised
        if need > free:
            raise Problem(
                "disk_full",
                f"the disk is too full: {human(need)} are needed below {job.part.parent}, and "
                f"{human(max(0, free))} are free for it",
            )

    def _follow(self, job: Job) -> None:
        job.follower = Follower(
            job.part,
            lambda follower, result: self._news.put(
                lambda: self._try(job, lambda _job: self._judge(job, follower, result))
            ),
        )
        job.follower.start()

    def _poll(self) -> None:
        if not any(job.gid for job in self._jobs):
            return
        if not self._aria2.alive:
            self._lost()
            return
        try:
            states = {state["gid"]: state for state in self._aria2.status()}
        except (GoneError, Problem):
            return
        for job in self._jobs:
            if job.gid:
                state = states.get(job.gid, {"status": "removed"})
                self._try(job, lambda current, state=state: self._watch(current, state))  # type: ignore[misc]

    def _watch(self, job: Job, state: dict[str, Any]) -> None:
        assert job.answer  # noqa: S101
        host = job.answer.sources[0].host
        if state["status"] in {"complete", "error", "removed"}:
            self._dismiss(job)
            if state["status"] == "complete":
                self._complete(job)
                return
            raise from_aria2(int(state.get("errorCode") or 1), state.get("errorMessage") or "", host)
        total = int(state["totalLength"])
        if not total:
            return
        if total != job.size:
            raise Problem("wrong_size", f"{host} sends {total} bytes, and {job.size} were stated", another_try=True)
        job.done = int(state["completedLength"])
        if job.follower:
            job.follower.reach(leading_bytes(state.get("bitfield") or "", int(state["pieceLength"]), total))
        self._not_stalled(job, host)

    def _not_stalled(self, job: Job, host: str) -> None:
        now = time.monotonic()
        since, had, best = job.mark
        if now - since < self._settings.stall_s:
            return
        grown = job.done - had
        job.mark = (now, job.done, max(best, grown))
        if grown <= best // 50:
            # Nothing moves, or one slow connection holds the rest up: new connections share what is left.
            raise Problem("network", f"{host} sent only {human(grown)} in {now - since:.0f} s")

    def _dismiss(self, job: Job) -> None:
        gid, job.gid = job.gid, ""
        with contextlib.suppress(GoneError, Problem):
            self._aria2.forget(gid)

    def _lost(self) -> None:
        """The process of aria2c died: start another, and go on with what is on the disk."""
        self._aria2.kill()
        self._outcome.restarts += 1
        for job in self._jobs:
            if job.gid:
                job.gid = ""
                if self._outcome.restarts > _RESTARTS:
                    self._fail(job, Problem("local", "aria2c dies again and again"))
                else:
                    self._abandon(job)
                    job.step = "ask"

    def _streamed(self, job: Job, stream: Stream, problem: Problem | None) -> None:
        if job.stream is not stream:
            return
        job.done, job.stream = stream.moved, None
        if problem:
            raise problem
        self._complete(job)

    # Proving

    def _complete(self, job: Job) -> None:
        job.step = "proving"
        actual = job.part.stat().st_size
        if actual != job.size:
            raise Problem("wrong_size", f"{actual} bytes arrived, and {job.size} were stated", another_try=True)
        job.done = actual
        if job.follower:
            job.follower.reach(actual, last=True)

    def _judge(self, job: Job, follower: Follower, result: str | Exception) -> None:
        if job.follower is not follower:
            return
        assert job.answer  # noqa: S101
        job.follower = None
        if isinstance(result, Exception):
            raise result
        expected = job.answer.expected
        if expected in {result, None}:
            job.digest = result
            try:
                content.check(job.part, job.wanted.name, hashed=job.by != "size")
            except Problem as problem:
                self._reject(job, problem)
            self._name(job)
        elif not job.reread:
            # The front was hashed while it was written: read it all again before it is called wrong.
            job.reread = True
            self._follow(job)
            self._complete(job)
        else:
            known = "known before" if job.by == "catalogue" else "stated by the host"
            # Bytes can be damaged on the way, once.
            text = f"sha256 is {result}, expected is {expected} ({known})"
            self._reject(job, Problem("wrong_hash", text, another_try=True))

    def _reject(self, job: Job, problem: Problem) -> None:
        path = job.part.with_name(job.wanted.name + survey.REJECTED)
        job.part.replace(path)
        job.rejected += 1
        if str(path) not in self._outcome.set_aside:
            self._outcome.set_aside.append(str(path))
        self._outcome.changed = True
        raise replace(problem, message=f"{problem}; what came is kept as {path.name}")

    def _name(self, job: Job) -> None:
        """Give a proven file its name, for good."""
        path = self._path(job)
        if path.suffix == ".zip":
            self._open_archive(job, path)
        else:
            job.part.chmod(0o644)
            job.part.replace(path)
            sync_folder(path.parent)
            self._remember(job, path)
        for left in list(survey.parts(path)):
            discard(left)
        if job.rejected:
            rejected = path.with_name(path.name + survey.REJECTED)
            rejected.unlink(missing_ok=True)
            self._outcome.set_aside.remove(str(rejected))
        job.step = "done"
        self._outcome.changed = True
        self._outcome.fetched_bytes += job.size or 0

    def _open_archive(self, job: Job, path: Path) -> None:
        found = archive.look(job.part)
        if found.bytes > survey.free(path) - self._settings.reserve:
            raise Problem("disk_full", f"{human(found.bytes)} are needed to unpack {path.name}")
        members = [path.parent / name for name in found.take]
        for member in members:
            other = self._others(member, job.digest) or self._claims.get(member, (job.wanted.id, None))[0]
            if other != job.wanted.id:
                raise self._taken(job, member.name, other)
        for member in members:
            self._claims[member] = (job.wanted.id, job)
            if member.exists() and not self._record.untouched(member):
                self._set_aside(member)
        for member in archive.unpack(job.part, path.parent, found, hashed=job.by != "size"):
            self._record.add(
                member,
                id_=job.wanted.id,
                owner_list=self._settings.owner_list,
                sha256=sha256(member),
                by=job.by,
                archive=job.digest,
            )
        sync_folder(path.parent)
        discard(job.part)
        left = f"; left out: {', '.join(found.leave)}" if found.leave else ""
        job.note = f"{path.name} held {', '.join(found.take)}{left}"

    def _remember(self, job: Job, path: Path) -> None:
        self._record.add(path, id_=job.wanted.id, owner_list=self._settings.owner_list, sha256=job.digest, by=job.by)

    def _path(self, job: Job) -> Path:
        return self._settings.root / job.wanted.path

    # Trouble

    def _abandon(self, job: Job) -> None:
        if job.follower:
            job.follower.stop()
            job.follower = None
        if job.stream:
            job.stream.stop()
            job.stream = None
        if job.gid:
            with contextlib.suppress(GoneError, Problem):
                self._aria2.cut(job.gid)
            job.gid = ""

    def _fail(self, job: Job, problem: Problem) -> None:
        """Decide between another attempt and giving up."""
        lasts = bool(job.answer and job.answer.sources[0].ranges) and problem.kind not in _NO_PROGRESS
        progressed = lasts and job.moved > job.before
        self._abandon(job)
        job.before = job.done
        if not (problem.kind == "disk_full" and job.rejected):
            job.problem = problem
        if problem.kind in _SPOILT and job.part.name:
            with contextlib.suppress(OSError):
                discard(job.part)
        if problem.kind == "link_refused":
            job.connections = 4 if job.connections > 4 else 1
        if job.answer and job.answer.from_peers and not job.peers_failed:
            # A peer that fails costs no attempt: the origin is the last source.
            job.peers_failed = True
            job.step = "ask"
            return
        job.attempt = 0 if progressed else job.attempt + 1
        wait = delay_s(problem, job.attempt, self._settings.pause_s)
        if wait > self._settings.longest_wait_s:
            job.problem = replace(problem, message=f"{problem} and asks to wait {progress.duration(wait)}")
        elif not problem.lasting and job.attempt < tries(problem, self._settings.tries):
            job.step, job.until = "resting", time.monotonic() + wait
            return
        job.step = "failed"

    def _end(self) -> None:
        for job in self._jobs:
            if job.follower:
                job.follower.stop()
            if job.stream:
                job.stream.stop()
        if any(job.gid for job in self._jobs):
            self._aria2.stop()
        else:
            self._aria2.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    # Telling

    def _settle(self) -> None:
        outcome = self._outcome
        for job in self._jobs:
            status = {"done": "present" if job.note == "present" else "fetched", "failed": "failed"}
            told = {
                "id": job.wanted.id,
                "path": str(self._path(job)),
                "status": status.get(job.step, "pending"),
                "bytes": job.size,
                "sha256": job.digest or None,
                "proof": job.by if job.step == "done" else None,
            }
            if job.note not in {"", "present"}:
                told["note"] = job.note
            outcome.files.append(told)
            if job.step == "failed" and job.problem:
                text = self._settings.tokens.hide(str(job.problem))
                outcome.failed.append(
                    {"id": job.wanted.id, "file": job.label, "kind": job.problem.kind, "problem": text}
                )
        if outcome.fetched_bytes > _SHORT * 4:
            self._record.rate = outcome.fetched_bytes / outcome.seconds
            self._record.save()
        self._prune()

    def _prune(self) -> None:
        settings, outcome = self._settings, self._outcome
        outcome.unwanted = survey.unwanted(self._wanted, settings.root, self._record, settings.owner_list)
        if not settings.prune or outcome.failed or outcome.interrupted:
            return
        for item in outcome.unwanted:
            path = Path(item["path"])
            discard(path)
            self._record.forget(path)
            outcome.removed.append(str(path))
            outcome.changed = True
        outcome.unwanted = []

    def _report(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._told < 1.0:
            return
        self._told = now
        done = sum(job.moved for job in self._jobs)
        self._meter.add(now, done)
        told = {
            "phase": "done" if last else "fetching",
            "pid": os.getpid(),
            "at": int(time.time()),
            "done": done,
            "total": sum(max(job.size or job.wanted.guess, job.moved) for job in self._jobs),
            "rate": round(self._meter.rate),
            "files": len(self._jobs),
            "files_done": sum(job.step == "done" for job in self._jobs),
            "failed": sum(job.step == "failed" for job in self._jobs),
            "resting": sum(job.step == "resting" for job in self._jobs),
            "proving": sum(job.step == "proving" or bool(job.there) for job in self._jobs if job.step != "done"),
            "moving": [
                {"name": job.label, "done": job.moved, "bytes": job.size or 0}
                for job in self._jobs
                if job.step == "moving"
            ],
        }
        progress.tell(self._settings.state_dir, told)
        self._tell(told)


def discard(part: Path) -> None:
    """Remove a file, or what a broken download has left of it."""
    part.unlink(missing_ok=True)
    control_of(part).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
